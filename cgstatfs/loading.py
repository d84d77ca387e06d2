# SPDX-License-Identifier: GPL-2.0-only
"""Load compiled collectors, in the order that keeps them exact.

The order for each: programs of the entries' life cycle, the engine's programs, entries for the
cgroups that exist, and the collector's own programs last, so that an update always finds its
entry.

An object is not trusted to be what it seems to be: what it declares is checked against what
the header makes before the kernel is asked to load it, and whoever loads one that does not come
with the package does so in a process of its own (:mod:`cgstatfs.loader`), as libbpf is not
made for damaged files.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from . import btf, libbpf, placement
from .collectors import (
    CONFIG, MAP_CONFIG, Collector, CollectorError, check_collector_name, check_file_name, detach,
)  # fmt: skip
from .engines import BUFFER_FLAGS, BUFFERS, ENGINES, Engine, Rstat, Setting
from .files import read_collector
from .objects import object_path
from .refusals import attach_refused, refusals
from .valuetype import AGGREGATED, MAX, MIN, SUM

__all__ = ("Request", "Stage", "describe", "into_kernel", "load", "load_object", "open_object",
           "populate", "refusals", "walk")  # fmt: skip

_CONFIG = ".rodata.cgstat"
_MAX_DEPTH = 256
# The table alone of a hash for so many takes 16 MiB.
_MAX_CGROUPS = 1 << 20
# They become names in bpffs.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
# ... and what libbpf calls the maps of their globals.
_GLOBALS = re.compile(r"\w*\.(rodata|data|bss|kconfig)[\w.]*", re.ASCII)

# include/uapi/linux/bpf.h: enum bpf_map_type
_HASH, _ARRAY, _ARRAY_OF_MAPS = 1, 2, 12
# What is declared, CGSTAT_NATIVE_TYPE; a kernel that has the type may have another number for it.
_NATIVE = 34
# enum cgstat_operation of bpf/cgstat_entries.h
_OPERATION_NUMBERS = {SUM: 0, MAX: 1, MIN: 1, AGGREGATED: 2}
_FLAG_NUMBERS = {"CGSTAT_NO_PERCPU": 1, "CGSTAT_NO_HIERARCHY": 2}
# sizeof struct cgstat_entry, cgstat_pair, cgstat_slot, cgstat_list, cgstat_ctl
_ENTRY, _PAIR, _SLOT, _LIST, _CTL = 40, 16, 24, 64, 96


@dataclass(frozen=True)
class Request:
    """What is to be loaded, and how.

    :param path: a CO-RE object, built from C that includes ``cgstat.bpf.h``; or a bcc program
    :param engine: the engine of the mount; a collector that cannot use it gets the next that it can
    :param root_id: id of the root of the v2 hierarchy, as far up as we see it
    :param initials: ids of initial cgroups, by stats maps' files; "" for those not named
    :param keep: where a collector is pinned whose maps are to be used on, if they fit
    :param data: what the file has, if it was read
    """

    path: Path
    engine: Engine
    root_id: int
    initials: dict[str, int] = field(default_factory=dict)
    keep: Path | None = None
    data: bytes | None = field(default=None, repr=False)

    def read(self) -> bytes:
        """What the file has.

        :raises CollectorError: it is no collector's
        :raises OSError: it cannot be read
        """
        return read_collector(self.path) if self.data is None else self.data

    @property
    def name(self) -> str:
        """The collector's: that of its file, to the ending.

        :raises CollectorError: that cannot be a collector's name
        """
        name = self.path.name
        for ending in (".bpf.o", ".bcc.c"):
            name = name.removesuffix(ending)
        with refusals(self.path):
            check_collector_name(name)
        return name

    def initial(self, file: str) -> int:
        return self.initials.get(file, self.initials.get("", 0))


_Links = list[tuple[str, libbpf.Link | libbpf.LinkFd]]


@dataclass
class Stage:
    """A stats map while it is loaded."""

    prefix: str
    about: btf.Description
    initial: int
    level: int = 0

    @property
    def is_aggregated(self) -> bool:
        """Whether it has an aggregator."""
        return AGGREGATED in self.about.value_type.operations

    def config(self) -> bytes:
        """``struct cgstat_map_config``."""
        flags = sum(_FLAG_NUMBERS[flag] for flag in self.about.flags)
        value_type = self.about.value_type
        operations = bytes(_OPERATION_NUMBERS[each] for each in value_type.operations)
        head = MAP_CONFIG.pack(self.initial, self.level, value_type.elements, flags)
        data = head + operations.ljust(btf.MAX_ELEMENTS, b"\0")
        return data + bytes(-len(data) % 8)


# What an object declares


def _prefixes(obj: libbpf.Object) -> Iterator[str]:
    for name in obj.maps:
        prefix = name.removesuffix("_entries")
        if prefix != name and f"{prefix}_pairs" in obj.maps:
            yield prefix


def _made_programs(prefix: str) -> set[str]:
    """Names of the programs that the declaration of a stats map makes."""
    endings = {ending for kind in ENGINES for ending in (*kind.programs, kind.aggregator) if ending}
    return {f"{prefix}_{ending}" for ending in endings}


def _made_maps(prefix: str) -> set[str]:
    """Names of the BPF maps that it makes, besides that of its configuration."""
    parts = set().union(*(kind.parts for kind in ENGINES))
    return {f"{prefix}_{part}" for part in parts}


def _own_programs(obj: libbpf.Object, stages: list[Stage]) -> dict[str, libbpf.Program]:
    """The programs that its author wrote."""
    made = set().union(*(_made_programs(stage.prefix) for stage in stages))
    return {name: program for name, program in obj.programs.items() if name not in made}


def _check_names(obj: libbpf.Object) -> None:
    """Refuse what could not be pinned, and what would be pinned where it is not unpinned."""
    for name in obj.programs:
        if not _NAME.fullmatch(name):
            raise CollectorError(f'program "{name[:80]}" does not have a name as C has them')
    for name, each in obj.maps.items():
        if not _NAME.fullmatch(name) and not _GLOBALS.fullmatch(name):
            raise CollectorError(f'map "{name[:80]}" does not have a name as C has them')
        if each.is_pinned_by_libbpf:
            raise CollectorError(
                f'map "{name}" is to be pinned, and would outlive the collector; remove "pinning"'
            )


def _check_parts(obj: libbpf.Object, stage: Stage) -> None:
    """Whether the BPF maps and programs are those that the header makes for such a value."""
    elements = stage.about.value_type.elements
    expected = {
        "entries": (_HASH, 8, _ENTRY + 24 * elements),
        "pairs": (_HASH, 8, _PAIR + 8 * elements),
        "slots": (_ARRAY, 4, _SLOT + 8 * elements),
        "lists": (_ARRAY, 4, _LIST),
        "ctl": (_ARRAY, 4, _CTL),
        "buffers": (_ARRAY_OF_MAPS, 4, 4),
        "native": (_NATIVE, 8, 8 * elements),
    }
    for part, sizes in expected.items():
        found = obj.maps.get(f"{stage.prefix}_{part}")
        if found is None or (found.type, found.key_size, found.value_size) != sizes:
            raise _other_version(f'map "{stage.prefix}_{part}"')
    inner = obj.maps[f"{stage.prefix}_buffers"].inner
    if inner is None or (
        inner.type, inner.key_size, inner.value_size, inner.max_entries, inner.flags
    ) != (_ARRAY, 4, 8 + 8 * elements, 1, BUFFER_FLAGS):  # fmt: skip
        raise _other_version(f'map "{stage.prefix}_buffers"')
    room = obj.maps[f"{stage.prefix}_entries"].max_entries
    if not 0 < room <= _MAX_CGROUPS:
        raise CollectorError(
            f'stats map "{stage.about.file}" has room for {room} cgroups; '
            f"let CGSTAT_MAX_CGROUPS be 1 to {_MAX_CGROUPS}"
        )
    config = obj.maps.get(f".rodata.{stage.prefix}")
    if config is None or config.value_size != len(stage.config()):
        raise _other_version(f'map ".rodata.{stage.prefix}"')
    for name in sorted(_made_programs(stage.prefix) - obj.programs.keys()):
        raise _other_version(f'program "{name}"')


def _other_version(what: str) -> CollectorError:
    return CollectorError(
        f"{what} is missing or differs; the object was built with another version of "
        "cgstat.bpf.h, or is damaged; build it again"
    )


def _describe(obj: libbpf.Object, request: Request) -> list[Stage]:
    _check_names(obj)
    config = obj.maps.get(_CONFIG)
    if config is None or config.value_size != CONFIG.size:
        raise _other_version(f'map "{_CONFIG}"')
    stages: dict[str, Stage] = {}
    for prefix in _prefixes(obj):
        about = btf.describe_object(obj, f"{prefix}_entry")
        if about is None:
            raise CollectorError(
                f'map "{prefix}_entries" has no BTF of a stats map; '
                "declare it with CGSTAT_MAP and compile with -g"
            )
        check_file_name(about.file)
        if about.file in stages:
            raise CollectorError(f'two stats maps are named "{about.file}"; rename one of them')
        stage = stages[about.file] = Stage(prefix, about, request.initial(about.file))
        _check_parts(obj, stage)
    for file in request.initials.keys() - stages.keys() - {""}:
        raise CollectorError(f'there is no stats map "{file}" to give an initial cgroup')
    return list(stages.values())


def open_object(path: Path, data: bytes) -> libbpf.Object:
    """An object that is about to be described.

    :raises OSError: libbpf cannot read it
    :raises CollectorError: it lacks what libbpf does without
    """
    obj = libbpf.Object(path, data)
    try:
        if not any(_prefixes(obj)):
            raise CollectorError("declares no stats map; use CGSTAT_MAP of cgstat.bpf.h")
        # Fields would be looked for where they were in the kernel that it was compiled for.
        if b".BTF.ext\0" not in data:
            raise CollectorError(
                "has no .BTF.ext; compile it with clang -g, and strip it with llvm-strip -g"
            )
    except CollectorError:
        obj.close()
        raise
    return obj


def describe(path: Path, data: bytes) -> tuple[list[btf.Description], list[str]]:
    """What a compiled collector declares; the kernel is not asked.

    :param path: what to call it
    :param data: its contents
    :returns: its stats maps, and what its user should know of the engine that most kernels have
    :raises CollectorError: it could not be loaded on any kernel
    """
    with refusals(path):
        obj = open_object(path, data)
        try:
            # The best engine of kernels as they are.
            engine = Rstat()
            stages = _describe(obj, Request(path, engine, 0))
            _, notes = _place(obj, engine, stages)
            return [stage.about for stage in stages], notes
        finally:
            obj.close()


# Before the kernel loads it


def _configure(obj: libbpf.Object, engine: Engine, stages: list[Stage]) -> None:
    """Set what the header leaves to the loader; see bpf/cgstat_entries.h."""
    functions = btf.kernel_functions()
    obj.maps[_CONFIG].set_initial_value(
        CONFIG.pack(
            engine.number, libbpf.possible_cpus(), "css_rstat_updated" in functions,
            "bpf_cgroup_acquire" in functions,
        )
    )  # fmt: skip
    for stage in stages:
        prefix = stage.prefix
        if stage.initial:
            stage.level = _level(stage.initial)
        obj.maps[f".rodata.{prefix}"].set_initial_value(stage.config())
        parts = {part: obj.maps[f"{prefix}_{part}"] for part in engine.parts}
        engine.configure(parts, Setting(stage.about.flags, stage.initial))
        for name in _made_maps(prefix) - {f"{prefix}_{part}" for part in engine.parts}:
            obj.maps[name].set_autocreate(False)
        for name in _made_programs(prefix) - {f"{prefix}_{ending}" for ending in engine.programs}:
            obj.programs[name].set_autoload(False)
        if engine.aggregator and stage.is_aggregated:
            obj.programs[f"{prefix}_{engine.aggregator}"].set_autoload(True)


def _level(cgroup_id: int) -> int:
    """How deep below the root of the hierarchy a cgroup is, in whichever namespace we are."""
    probe = libbpf.Object(object_path("cgroup_level"))
    try:
        probe.load()
        return len(walk(probe.programs["level"].fd, libbpf.CGROUP_ITER_ANCESTORS_UP, cgroup_id)) - 1
    finally:
        probe.close()


def _fits(declared: libbpf.Map, fd: int) -> bool:
    info = libbpf.map_info(fd)
    sizes = (declared.type, declared.key_size, declared.value_size)
    return (info.type, info.key_size, info.value_size) == sizes


def _reuse(
    obj: libbpf.Object, keep: Path, engine: Engine, stages: list[Stage], notes: list[str]
) -> bool:
    """Go on with the maps of the collector that this one replaces, if all of them fit."""
    old = Collector.from_pins(keep)
    try:
        before = {m.file: (m.value_type, m.flags, m.initial, m.prefix) for m in old.stats_maps}
        now = {
            s.about.file: (s.about.value_type, s.about.flags, s.initial, s.prefix) for s in stages
        }
        changed = sorted(file for file in before.keys() | now.keys() if before.get(file) != now.get(file))
        if changed or old.engine.name != engine.name:
            what = f"the type of {', '.join(changed)}" if changed else "the engine"
            notes.append(f"counting began anew: {what} changed")
            return False
        names = {f"{stage.prefix}_{part}" for stage in stages for part in engine.parts}
        fitting = {
            name for name in names if name in old.maps and _fits(obj.maps[name], old.maps[name])
        }
        # Buffers hold no counts. But as both flush for a moment, both save for a snapshot.
        if names - fitting - {f"{stage.prefix}_{BUFFERS}" for stage in stages}:
            notes.append("counting began anew: another version of cgstatfs laid the maps out")
            return False
        for name in fitting:
            obj.maps[name].reuse(old.maps[name])
        return True
    finally:
        old.close()


# After


def walk(program: int, order: int, cgroup_id: int) -> bytes:
    """Walk a cgroup iterator; what it wrote."""
    link = libbpf.create_cgroup_iter_link(program, order, cgroup_id)
    try:
        fd = libbpf.create_iter(link)
        try:
            return b"".join(iter(lambda: os.read(fd, 4096), b""))
        finally:
            os.close(fd)
    finally:
        os.close(link)


def populate(program: int, entries: int, top: int, *, is_root: bool) -> None:
    """Make the entries of the cgroups that exist, parents first.

    In a cgroup namespace the root that we see has ancestors. Their iterator goes from the
    root up, so each walk makes the entry of the topmost that has none.

    :param top: id of the initial cgroup, or of the root as far up as we see it (*is_root*)
    """
    key, size = top.to_bytes(8, sys.byteorder), libbpf.map_info(entries).value_size
    for _ in range(_MAX_DEPTH if is_root else 0):
        if libbpf.map_lookup(entries, key, size):
            break
        walk(program, libbpf.CGROUP_ITER_ANCESTORS_UP, top)
    walk(program, libbpf.CGROUP_ITER_DESCENDANTS_PRE, top)


def _aggregate(
    obj: libbpf.Object, engine: Engine, stage: Stage, keep: Path | None
) -> tuple[str, libbpf.LinkFd]:
    """Register the aggregator of a stats map, in place of the one that is kept."""
    name = f"{stage.prefix}_{engine.aggregator}"
    parts = {part: obj.maps[f"{stage.prefix}_{part}"].fd for part in engine.parts}
    before = libbpf.get_pinned(keep / "links" / name) if keep else None
    try:
        return name, libbpf.LinkFd(engine.aggregate(obj.programs[name].fd, parts, before))
    finally:
        if before is not None:
            os.close(before)


def _attach_made(
    obj: libbpf.Object, engine: Engine, stages: list[Stage], root_id: int, keep: Path | None, links: _Links
) -> None:
    """The engine's programs, the life cycle of entries first, and the entries.

    :param keep: where the collector is pinned whose maps they use
    """
    for stage in stages:
        prefix = stage.prefix
        for ending in engine.attached:
            name = f"{prefix}_{ending}"
            links.append((name, obj.programs[name].attach()))
        if engine.populate:
            populate(
                obj.programs[f"{prefix}_{engine.populate}"].fd, obj.maps[f"{prefix}_{engine.parts[0]}"].fd,
                stage.initial or root_id, is_root=not stage.initial,
            )  # fmt: skip
        if engine.aggregator and stage.is_aggregated:
            links.append(_aggregate(obj, engine, stage, keep))


def _collected(
    obj: libbpf.Object, engine: Engine, stages: list[Stage], links: _Links, name: str
) -> Collector:
    """The loaded collector, by descriptors of its own."""
    collector = Collector(name, engine)
    collector.maps["config"] = os.dup(obj.maps[_CONFIG].fd)
    for stage in stages:
        for part in engine.parts:
            full = f"{stage.prefix}_{part}"
            collector.maps[full] = os.dup(obj.maps[full].fd)
        collector.maps[f"{stage.prefix}_config"] = os.dup(obj.maps[f".rodata.{stage.prefix}"].fd)
        for ending in engine.served:
            full = f"{stage.prefix}_{ending}"
            collector.programs[full] = os.dup(obj.programs[full].fd)
    for full, link in links:
        collector.links[full] = os.dup(link.fd)
        collector.programs[full] = os.dup(obj.programs[full].fd)
    return collector


def _stop_others(keep: Path) -> None:
    """Detach the programs of a collector that is replaced, but those of the life cycle."""
    made = {name for prefix in _pinned_prefixes(keep) for name in _made_programs(prefix)}
    detach(keep, {path.name for path in (keep / "links").iterdir()} - made)


def _pinned_prefixes(directory: Path) -> list[str]:
    return [p.name.removesuffix("_ctl") for p in (directory / "maps").glob("*_ctl")]


def _place(
    obj: libbpf.Object, engine: Engine, stages: list[Stage]
) -> tuple[Engine, list[str]]:
    """The engine for an object, and notes; see :func:`placement.check`."""
    return placement.check(_own_programs(obj, stages).values(), engine)


def into_kernel(
    obj: libbpf.Object, request: Request, stages: list[Stage]
) -> tuple[Engine, list[str], bool]:
    """Have the kernel take an object that was described: its maps and programs. Nothing runs yet.

    :returns: the engine, notes, and whether the maps are those of :attr:`Request.keep`
    :raises OSError: the kernel refuses
    """
    engine, notes = _place(obj, request.engine, stages)
    _configure(obj, engine, stages)
    kept = request.keep is not None and _reuse(obj, request.keep, engine, stages, notes)
    obj.load()
    # Those that are used on are frozen already, and refuse it.
    for stage in () if kept else stages:
        for part in engine.parts:
            if part != BUFFERS:
                obj.maps[f"{stage.prefix}_{part}"].freeze()
    return engine, notes, kept


def _attach_own(programs: Iterable[libbpf.Program], links: _Links) -> None:
    for program in programs:
        if placement.attaches(program):
            try:
                links.append((program.name, program.attach()))
            except OSError as error:
                raise attach_refused(program, error) from None


def _check_served(collector: Collector, stages: list[Stage]) -> None:
    """Whether the kernel has of each stats map what the object said: pins are read by that."""
    for stage in stages:
        if collector.description(stage.prefix) != stage.about:
            raise _other_version(f'the type of stats map "{stage.about.file}"')


def _rehearse(request: Request) -> None:
    """Attach an object's own programs to maps that nobody uses, and let go of it.

    What is replaced by it has to end first; so this finds out whether it can be attached.

    :raises OSError: the kernel refuses
    :raises CollectorError: a program cannot be attached
    """
    obj = open_object(request.path, request.read())
    links: _Links = []
    try:
        stages = _describe(obj, request)
        into_kernel(obj, replace(request, keep=None), stages)
        _attach_own(_own_programs(obj, stages).values(), links)
    finally:
        for _, link in links:
            link.close()
        obj.close()


def load_object(obj: libbpf.Object, request: Request, stages: list[Stage], name: str) -> Collector:
    """Load an object that was described, make its entries and attach it.

    :raises OSError: the kernel refuses; nothing is left
    :raises CollectorError: a program cannot be attached
    """
    own = _own_programs(obj, stages)
    engine, notes, kept = into_kernel(obj, request, stages)
    links: _Links = []
    try:
        _attach_made(obj, engine, stages, request.root_id, request.keep if kept else None, links)
        if kept and request.keep:
            _stop_others(request.keep)
        _attach_own(own.values(), links)
        collector = _collected(obj, engine, stages, links, name)
        for program in own.values():
            if not placement.attaches(program):
                collector.programs[program.name] = os.dup(program.fd)
    finally:
        for _, link in links:
            link.close()
    try:
        _check_served(collector, stages)
    except BaseException:
        collector.close()
        raise
    collector.notes = notes
    return collector


def load(request: Request) -> Collector:
    """Load a compiled collector, make its entries and attach it.

    :raises CollectorError: anything about it or this kernel prevents that; nothing is left
    """
    name = request.name
    with refusals(request.path):
        if request.keep:
            _rehearse(request)
        obj = open_object(request.path, request.read())
        try:
            return load_object(obj, request, _describe(obj, request), name)
        finally:
            obj.close()
