# SPDX-License-Identifier: GPL-2.0-only
"""What runs in a guest: measures each engine that its kernel has, and prints the tables.

An emulated machine's time says nothing. With its clocks counting instructions, one a nanosecond,
all that is measured there is instructions.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from cgstatfs.engines import ENGINES, Engine, EngineUnavailable

from .cases import flush, lookup, memory, update
from .frame import Table, take_turns
from .setting import Setting

__all__ = ("MARK",)

MARK = "table: "


def _engines() -> Iterator[Engine]:
    for kind in ENGINES:
        engine = kind()
        try:
            engine.probe()
        except EngineUnavailable:
            continue
        yield engine


def _instructions(setting: Setting, engine: Engine) -> Iterator[Table]:
    figures = take_turns(update.subjects(setting, engine, 1000), 5)
    yield from update.tables(f"one update, engine {engine.name}", "instructions", figures, (None,) * 3)
    yield lookup.measure(setting, engine, "thousands of instructions", 50, 5)


def _flushes(setting: Setting, engine: Engine) -> Iterator[Table]:
    yield flush.measure(
        setting, engine, [10, 500, 2000], [1, 10, 100, 1000], 2, "thousands of instructions"
    )


def _memory(setting: Setting, engine: Engine) -> Iterator[Table]:
    for name in "lookups", "updates":
        yield memory.measure(setting, engine, name, 200)


def main() -> None:
    """Run from the command line: what is to be measured."""
    measures = {"instructions": (_instructions, _flushes), "memory": (_memory,)}
    for engine in _engines():
        for measure in measures[sys.argv[1]]:
            with Setting() as setting:
                for table in measure(setting, engine):
                    print(MARK + table.to_json(), flush=True)


if __name__ == "__main__":
    main()
