# SPDX-License-Identifier: GPL-2.0-only
"""Snapshots with the engine rstat, step by step; see bpf/cgstat_snapshot.h.

What happens in between happens for certain, where a mount would meet it by chance.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import subprocess
import sys
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest

from cgstatfs import libbpf
from cgstatfs.collectors import Collector, remove_pins
from cgstatfs.engines import BUFFERS
from cgstatfs.engines.buffer import Buffer
from cgstatfs.engines.snapshots import Context
from cgstatfs.loading import Request, load
from cgstatfs.runtime import mount_bpffs

from ..conftest import BUILD, Loaded, cgroup_id, make_engine

FILE = "test.snapshots"
COLLECTOR = BUILD / "tests" / "snapshots.bpf.o"


class Steps(Loaded):
    """The collector of snapshots.bpf.c."""

    def prepare(self, cgroups: list[Path]) -> None:
        """What the next snapshot is of, parents first."""
        collector, stats_map = self._map_of[FILE]
        self.cgroups = cgroups
        self.buffer = Buffer(collector.maps[f"{stats_map.prefix}_{BUFFERS}"], stats_map.value_type)

    def run(self, step: str, room: int = 64) -> int:
        """``begin``, then ``copy``, or ``tasks_snapshot``, which is both. :returns: errno"""
        collector, _ = self._map_of[FILE]
        count, stride = len(self.cgroups), self.buffer.stride
        words = self.buffer.words(2 * count + 2 * room)
        words[: count * stride : stride] = array("Q", map(cgroup_id, self.cgroups))
        parents = (max(0, self.cgroups.index(each.parent)) if place else 0
                   for place, each in enumerate(self.cgroups))  # fmt: skip
        words[count * stride : 2 * count * stride : stride] = array("Q", parents)
        self._context = Context(count, room, 0)
        assert libbpf.test_run(collector.programs[step], self._context)() == 0
        return -self._context.ret

    @property
    def shown(self) -> list[tuple[int, int]]:
        """Forks and the highest pid, of each cgroup; (-1, -1) of those that are not shown."""
        size = 8 * self.buffer.stride
        data = self.buffer.words(1)[: len(self.cgroups) * self.buffer.stride].tobytes()
        records = struct.iter_unpack("=3Q", data)
        assert size == 24
        return [(forks, pid) if id else (-1, -1) for id, forks, pid in records]

    def flush(self, cgroup: Path) -> tuple[int, int]:
        value = self.value(FILE, cgroup)
        return value["forks"][0], value["highest_pid"][0]


def load_steps(request: Request) -> Steps:
    assert request.path.exists(), f"{request.path} is not built; run make test"
    return Steps(request.engine, [load(request)])


@pytest.fixture(scope="module")
def steps(engine_name: str, cgroupfs: Path) -> Iterator[Steps]:
    if engine_name != "rstat":
        pytest.skip("of rstat alone")
    loaded = load_steps(Request(COLLECTOR, make_engine(engine_name), cgroup_id(cgroupfs)))
    yield loaded
    loaded.collectors[0].close()


@pytest.fixture
def pins() -> Iterator[Path]:
    mount_bpffs()
    directory = Path(f"/sys/fs/bpf/cgstatfs-test-{os.getpid()}")
    yield directory
    remove_pins(directory)


@pytest.fixture
def cgroups(steps: Steps, tree: Path) -> list[Path]:
    """A chain of four, and a brother of the last."""
    found = [tree, tree / "a", tree / "a/b", tree / "a/b/c", tree / "a/b/d"]
    for each in found[1:]:
        each.mkdir()
    steps.prepare(found)
    return found


def fork(work: Path, cgroup: Path, count: int) -> None:
    subprocess.run([work, "fork", cgroup, str(count)], check=True)


def test_what_others_left_pending(steps: Steps, cgroups: list[Path], work: Path) -> None:
    """A flush of a leaf, after that of the top, tells the ancestors' totals nothing."""
    top, a, b, c, d = cgroups
    fork(work, c, 3)
    steps.flush(top)
    fork(work, c, 4)
    fork(work, d, 5)
    leaves = [steps.flush(c), steps.flush(d)]
    assert [forks for forks, _ in leaves] == [7, 5]
    assert steps.run("tasks_snapshot") == 0
    together = 12, max(pid for _, pid in leaves)
    assert steps.shown == [together, together, together, *leaves]
    # It changed nothing.
    assert [steps.flush(each) for each in cgroups] == steps.shown


def test_what_is_folded_while_it_is_copied(steps: Steps, cgroups: list[Path], work: Path) -> None:
    top, a, b, c, d = cgroups
    fork(work, c, 3)
    fork(work, d, 2)
    steps.flush(top)
    # Pending before, in b.
    fork(work, d, 1)
    before_d = steps.flush(d)
    before_c = steps.flush(c)
    together = 6, max(before_c[1], before_d[1])
    assert steps.run("begin") == 0
    fork(work, c, 10)
    assert steps.flush(c)[0] == 13
    fork(work, d, 20)
    assert steps.flush(top)[0] == 36
    fork(work, c, 1)
    assert steps.flush(a)[0] == 37
    assert steps.run("copy") == 0
    assert steps.shown == [together, together, together, before_c, before_d]
    # The next one is of now, without being told by what was saved.
    steps.flush(top)
    assert steps.run("tasks_snapshot") == 0
    assert steps.shown == [steps.flush(each) for each in cgroups]
    assert [forks for forks, _ in steps.shown] == [37, 37, 37, 14, 23]


def test_no_room_to_save(steps: Steps, cgroups: list[Path], work: Path) -> None:
    top, _, _, c, d = cgroups
    steps.flush(top)
    assert steps.run("begin", room=1) == 0
    fork(work, c, 1)
    steps.flush(c)
    assert steps.run("copy", room=1) == errno.EAGAIN
    # For the leaf and its parent; if the kernel flushes others meanwhile, as it does every other
    # second, it can be theirs.
    for before in range(1, 50):
        assert steps.run("begin", room=2) == 0
        fork(work, c, 1)
        steps.flush(c)
        if steps.run("copy", room=2) == 0:
            break
    assert [forks for forks, _ in steps.shown] == [before] * 4 + [0]
    assert steps.flush(top)[0] == before + 1


def test_removed_while_it_is_copied(steps: Steps, cgroups: list[Path], work: Path) -> None:
    top, a, b, c, d = cgroups
    fork(work, c, 3)
    fork(work, d, 4)
    steps.flush(top)
    assert steps.run("begin") == 0
    ids = [cgroup_id(each) for each in cgroups]
    d.rmdir()
    # Released, and another in its place, whose entry may have its memory.
    while ids[-1] in steps.ids(FILE, "entries"):
        steps.flush(top)
    (b / "e").mkdir()
    fork(work, b / "e", 5)
    steps.flush(top)
    steps.cgroups = cgroups[:-1]
    count, stride = len(ids), steps.buffer.stride
    steps.cgroups = cgroups
    with pytest.raises(FileNotFoundError):
        steps.run("copy")
    d.mkdir()
    assert cgroup_id(d) != ids[-1]
    context = Context(count, 64, 0)
    words = steps.buffer.words(1)
    words[: count * stride : stride] = array("Q", ids)
    assert libbpf.test_run(steps.collectors[0].programs["copy"], context)() == 0
    assert context.ret == 0
    assert [forks for forks, _ in steps.shown] == [7, 7, 7, 3, -1]


def test_the_top_is_gone(steps: Steps, tree: Path) -> None:
    """Nothing of it can be flushed, so nothing is shown."""
    top = tree / "top"
    top.mkdir()
    id = cgroup_id(top)
    _, stats_map = steps._map_of[FILE]
    assert stats_map.snapshot(array("Q", [id]), array("Q", [0]))[:8] == id.to_bytes(8, sys.byteorder)
    top.rmdir()
    with pytest.raises(FileNotFoundError):
        stats_map.snapshot(array("Q", [id]), array("Q", [0]))


def test_another_that_goes_on_with_its_maps(
    engine_name: str, cgroupfs: Path, tree: Path, work: Path, pins: Path
) -> None:
    """For a moment both flush: what either is the first to fold has been saved."""
    if engine_name != "rstat":
        pytest.skip("of rstat alone")
    request = Request(COLLECTOR, make_engine(engine_name), cgroup_id(cgroupfs))
    below = tree / "a"
    below.mkdir()
    with ExitStack() as stack:
        with closing(load(request)) as collector:
            collector.pin(pins)
        old = Steps(request.engine, [Collector.from_pins(pins)])
        stack.callback(old.collectors[0].close)
        old.prepare([tree, below])
        fork(work, below, 3)
        saved = old.flush(tree)
        assert old.run("begin") == 0
        new = load_steps(replace(request, keep=pins))
        stack.callback(new.collectors[0].close)
        fork(work, below, 4)
        assert old.flush(below)[0] == 7
        assert old.run("copy") == 0
        assert old.shown == [saved, saved]
        # And each copies to a buffer of its own, whoever was the last before.
        new.prepare([below])
        now = old.flush(tree)
        for steps, shown in ((new, [now]), (old, [now, now])) * 2:
            assert steps.run("tasks_snapshot") == 0
            assert steps.shown == shown


def test_a_buffer_that_is_too_small(steps: Steps, cgroups: list[Path]) -> None:
    collector = steps.collectors[0]
    steps.buffer.words(1)
    context = Context(1 << 20, 0, 0)
    assert libbpf.test_run(collector.programs["tasks_snapshot"], context)() == 0
    assert context.ret == -errno.EINVAL
    assert ctypes.sizeof(context) == 16
    # And nothing is left of it.
    assert steps.run("tasks_snapshot") == 0
