# SPDX-License-Identifier: GPL-2.0-only
"""Single updates, in every way they can go: each is in the next lookup, once."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cgstatfs import libbpf, loading
from cgstatfs.engines import BUFFERS
from cgstatfs.collectors import CollectorError

from ..conftest import (
    BUILD, Loaded, cgroup_id, dying, live_cgroups, make_engine, times, wait_until,
)  # fmt: skip

FILE = "test.calls"
ADD, INTERRUPT, RESUME, SPILL, OBSERVE = range(1, 6)
ROUNDS = times(100_000)
CPUS = os.sched_getaffinity(0)
_CALL = 0x63677374
_prctl = ctypes.CDLL(None).prctl


def call(what: int, n: int = 0) -> None:
    """See tests/bpf/calls.bpf.c."""
    _prctl(_CALL, ctypes.c_ulong(what), ctypes.c_ulong(n), 0, 0)


def load(name: str, engine_name: str, cgroupfs: Path) -> Loaded:
    engine = make_engine(engine_name)
    path = BUILD / "tests" / f"{name}.bpf.o"
    assert path.exists(), f"{path} is not built; run make test"
    return Loaded(engine, [loading.load(loading.Request(path, engine, cgroup_id(cgroupfs)))])


@pytest.fixture(scope="module")
def calls(engine_name: str, cgroupfs: Path) -> Iterator[Loaded]:
    loaded = load("calls", engine_name, cgroupfs)
    yield loaded
    loaded.collectors[0].close()


@pytest.fixture
def inside(cgroupfs: Path, tree: Path) -> Iterator[Path]:
    """The test itself is in this cgroup, on one cpu."""
    own = Path(f"/proc/{os.getpid()}/cgroup").read_text().splitlines()[-1].split("::/")[1]
    directory = tree / "inside"
    directory.mkdir()
    (directory / "cgroup.procs").write_text(str(os.getpid()))
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    yield directory
    os.sched_setaffinity(0, cpus)
    (cgroupfs / own / "cgroup.procs").write_text(str(os.getpid()))


@pytest.fixture(params=["itself", "above"])
def looked_up(request: pytest.FixtureRequest, inside: Path, tree: Path) -> Path:
    """Whose total tells: a leaf's flush takes the cgroup's arrays, others' go by the lists."""
    return inside if request.param == "itself" else tree


def count(loaded: Loaded, cgroup: Path | int) -> int:
    return loaded.one(FILE, cgroup, "count")


def test_every_update_is_in_the_next_lookup(calls: Loaded, inside: Path, tree: Path) -> None:
    here, above = cgroup_id(inside), cgroup_id(tree)
    for number in range(1, ROUNDS // 50):
        call(ADD, 1)
        assert count(calls, here) == number
        call(ADD, 0)
        assert count(calls, above) == number


def test_updates_racing_flushes_on_another_cpu(
    calls: Loaded, inside: Path, tree: Path, looked_up: Path
) -> None:
    """Every update is seen by the next lookup, though another cpu flushes all the time."""
    stop = threading.Event()
    cpus = os.sched_getaffinity(0)
    above = cgroup_id(tree)
    failed: list[BaseException] = []
    flushes = 0
    # A lookup of its own, so that two are never in one context.
    value_type = calls.collectors[0].stats_maps[0].value_type
    other = calls.engine.lookup(calls.reader(FILE), value_type)

    def flush() -> None:
        nonlocal flushes
        try:
            os.sched_setaffinity(0, CPUS - cpus or cpus)
            while not stop.is_set():
                other(above)
                flushes += 1
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=flush)
    thread.start()
    try:
        here = cgroup_id(looked_up)
        for number in range(1, ROUNDS + 1):
            # The first lists the array; the flush that takes it off meets the second.
            call(ADD, 1)
            call(ADD, 1)
            assert count(calls, here) == 2 * number
    finally:
        stop.set()
        thread.join()
    assert not failed, failed
    assert flushes > ROUNDS // 100
    assert count(calls, tree) == 2 * ROUNDS


def test_histogram_buckets(calls: Loaded, inside: Path) -> None:
    for value in (0, 1, 2, 3, 4, 5, 8, 9, 64, 65, 1 << 63):
        call(OBSERVE, value)
    # Up to 1, 2, 4, 8, 16, 32, 64, and above
    assert calls.value(FILE, inside)["observed"] == (2, 1, 2, 2, 1, 0, 1, 2)


def test_an_update_that_interrupts_one_that_is_about_to_list(
    calls: Loaded, inside: Path, tree: Path, looked_up: Path
) -> None:
    """The inner update has ended, so a lookup sees it, though the outer one has not."""
    call(ADD, 1)
    # From here on it is on no list.
    assert count(calls, tree) == 1
    call(INTERRUPT, 10)
    call(ADD, 100)
    assert count(calls, looked_up) == 111
    # Once more: the lookup has left the state as it is, or begun anew.
    call(ADD, 1000)
    assert count(calls, looked_up) == 1111
    call(RESUME)
    call(ADD, 10000)
    assert count(calls, looked_up) == 11111
    call(ADD, 100000)
    assert count(calls, looked_up) == 111111


def test_spilled_updates(calls: Loaded, inside: Path, tree: Path) -> None:
    call(SPILL, 1)
    assert count(calls, tree) == 1
    call(SPILL, 2)
    call(ADD, 4)
    call(SPILL, 8)
    assert count(calls, inside) == 15
    assert count(calls, tree) == 15


def test_spilled_updates_of_a_cgroup_that_goes(
    calls: Loaded, tree: Path, cgroupfs: Path
) -> None:
    """An update is counted above even if nobody looked before the cgroup went."""
    for what in (ADD, SPILL):
        directory = tree / "going"
        directory.mkdir()
        add_in(directory, what, 5)
        directory.rmdir()
    assert count(calls, tree) == 10
    wait_until(
        lambda: count(calls, tree) == 10 and len(calls.entries_below(FILE, tree)) == 1, "the entries to go"
    )


def add_in(directory: Path, what: int = ADD, n: int = 1) -> None:
    """An update by a task that joins the cgroup, and ends."""
    child = os.fork()
    if child == 0:
        (directory / "cgroup.procs").write_text(str(os.getpid()))
        call(what, n)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_an_update_after_a_release_that_flushed_in_part(
    calls: Loaded, inside: Path, tree: Path
) -> None:
    """A release does some of the flusher's work; a lookup does not take that for all of it."""
    others = [tree / f"other{number}" for number in range(80)]
    for directory in others:
        directory.mkdir()
        add_in(directory)
    (tree / "going").mkdir()
    assert dying(tree) == 0
    # Listed last, so folded first.
    call(ADD, 1)
    (tree / "going").rmdir()
    wait_until(lambda: dying(tree) == 0, "the cgroup to be released")
    call(ADD, 1)
    assert count(calls, inside) == 2
    assert count(calls, tree) == len(others) + 2


def test_a_leaf_is_looked_up_without_the_others(
    calls: Loaded, inside: Path, tree: Path, engine_name: str
) -> None:
    """What is pending elsewhere stays so: it may be all of a machine's."""
    if not engine_name.startswith("standalone"):
        pytest.skip("whose flush the kernel makes, and no list tells of")

    def listed() -> bool:
        fd = calls.fd(FILE, "lists")
        size = libbpf.map_info(fd).value_size
        lists = [libbpf.map_lookup(fd, key, size) for key in libbpf.map_keys(fd, 4)]
        # struct cgstat_list begins with the first of the pairs.
        return any(each and any(each[:8]) for each in lists)

    other = tree / "other"
    other.mkdir()
    count(calls, tree)
    assert not listed()
    add_in(other, ADD, 5)
    call(ADD, 1)
    assert count(calls, inside) == 1 and listed()
    # It is on its list as before, and so are the others.
    call(ADD, 1)
    assert count(calls, inside) == 2
    assert count(calls, tree) == 7 and not listed()
    assert count(calls, other) == 5 and count(calls, inside) == 2


def test_user_space_cannot_write(calls: Loaded, tree: Path) -> None:
    """Nor root, nor through another descriptor of the map. (What snapshots go to counts nothing.)"""
    lib = libbpf.lib
    for ending in set(calls.engine.parts) - {BUFFERS}:
        fd = calls.fd(FILE, ending)
        info = libbpf.map_info(fd)
        again = lib.bpf_map_get_fd_by_id(info.id)
        assert again > 0
        key, value = bytes(info.key_size), bytes(info.value_size)
        try:
            for descriptor in (fd, again):
                assert lib.bpf_map_update_elem(descriptor, key, value, ctypes.c_uint64(0)) == -errno.EPERM
                assert lib.bpf_map_delete_elem(descriptor, key) == -errno.EPERM
        finally:
            os.close(again)


def test_more_cgroups_than_there_is_room_for(
    engine_name: str, cgroupfs: Path, tree: Path
) -> None:
    """What has no entry counts to the nearest ancestor that has one, and is shown.

    Once there is room it gets one, though an ancestor in which nothing happens has to come
    first. native has room for all.
    """
    live = sum(1 for _ in os.walk(cgroupfs))
    if live > 6:
        pytest.skip(f"{live} cgroups are here already, and the map has room for 8")
    loaded = load("few", engine_name, cgroupfs)
    try:
        directories = [tree / f"d{number}" for number in range(10)]
        for directory in directories:
            directory.mkdir()
        for directory in directories:
            add_in(directory)
        ids = loaded.ids(FILE, "entries")
        if loaded.is_native(FILE):
            assert ids >= live_cgroups(tree)
            assert [count(loaded, directory) for directory in directories] == [1] * 10
            assert (loaded.usage(FILE).displaced, count(loaded, tree)) == (0, 10)
            return
        assert len(ids) == 8
        without = [d for d in directories if cgroup_id(d) not in ids]
        assert without
        for directory in without:
            with pytest.raises(FileNotFoundError):
                count(loaded, directory)
        assert count(loaded, tree) == len(directories)
        assert loaded.usage(FILE).displaced == len(without)
        leaf = tree / "slice/inner/leaf"
        leaf.mkdir(parents=True)
        add_in(leaf)
        for directory in directories:
            directory.rmdir()
        wait_until(lambda: dying(tree) == 0, "the cgroups to be released")
        assert count(loaded, tree) == len(directories) + 1
        # Each mends a level, and the third finds the leaf's parent there.
        for _ in range(3):
            add_in(leaf)
        levels = [leaf, leaf.parent, leaf.parent.parent]
        assert [count(loaded, directory) for directory in levels] == [1, 1, 2]
        assert count(loaded, tree) == len(directories) + 4
        add_in(leaf)
        assert [count(loaded, directory) for directory in levels] == [2, 2, 3]
    finally:
        loaded.collectors[0].close()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bad_field", ["test.bad", '"name"', "char[16]", "unsigned 64-bit"]),
        ("bad_name", ["etc/passwd", "'/'"]),
    ],
)
def test_what_is_refused(
    engine_name: str, cgroupfs: Path, name: str, words: list[str]
) -> None:
    with pytest.raises(CollectorError) as error:
        load(name, engine_name, cgroupfs)
    for word in (f"{name}.bpf.o", *words):
        assert word in str(error.value)


def test_a_damaged_object_is_refused(engine_name: str, cgroupfs: Path, tmp_path: Path) -> None:
    engine = make_engine(engine_name)
    whole = (BUILD / "tests" / "calls.bpf.o").read_bytes()
    for name, data in {"empty": b"", "text": b"hello", "cut": whole[: len(whole) // 2]}.items():
        path = tmp_path / f"{name}.bpf.o"
        path.write_bytes(data)
        with pytest.raises(CollectorError) as error:
            loading.load(loading.Request(path, engine, cgroup_id(cgroupfs)))
        assert str(path) in str(error.value)
