# SPDX-License-Identifier: GPL-2.0-only
"""One update by a collector."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from cgstatfs import libbpf, loading
from cgstatfs.engines import Engine, choose

from ..frame import Figure, Table, difference, take_turns
from ..setting import Setting, cgroup_id, moved

TITLE = "one update of a histogram of 64 buckets, inside of a loop in BPF"
QUICK = True
GUESTS = False

_CALL = 0x6367626E
NOTHING, OURS, PERCPU_ARRAY, PERCPU_HASH, SELFTEST = range(5)
# Cgroups that were updated before, so that what room there is for the first to come is taken.
_CROWD = 600
_DEPTH = 20
_prctl = ctypes.CDLL(None).prctl

LOOP = "the loop alone"
COMMON = "cgstatfs, common path"
OVERFLOW = f"cgstatfs, overflow path: after {_CROWD} other cgroups"
DEEP = f"cgstatfs, common path, {_DEPTH} levels down"
ARRAY = "PERCPU_ARRAY, the limit"
FLAT = "PERCPU_HASH by cgroup id, flat"
SCHEME = "PERCPU_HASH and rstat told each time"


def _sample(cgroup: Path, what: int, count: int) -> float:
    """Nanoseconds an update."""
    with moved(cgroup):
        _prctl(_CALL, ctypes.c_ulong(what), ctypes.c_ulong(100), 0, 0)
        begin = time.thread_time_ns()
        _prctl(_CALL, ctypes.c_ulong(what), ctypes.c_ulong(count), 0, 0)
        return (time.thread_time_ns() - begin) / count


def subjects(setting: Setting, engine: Engine, count: int) -> dict[str, Callable[[], float]]:
    """What is measured, by an engine; all of it on one cpu."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    top = setting.cgroup()
    deep = first = top / "first"
    first.mkdir()
    for _ in range(_DEPTH - 2):
        deep = deep / "d"
        deep.mkdir()
    collector = setting.load(setting.object("updates"), engine)
    touch = collector.programs["touch"]
    # In this order: the first to come have what room there is. Those between the two would have
    # as much a right to it.
    for each in (first, deep):
        loading.walk(touch, libbpf.CGROUP_ITER_SELF_ONLY, cgroup_id(each))
    crowd = top / "crowd"
    crowd.mkdir()
    for number in range(_CROWD):
        (crowd / str(number)).mkdir()
    loading.walk(touch, libbpf.CGROUP_ITER_DESCENDANTS_PRE, cgroup_id(crowd))
    last = top / "last"
    last.mkdir()
    sample = partial(partial, _sample)
    return {
        LOOP: sample(first, NOTHING, count),
        COMMON: sample(first, OURS, count),
        DEEP: sample(deep, OURS, count),
        OVERFLOW: sample(last, OURS, count),
        ARRAY: sample(first, PERCPU_ARRAY, count),
        FLAT: sample(first, PERCPU_HASH, count),
        SCHEME: sample(first, SELFTEST, count),
    }


def tables(
    title: str, unit: str, figures: dict[str, Figure], alarms: Sequence[float | None]
) -> Iterator[Table]:
    """With and without the loop's own."""
    base = figures[LOOP]
    rest = {name: difference(figure, base) for name, figure in figures.items() if name != LOOP}
    for found in (Table(title, unit, figures), Table(f"{title}, without the loop", unit, rest)):
        common, overflow, depth = alarms
        found.target("common path beside the flat hash", COMMON, FLAT, 0.6, common)
        found.target("overflow path beside the flat hash", OVERFLOW, FLAT, 1.1, overflow)
        found.target(f"{_DEPTH} levels down beside 2", DEEP, COMMON, 1.05, depth)
        # Differences are too noisy to tell what got worse.
        alarms = (None, None, None)
        yield found


def run(setting: Setting) -> Iterator[Table]:
    """Of the engine that this kernel has; the others are in the case of the guests."""
    engine, _ = choose("auto")
    cpus = os.sched_getaffinity(0)
    try:
        count = setting.some(100_000, 30_000)
        figures = take_turns(subjects(setting, engine, count), setting.some(31, 11))
    finally:
        os.sched_setaffinity(0, cpus)
    yield from tables(f"one update, engine {engine.name}", "ns", figures, (3, 3, 3))
