# SPDX-License-Identifier: GPL-2.0-only
"""What the RFC says of the map, property by property; docs/rfc.md has the table.

That entries come and go with cgroups is in test_exactness.py, as are sums under load; that user
space cannot write, and an update that interrupts another at the worst of moments, are in
test_updates.py.
"""

from __future__ import annotations

import bisect
import os
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from cgstatfs import hyperloglog, libbpf
from cgstatfs.loading import Request, load

from ..conftest import BUILD, Loaded, cgroup_id, dying, make_engine, remove_tree, times, wait_until

KINDS, SHARED, OWN, DISTINCT = 1, 2, 3, 4
UPDATES = times(20_000)
ROUNDS = times(100_000)
SHORT_LIVED = max(20, times(200))
ALL_ONES = (1 << 64) - 1
CPUS = sorted(os.sched_getaffinity(0))


def load_properties(engine_name: str, cgroupfs: Path, **initials: int) -> Loaded:
    engine = make_engine(engine_name)
    found = []
    for name in ("properties", "aggregated"):
        path = BUILD / "tests" / f"{name}.bpf.o"
        found.append(load(Request(path, engine, cgroup_id(cgroupfs), {"": i for i in initials.values()})))
    return Loaded(engine, found)


def close(loaded: Loaded) -> None:
    for collector in loaded.collectors:
        collector.close()


@pytest.fixture(scope="module")
def properties(engine_name: str, cgroupfs: Path) -> Iterator[Loaded]:
    loaded = load_properties(engine_name, cgroupfs)
    yield loaded
    close(loaded)


# What is expected


def histogram(values: list[int], bounds: list[int]) -> tuple[int, ...]:
    counts = [0] * (len(bounds) + 1)
    for value in values:
        counts[bisect.bisect_left(bounds, value)] += 1
    return tuple(counts)


def kinds(values: Iterable[int]) -> dict[str, tuple[int, ...]]:
    """The value of ``struct kinds`` after updates with *values*."""
    values = list(values)
    return {
        "sum": (sum(values),),
        "max": (max(values, default=0),),
        "min": (ALL_ONES - min(values, default=ALL_ONES),),
        "log2": histogram(values, [1 << i for i in range(7)]),
        "linear": histogram(values, [0, 10, 20, 30]),
        "bounds": histogram(values, [5, 50, 500]),
        "nested.calls": (len(values),),
        "nested.last": (max(values, default=0),),
        "tagged.high": (max(values, default=0),),
        "tagged.low": (ALL_ONES - min(values, default=ALL_ONES),),
        "tagged.halves": histogram(values, [1000]),
    }


def check(loaded: Loaded, file: str, cgroup: Path, values: Iterable[int]) -> None:
    """That a value is what updates with *values* give.

    From 7.0 on the program can be skipped, where another task calls on the cpu of one that was
    preempted in the middle of it: then what is counted and what was missed are all.
    """
    expected, found = kinds(values), loaded.value(file, cgroup)
    missed = loaded.misses(file)["on_call"]
    if not missed:
        assert found == expected
    (calls,), (all_calls,) = found["nested.calls"], expected["nested.calls"]
    assert all_calls - missed <= calls <= all_calls
    for name in ("log2", "linear", "bounds", "tagged.halves"):
        assert sum(found[name]) == calls


def update(work: Path, directory: Path, which: int, first: int, count: int) -> subprocess.Popen:
    return subprocess.Popen([work, "update", directory, str(which), str(count), str(first)])


def end(*workers: subprocess.Popen) -> None:
    assert [worker.wait() for worker in workers] == [0] * len(workers)


# The initial cgroup


def test_initial_cgroup(engine_name: str, cgroupfs: Path, tree: Path, work: Path) -> None:
    """Entries for it and its descendants, and none for others; no trace of others' updates."""
    inside, below, outside = tree / "inside", tree / "inside/below", tree / "outside"
    for directory in (inside, below, outside):
        directory.mkdir()
    loaded = load_properties(engine_name, cgroupfs, initial=cgroup_id(inside))
    try:
        end(*(update(work, d, m, 1, 50) for d in (tree, inside, below, outside) for m in (KINDS, OWN)))
        for file in ("test.kinds", "test.own"):
            own = [*range(1, 51)]
            check(loaded, file, below, own)
            check(loaded, file, inside, own if file == "test.own" else own * 2)
            for directory in (tree, outside, cgroupfs):
                with pytest.raises(FileNotFoundError):
                    loaded.value(file, directory)
            usage = loaded.usage(file)
            assert (usage.displaced, usage.lost) == (0, 0)
            assert loaded.ids(file, "entries") == {cgroup_id(inside), cgroup_id(below)}
        check_life_below_initial(loaded, inside, outside, work)
    finally:
        close(loaded)


def check_life_below_initial(loaded: Loaded, inside: Path, outside: Path, work: Path) -> None:
    """Cgroups come and go as elsewhere; when the initial one goes nothing is left."""
    new = inside / "new"
    new.mkdir()
    (outside / "new").mkdir()
    end(update(work, new, KINDS, 1, 10))
    check(loaded, "test.kinds", new, range(1, 11))
    assert cgroup_id(outside / "new") not in loaded.ids("test.kinds", "entries")
    remove_tree(inside)
    for file in ("test.kinds", "test.shared", "test.own", "test.distinct"):
        wait_until(lambda: not loaded.ids(file, "entries"), "the entries to go")  # noqa: B023
        wait_until(lambda: not loaded.ids(file, "pairs"), "the arrays to go")  # noqa: B023


# Flags


def test_no_per_cpu_arrays(properties: Loaded, tree: Path, work: Path) -> None:
    """All cpus add to one array, atomically; none other is made."""
    a, b = tree / "a", tree / "a/b"
    b.mkdir(parents=True)
    end(*(update(work, d, SHARED, first, UPDATES) for d in (a, b) for first in (1, 500)))
    own = [*range(1, UPDATES + 1), *range(500, UPDATES + 500)]
    check(properties, "test.shared", b, own)
    check(properties, "test.shared", a, own * 2)
    check(properties, "test.shared", tree, own * 2)
    assert properties.ids("test.shared", "pairs") == set()
    usage = properties.usage("test.shared")
    assert (usage.pairs or 0, usage.spilled, usage.lost) == (0, 0, 0)
    # One array for two cpus' worth, and no hash to find it in.
    if properties.is_native("test.shared"):
        assert usage.memory < properties.usage("test.kinds").memory
        return
    info = libbpf.map_info(properties.fd("test.shared", "pairs"))
    assert info.max_entries == 1


def test_no_hierarchy(properties: Loaded, tree: Path, work: Path) -> None:
    """An entry counts its own cgroup alone, and goes with it."""
    a, b = tree / "a", tree / "a/b"
    b.mkdir(parents=True)
    end(*(update(work, d, OWN, 1, UPDATES) for d in (a, b) for _ in range(2)))
    for directory in (a, b):
        check(properties, "test.own", directory, [*range(1, UPDATES + 1)] * 2)
    check(properties, "test.own", tree, [])
    b.rmdir()
    wait_until(lambda: dying(tree) == 0, "the cgroup to be released")
    check(properties, "test.own", a, [*range(1, UPDATES + 1)] * 2)
    assert properties.entries_below("test.own", tree) == {cgroup_id(tree), cgroup_id(a)}


# Operations


@pytest.mark.parametrize(("which", "file"), [(KINDS, "test.kinds"), (SHARED, "test.shared")])
def test_sum_max_min_under_load(
    properties: Loaded, tree: Path, work: Path, which: int, file: str
) -> None:
    """In every cgroup what was done in it and below it, on all cpus, destroyed ones included."""
    a, ab, abc, a2 = tree / "a", tree / "a/b", tree / "a/b/c", tree / "a2"
    for directory in (a, ab, abc, a2):
        directory.mkdir()
    done: dict[Path, list[int]] = {d: [] for d in (a, ab, abc, a2)}
    workers = []
    for number, directory in enumerate(done):
        for first in (1000 * number + 100, 1000 * number + 5000):
            workers.append(update(work, directory, which, first, UPDATES))
            done[directory] += range(first, first + UPDATES)
    gone = []
    for number in range(SHORT_LIVED):
        short = a / f"short{number}"
        short.mkdir()
        # Beyond what anybody else does, at both ends.
        first = 3 if number == SHORT_LIVED // 2 else 10_000_000 + number
        end(update(work, short, which, first, 2))
        gone += [first, first + 1]
        remove_tree(short)
        properties.value(file, tree)
    end(*workers)
    check(properties, file, abc, done[abc])
    check(properties, file, ab, done[abc] + done[ab])
    check(properties, file, a, done[abc] + done[ab] + done[a] + gone)
    check(properties, file, a2, done[a2])
    check(properties, file, tree, [v for values in done.values() for v in values] + gone)


def test_max_and_min_of_a_cgroup_never_updated(properties: Loaded, tree: Path) -> None:
    _, stats_map = next(
        (c, m) for c in properties.collectors for m in c.stats_maps if m.file == "test.kinds"
    )
    text = stats_map.value_type.format(stats_map.lookup(cgroup_id(tree))).decode()
    assert text.splitlines()[:3] == ["sum 0", "max 0", "min max"]


# Interrupts, and flushes on another cpu


def truth() -> int:
    """How often interrupts have updated: the map that the program counts them in."""
    lib, number, newest = libbpf.lib, libbpf.c_uint32(0), -1
    while lib.bpf_map_get_next_id(number, libbpf.byref(number)) == 0:
        fd = lib.bpf_map_get_fd_by_id(number)
        if fd < 0:
            continue
        if libbpf.map_info(fd).name == b"truth":
            newest = int.from_bytes(libbpf.map_lookup(fd, bytes(4), 8), sys.byteorder)
        os.close(fd)
    assert newest >= 0
    return newest


@pytest.mark.parametrize(
    ("which", "file"), [(KINDS, "test.kinds"), (SHARED, "test.shared"), (OWN, "test.own")]
)
def test_interrupts_that_update(
    properties: Loaded, tree: Path, work: Path, which: int, file: str
) -> None:
    """Two programs, one in task and one in interrupt context, add to the same elements."""
    before = truth()
    count = int(subprocess.check_output([work, "interrupts", tree, str(which), str(20 * UPDATES)]))
    interrupts = truth() - before
    assert interrupts >= 50
    assert properties.misses(file)["on_interrupt"] == 0
    check(properties, file, tree, [*range(1, count + 1), *[7] * interrupts])


@pytest.mark.parametrize(("which", "file"), [(KINDS, "test.kinds"), (SHARED, "test.shared")])
def test_litmus(
    properties: Loaded, tree: Path, litmus: Path, which: int, file: str
) -> None:
    """Every update is seen by the next lookup, in each of so many rounds."""
    if len(CPUS) < 2:
        pytest.skip("one cpu alone; nothing races")
    inside = tree / "inside"
    inside.mkdir()
    stats_map = next(m for m in properties.collectors[0].stats_maps if m.file == file)
    reader = properties.reader(file)
    os.set_inheritable(reader, True)
    result = subprocess.run(
        ["sh", "-c", 'echo 0 >"$0/cgroup.procs"; exec "$@"', inside, litmus,
         properties.engine.name, str(reader), str(cgroup_id(inside)), str(cgroup_id(tree)),
         str(stats_map.value_type.elements), str(which), str(ROUNDS), str(CPUS[0]), str(CPUS[1])],
        pass_fds=[reader], text=True, capture_output=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > ROUNDS // 100
    expected = [number for number in range(1, ROUNDS + 1) for _ in range(2)]
    assert properties.value(file, tree)["sum"] == (sum(expected),)


# Lookups by BPF programs


def test_lookup_by_a_sleepable_program(properties: Loaded, tree: Path, work: Path) -> None:
    """It sees the total flushed, though nobody else has looked."""
    below = tree / "below"
    below.mkdir()
    program = properties.collectors[0].programs["look_up"]
    done: list[int] = []
    for first in (10, 1, 1000):
        end(update(work, below, KINDS, first, 100))
        done += range(first, first + 100)
        for directory in (below, tree):
            link = libbpf.create_cgroup_iter_link(
                program, libbpf.CGROUP_ITER_SELF_ONLY, cgroup_id(directory)
            )
            walk = libbpf.create_iter(link)
            data = os.read(walk, 4096)
            os.close(walk)
            os.close(link)
            status, *total = struct.unpack(f"={len(data) // 8}q", data)
            assert status == 0
            expected = kinds(done)
            assert total[0] == expected["sum"][0]
            assert total[1] == expected["max"][0]
            assert total[2] & ALL_ONES == expected["min"][0]
            assert total[3:11] == [*expected["log2"]]


# The aggregator


def hashed(key: int) -> int:
    """As cgstat_hash() of bpf/cgstat_update.h."""
    key ^= key >> 33
    key = key * 0xFF51AFD7ED558CCD & ALL_ONES
    key ^= key >> 33
    key = key * 0xC4CEB9FE1A85EC53 & ALL_ONES
    return key ^ key >> 33


def registers(keys: Iterable[int], elements: int) -> tuple[int, ...]:
    """What a HyperLogLog of so many elements has after it saw *keys*."""
    ranks = bytearray(8 * elements)
    for key in keys:
        rest, index = divmod(hashed(key), len(ranks))
        rest |= 1 << 50
        ranks[index] = max(ranks[index], (rest & -rest).bit_length())
    return struct.unpack(f"={elements}Q", ranks)


def test_aggregator(properties: Loaded, tree: Path, work: Path) -> None:
    """Merged at flush: exactly the registers that all keys of the subtree give, each once."""
    a, b, gone = tree / "a", tree / "b", tree / "b/gone"
    for directory in (a, b, gone):
        directory.mkdir()
    half = UPDATES // 2
    end(
        update(work, a, DISTINCT, 1, UPDATES), update(work, a, DISTINCT, 1, UPDATES),
        update(work, b, DISTINCT, 1 + half, UPDATES), update(work, gone, DISTINCT, 1, half),
    )  # fmt: skip
    remove_tree(gone)
    wait_until(lambda: dying(tree) == 0, "the cgroup to be released")
    if properties.misses("test.distinct")["on_call"]:
        pytest.skip("the kernel skipped runs, so which keys were seen is not known")
    keys = {a: range(1, UPDATES + 1), b: range(1, UPDATES + half + 1), tree: range(1, UPDATES + half + 1)}
    for directory, seen in keys.items():
        found = properties.value("test.distinct", directory)["seen"]
        assert found == registers(seen, len(found))
        # 512 registers: the standard error is 4.6 %
        assert abs(hyperloglog.estimate(found) / len(seen) - 1) < 0.14
    assert properties.one("test.distinct", tree, "calls") == 3 * UPDATES + half


def test_the_example_counts_processes(
    engine_name: str, cgroupfs: Path, tree: Path, work: Path
) -> None:
    engine = make_engine(engine_name)
    path = BUILD / "examples" / "proc_distinct.bpf.o"
    collector = load(Request(path, engine, cgroup_id(cgroupfs)))
    loaded = Loaded(engine, [collector])
    try:
        assert collector.engine.name == engine.name
        a, b = tree / "a", tree / "b"
        a.mkdir()
        b.mkdir()
        count = max(200, times(1000))
        for directory in (a, b, a):
            subprocess.run([work, "fork", directory, str(count)], check=True)
        for directory, processes in ((a, 2 * count + 2), (b, count + 1), (tree, 3 * count + 3)):
            found = loaded.value("proc.distinct", directory)["processes"]
            # 1024 registers: the standard error is 3.25 %
            assert abs(hyperloglog.estimate(found) / processes - 1) < 0.13
    finally:
        collector.close()
