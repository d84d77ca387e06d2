# SPDX-License-Identifier: GPL-2.0-only
"""Try thousands of damaged collectors::

    make build/tests/hostile/tiny.bpf.o build/tests/hostile/kinds.bpf.o
    .venv/bin/python -m tests.fuzz --count 50000 --seed 1

Nothing that is loaded into the kernel is attached.
"""

from __future__ import annotations

import argparse
import sys
import time

from .run import KEPT, fuzz


def main() -> int:
    """Returns 1 if something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Try damaged collectors.")
    parser.add_argument("--count", type=int, default=50_000, help="how many (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="which ones (%(default)s)")
    parser.add_argument(
        "--load-every", type=int, default=4, metavar="K",
        help="have the kernel load every Kth that gets that far (%(default)s; 0: none)",
    )  # fmt: skip
    arguments = parser.parse_args()
    begun = time.monotonic()
    found = fuzz(arguments.count, arguments.seed, arguments.load_every)
    for outcome, number in found.outcomes.most_common():
        print(f"{number:8} {outcome}")
    print(f"{found.outcomes.total()} objects in {time.monotonic() - begun:.0f} s")
    for bug in found.bugs:
        print(bug)
    if found.bugs:
        print(f"the objects are in {KEPT}")
    return 1 if found.bugs else 0


if __name__ == "__main__":
    sys.exit(main())
