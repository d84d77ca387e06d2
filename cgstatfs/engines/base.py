# SPDX-License-Identifier: GPL-2.0-only
"""The interface of an engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..libbpf import Map
from ..valuetype import ValueType

__all__ = ("Engine", "EngineUnavailable", "Lookup", "Setting", "Snapshot", "Usage")

# From a cgroup id to the value of its entry, flushed. Raises OSError: ENOENT if there is
# no entry (the cgroup is gone), EBUSY if a flush by somebody else does not end.
Lookup = Callable[[int], tuple[int, ...]]

# From the ids of cgroups, the one on top first, parents before their children, and the place of
# each one's parent in that order (of 64 bits, both), to a record for each, in that order: its id,
# or 0 if it has no entry, and the elements of its value. All are of one moment, after a flush of
# the one on top. Raises OSError: EBUSY if flushes by others do not end, ENOMEM.
Snapshot = Callable[[array, array], bytes]


class EngineUnavailable(Exception):
    """An engine cannot be used on this kernel; the message says why."""


@dataclass(frozen=True)
class Setting:
    """What a stats map is loaded with, besides its type.

    :param flags: of ``enum cgstat_flags``, by name
    :param initial: id of the initial cgroup; 0: the root of the hierarchy
    """

    flags: frozenset[str]
    initial: int


@dataclass(frozen=True)
class Usage:
    """What a stats map takes, and what it says of its updates.

    :param entries: entries there are
    :param room: how many there can be; None: as many as cgroups
    :param pairs: per-cpu arrays that were made as they were needed, besides those in slots; None:
        they come with entries
    :param memory: bytes
    :param spilled: updates that found no per-cpu array
    :param displaced: updates counted to an ancestor, for want of an entry
    :param lost: updates that could not be counted
    """

    entries: int
    room: int | None
    pairs: int | None
    memory: int
    spilled: int
    displaced: int
    lost: int


class Engine(ABC):
    """How updates are tracked and folded, and how a total is read.

    What a stats map consists of is named for it: its name in the collector's source, and an
    ending.

    :cvar name: as on the command line
    :cvar number: ``enum cgstat_engine`` of bpf/cgstat_entries.h
    :cvar parts: endings of its BPF maps; the values of the first have the type that describes it
    :cvar programs: endings of its programs
    :cvar attached: those among them that are attached by their section's name, in this order
    :cvar populate: the one among them that makes the entries of the cgroups that exist; None:
        they come with the map
    :cvar reader: of which of all these a lookup takes the descriptor
    :cvar snapshots_by: of which of them a snapshot does
    :cvar callers: the kinds of programs that can update, by what their sections begin with;
        None: all
    :cvar calls: what it is that the others cannot call
    :cvar aggregator: ending of the program that is the aggregator of a stats map that has one,
        which is registered; None: its programs call the function
    :cvar inside_rstat: whether programs can update that run where the kernel holds rstat's locks
    """

    name: str
    number: int
    parts: tuple[str, ...]
    programs: tuple[str, ...]
    attached: tuple[str, ...]
    populate: str | None
    reader: str
    snapshots_by: frozenset[str]
    callers: frozenset[str] | None = None
    calls: str = ""
    aggregator: str | None = None
    inside_rstat: bool = True

    @abstractmethod
    def probe(self) -> None:
        """Find out whether this kernel can run the engine.

        :raises EngineUnavailable: it cannot
        """

    @abstractmethod
    def configure(self, parts: Mapping[str, Map], setting: Setting) -> None:
        """Set up the BPF maps of one stats map, before load.

        :param parts: by the endings of :attr:`parts`
        """

    @abstractmethod
    def lookup(self, reader: int, value_type: ValueType) -> Lookup:
        """The flushing lookup of one stats map.

        :param reader: descriptor of the one named for :attr:`reader`, loaded; it has to stay
            open
        """

    @property
    def served(self) -> list[str]:
        """Endings of the programs, not attached, that whoever serves a stats map runs."""
        return sorted({self.reader, *self.snapshots_by}.intersection(self.programs))

    @abstractmethod
    def snapshot(self, served: Mapping[str, int], value_type: ValueType) -> Snapshot:
        """Snapshots of one stats map.

        :param served: descriptors of those of :attr:`snapshots_by`, which have to stay open
        """

    def aggregate(self, program: int, parts: Mapping[str, int], link: int | None) -> int:
        """Have a stats map folded by its :attr:`aggregator`.

        :param program: its descriptor
        :param parts: descriptors, by the endings of :attr:`parts`
        :param link: descriptor of that which stands for the one before, to be replaced
        :returns: descriptor of a link
        :raises OSError: the kernel refuses
        """
        raise NotImplementedError

    @abstractmethod
    def usage(self, parts: Mapping[str, int]) -> Usage:
        """What one stats map takes.

        :param parts: descriptors, by the endings of :attr:`parts`
        """
