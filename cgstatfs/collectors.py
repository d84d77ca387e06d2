# SPDX-License-Identifier: GPL-2.0-only
"""Collectors: load them for an engine, in the order that keeps them exact, and pin them.

The order for each: programs of the entries' life cycle, the engine's programs, entries for the
cgroups that exist, and the collector's own programs last, so that an update always finds its
entry.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import btf, libbpf
from .engines import ENGINES, Engine
from .engines.base import Lookup
from .valuetype import ValueType

__all__ = ("Collector", "CollectorError", "StatsMap", "check_file_name", "load")

_LIFE_CYCLE = ("release", "mkdir")
_POPULATE = "populate"
_ENTRIES = "_entries"
_CONFIG = ".rodata.cgstat"
_MAX_PAIRS = 1 << 18
_MAX_DEPTH = 256
_LOG_LINES = 12


class CollectorError(Exception):
    """A collector cannot be used; the message names its file and the reason."""


@dataclass
class StatsMap:
    """One stats map of a loaded collector.

    :param file: name of its file in every directory
    :param prefix: its name in the collector's source
    :param lookup: the engine's flushing lookup
    """

    file: str
    prefix: str
    value_type: ValueType
    lookup: Lookup


@dataclass
class Collector:
    """A loaded collector. Its programs run until :meth:`close`, or while they are pinned."""

    name: str
    maps: list[StatsMap]
    object: libbpf.Object
    links: dict[str, libbpf.Link]

    def pin(self, directory: Path) -> None:
        """Pin maps, programs and links, so that they can be inspected by others."""
        directory.mkdir(parents=True)
        for kind in ("maps", "programs", "links"):
            (directory / kind).mkdir()
        for name in _stats_map_parts(self.object):
            libbpf.pin(self.object.maps[name].fd, directory / "maps" / name)
        # bpffs reserves names with dots.
        libbpf.pin(self.object.maps[_CONFIG].fd, directory / "maps" / "config")
        for name, link in self.links.items():
            libbpf.pin(self.object.programs[name].fd, directory / "programs" / name)
            libbpf.pin(link.fd, directory / "links" / name)

    def close(self) -> None:
        for link in self.links.values():
            link.close()
        self.object.close()


def check_file_name(name: str) -> None:
    """Refuse what cannot be, or should not be, a file's name next to cgroups.

    :raises ValueError: with the reason
    """
    if not name or len(name) > 64:
        raise ValueError(f'stats map name "{name[:80]}" has {len(name)} characters; use 1 to 64')
    if name.startswith("."):
        raise ValueError(f'stats map name "{name}" starts with a dot; such names are reserved')
    bad = sorted({c for c in name if not (c.isascii() and (c.isalnum() or c in "._-+"))})
    if bad:
        raise ValueError(
            f'stats map name "{name}" has {", ".join(map(repr, bad))}; '
            "use ASCII letters, digits and . _ - +"
        )


def _verifier_tail(lines: list[str]) -> str:
    """The lines of a log that say why."""
    wanted = [line for line in lines if line.strip() and "END PROG LOAD LOG" not in line]
    return "\n".join(f"    {line}" for line in wanted[-_LOG_LINES:])


def _prefixes(obj: libbpf.Object) -> Iterator[str]:
    for name in obj.maps:
        if name.endswith(_ENTRIES) and f"{name.removesuffix(_ENTRIES)}_pairs" in obj.maps:
            yield name.removesuffix(_ENTRIES)


def _stats_map_parts(obj: libbpf.Object) -> list[str]:
    """The BPF maps that stats maps consist of; others are the collector's own."""
    return [f"{p}_{part}" for p in _prefixes(obj) for part in ("entries", "pairs", "lists", "ctl")]


def _engine_programs(prefix: str, engine: type[Engine] | Engine) -> set[str]:
    return {f"{prefix}_{ending}" for ending in engine.programs}


def _configure(obj: libbpf.Object, engine: Engine, prefixes: list[str]) -> None:
    """Set what the header leaves to the loader; see struct cgstat_config."""
    cpus = libbpf.possible_cpus()
    config = struct.pack(
        "=4I",
        engine.number,
        cpus,
        "css_rstat_updated" in btf.kernel_functions(),
        "bpf_cgroup_acquire" in btf.kernel_functions(),
    )
    obj.maps[_CONFIG].set_initial_value(config)
    for prefix in prefixes:
        entries = obj.maps[f"{prefix}_entries"].max_entries
        obj.maps[f"{prefix}_lists"].max_entries = cpus
        # What finds no room here is spilled, at some cost and without loss.
        obj.maps[f"{prefix}_pairs"].max_entries = min(entries * cpus, _MAX_PAIRS)
        for other in ENGINES:
            for name in _engine_programs(prefix, other) - _engine_programs(prefix, engine):
                obj.programs[name].set_autoload(False)


def _describe(obj: libbpf.Object, prefix: str, path: Path) -> tuple[str, ValueType]:
    info = libbpf.map_info(obj.maps[prefix + _ENTRIES].fd)
    try:
        described = btf.describe(info.btf_id, info.btf_value_type_id) if info.btf_id else None
        if not described:
            raise CollectorError(
                f'{path}: map "{prefix}{_ENTRIES}" has no BTF of a stats map; '
                "declare it with CGSTAT_MAP and compile with -g"
            )
        check_file_name(described[0])
        return described
    except ValueError as error:
        raise CollectorError(f"{path}: {error}") from None


def _populate(obj: libbpf.Object, prefix: str, root_id: int) -> None:
    """Make the entries of the cgroups that exist, parents first.

    In a cgroup namespace the root that we see has ancestors. Their iterator goes from the
    root up, so each walk makes the entry of the topmost that has none.
    """
    program = obj.programs[f"{prefix}_{_POPULATE}"]
    entries = obj.maps[prefix + _ENTRIES].fd
    key, size = root_id.to_bytes(8, sys.byteorder), libbpf.map_info(entries).value_size
    for _ in range(_MAX_DEPTH):
        if libbpf.map_lookup(entries, key, size):
            break
        _walk(program, libbpf.CGROUP_ITER_ANCESTORS_UP, root_id)
    _walk(program, libbpf.CGROUP_ITER_DESCENDANTS_PRE, root_id)


def _walk(program: libbpf.Program, order: int, root_id: int) -> None:
    link = libbpf.create_cgroup_iter_link(program.fd, order, root_id)
    try:
        walk = libbpf.create_iter(link)
        try:
            while os.read(walk, 4096):
                pass
        finally:
            os.close(walk)
    finally:
        os.close(link)


def _attach(
    obj: libbpf.Object, engine: Engine, prefixes: list[str], root_id: int
) -> dict[str, libbpf.Link]:
    links: dict[str, libbpf.Link] = {}
    try:
        ours = set()
        for prefix in prefixes:
            for ending in (*_LIFE_CYCLE, *engine.attached):
                name = f"{prefix}_{ending}"
                links[name] = obj.programs[name].attach()
            _populate(obj, prefix, root_id)
            ours.add(f"{prefix}_{_POPULATE}")
            ours.update(*(_engine_programs(prefix, kind) for kind in ENGINES))
        for name, program in obj.programs.items():
            if name not in ours and name not in links:
                links[name] = program.attach()
    except OSError:
        for link in links.values():
            link.close()
        raise
    return links


def load(path: Path, engine: Engine, root_id: int) -> Collector:
    """Load a compiled collector, make its entries and attach it.

    :param path: a CO-RE object, built from C that includes ``cgstat.bpf.h``
    :param root_id: id of the root of the v2 hierarchy, as far up as we see it
    :raises CollectorError: anything about it or this kernel prevents that; nothing is left
    """
    obj = None
    try:
        obj = libbpf.Object(path)
        prefixes = list(_prefixes(obj))
        if not prefixes or _CONFIG not in obj.maps:
            raise CollectorError(f"{path}: declares no stats map; use CGSTAT_MAP of cgstat.bpf.h")
        _configure(obj, engine, prefixes)
        obj.load()
        described = {prefix: _describe(obj, prefix, path) for prefix in prefixes}
        for name in _stats_map_parts(obj):
            obj.maps[name].freeze()
        links = _attach(obj, engine, prefixes, root_id)
    except (OSError, CollectorError) as error:
        if obj:
            obj.close()
        if isinstance(error, CollectorError):
            raise
        tail = _verifier_tail(error.log) if isinstance(error, libbpf.LoadError) else ""
        reason = error.strerror if error.filename == str(path) else f"{error.filename}: {error.strerror}"
        raise CollectorError(f"{path}: {reason}" + (f"\n{tail}" if tail else "")) from None
    maps = [
        StatsMap(
            file,
            prefix,
            value_type,
            engine.lookup(obj.programs[f"{prefix}_{engine.programs[-1]}"], value_type),
        )
        for prefix, (file, value_type) in described.items()
    ]
    return Collector(path.name.removesuffix(".bpf.o"), maps, obj, links)
