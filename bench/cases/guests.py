# SPDX-License-Identifier: GPL-2.0-only
"""The engines that this kernel does not have, and machines with more cpus: in guests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from ..frame import Missing, Table
from ..setting import Setting

TITLE = "the other engines, in instructions, and memory with 8 cpus"
QUICK = False
GUESTS = True

_REPOSITORY = Path(__file__).resolve().parents[2]
_SECONDS = 600
# What is measured, on which kernel, with how many cpus. The kernel with the series can have 8.
_RUNS = (("instructions", "native-fast", 2), ("memory", "native-fast", 8))


def _measure(what: str, kernel: str, cpus: int) -> Iterator[Table]:
    from ..guest import MARK

    counting = ["--counting"] if what == "instructions" else []
    command = [
        sys.executable, "-m", "tests.vm", "--kernel", kernel, "--cpus", str(cpus), *counting,
        "--timeout", str(_SECONDS), "--", "python", "-m", "bench.guest", what,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=_REPOSITORY, stdout=subprocess.PIPE, text=True, check=False)
    for line in done.stdout.splitlines():
        _, mark, table = line.partition(MARK)
        if mark:
            yield Table.from_json(table)
    if done.returncode:
        raise Missing(f"the guest with {kernel} failed; it printed: {done.stdout[-2000:]}")


def run(setting: Setting) -> Iterator[Table]:
    """One guest after the other."""
    for what, kernel, cpus in _RUNS:
        for table in _measure(what, kernel, cpus):
            table.title += f", in a guest with {kernel}"
            yield table
