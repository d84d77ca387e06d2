# SPDX-License-Identifier: GPL-2.0-only
"""A flush of k updated pairs of cgroup and cpu, among n cgroups."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cgstatfs import libbpf, loading
from cgstatfs.collectors import Collector
from cgstatfs.engines import Engine, choose

from ..frame import Figure, Missing, Table, Target, ratio
from ..setting import Setting, cgroup_id, wait_until

TITLE = "a flush of k updated pairs of cgroup and cpu among n cgroups"
QUICK = True
GUESTS = False

_LEAF = "cgstatfs, a leaf, nothing updated"
_PENDING = 10_000
_ALL = -1
# Within a pass, of one number of cgroups and one of pairs.
_SAMPLES = 5

_Samples = dict[str, list[float]]


class _Cgroups:
    """Some number of cgroups below one, in groups of fixed sizes to be updated, and a rest."""

    def __init__(self, top: Path, sizes: list[int]) -> None:
        self.top = top
        self._sizes = sizes
        self.groups: dict[int, Path] = {}
        self._made: list[Path] = []

    def _make(self, path: Path) -> Path:
        path.mkdir()
        self._made.append(path)
        return path

    def grow(self, count: int) -> None:
        """Have so many; the groups first."""
        for size in self._sizes:
            if size not in self.groups and len(self._made) + size <= count:
                group = self.groups[size] = self._make(self.top / f"group{size}")
                for number in range(size - 1):
                    self._make(group / str(number))
        while len(self._made) < count:
            self._make(self.top / f"rest{len(self._made)}")

    def shrink(self) -> None:
        """Have none."""
        for path in reversed(self._made):
            path.rmdir()
        self._made.clear()
        self.groups.clear()


class _Flushes:
    """What is measured of an engine."""

    def __init__(self, setting: Setting, engine: Engine, sizes: list[int]) -> None:
        self.cgroups = _Cgroups(setting.cgroup(), sizes)
        collector: Collector = setting.load(setting.object("lookups"), engine)
        self._update = collector.programs["update"]
        # The same for a stats map that is not looked up: as much work before, and nothing pending.
        self._elsewhere = setting.load(setting.object("lookups"), engine).programs["update"]
        (stats_map,) = collector.stats_maps
        self._look_up = stats_map.lookup
        self._leaf = setting.cgroup()
        self._setting = setting

    def _timed(self, id: int) -> float:
        begin = time.thread_time_ns()
        self._look_up(id)
        return (time.thread_time_ns() - begin) / 1000

    def _flush(
        self, updated: Path | None, looked_up: Path, samples: int = _SAMPLES, update: int | None = None
    ) -> float:
        """Microseconds that a lookup takes when all of a group was updated."""
        id = cgroup_id(looked_up)
        self._look_up(id)
        taken = []
        for _ in range(samples):
            if updated:
                loading.walk(update or self._update, libbpf.CGROUP_ITER_DESCENDANTS_PRE, cgroup_id(updated))
            taken.append(self._timed(id))
        return statistics.median(taken)

    def _peers(self, count: int) -> Iterator[tuple[str, float]]:
        """What looks at all of them, however many were updated."""
        obj = self._setting.open_object("iterators")
        try:
            top = cgroup_id(self.cgroups.top)
            loading.walk(obj.programs["fill"].fd, libbpf.CGROUP_ITER_DESCENDANTS_PRE, top)
            walk = obj.programs["walk"].fd
            begin = time.thread_time_ns()
            loading.walk(walk, libbpf.CGROUP_ITER_DESCENDANTS_PRE, top)
            yield f"cgroup iterator, n={count}", (time.thread_time_ns() - begin) / 1000
            yield f"loop over all in user space, n={count}", _loop(obj.maps["counts"].fd)
        finally:
            obj.close()

    def one_pass(self, counts: list[int], samples: _Samples) -> None:
        """All numbers of cgroups, once."""
        for count in counts:
            self.cgroups.grow(count)
            groups = {0: None, **self.cgroups.groups, _ALL: self.cgroups.top}
            for size, group in groups.items():
                taken = self._flush(group, self.cgroups.top)
                samples.setdefault(_name(count, size), []).append(taken)
            samples.setdefault(f"{_LEAF}, n={count}", []).append(self._flush(None, self._leaf, 25))
            if group := groups.get(_PENDING):
                for what, update in (_pending(count), self._update), (_idle(count), self._elsewhere):
                    taken = self._flush(group, self._leaf, update=update)
                    samples.setdefault(what, []).append(taken)
                    self._look_up(cgroup_id(self.cgroups.top))
            with suppress(Missing):
                for name, taken in self._peers(count):
                    samples.setdefault(name, []).append(taken)
        self.cgroups.shrink()
        # What removed cgroups leave behind is the next flush's.
        wait_until(lambda: not _dying(self.cgroups.top), "removed cgroups to be released")
        self._flush(None, self.cgroups.top)


def _loop(fd: int) -> float:
    """Microseconds that a bpf_map_lookup_elem() of each element takes."""
    keys = [ctypes.c_uint64(int.from_bytes(key, "little")) for key in libbpf.map_keys(fd, 8)]
    value, look_up = (ctypes.c_uint8 * 32)(), libbpf.lib.bpf_map_lookup_elem
    begin = time.thread_time_ns()
    for key in keys:
        look_up(fd, ctypes.byref(key), ctypes.byref(value))
    return (time.thread_time_ns() - begin) / 1000


def _dying(directory: Path) -> int:
    text = (directory / "cgroup.stat").read_text()
    return int(dict(line.split() for line in text.splitlines())["nr_dying_descendants"])


def _name(count: int, size: int) -> str:
    return f"cgstatfs, n={count} k={'n' if size == _ALL else size}"


def _pending(count: int) -> str:
    return f"cgstatfs, a leaf, {_PENDING} pending elsewhere, n={count}"


def _idle(count: int) -> str:
    return f"cgstatfs, a leaf, after as many updates of another map, n={count}"


def _target(table: Table, text: str, one: str, other: str, bound: float, alarm: float) -> None:
    figures = table.figures
    if one != other and one in figures and other in figures:
        value: Figure | None = ratio(figures[one], figures[other])
        table.targets.append(Target(text, value, bound, alarm))


def measure(setting: Setting, engine: Engine, counts: list[int], sizes: list[int], passes: int, unit: str) -> Table:
    """The table of one engine."""
    flushes, samples = _Flushes(setting, engine, sizes), {}
    for _ in range(passes):
        flushes.one_pass(counts, samples)
    table = Table(f"a flush of k pairs among n cgroups, engine {engine.name}", unit)
    table.figures = {name: Figure(tuple(values)) for name, values in samples.items()}
    for count in counts:
        points = {size: _name(count, size) for size in (0, *sizes) if _name(count, size) in samples}
        table.lines[f"n={count}"] = points | {count: _name(count, _ALL)}
    table.axis = "pairs that were updated"
    most, few = counts[-1], next(count for count in counts if count >= 500)
    for size, bound in (100, 1.5), (1000, 2.5):
        # Of as many pairs among as few cgroups as there can be.
        base = _name(few, size) if size < few else _name(next(c for c in counts if c > size), size)
        _target(table, f"k={size}: n={most} beside {base.split()[1]}", _name(most, size), base, bound, 4)
    leaf = f"{_LEAF}, n={most}"
    _target(table, f"k=0, n={most}, beside a leaf", _name(most, 0), leaf, 2, 6)
    _target(table, f"a leaf with {_PENDING} pending elsewhere", _pending(most), _idle(most), 3, 12)
    return table


def run(setting: Setting) -> Iterator[Table]:
    """Passes take turns, as the cgroups cannot all be there at once."""
    engine, _ = choose("auto")
    counts = setting.some([10, 500, 5000, 50_000], [500, 5000])
    sizes = setting.some([1, 10, 100, 1000, 10_000], [1, 10, 100, 1000])
    yield measure(setting, engine, counts, sizes, 3, "us")
