# SPDX-License-Identifier: GPL-2.0-only
"""Measure: all cases, or those that are named."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from . import cases
from .frame import Missing
from .report import Results
from .setting import Setting, remove_leftovers

_RESULTS = Path(__file__).parent / "results"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true",
        help="what takes under two minutes; exit status 1 if a ratio is far above what is usual",
    )  # fmt: skip
    parser.add_argument("--no-guests", action="store_true", help="leave out what boots guests")
    parser.add_argument("--output", type=Path, help="a folder for JSON and plots")
    parser.add_argument("case", nargs="*", choices=[[], *cases.ALL], help="default: all")
    return parser


def _terminate(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _run(name: str, setting: Setting, results: Results) -> None:
    begin = time.monotonic()
    print(f"\n== {name}: {cases.ALL[name].TITLE}", flush=True)
    try:
        with setting:
            for table in cases.ALL[name].run(setting):
                results.add(name, table)
                print(results.text(table), flush=True)
    except Missing as error:
        results.failed[name] = str(error)
        print(f"  not measured: {error}", flush=True)
    except Exception as error:
        # The others can still be measured.
        logging.exception("%s", name)
        results.failed[name] = str(error) or repr(error)
    print(f"  ({time.monotonic() - begin:.0f} s)", flush=True)


def main() -> int:
    """Run from the command line; the exit status."""
    arguments = _parser().parse_args()
    if os.geteuid():
        sys.exit("error: not root: BPF and mounting need it")
    # What was made is removed on the way out.
    signal.signal(signal.SIGTERM, _terminate)
    results = Results(arguments.quick)
    print(results.heading())
    remove_leftovers()
    for name, case in cases.ALL.items():
        chosen = name in arguments.case if arguments.case else case.QUICK or not arguments.quick
        if chosen and not (arguments.no_guests and case.GUESTS):
            _run(name, Setting(arguments.quick), results)
    print(results.summary())
    output = arguments.output or (None if arguments.quick or arguments.case else _RESULTS)
    if output:
        _write(results, output)
    alarms = results.alarms() if arguments.quick else []
    for alarm in alarms:
        print(f"error: worse than noise can make it: {alarm}", file=sys.stderr)
    return 1 if alarms or results.failed else 0


def _write(results: Results, output: Path) -> None:
    """JSON, the README's table, and plots, in place of those of the run before."""
    from . import plots

    output.mkdir(parents=True, exist_ok=True)
    for path in output.glob("*.png"):
        path.unlink()
    results.write_json(output / "results.json")
    (output / "table.md").write_text(results.markdown())
    plots.write(results.tables, output)
    print(f"\nwritten to {output}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
