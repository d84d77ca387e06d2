# SPDX-License-Identifier: GPL-2.0-only
"""Which collectors there are to be loaded, by name: shipped ones, and drop-ins."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .objects import OBJECTS

__all__ = ("COLLECTORS", "SHIPPED", "drop_ins", "wanted")

# Where collectors are dropped in.
COLLECTORS = Path("/etc/cgstatfs/collectors.d")
SHIPPED = ("mm_reclaim", "proc_events", "sched_runqlat")
_ENDINGS = (".bpf.o", ".bcc.c")


def drop_ins(directories: Iterable[Path]) -> dict[str, Path]:
    """The collectors in directories, by name; later directories go before earlier ones.

    What is not named like a collector is left alone, as is a directory that is not there.

    :raises OSError: a directory cannot be read
    """
    found: dict[str, Path] = {}
    for directory in directories:
        try:
            paths = sorted(directory.iterdir())
        except FileNotFoundError:
            continue
        for path in paths:
            for ending in _ENDINGS:
                if path.name.endswith(ending) and path.name != ending:
                    found[path.name.removesuffix(ending)] = path
    return found


def wanted(directories: Iterable[Path]) -> dict[str, Path]:
    """The collectors of a mount, by name: shipped ones, and drop-ins, which go before them.

    :raises OSError: a directory cannot be read
    """
    shipped = {name: OBJECTS / f"{name}.bpf.o" for name in SHIPPED}
    return shipped | drop_ins(directories)
