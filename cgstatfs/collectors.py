# SPDX-License-Identifier: GPL-2.0-only
"""Collectors that run: their stats maps, and the pins that hold them.

A collector is loaded by :mod:`cgstatfs.loading` (or :mod:`cgstatfs.bcc_loading`), in whichever
process, and pinned in bpffs. From its pins any process can serve it; they are all that it
needs to go on counting.

A collector's directory in bpffs, without the dots that bpffs reserves::

    NAME/maps/PREFIX_{entries,pairs,...}    of each stats map: its engine's parts
    NAME/maps/PREFIX_config                 struct cgstat_map_config
    NAME/maps/config                        struct cgstat_config
    NAME/programs/*, NAME/links/*           by the names of the programs
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from . import btf, libbpf
from .engines import ENGINES, Engine, Usage
from .engines.base import Lookup, Snapshot
from .valuetype import ValueType

__all__ = (
    "CONFIG", "Collector", "CollectorError", "MAP_CONFIG", "StatsMap",
    "check_collector_name", "check_file_name", "detach", "remove_pins",
)  # fmt: skip

# struct cgstat_config and struct cgstat_map_config without its operations
CONFIG = struct.Struct("=4I")
MAP_CONFIG = struct.Struct("=Q3I")
_CONFIG_PIN = "config"
# A worker's delay is milliseconds.
_DETACH_SECONDS = 10


class CollectorError(Exception):
    """A collector cannot be used; the message names its file and the reason."""


@dataclass
class StatsMap:
    """One stats map of a collector.

    :param file: name of its file in every directory
    :param prefix: its name in the collector's source
    :param initial: id of its initial cgroup; 0: the root of the hierarchy
    :param lookup: the engine's flushing lookup
    :param snapshot: of many cgroups; None: an earlier version of cgstatfs loaded it, without
    """

    file: str
    prefix: str
    value_type: ValueType
    flags: frozenset[str]
    initial: int
    lookup: Lookup
    snapshot: Snapshot | None = None


@dataclass
class Collector:
    """A loaded collector, by descriptors under the names that they are pinned with.

    It runs until :meth:`close`, or for as long as it is pinned.

    :ivar engine: of all its stats maps
    :ivar notes: what its user should know
    """

    name: str
    engine: Engine
    maps: dict[str, int] = field(default_factory=dict)
    programs: dict[str, int] = field(default_factory=dict)
    links: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def prefixes(self) -> Iterator[str]:
        """Names of its stats maps in its source."""
        for name in self.maps:
            prefix = name.removesuffix("_ctl")
            if prefix != name and f"{prefix}_{_CONFIG_PIN}" in self.maps:
                yield prefix

    @cached_property
    def stats_maps(self) -> list[StatsMap]:
        """What it serves.

        :raises CollectorError: a type is not that of a stats map
        """
        return [self._stats_map(prefix) for prefix in self.prefixes]

    def parts(self, prefix: str) -> dict[str, int]:
        """The BPF maps of one stats map, by the endings of their names.

        One that an earlier version pinned may have fewer.
        """
        names = {part: f"{prefix}_{part}" for part in self.engine.parts}
        return {part: self.maps[name] for part, name in names.items() if name in self.maps}

    def description(self, prefix: str) -> btf.Description:
        """Of one stats map, by the type of its values.

        :raises CollectorError: there is none
        """
        name = f"{prefix}_{self.engine.parts[0]}"
        info = libbpf.map_info(self.maps[name])
        try:
            found = btf.describe(info.btf_id, info.btf_value_type_id) if info.btf_id else None
        except ValueError as error:
            raise CollectorError(str(error)) from None
        if not found:
            raise CollectorError(
                f'map "{name}" has no BTF of a stats map; '
                "declare it with CGSTAT_MAP and compile with -g"
            )
        return found

    def initial(self, prefix: str) -> int:
        """Id of a stats map's initial cgroup; 0: the root of the hierarchy."""
        return MAP_CONFIG.unpack_from(self._config(f"{prefix}_{_CONFIG_PIN}"))[0]

    def _config(self, name: str) -> bytes:
        fd = self.maps[name]
        return libbpf.map_lookup(fd, bytes(4), libbpf.map_info(fd).value_size) or b""

    def _stats_map(self, prefix: str) -> StatsMap:
        about = self.description(prefix)
        lookup = self.engine.lookup(self.reader(prefix), about.value_type)
        snapshot = None
        if self.engine.snapshots_by.issubset(self._endings(prefix)):
            served = {ending: self._descriptor(prefix, ending) for ending in self.engine.snapshots_by}
            snapshot = self.engine.snapshot(served, about.value_type)
        return StatsMap(
            about.file, prefix, about.value_type, about.flags, self.initial(prefix), lookup,
            snapshot,
        )  # fmt: skip

    def reader(self, prefix: str) -> int:
        """Descriptor of what a stats map's lookups go through."""
        return self._descriptor(prefix, self.engine.reader)

    def _descriptor(self, prefix: str, ending: str) -> int:
        kind = self.maps if ending in self.engine.parts else self.programs
        return kind[f"{prefix}_{ending}"]

    def _endings(self, prefix: str) -> set[str]:
        return {name.removeprefix(f"{prefix}_") for name in (*self.maps, *self.programs)}

    def usage(self, prefix: str) -> Usage:
        """What a stats map takes, and what it says of its updates."""
        return self.engine.usage(self.parts(prefix))

    def misses(self) -> dict[str, int]:
        """Runs that BPF skipped, by program."""
        return {name: libbpf.recursion_misses(fd) for name, fd in self.programs.items()}

    def pin(self, directory: Path) -> None:
        """Pin everything. It appears under its name when all of it is there.

        What was pinned under that name ends.

        :raises OSError: bpffs refuses
        """
        partial = directory.with_name(f"new~{directory.name}")
        remove_pins(partial)
        # Not its parents: where those have gone, nobody would end it.
        partial.mkdir(mode=0o700)
        for kind in ("maps", "programs", "links"):
            (partial / kind).mkdir()
            for name, fd in getattr(self, kind).items():
                libbpf.pin(fd, partial / kind / name)
        remove_pins(directory)
        partial.rename(directory)

    @classmethod
    def from_pins(cls, directory: Path, *, to_serve: bool = False) -> Collector:
        """Open what is pinned, but the links: whoever unpins those ends it.

        :param to_serve: of the programs, those of lookups alone. Who serves holds no other, so
            that it is seen when one has ended; see :func:`detach`.
        :raises OSError: there is no such collector
        :raises CollectorError: another version of cgstatfs made it
        """
        collector = cls(directory.name, ENGINES[0]())
        try:
            for path in sorted((directory / "maps").iterdir()):
                collector.maps[path.name] = libbpf.get_pinned(path)
            number, *_ = CONFIG.unpack_from(collector._config(_CONFIG_PIN))
            collector.engine = _engine_numbered(number)
            served = {
                f"{prefix}_{ending}"
                for prefix in collector.prefixes
                for ending in collector.engine.served
            }
            for path in sorted((directory / "programs").iterdir()):
                if not to_serve or path.name in served:
                    collector.programs[path.name] = libbpf.get_pinned(path)
        except BaseException:
            collector.close()
            raise
        return collector

    def close(self) -> None:
        """Close the descriptors; what is not pinned goes."""
        for kind in (self.links, self.programs, self.maps):
            for fd in kind.values():
                os.close(fd)
            kind.clear()


def _engine_numbered(number: int) -> Engine:
    """The engine that a collector was loaded for.

    :raises CollectorError: there is none; another version made this
    """
    for kind in ENGINES:
        if kind.number == number:
            return kind()
    raise CollectorError(f"engine {number} is unknown to this version of cgstatfs")


def detach(directory: Path, names: set[str]) -> None:
    """End some programs of a pinned collector, and wait until they run no more.

    To unpin a link is not enough: the kernel frees bpffs' inodes after a grace period, and
    detaches in a worker (bpf_free_inode() in kernel/bpf/inode.c and bpf_link_put() in
    kernel/bpf/syscall.c, 6.12). A link's id goes before it is detached; its program is let go
    of afterwards, so it is the program's id that tells.

    :raises OSError: bpffs refuses
    :raises CollectorError: somebody else holds a link, so that its program goes on
    """
    ends: dict[str, tuple[int, int]] = {}
    for name in names:
        link = libbpf.get_pinned(directory / "links" / name)
        try:
            info = libbpf.link_info(link)
            ends[name] = info.id, info.prog_id
        finally:
            os.close(link)
        for kind in ("links", "programs"):
            (directory / kind / name).unlink()
    deadline = time.monotonic() + _DETACH_SECONDS
    for name, (link_id, program_id) in ends.items():
        while libbpf.program_exists(program_id) and time.monotonic() < deadline:
            time.sleep(0.002)
        # Somebody may look at the program for long; without a link it does not run.
        if libbpf.link_exists(link_id):
            raise CollectorError(
                f'program "{name}" is still attached, as somebody else holds link {link_id} '
                "(see bpftool link); unload the collector, or end them"
            )


def remove_pins(directory: Path) -> None:
    """End a collector that nobody else holds; links first, as what they run uses the rest.

    :param directory: where it is pinned; need not exist
    """
    for kind in ("links", "programs", "maps"):
        if (directory / kind).is_dir():
            for path in (directory / kind).iterdir():
                path.unlink()
            (directory / kind).rmdir()
    if directory.is_dir():
        directory.rmdir()


# Names


def _bad_characters(name: str, others: str) -> str:
    bad = sorted({c for c in name if not (c.isascii() and (c.isalnum() or c in others))})
    return ", ".join(map(repr, bad))


def check_file_name(name: str) -> None:
    """Refuse what cannot be, or should not be, a file's name next to cgroups.

    :raises ValueError: with the reason
    """
    if not name or len(name) > 64:
        raise ValueError(f'stats map name "{name[:80]}" has {len(name)} characters; use 1 to 64')
    if name.startswith("."):
        raise ValueError(f'stats map name "{name}" starts with a dot; such names are reserved')
    if bad := _bad_characters(name, "._-+"):
        raise ValueError(
            f'stats map name "{name}" has {bad}; use ASCII letters, digits and . _ - +'
        )


def check_collector_name(name: str) -> None:
    """Refuse what bpffs, or a command line, could not take.

    :raises CollectorError: with the reason
    """
    if not name or len(name) > 64 or not name[0].isalnum():
        raise CollectorError(
            f'collector name "{libbpf.printable(name[:80])}" is not 1 to 64 characters that begin with a letter or digit'
        )
    if bad := _bad_characters(name, "_-"):
        raise CollectorError(
            f'collector name "{libbpf.printable(name)}" has {bad}; use ASCII letters, digits, _ and - '
            "(bpffs reserves dots)"
        )
