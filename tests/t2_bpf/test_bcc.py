# SPDX-License-Identifier: GPL-2.0-only
"""Collectors that bcc compiles when they are loaded.

To compile is slow in a guest: what each kernel could do in its own way is loaded there, what
the compiler or we refuse on the host alone.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cgstatfs import bcc_loading, libbpf, loader
from cgstatfs.collectors import Collector, CollectorError, remove_pins
from cgstatfs.engines import ENGINES, Usage
from cgstatfs.loading import Request
from cgstatfs.runtime import mount_bpffs

from ..conftest import (
    REPOSITORY, Loaded, cgroup_id, dying, make_engine, times, wait_until,
)  # fmt: skip
from .test_updates import add_in, call

SOURCES = REPOSITORY / "tests" / "bpf"
FILE, FLAT_FILE, SHARED_FILE, LARGE_FILE = "test.bcc", "test.flat", "test.shared", "test.large"
ADD, FLAT, SHARED, STRANGER = range(1, 5)
UPDATES = times(20_000)
ALL_ONES = (1 << 64) - 1
IN_GUEST = bool(os.environ.get("CGSTATFS_TEST_GUEST"))

# One compilation a guest is that of t3_filesystem/test_starting_points.py.
pytestmark = pytest.mark.on_host


@pytest.fixture(scope="module", autouse=True)
def compiler(bcc_compiler: None) -> None:
    """For all that is here."""


def request(path: Path, cgroupfs: Path, **more: object) -> Request:
    return Request(path, make_engine("standalone"), cgroup_id(cgroupfs), **more)


def load(path: Path, cgroupfs: Path) -> Loaded:
    asked = request(path, cgroupfs)
    return Loaded(asked.engine, [bcc_loading.load_bcc(asked)])


@pytest.fixture(scope="module")
def calls(compiler: None, cgroupfs: Path) -> Iterator[Loaded]:
    loaded = load(SOURCES / "bcc_calls.bcc.c", cgroupfs)
    yield loaded
    loaded.collectors[0].close()


def usage(loaded: Loaded, prefix: str) -> Usage:
    return loaded.collectors[0].usage(prefix)


# What is counted


def test_what_is_declared(calls: Loaded) -> None:
    """Comments, and what the preprocessor leaves out, declare nothing."""
    (collector,) = calls.collectors
    described = {m.file: m for m in collector.stats_maps}
    assert described.keys() == {FILE, FLAT_FILE, SHARED_FILE}
    assert described[FLAT_FILE].flags == {"CGSTAT_NO_HIERARCHY"}
    assert described[SHARED_FILE].flags == {"CGSTAT_NO_PERCPU"}
    value_type = described[FILE].value_type
    assert [f.path for f in value_type.fields] == [
        "count", "largest", "smallest", "log2", "linear", "both.times", "both.last", "list",
    ]  # fmt: skip
    text = value_type.format((0,) * value_type.elements)
    assert b"\nsmallest max\n" in text
    assert b"\nlinear count=0 10=0 15=0 20=0 inf=0\n" in text
    assert libbpf.map_info(calls.fd(FILE, "entries")).max_entries == 4096


@pytest.mark.parametrize(("file", "what"), [(FILE, ADD), (SHARED_FILE, SHARED)])
def test_every_operation(calls: Loaded, tree: Path, file: str, what: int) -> None:
    (tree / "d").mkdir()
    for n in (3, 11, 64, 20, 21):
        add_in(tree / "d", what, n)
    for directory in (tree / "d", tree):
        value = calls.value(file, directory)
        assert value["count"] == (119,)
        assert value["largest"] == (64,)
        # Kept as the complement
        assert value["smallest"] == (ALL_ONES - 3,)
        # Up to 1, 2, 4, 8, 16, 32, 64
        assert value["log2"] == (0, 0, 1, 0, 1, 2, 1, 0)
        # Up to 10, 15, 20
        assert value["linear"] == (1, 1, 1, 2)
        if what == ADD:
            assert (value["list"], value["both.times"], value["both.last"]) == ((0, 0, 5), (5,), (64,))


def test_flags(calls: Loaded, tree: Path) -> None:
    (tree / "d").mkdir()
    add_in(tree / "d", FLAT, 5)
    assert calls.one(FLAT_FILE, tree / "d", "") == 5
    assert calls.one(FLAT_FILE, tree, "") == 0
    assert calls.ids(FLAT_FILE, "pairs") >= {cgroup_id(tree / "d")}
    add_in(tree / "d", SHARED, 5)
    assert not calls.ids(SHARED_FILE, "pairs")
    assert usage(calls, "shared").spilled == 0


def test_what_cannot_be_counted_is_shown(calls: Loaded) -> None:
    before = usage(calls, "calls").lost
    call(STRANGER, 1 << 40)
    assert usage(calls, "calls").lost == before + 1


def _update(directory: Path, what: int, count: int, cpu: int) -> int:
    """A process that joins a cgroup, and updates 1, 2, … *count*; its id."""
    child = os.fork()
    if child == 0:
        try:
            os.sched_setaffinity(0, {cpu})
            (directory / "cgroup.procs").write_text(str(os.getpid()))
            for n in range(1, count + 1):
                call(what, n)
            os._exit(0)
        finally:
            os._exit(1)
    return child


def _hashed(calls: Loaded, tree: Path, cpu: int) -> Path:
    """A cgroup that found its slot on a cpu taken by another, and was updated by 1."""
    for number in range(1000):
        directory = tree / str(number)
        directory.mkdir()
        assert os.waitpid(_update(directory, ADD, 1, cpu), 0)[1] == 0
        key = cpu << 48 | cgroup_id(directory)
        if key.to_bytes(8, sys.byteorder) in libbpf.map_keys(calls.fd(FILE, "pairs"), 8):
            return directory
    raise AssertionError("1000 cgroups have a slot each")


def test_no_id_is_anothers_key(calls: Loaded, tree: Path) -> None:
    """What is given for an id may be anything."""
    cpus = os.sched_getaffinity(0)
    first, last = min(cpus), max(cpus)
    directory = _hashed(calls, tree, last)
    os.sched_setaffinity(0, {first})
    try:
        before = usage(calls, "calls").lost
        call(STRANGER, (first ^ last) << 48 | cgroup_id(directory))
    finally:
        os.sched_setaffinity(0, cpus)
    assert usage(calls, "calls").lost == before + 1
    assert calls.one(FILE, directory, "count") == 1


def _flush_until_ended(children: list[int], flush: Callable[[], int]) -> None:
    """Totals must never fall, while they are read all the time."""
    left, before = set(children), 0
    while left:
        total = flush()
        assert total >= before
        before = total
        for child in list(left):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                assert status == 0
                left.remove(child)


@pytest.mark.parametrize(("file", "what"), [(FILE, ADD), (SHARED_FILE, SHARED)])
def test_exact_under_load(calls: Loaded, tree: Path, file: str, what: int) -> None:
    """Two processes in each of two cgroups, on all cpus, with flushes between the updates.

    What BPF skipped, as it can from 7.0 on, is not counted, and shown.
    """
    skipped = sum(calls.misses(file).values())
    directories = [tree / "a", tree / "a" / "b"]
    for directory in directories:
        directory.mkdir()
    cpus = sorted(os.sched_getaffinity(0))
    children = [
        _update(directory, what, UPDATES, cpus[number % len(cpus)])
        for number, directory in enumerate([*directories, *reversed(directories)])
    ]
    _flush_until_ended(children, lambda: calls.one(file, tree, "count"))
    skipped = sum(calls.misses(file).values()) - skipped
    for directory, processes in ((directories[1], 2), (directories[0], 4), (tree, 4)):
        value = calls.value(file, directory)
        counted = sum(value["log2"])
        assert processes * UPDATES - skipped <= counted <= processes * UPDATES
        assert sum(value["linear"]) == counted
        if not skipped:
            assert value["count"] == (processes * UPDATES * (UPDATES + 1) // 2,)
            assert (value["largest"], value["smallest"]) == ((UPDATES,), (ALL_ONES - 1,))
            assert value["log2"][:4] == (processes, processes, 2 * processes, 4 * processes)
    if file == FILE:
        _remove_and_look(calls, tree, calls.one(file, tree, "count"))


def _remove_and_look(calls: Loaded, tree: Path, expected: int) -> None:
    """What destroyed cgroups counted stays, and nothing else does."""
    before = calls.value(FILE, tree)
    for directory in (tree / "a" / "b", tree / "a"):
        directory.rmdir()
    assert calls.one(FILE, tree, "count") == expected
    wait_until(lambda: dying(tree) == 0, "the cgroups to be released")
    wait_until(
        lambda: calls.one(FILE, tree, "count") == expected
        and calls.entries_below(FILE, tree) == {cgroup_id(tree)},
        "the entries to go",
    )
    assert calls.value(FILE, tree) == before


def test_cgroups_that_go_before_anybody_looks(calls: Loaded, tree: Path) -> None:
    for number in range(times(200)):
        directory = tree / f"d{number}"
        directory.mkdir()
        add_in(directory, ADD, 2)
        directory.rmdir()
    assert calls.one(FILE, tree, "count") == 2 * times(200)


def test_user_space_cannot_write(calls: Loaded) -> None:
    for file in (FILE, SHARED_FILE):
        for ending in ("entries", "pairs", "lists", "ctl"):
            fd = calls.fd(file, ending)
            info = libbpf.map_info(fd)
            key, value = bytes(info.key_size), bytes(info.value_size)
            update, delete = libbpf.lib.bpf_map_update_elem, libbpf.lib.bpf_map_delete_elem
            assert update(fd, key, value, ctypes.c_uint64(0)) == -errno.EPERM
            assert delete(fd, key) == -errno.EPERM


def test_the_largest_value_and_no_room(cgroupfs: Path, tree: Path) -> None:
    """What has no entry counts to the nearest ancestor that has one, and is shown."""
    live = sum(1 for _ in os.walk(cgroupfs))
    if live > 40:
        pytest.skip(f"{live} cgroups are here already, and the map has room for 64")
    loaded = load(SOURCES / "bcc_large.bcc.c", cgroupfs)
    try:
        directories = [tree / f"d{number}" for number in range(70)]
        for directory in directories:
            directory.mkdir()
        # A fork is counted where it is called.
        for directory in directories:
            _fork_in(directory)
        value = loaded.value(LARGE_FILE, tree)
        assert value["forks"] == value["again"] == (len(directories),)
        without = [d for d in directories if cgroup_id(d) not in loaded.ids(LARGE_FILE, "entries")]
        assert without
        seen = usage(loaded, "large")
        # Others may have forked without an entry, too.
        assert seen.displaced >= len(without)
        assert seen.lost == 0
    finally:
        loaded.collectors[0].close()


def _fork_in(directory: Path) -> None:
    child = os.fork()
    if child == 0:
        (directory / "cgroup.procs").write_text(str(os.getpid()))
        if (grandchild := os.fork()) == 0:
            os._exit(0)
        os._exit(os.waitpid(grandchild, 0)[1])
    assert os.waitpid(child, 0)[1] == 0


# Loading


@pytest.fixture
def pins() -> Iterator[Path]:
    mount_bpffs()
    directory = Path(f"/sys/fs/bpf/cgstatfs-test-{os.getpid()}")
    directory.mkdir(mode=0o700)
    yield directory / "mystats"
    remove_pins(directory / "mystats")
    directory.rmdir()


def test_in_a_process_of_its_own(cgroupfs: Path, tree: Path, tmp_path: Path, pins: Path) -> None:
    """The template for new collectors; what is pinned goes on without whoever loaded it."""
    path = tmp_path / "mystats.bcc.c"
    shutil.copy(REPOSITORY / "bpf" / "templates" / "new.bcc.c", path)
    engine = ENGINES[0]()
    _, notes = loader.load_apart(Request(path, engine, cgroup_id(cgroupfs), keep=pins), pins)
    assert "counting began anew" in notes[-1]
    loaded = Loaded(make_engine("standalone"), [Collector.from_pins(pins)])
    try:
        assert loaded.collectors[0].engine.name == "standalone"
        _fork_in(tree)
        assert loaded.one("mystats", tree, "forks") == 1
        # The task itself, and the one that it forked, whose beginning was seen.
        wait_until(lambda: sum(loaded.value("mystats", tree)["lifetime_ns"]) == 2, "the ends")
        assert loaded.one("mystats", tree, "longest_ns") > 0
    finally:
        loaded.collectors[0].close()
    assert not list(pins.parent.glob("new~*"))


# What is refused

SOURCE = """#include "cgstat.bcc.h"
struct v { u64 a; };
CGSTAT_MAP(m, struct v, "t.m");
RAW_TRACEPOINT_PROBE(sched_process_fork)
{
	cgstat_add(m, bpf_get_current_cgroup_id(), a, 1);
	return 0;
}
"""


def refused(path: Path, cgroupfs: Path, source: str, **more: object) -> str:
    path.write_text(source)
    with pytest.raises(CollectorError) as error:
        bcc_loading.load_bcc(request(path, cgroupfs, **more))
    assert str(path) in str(error.value)
    return str(error.value).removeprefix(f"{path}: ")


# Name: what is replaced in the source (if nothing, it is added), by what, what is said
BEFORE_IT_IS_COMPILED = {
    "no map": ("CGSTAT_MAP", "NO_MAP", ["CGSTAT_MAP"]),
    "two of one name": ("", 'CGSTAT_MAP(n, struct v, "t.m");', ["t.m", "rename"]),
    "a path as a name": ("t.m", "etc/passwd", ["etc/passwd", "'/'"]),
    "a kprobe": ("", "int kprobe__vfs_read(void *ctx) { return 0; }", ["kprobe__vfs_read", "RAW_TRACEPOINT_PROBE"]),
    "a perf tracepoint": ("", "TRACEPOINT_PROBE(sched, sched_switch) { return 0; }", ["RAW_TRACEPOINT_PROBE"]),
    "a kfunc": ("", "KFUNC_PROBE(vfs_read) { return 0; }", ["KFUNC_PROBE", "NAME.bpf.c"]),
    "a HyperLogLog": ("u64 a;", "u64 a; u64 b[4] CGSTAT_HLL;", ["CGSTAT_HLL", "NAME.bpf.c"]),
    "bounds": ("u64 a;", "u64 a; u64 b[2] CGSTAT_BOUNDS(3);", ["CGSTAT_BOUNDS"]),
    "binary": ("u64 a;", "\0", ["no C source"]),
}  # fmt: skip

ON_THE_HOST = {
    "a syntax error": ("return 0", "return nothing", ["does not compile", "refused.bcc.c:7:", "'nothing'"]),
    "an unknown flag": ('"t.m"', '"t.m", CGSTAT_NOPE', ["CGSTAT_NOPE"]),
    "a string": ("u64 a;", "u64 a; char name[16];", ['"name" (char[16])', "unsigned 64-bit"]),
    "a narrow field": ("u64 a;", "u64 a; u32 b;", ['"b" (unsigned int)']),
    "a signed field": ("u64 a;", "u64 a; s64 b;", ['"b" (long long)']),
    "a bit-field": ("u64 a;", "u64 a; u64 b:3;", ['"b" is a bit-field']),
    "an array of arrays": ("u64 a;", "u64 a; u64 b[2][3];", ["arrays of arrays"]),
    "a union": ("u64 a;", "u64 a; union { u64 b, c; } d;", ['"d" (union']),
    "too many cgroups": ("#include", "#define CGSTAT_MAX_CGROUPS (1 << 30)\n#include", ["1 to 1048576"]),
    "too many elements": ("u64 a;", "u64 a; u64 b[128];", ["more than 128 elements"]),
    "a lone log2": ("u64 a;", "u64 a; u64 b CGSTAT_LOG2;", ['"b"', "histogram"]),
    "two tags": ("u64 a;", "u64 a; u64 b[3] CGSTAT_LOG2 CGSTAT_MAX;", ['"b" is a histogram']),
    "a step of 0": ("u64 a;", "u64 a; u64 b[3] CGSTAT_LINEAR(1, 0);", ['"b"', "STEP"]),
    "an argument too many": ("return 0", "return ctx->args[9]", ["more arguments"]),
    "a function": ("", "int helper(void *ctx) { return 0; }", ['"helper"', "static inline"]),
}  # fmt: skip

BY_THE_KERNEL = {
    "an unknown tracepoint": ("sched_process_fork", "no_such_thing", ["no tracepoint", '"no_such_thing"']),
    "the verifier": ("return 0", "return *(volatile int *)16", ["refused by the verifier", "invalid mem access"]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        pytest.param(*case, id=name)
        for name, case in (BEFORE_IT_IS_COMPILED | BY_THE_KERNEL | ({} if IN_GUEST else ON_THE_HOST)).items()
    ],
)
def test_what_is_refused(
    cgroupfs: Path, tmp_path: Path, old: str, new: str, words: list[str]
) -> None:
    source = SOURCE.replace(old, new) if old else SOURCE + new
    assert source != SOURCE
    said = refused(tmp_path / "refused.bcc.c", cgroupfs, source)
    for word in words:
        assert word in said
    assert len(said.splitlines()) < 15
    assert "Traceback" not in said


def test_initial_cgroups_are_refused(cgroupfs: Path, tmp_path: Path) -> None:
    said = refused(tmp_path / "a.bcc.c", cgroupfs, SOURCE, initials={"": 5})
    assert "everywhere" in said and "NAME.bpf.c" in said


def test_without_bcc(cgroupfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bcc", None)
    assert "install python3-bpfcc" in refused(tmp_path / "a.bcc.c", cgroupfs, SOURCE)
    # The package of that name that PyPI has
    monkeypatch.setitem(sys.modules, "bcc", types.ModuleType("bcc"))
    assert "install python3-bpfcc" in refused(tmp_path / "a.bcc.c", cgroupfs, SOURCE)


def test_without_headers(cgroupfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if Path("/sys/kernel/kheaders.tar.xz").exists():
        pytest.skip("this kernel brings its headers itself")
    monkeypatch.setattr(os, "uname", lambda: types.SimpleNamespace(release="0.0-none"))
    assert "install linux-headers-0.0-none" in refused(tmp_path / "a.bcc.c", cgroupfs, SOURCE)


@pytest.mark.skipif(IN_GUEST, reason="slow there, and the same on every kernel")
def test_nothing_is_left_of_what_is_refused(cgroupfs: Path, tmp_path: Path) -> None:
    """Nor are descriptors left open."""

    def descriptors() -> list[str]:
        return sorted(filter(None, map(_target, Path("/proc/self/fd").iterdir())))

    def _target(path: Path) -> str:
        try:
            return re.sub(r"\d+", "", os.readlink(path))
        except OSError:
            return ""

    path = tmp_path / "a.bcc.c"
    source = SOURCE.replace("sched_process_fork", "no_such_thing")
    refused(path, cgroupfs, source)
    before = descriptors()
    refused(path, cgroupfs, source)
    assert descriptors() == before
