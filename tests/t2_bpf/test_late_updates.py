# SPDX-License-Identifier: GPL-2.0-only
"""Updates that name a cgroup by its id, after it was released; see cgstat_flush.h.

Those of living cgroups must not suffer by them, and nothing may stay behind. Where in a cycle of
the flush they come, the tests choose: they hold its lock, and have it take one step after the
other.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cgstatfs import libbpf, loading

from ..conftest import BUILD, Loaded, cgroup_id, dying, make_engine, times, wait_until

LATE, SHARED = "test.late", "test.late.shared"
FILES = (LATE, SHARED)
# See tests/bpf/late.bpf.c.
ADD, OUTPACED, ORPHAN, LOCK, UNLOCK, STEP, GIVE_UP, MARK = range(1, 9)
_SHARED = 0x100
_CALL = 0x63676C74
_prctl = ctypes.CDLL(None).prctl
CPUS = sorted(os.sched_getaffinity(0))

# CGSTAT_ASIDE
NOTES = 6
# struct cgstat_ctl, of bpf/cgstat_update.h
_CTL = struct.Struct("=12Q")
_PHASE, _DEAD = 7, 11
# enum cgstat_phase
_DELETING = 3


def call(file: str, what: int, n: int = 0, id: int = 0, other: int = 0) -> None:
    what |= _SHARED if file == SHARED else 0
    _prctl(_CALL, *map(ctypes.c_ulong, (what, n, id, other)))


class Late(Loaded):
    """The collector of late.bpf.c."""

    def ctl(self, file: str) -> tuple[int, ...]:
        return _CTL.unpack(libbpf.map_lookup(self.fd(file, "ctl"), bytes(4), _CTL.size))

    def lost(self, file: str) -> int:
        return self.usage(file).lost

    def count(self, file: str, cgroup: Path | int) -> int:
        return self.one(file, cgroup, "")

    def step_until_deleting(self, file: str, id: int) -> None:
        """Flush until the cgroup is the next to be deleted, and no array of it is gone."""
        while self.ctl(file)[_PHASE] != _DELETING or self.ctl(file)[_DEAD] != id:
            call(file, STEP, 1)

    def wait_until_gone(self, file: str, tree: Path, living: set[int]) -> None:
        """Wait until no others than these have entries, or pairs on any cpu."""

        def gone() -> bool:
            self.count(file, tree)
            return self.entries_below(file, tree) == living | {cgroup_id(tree)}

        def agree() -> bool:
            """Others make and remove cgroups, too, while we look."""
            counters, pairs = self.usage(file), libbpf.map_keys(self.fd(file, "pairs"), 8)
            ids = self.ids(file, "entries")
            return (counters.entries, counters.pairs) == (len(ids), sum(1 for _ in pairs))

        wait_until(gone, "the entries to go")
        assert self.ids(file, "pairs") <= self.ids(file, "entries")
        wait_until(agree, "the counters to agree with what is there", 60)


@pytest.fixture(scope="module")
def late(cgroupfs: Path) -> Iterator[Late]:
    engine = make_engine("standalone")
    path = BUILD / "tests" / "late.bpf.o"
    assert path.exists(), f"{path} is not built; run make test"
    loaded = Late(engine, [loading.load(loading.Request(path, engine, cgroup_id(cgroupfs)))])
    yield loaded
    loaded.collectors[0].close()


@pytest.fixture(autouse=True)
def one_cpu() -> Iterator[None]:
    os.sched_setaffinity(0, CPUS[:1])
    yield
    os.sched_setaffinity(0, CPUS)


@pytest.fixture(params=FILES)
def file(late: Late, request: pytest.FixtureRequest) -> Iterator[str]:
    """A stats map that nobody but the test flushes, as long as it does not unlock it."""
    call(request.param, LOCK)
    yield request.param
    call(request.param, UNLOCK)


def release(*directories: Path) -> None:
    for directory in directories:
        directory.rmdir()
    parent = directories[-1].parent
    wait_until(lambda: dying(parent) == 0, "the cgroups to be released")


def make(directory: Path) -> int:
    directory.mkdir()
    return cgroup_id(directory)


def test_between_fold_and_deletion(late: Late, file: str, tree: Path) -> None:
    """It is counted, and what is behind it on the list is, too."""
    going, living = make(tree / "going"), make(tree / "living")
    call(file, ADD, 1, going)
    call(file, ADD, 10, living)
    release(tree / "going")
    late.step_until_deleting(file, going)
    call(file, ADD, 20, living)
    call(file, ADD, 2, going)
    lost = late.lost(file)
    call(file, UNLOCK)
    assert late.count(file, living) == 30
    # The entry of the shared array is not updated any more.
    if file == LATE:
        assert late.count(file, tree) == 33
    call(file, ADD, 40, living)
    assert late.count(file, living) == 70
    late.wait_until_gone(file, tree, {living})
    assert late.count(file, tree) + 2 * (file == SHARED) == 73
    assert late.lost(file) == lost


def test_again_and_again(late: Late, file: str, tree: Path) -> None:
    """Whoever updates the cgroup in each cycle keeps it, and no longer."""
    going = make(tree / "going")
    call(file, ADD, 1, going)
    release(tree / "going")
    late.step_until_deleting(file, going)
    before, cycles = late.lost(file), 5
    for _ in range(cycles):
        call(file, ADD, 1, going)
        late.step_until_deleting(file, going)
    call(file, UNLOCK)
    late.wait_until_gone(file, tree, set())
    assert late.count(file, tree) + late.lost(file) - before == 1 + cycles
    if file == LATE:
        assert late.lost(file) == before


def test_what_is_above_stays_as_long(late: Late, tree: Path) -> None:
    """A late update is counted in all ancestors, though they were released, too."""
    call(LATE, LOCK)
    paths = [tree / "a", tree / "a/b", tree / "a/b/c"]
    ids = [make(path) for path in paths]
    call(LATE, ADD, 1, ids[-1])
    release(*reversed(paths))
    # The oldest are deleted first: children before their parents.
    late.step_until_deleting(LATE, ids[-1])
    call(LATE, ADD, 2, ids[-1])
    lost = late.lost(LATE)
    call(LATE, UNLOCK)
    assert late.count(LATE, tree) == 3
    late.wait_until_gone(LATE, tree, set())
    assert late.count(LATE, tree) == 3
    assert late.lost(LATE) == lost


def test_a_released_tree_goes_in_one_cycle(late: Late, tree: Path) -> None:
    call(LATE, LOCK)
    paths = [tree / "/".join("abcde"[:depth]) for depth in range(1, 6)]
    for path in paths:
        call(LATE, ADD, 1, make(path))
    release(*reversed(paths))
    call(LATE, UNLOCK)
    assert late.count(LATE, tree) == len(paths)
    assert late.entries_below(LATE, tree) == {cgroup_id(tree)}


def test_without_an_array(late: Late, file: str, tree: Path) -> None:
    """None is made for a released cgroup, and the update is shown as lost."""
    going, living = make(tree / "going"), make(tree / "living")
    call(file, ADD, 1, living)
    release(tree / "going")
    late.step_until_deleting(file, going)
    call(file, STEP, 1)
    lost = late.lost(file)
    call(file, ADD, 2, going)
    call(file, ADD, 3, living)
    assert late.lost(file) == lost + 1
    call(file, UNLOCK)
    late.wait_until_gone(file, tree, {living})
    call(file, ADD, 2, going)
    assert late.lost(file) == lost + 2
    assert late.count(file, living) == late.count(file, tree) == 4


def test_a_pair_without_an_entry(late: Late, tree: Path) -> None:
    """Made while the entry was deleted: it goes, what is behind it on the list stays."""
    call(LATE, LOCK)
    going, living = make(tree / "going"), make(tree / "living")
    release(tree / "going")
    call(LATE, UNLOCK)
    late.wait_until_gone(LATE, tree, {living})
    lost = late.lost(LATE)
    call(LATE, ADD, 1, living)
    call(LATE, ORPHAN, 2, going)
    assert going in late.ids(LATE, "pairs")
    assert late.count(LATE, living) == late.count(LATE, tree) == 1
    assert late.lost(LATE) == lost + 1
    late.wait_until_gone(LATE, tree, {living})


@pytest.mark.parametrize("reused", [False, True])
def test_deleted_under_the_update(late: Late, file: str, tree: Path, reused: bool) -> None:
    """A flush deletes the array that an update has in hand, and it may become another's."""
    going, living, other = (make(tree / name) for name in ("going", "living", "other"))
    call(file, ADD, 1, going)
    call(file, ADD, 10, living)
    release(tree / "going")
    lost = late.lost(file)
    call(file, OUTPACED, 2, going, other if reused else 0)
    assert late.lost(file) == lost + 1
    call(file, ADD, 20, living)
    call(file, UNLOCK)
    assert late.count(file, living) == 30
    # The one update went wherever it went. All others are found.
    call(file, ADD, 1, other)
    stray = late.count(file, other) - reused - 1
    assert stray in (0, 2)
    for number in range(1, 4):
        call(file, ADD, 1, other)
        call(file, ADD, 1, living)
        assert late.count(file, living) == 30 + number
        assert late.count(file, other) == reused + stray + 1 + number
    assert late.count(file, tree) == 31 + reused + stray + 1 + 6
    late.wait_until_gone(file, tree, {living, other})


def test_a_mark_left_in_a_slot(late: Late, tree: Path) -> None:
    """Whoever takes the slot next is listed all the same, and has nothing of what was added."""
    living = make(tree / "living")
    call(LATE, MARK, 5, living)
    call(LATE, ADD, 1, living)
    # Of a leaf, as this is, no list is asked.
    assert late.count(LATE, tree) == late.count(LATE, living) == 1


@pytest.mark.parametrize("taken", [NOTES - 1, NOTES])
def test_a_push_that_gives_up(late: Late, file: str, tree: Path, taken: int) -> None:
    """A note tells the flush. Where there is no room for one, the update is shown as lost."""
    # Of a leaf the flush asks no list.
    (tree / "below").mkdir()
    lost = late.lost(file)
    call(file, UNLOCK)
    call(file, GIVE_UP, taken, cgroup_id(tree))
    assert late.lost(file) == lost + (taken == NOTES)
    assert late.count(file, tree) == (taken < NOTES)
    # It is still there for the next one.
    call(file, ADD, 1, cgroup_id(tree))
    assert late.count(file, tree) == 2


class _Shared:
    """Numbers that processes share."""

    def __init__(self, count: int) -> None:
        self._words = (ctypes.c_uint64 * count).from_buffer(mmap.mmap(-1, 8 * count))

    def __getitem__(self, place: int) -> int:
        return self._words[place]

    def __setitem__(self, place: int, value: int) -> None:
        self._words[place] = value


def _forked(run: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            run()
            os._exit(0)
        finally:
            os._exit(1)
    return child


@pytest.mark.parametrize("name", FILES)
def test_under_load(late: Late, tree: Path, name: str) -> None:
    """Two processes on a cpu: one updates cgroups that go, the other one that lives.

    Lookups and removals run on another cpu. Each pair exists when the first cgroup goes, and no
    other cpu makes any: so every update is counted, or shown as lost. Or skipped by BPF, and
    shown, as it can be from 7.0 on.
    """
    stop, late_updates, updates, rounds = range(4)
    shared = _Shared(4)
    living = make(tree / "living")
    paths = [tree / f"going{number}" for number in range(times(300))]
    going = [make(path) for path in paths]
    lost, missed = late.lost(name), sum(late.misses(name).values())

    def update_going() -> None:
        while not shared[stop]:
            for id in going:
                call(name, ADD, 1, id)
                shared[late_updates] += 1
            shared[rounds] += 1

    def update_living() -> None:
        while not shared[stop]:
            call(name, ADD, 1, living)
            shared[updates] += 1

    def flushed() -> set[int]:
        late.count(name, tree)
        return late.entries_below(name, tree)

    children = [_forked(update_going), _forked(update_living)]
    try:
        os.sched_setaffinity(0, CPUS[1:] or CPUS)
        wait_until(lambda: shared[rounds] and shared[updates], "the first updates")
        for path in paths:
            path.rmdir()
            before = shared[updates] - sum(late.misses(name).values()) + missed
            assert before <= late.count(name, living)
        wait_until(lambda: dying(tree) == 0, "the cgroups to be released")
        wait_until(lambda: flushed() == {living, cgroup_id(tree)}, "the entries to go")
        seen = shared[rounds]
        wait_until(lambda: shared[rounds] > seen + 1, "updates of what has gone")
    finally:
        shared[stop] = 1
        for child in children:
            assert os.waitpid(child, 0)[1] == 0
    missed = sum(late.misses(name).values()) - missed
    made = shared[updates]
    assert made - missed <= late.count(name, living) <= made
    late.wait_until_gone(name, tree, {living})
    lost = late.lost(name) - lost
    made += shared[late_updates]
    assert made - missed <= late.count(name, tree) + lost <= made
    assert lost > 0
