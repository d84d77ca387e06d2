# SPDX-License-Identifier: GPL-2.0-only
"""What only the engine native has: the kernel does all, and nothing of ours is loaded for it."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from cgstatfs import libbpf, struct_ops
from cgstatfs.collectors import Collector, remove_pins
from cgstatfs.engines import Engine
from cgstatfs.loading import Request, load
from cgstatfs.runtime import mount_bpffs

from ..conftest import BUILD, Loaded, cgroup_id, dying, make_engine, wait_until
from .test_properties import DISTINCT, end, registers, update
from .test_updates import ADD, FILE, add_in

CALLS = BUILD / "tests" / "calls.bpf.o"
AGGREGATED = BUILD / "tests" / "aggregated.bpf.o"
# What no cgroup has.
UNKNOWN = 1 << 40


@pytest.fixture
def engine(engine_name: str) -> Engine:
    if engine_name != "native":
        pytest.skip("another engine")
    return make_engine(engine_name)


@pytest.fixture
def pins() -> Iterator[Path]:
    mount_bpffs()
    directory = Path(f"/sys/fs/bpf/cgstatfs-test-{os.getpid()}")
    directory.mkdir()
    yield directory
    for each in directory.iterdir():
        remove_pins(each)
    directory.rmdir()


@pytest.fixture
def calls(engine: Engine, cgroupfs: Path) -> Iterator[Loaded]:
    loaded = Loaded(engine, [load(Request(CALLS, engine, cgroup_id(cgroupfs)))])
    yield loaded
    loaded.collectors[0].close()


def test_nothing_of_ours_is_loaded(calls: Loaded) -> None:
    (collector,) = calls.collectors
    assert {*collector.maps} == {"config", "calls_native", "calls_ctl", "calls_config"}
    assert {*collector.programs} == {*collector.links} == {"on_call"}


def test_a_lookup_is_a_lookup_of_an_element(calls: Loaded, tree: Path) -> None:
    """Of anybody who has the map."""
    below = tree / "below"
    below.mkdir()
    add_in(below, ADD, 5)
    fd = calls.fd(FILE, "native")
    for cgroup in (below, tree):
        value = libbpf.map_lookup(fd, struct.pack("=Q", cgroup_id(cgroup)), libbpf.map_info(fd).value_size)
        assert struct.unpack_from("=Q", value) == (5,)


def test_a_removed_cgroup_is_unknown_at_once(calls: Loaded, tree: Path) -> None:
    """Though references are left: here a task that has ended in it and is not waited for."""
    below = tree / "below"
    below.mkdir()
    id = cgroup_id(below)
    child = os.fork()
    if child == 0:
        (below / "cgroup.procs").write_text(str(os.getpid()))
        ctypes.CDLL(None).prctl(0x63677374, ADD, 3, 0, 0)
        os._exit(0)
    try:
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        below.rmdir()
        assert id not in calls.ids(FILE, "entries")
        with pytest.raises(FileNotFoundError):
            calls.value(FILE, id)
        assert calls.one(FILE, tree, "count") == 3
    finally:
        os.waitpid(child, 0)
    wait_until(lambda: dying(tree) == 0, "the cgroup to be released")
    assert calls.one(FILE, tree, "count") == 3


def test_memory_follows_cgroups(calls: Loaded, tree: Path) -> None:
    wait_until(lambda: dying(tree) == 0, "cgroups to be released")
    before = calls.usage(FILE)
    assert before.room is before.pairs is None
    directories = [tree / str(number) for number in range(20)]
    for directory in directories:
        directory.mkdir()
    more = calls.usage(FILE)
    assert more.entries - before.entries == 20
    # The total, what is pending, and for each cpu the values and what was seen of them.
    value = libbpf.map_info(calls.fd(FILE, "native")).value_size
    assert more.memory - before.memory >= 20 * 2 * value * (1 + libbpf.count_possible_cpus())
    for directory in directories:
        directory.rmdir()
    wait_until(lambda: calls.usage(FILE).memory == before.memory, "the memory to be returned")


def test_pinned_it_goes_on(calls: Loaded, tree: Path, pins: Path) -> None:
    """Whoever loaded it may end; from its pins it is served, and counts."""
    (collector,) = calls.collectors
    collector.pin(pins / "calls")
    add_in(tree, ADD, 1)
    served = Collector.from_pins(pins / "calls", to_serve=True)
    assert not served.programs and served.engine.name == "native"
    (stats_map,) = served.stats_maps
    collector.close()
    add_in(tree, ADD, 2)
    assert stats_map.lookup(cgroup_id(tree))[0] == 3
    with pytest.raises(OSError) as caught:
        stats_map.lookup(UNKNOWN)
    assert caught.value.errno == errno.ENOENT
    served.close()


def test_an_aggregator_stays_with_its_map(
    engine: Engine, cgroupfs: Path, tree: Path, pins: Path, work: Path
) -> None:
    """While it is pinned alone, while it is replaced, and beside one for a map of the same name."""
    a, b = tree / "a", tree / "b"
    a.mkdir()
    b.mkdir()
    request = Request(AGGREGATED, engine, cgroup_id(cgroupfs))
    link = "distinct_aggregator"
    with closing(load(request)) as collector:
        collector.pin(pins / "aggregated")
        id = libbpf.link_info(collector.links[link]).id
    with closing(load(request)) as other:
        end(update(work, a, DISTINCT, 1, 100))
        with closing(load(replace(request, keep=pins / "aggregated"))) as collector:
            assert libbpf.link_info(collector.links[link]).id == id
            remove_pins(pins / "aggregated")
            end(update(work, b, DISTINCT, 51, 100))
            for each in (collector, other):
                found = Loaded(engine, [each]).value("test.distinct", tree)["seen"]
                assert found == registers(range(1, 151), len(found))
    wait_until(lambda: not libbpf.link_exists(id), "the kernel to let go of the aggregator")


def test_a_map_has_one_aggregator(engine: Engine, cgroupfs: Path) -> None:
    with closing(load(Request(AGGREGATED, engine, cgroup_id(cgroupfs)))) as collector:
        program = collector.programs["distinct_aggregator"]
        with pytest.raises(FileExistsError):
            struct_ops.register(program, collector.maps["distinct_native"])
        with pytest.raises(OSError) as caught:
            struct_ops.register(program, collector.maps["config"])
        assert caught.value.errno == errno.EINVAL
