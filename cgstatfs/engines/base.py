# SPDX-License-Identifier: GPL-2.0-only
"""The interface of an engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from ..valuetype import ValueType

__all__ = ("Engine", "EngineUnavailable", "Lookup")

# From a cgroup id to the value of its entry, flushed. Raises OSError: ENOENT if there is
# no entry (the cgroup is gone), EBUSY if a flush by somebody else does not end.
Lookup = Callable[[int], tuple[int, ...]]


class EngineUnavailable(Exception):
    """An engine cannot be used on this kernel; the message says why."""


class Engine(ABC):
    """How updates are tracked and folded, and how a total is read.

    :cvar name: as on the command line
    :cvar number: ``enum cgstat_engine`` of bpf/cgstat.bpf.h
    :cvar programs: endings of the names of the programs that a stats map needs for this
        engine, besides those of its entries' life cycle
    :cvar attached: the ones among them that are attached by their section's name
    """

    name: str
    number: int
    programs: tuple[str, ...]
    attached: tuple[str, ...]

    @abstractmethod
    def probe(self) -> None:
        """Find out whether this kernel can run the engine.

        :raises EngineUnavailable: it cannot
        """

    @abstractmethod
    def lookup(self, program: int, value_type: ValueType) -> Lookup:
        """The flushing lookup of one stats map.

        :param program: descriptor of the one named for ``programs[-1]``, loaded; it has to stay
            open
        """
