# SPDX-License-Identifier: GPL-2.0-only
"""Run a command under each of the kernels; exit 0 if it passed under all."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from types import FrameType

from . import build, guest, kernels


def main() -> int:
    """Run from the command line."""
    arguments = _parser().parse_args()
    names = kernels.NAMES if arguments.kernel == "all" else (arguments.kernel,)
    # The guest is ended on the way out.
    signal.signal(signal.SIGTERM, _terminate)
    summary = [_run_one(name, arguments) for name in names]
    for line, _ in summary:
        print(line)
    return 0 if all(passed for _, passed in summary) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.vm", description=__doc__)
    parser.add_argument(
        "--kernel",
        choices=(*kernels.NAMES, *build.NAMES, "all"),
        default="all",
        help="default: all of Debian's",
    )
    parser.add_argument("--cpus", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--memory", default="2G", help="default: %(default)s")
    parser.add_argument(
        "--timeout",
        type=float,
        default=600,
        help="seconds for each guest, boot included; default: %(default)s",
    )
    parser.add_argument(
        "--counting",
        action="store_true",
        help="have the clocks of the guests count instructions, one a nanosecond",
    )
    parser.add_argument(
        "--refresh", action="store_true", help="ask for newer versions of the kernels"
    )
    parser.add_argument("command", nargs="+", metavar="COMMAND")
    return parser


def _terminate(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _run_one(name: str, arguments: argparse.Namespace) -> tuple[str, bool]:
    """Return the kernel's line of the summary, and whether it passed."""
    begin = time.monotonic()
    release = name
    try:
        kernel = kernels.fetch(name, refresh=arguments.refresh)
        release = kernel.release
        print(f"=== {release}", flush=True)
        status = _boot(name, kernel, arguments)
        outcome = "passed" if status == 0 else f"failed, exit status {status}"
        passed = status == 0
    except (kernels.KernelError, guest.GuestError) as error:
        print(f"error: {error}", file=sys.stderr)
        outcome, passed = "failed", False
    return f"{release}: {outcome}, {time.monotonic() - begin:.0f} s", passed


def _boot(name: str, kernel: kernels.Kernel, arguments: argparse.Namespace) -> int:
    """Run the command; its status.

    QEMU, emulating on several threads, now and then runs a guest's code while the guest rewrites
    it, as all do at boot and when programs are attached, and the guest panics. So there is a
    second try: where the panic says so, and for a kernel of Debian's that did not come as far as
    our command. One that is built here could have broken its own boot.
    """
    strays = (guest.EmulatorError,) if name in build.NAMES else (guest.EmulatorError, guest.BootError)
    try:
        return _run_guest(kernel, arguments)
    except strays as error:
        print(f"{error}; once more", file=sys.stderr, flush=True)
    return _run_guest(kernel, arguments)


def _run_guest(kernel: kernels.Kernel, arguments: argparse.Namespace) -> int:
    return guest.run(
        kernel, arguments.command, cpus=arguments.cpus, memory=arguments.memory,
        timeout=arguments.timeout, counting=arguments.counting,
    )  # fmt: skip


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
