# SPDX-License-Identifier: GPL-2.0-only
"""Memory of an entry, by the share of cpus that touched its cgroup."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from cgstatfs import libbpf, loading
from cgstatfs.engines import Engine, choose

from ..frame import Figure, Missing, Table
from ..setting import Setting, cgroup_id, wait_until

TITLE = "memory of an entry, as the kernel accounts it to BPF maps"
QUICK = True
GUESTS = False

_PERCPU_HASH, _NO_PREALLOC = 5, 1
_ROOM = 65536


def _memory(fd: int) -> int:
    """Bytes of a map, as far as the kernel knows: from 6.4 on of what there is, not of what can be."""
    text = Path(f"/proc/self/fdinfo/{fd}").read_text()
    return int(re.search(r"^memlock:\s*(\d+)$", text, re.MULTILINE)[1])


def _insert(fd: int, id: int, value: bytes) -> bool:
    return libbpf.lib.bpf_map_update_elem(fd, id.to_bytes(8, "little"), value, 0) == 0


def _flat(ids: list[int], size: int) -> float:
    """Of an element of a per-cpu hash by cgroup id."""
    fd = libbpf.create_map(_PERCPU_HASH, "flat", 8, size, _ROOM, map_flags=_NO_PREALLOC)
    try:
        before = _memory(fd)
        value = bytes(-(-size // 8) * 8 * libbpf.count_possible_cpus())
        for id in ids:
            # The kernel's allocator is refilled meanwhile.
            wait_until(lambda id=id: _insert(fd, id, value), "memory")
        return (_memory(fd) - before) / len(ids)
    finally:
        os.close(fd)


def measure(setting: Setting, engine: Engine, name: str, count: int) -> Table:
    """Of the collector of that name in bpf/, and an element of its type in a flat hash."""
    # Others make and remove cgroups meanwhile, whose entries would be counted.
    top = setting.cgroup()
    collector = setting.load(setting.object(name), engine, initial=top)
    (stats_map,) = collector.stats_maps
    (prefix,) = collector.prefixes
    parts = collector.parts(prefix).values()
    touch = collector.programs["touch" if "touch" in collector.programs else "update"]
    fixed = sum(map(_memory, parts))
    ids = []
    for number in range(count):
        path = top / str(number)
        path.mkdir()
        ids.append(cgroup_id(path))
    elements, cpus = stats_map.value_type.elements, libbpf.count_possible_cpus()
    flat = "PERCPU_HASH by cgroup id, flat"
    table = Table(
        f"{elements} elements, {count} cgroups, {cpus} possible cpus, engine {engine.name}",
        "bytes for each cgroup",
        {flat: Figure((_flat(ids, 8 * elements),))},
    )

    def grown() -> float:
        return (sum(map(_memory, parts)) - fixed) / count

    table.figures[_touched(0, cpus)] = Figure((grown(),))
    online = sorted(os.sched_getaffinity(0))
    try:
        for number, cpu in enumerate(online, 1):
            os.sched_setaffinity(0, {cpu})
            loading.walk(touch, libbpf.CGROUP_ITER_DESCENDANTS_PRE, cgroup_id(top))
            table.figures[_touched(number, cpus)] = Figure((grown(),))
    finally:
        os.sched_setaffinity(0, online)
    table.notes.append(f"and for the map, whatever is in it: {fixed:,} bytes")
    for number, bound, alarm in (cpus // 2, 1, 3), (cpus, 1.7, 4):
        text = f"touched by {number} of {cpus} cpus, beside flat"
        table.target(text, _touched(number, cpus), flat, bound, alarm)
    return table


def _touched(number: int, cpus: int) -> str:
    return f"cgstatfs, touched by {number} of {cpus} cpus"


def accounted() -> None:
    """:raises Missing: this kernel accounts what a map can have, not what it has"""
    fd = libbpf.create_map(_PERCPU_HASH, "flat", 8, 8, _ROOM, map_flags=_NO_PREALLOC)
    try:
        if _memory(fd) > _ROOM * 32:
            raise Missing("this kernel does not say what memory a BPF map has; it needs 6.4")
    finally:
        os.close(fd)


def run(setting: Setting) -> Iterator[Table]:
    """Of a small value and a large one."""
    accounted()
    engine, _ = choose("auto")
    for name in "lookups", "updates":
        yield measure(setting, engine, name, setting.some(10_000, 1000))
