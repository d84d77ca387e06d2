# SPDX-License-Identifier: GPL-2.0-only
"""Collectors that are malformed or hostile: each is refused in a few lines that say why.

They take the way that a daemon has them take. Whatever is refused leaves nothing: no pins, and
no programs or maps in the kernel.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from cgstatfs import libbpf, loader
from cgstatfs.collectors import CollectorError
from cgstatfs.hierarchy import Hierarchy
from cgstatfs.registry import Registry
from cgstatfs.runtime import State, mount_bpffs

from ..conftest import BUILD, make_engine, skip, wait_until
from ..fuzz.elf import KIND_STRUCT, btf_type, patched, sections

ONE_ENGINE = True
OBJECTS = BUILD / "tests" / "hostile"
# What the objects call their programs and maps begins with it.
MARK = b"hst_"
LINES = 12

# What is compiled, of tests/bpf/hostile/cases.bpf.c: words that the message has.
VERIFIER = '"hst_own" is refused by the verifier'
COMPILED = {
    "license_missing": 'licence is not compatible with the GPL',
    "license_proprietary": 'licence is not compatible with the GPL',
    "map_missing": "declares no stats map; use CGSTAT_MAP",
    "char_array": 'unsupported field "name" (char[16]); use unsigned 64-bit',
    "u32": 'unsupported field "one" (unsigned int)',
    "two_u32": 'unsupported field "one" (unsigned int)',
    "signed": 'unsupported field "balance" (long long)',
    "bitfield": 'unsupported field "bits" (unsigned long long, a bit-field of 7)',
    "union": 'unsupported field "either" (union)',
    "pointer": 'unsupported field "where" (pointer)',
    "double": 'unsupported field "ratio" (float double)',
    "empty_struct": "is empty",
    "empty_inside": 'field "nothing" is empty',
    "zero_length": 'unsupported field "none" (unsigned long long[0])',
    "many_elements": "more than 128 elements",
    "nested": "nested more than 8 deep",
    "padded": 'field "late" is not where the one before it ends',
    "anonymous": "(struct) has no name",
    "histogram_scalar": 'field "wait_ns" is tagged as a histogram and is no array',
    "tag_unknown": 'unknown tag "mean"',
    "bounds_order": "bounds that do not increase",
    "bounds_count": "4 buckets and 2 bounds; it takes 3",
    "bounds_text": '"1, PAGE_SIZE, 3", which are not plain numbers',
    "linear_step": "a STEP of 1 or more",
    "log2_long": "more than 65 buckets",
    "hll_three": "length is a power of two",
    "histogram_of_maxima": "cannot be max as well",
    "aggregator_missing": "declare the map with CGSTAT_MAP_AGGREGATED",
    "flag_unknown": 'unknown flag "CGSTAT_FASTER"',
    "file_slash": '"etc/passwd" has \'/\'',
    "file_parent": '".." starts with a dot',
    "file_unnamed": "has 0 characters",
    "file_long": "has 65 characters; use 1 to 64",
    "file_hidden": '".hidden" starts with a dot',
    "file_newline": r"two\nlines",
    "file_escape": r"\x1b[2Jscreen",
    "file_not_ascii": "ASCII letters",
    "file_twice": 'two stats maps are named "test.hostile"',
    "files_collide": '"m79" collides with "m2300" in 14 bits, by the same collector',
    "file_taken": '"proc.events" is taken, by collector proc_events',
    "loop": VERIFIER,
    "out_of_bounds": VERIFIER,
    "long_log": VERIFIER,
    "too_complex": VERIFIER,
    "tracepoint_missing": 'for "cgroup_fly_away", a tracepoint or function that this kernel does not',
    "function_missing": 'for "cgroup_fly_away", a tracepoint or function that this kernel does not',
    "raw_tracepoint_missing": "cannot be attached: this kernel has no such tracepoint",
    "target_missing": "does not say what it is for; use tp_btf/NAME",
    "xdp": "(xdp) is of a kind that cannot be attached here; use tp_btf",
    "perf_event": "(perf_event) is of a kind that cannot be attached here",
    "section_unknown": "(frobnicate/sys_enter) is of a kind that cannot",
    "optional": "remove the question mark",
    "map_type": 'map "hst_map" cannot be created: Invalid argument',
    "map_enormous": 'map "hst_map" cannot be created: Argument list too long',
    "map_pinned": 'map "hst_map" is to be pinned',
    "entries_enormous": "room for 2147483648 cgroups",
    "entries_none": "room for 0 cgroups",
    "buffer_unmappable": 'map "hst_buffers" is missing or differs',
}  # fmt: skip

# What the kernel decides. All else is refused before it is asked, on every kernel alike, and not
# tried again in the guests; nor is what takes the verifier minutes there.
BY_KERNEL = {
    "license_missing", "license_proprietary", "files_collide", "file_taken", "loop", "out_of_bounds", "long_log",
    "tracepoint_missing", "function_missing", "raw_tracepoint_missing", "map_type", "map_enormous",
    "btf_ext_missing", "fifo",
}  # fmt: skip


def _here(names: Iterable[str]) -> list[str]:
    return [name for name in names if name in BY_KERNEL or not os.environ.get("CGSTATFS_TEST_GUEST")]


# What is made of a good one: how, and words of the message.
UNREADABLE = "cannot be read as a BPF object"
OTHER = "built with another version of cgstat.bpf.h, or is damaged"
MISSING = f"is missing or differs; the object was {OTHER}"
DAMAGED_BTF = "no BTF, or damaged BTF"


def _with(at: int, new: bytes) -> Callable[[bytes], bytes]:
    return lambda data: patched(data, at, new)


def _cut(part: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(part * len(data))]


def _in_btf(name: str, at: int, new: int) -> Callable[[bytes], bytes]:
    """With another word in the BTF of a structure."""
    word = struct.pack("<I", new)
    return lambda data: patched(data, btf_type(data, name, KIND_STRUCT) + at, word)


def _filled(name: str, byte: bytes, skip: int = 0) -> Callable[[bytes], bytes]:
    """With a section's contents replaced."""

    def fill(data: bytes) -> bytes:
        section = sections(data)[name]
        return patched(data, section.offset + skip, byte * (section.size - skip))

    return fill


def _rewritten(*arguments: str) -> Callable[[bytes], bytes]:
    def rewrite(data: bytes) -> bytes:
        done = subprocess.run(
            ["llvm-objcopy", *arguments, "-", "-"], input=data, check=True, capture_output=True
        )
        return done.stdout

    return rewrite


# In struct btf_type: what is its size, or for others the type that it refers to; then members
# of three words each, of which the second is the type.
_SIZE, _TOTAL_TYPE = 8, 12 + 2 * 12 + 4
EDITED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (_cut(0), "is empty"),
    "text": (lambda _: b"#!/bin/sh\nrm -rf /\n" * 99, UNREADABLE),
    "huge": (lambda data: data + bytes(64 << 20), "is larger than 64 MiB"),
    "cut_in_header": (lambda data: data[:40], UNREADABLE),
    "cut_after_header": (lambda data: data[:64], UNREADABLE),
    "cut_early": (_cut(0.1), UNREADABLE),
    "cut_in_the_middle": (_cut(0.5), UNREADABLE),
    "cut_late": (lambda data: data[:-1], UNREADABLE),
    "program": (lambda _: Path("/bin/true").read_bytes(), UNREADABLE),
    "class": (_with(4, b"\1"), UNREADABLE),
    "big_endian": (_with(5, b"\2"), UNREADABLE),
    "executable": (_with(16, b"\2"), UNREADABLE),
    "machine": (_with(18, b"\x3e"), UNREADABLE),
    "headers_far": (_with(40, bytes(5) + b"\1"), UNREADABLE),
    "headers_many": (_with(60, b"\xff\x7f"), UNREADABLE),
    "names_missing": (_with(62, b"\xf0\x0f"), UNREADABLE),
    "btf_missing": (_rewritten("--remove-section=.BTF"), DAMAGED_BTF),
    "btf_garbage": (_filled(".BTF", b"\xa5"), DAMAGED_BTF),
    "btf_empty": (_filled(".BTF", b"\0", 24), DAMAGED_BTF),
    "btf_ext_missing": (_rewritten("--remove-section=.BTF.ext"), "no .BTF.ext"),
    "btf_ext_garbage": (_filled(".BTF.ext", b"\xa5"), DAMAGED_BTF),
    "type_missing": (_in_btf("hst_entry", _TOTAL_TYPE, 1 << 24), "BTF has no type 16777216"),
    "type_void": (_in_btf("hst_entry", _TOTAL_TYPE, 0), "is a void; use a struct of unsigned"),
    "list_size": (_in_btf("cgstat_list", _SIZE, 72), OTHER),
    "ctl_size": (_in_btf("cgstat_ctl", _SIZE, 104), OTHER),
    "entry_size": (_in_btf("hst_entry", _SIZE, 72), OTHER),
    "pair_size": (_in_btf("hst_pair", _SIZE, 1 << 31), OTHER),
    "mkdir_missing": (_rewritten("--redefine-sym=hst_mkdir=hst_made"), f'program "hst_mkdir" {MISSING}'),
    "map_renamed": (_rewritten("--redefine-sym=hst_ctl=hst_control"), UNREADABLE),
    "name_of_a_path": (_rewritten("--redefine-sym=hst_own=../../hst_own"), "name as C has them"),
    "program_twice": (_rewritten("--redefine-sym=hst_own=hst_mkdir"), 'has "hst_mkdir" twice'),
}  # fmt: skip


# What is wrong with the file: how it is made of a good one's path, and words of the message.


def _renamed(name: str) -> Callable[[Path], Path]:
    return lambda good: Path(shutil.copy(good, good.with_name(name)))


def _changed(change: Callable[[Path], object]) -> Callable[[Path], Path]:
    def make(good: Path) -> Path:
        path = good.with_name("changed.bpf.o")
        change(shutil.copy(good, path))
        return path

    return make


def _made(make: Callable[[Path], object]) -> Callable[[Path], Path]:
    def new(good: Path) -> Path:
        path = good.with_name("made.bpf.o")
        make(path)
        return path

    return new


NAMES = "use ASCII letters, digits, _ and -"
PLACED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "absent": (_made(lambda path: None), "No such file"),
    "directory": (_made(os.mkdir), "not a regular file"),
    "fifo": (_made(os.mkfifo), "not a regular file"),
    "dangling": (_made(lambda path: path.symlink_to("nowhere")), "No such file"),
    "loop": (_made(lambda path: path.symlink_to(path.name)), "symbolic links"),
    "device": (_made(lambda path: path.symlink_to("/dev/zero")), "not a regular file"),
    "others": (_changed(lambda path: os.chown(path, 65534, 65534)), "is owned by user 65534"),
    "sparse": (_changed(lambda path: os.truncate(path, 300 << 30)), "is larger than 64 MiB"),
    "group_writable": (_changed(lambda path: os.chmod(path, 0o664)), "chmod go-w"),
    "space": (_renamed("a b.bpf.o"), NAMES),
    "dots": (_renamed("a.b.bpf.o"), NAMES),
    "newline": (_renamed("a\nb.bpf.o"), NAMES),
    "escape": (_renamed("a\x1b[2Jb.bpf.o"), NAMES),
    "not_unicode": (_renamed("a\udcffb.bpf.o"), NAMES),
    "dash": (_renamed("-rf.bpf.o"), "begin with a letter or digit"),
    "unnamed": (_renamed(".bpf.o"), "begin with a letter or digit"),
    "long": (_renamed("a" * 65 + ".bpf.o"), "1 to 64 characters"),
}  # fmt: skip


class _Files:
    """In place of the file system: the files that a registry shows."""

    def __init__(self) -> None:
        self.shown: set[bytes] = set()

    def add_file(self, name: bytes, *_: object) -> None:
        self.shown.add(name)

    def remove_file(self, name: bytes) -> None:
        self.shown.remove(name)


@pytest.fixture(scope="module")
def registry(engine_name: str, cgroupfs: Path) -> Iterator[Registry]:
    """With one collector that is shipped."""
    mount_bpffs()
    pins = Path(f"/sys/fs/bpf/cgstat-test-{os.getpid()}")
    pins.mkdir()
    engine = make_engine(engine_name)
    state = State.of_this_process(Path("/"), engine.name, "", None)
    registry = Registry(
        engine, cgroupfs.stat().st_ino, pins, (), Hierarchy(cgroupfs), _Files(), state, lambda: None
    )  # fmt: skip
    path = registry.wanted()["proc_events"]
    registry.install(registry.prepare(path, {}, False))
    yield registry
    registry.unload("proc_events")
    registry.close()
    pins.rmdir()


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return Path(shutil.copy(OBJECTS / "tiny.bpf.o", tmp_path / "good.bpf.o"))


def _in_kernel(kind: str) -> set[tuple[int, bytes]]:
    """Programs or maps (*kind*: ``prog``, ``map``) that are named like the objects' own."""
    info_type = {"prog": libbpf.ProgInfo, "map": libbpf.MapInfo}[kind]
    following = getattr(libbpf.lib, f"bpf_{kind}_get_next_id")
    number, found = ctypes.c_uint32(0), set()
    while following(number, ctypes.byref(number)) == 0:
        fd = getattr(libbpf.lib, f"bpf_{kind}_get_fd_by_id")(number)
        # It may just have gone.
        if fd >= 0:
            info, size = info_type(), ctypes.c_uint32(ctypes.sizeof(info_type))
            libbpf.lib.bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size))
            os.close(fd)
            if info.name.startswith(MARK):
                found.add((info.id, info.name))
    return found


def _nothing_is_left() -> bool:
    return not _in_kernel("prog") and not _in_kernel("map")


def refuse(registry: Registry, path: Path, words: str) -> None:
    """Install a collector, which fails as it should."""
    assert path.parent.is_dir()
    with pytest.raises(CollectorError) as caught:
        registry.install(registry.prepare(path, {}, False))
    message = str(caught.value)
    assert message.startswith(libbpf.printable(str(path)) + ": "), message
    assert words in message
    assert message.count("\n") < LINES
    assert all(line.isprintable() and len(line) < 600 for line in message.splitlines())
    for word in ("Traceback", "loader failed", "loader died"):
        assert word not in message
    assert registry._file_system.shown == {b"proc.events"}
    assert [each.name for each in registry._pins.iterdir()] == ["proc_events"]
    assert not list(Path("/sys/fs/bpf").glob("hst*"))
    wait_until(_nothing_is_left, "programs and maps to go")


@pytest.mark.on_host
@pytest.mark.parametrize("name", _here(COMPILED))
def test_compiled(registry: Registry, name: str) -> None:
    refuse(registry, OBJECTS / f"{name}.bpf.o", COMPILED[name])


@pytest.mark.on_host
@pytest.mark.parametrize("name", _here(EDITED))
def test_edited(registry: Registry, good: Path, name: str) -> None:
    edit, words = EDITED[name]
    path = good.with_name(f"{name}.bpf.o")
    path.write_bytes(edit(good.read_bytes()))
    refuse(registry, path, words)


@pytest.mark.on_host
@pytest.mark.parametrize("name", _here(PLACED))
def test_placed(registry: Registry, good: Path, name: str) -> None:
    make, words = PLACED[name]
    refuse(registry, make(good), words)


@pytest.mark.on_host
def test_a_verifiers_last_lines_are_shown(registry: Registry) -> None:
    with pytest.raises(CollectorError, match="R2 invalid mem access") as caught:
        registry.prepare(OBJECTS / "long_log.bpf.o", {}, False)
    assert "(b7) r3 = 2" in str(caught.value)


@pytest.mark.parametrize("name", ["tiny", "kinds"])
def test_what_the_others_are_made_of_is_good(registry: Registry, name: str) -> None:
    registry.install(registry.prepare(OBJECTS / f"{name}.bpf.o", {}, False))
    assert b"test.hostile" in registry._file_system.shown
    registry.unload(name)
    wait_until(_nothing_is_left, "programs and maps to go")


@pytest.mark.on_host
def test_without_a_process_of_its_own(good: Path, registry: Registry) -> None:
    """As ``cgstatfs check`` tries them: a FIFO does not keep it waiting."""
    fifo = good.with_name("fifo.bpf.o")
    os.mkfifo(fifo)
    request = loader.Request(fifo, registry._engine, registry._root_id)
    with pytest.raises(CollectorError, match="not a regular file"):
        loader.load_any(request)


# What is loaded, and noted


MAY_MISS = "may miss events: BPF skips such programs while user space uses maps"
# What the note says, and the tracepoint that has to be there.
NOTED = {
    "noted_tp": (MAY_MISS, "sched/sched_switch"),
    "noted_kprobe": (MAY_MISS, ""),
    "noted_raw_tp": ("", "sched/sched_switch"),
    "noted_contention": ("", "lock/contention_begin"),
    "noted_rstat_lock": ("", "cgroup/cgroup_rstat_lock_contended"),
    "noted_rstat_cpu_lock": ("", "cgroup/cgroup_rstat_cpu_locked"),
}
# On kernels that have them, and rstat: it is not asked to list what runs there. native is.
INSIDE = {
    "noted_contention": "runs inside of locks that rstat takes",
    "noted_rstat_lock": "runs inside of locks that rstat takes",
    "noted_rstat_cpu_lock": "runs inside of locks that rstat takes",
}


@pytest.mark.parametrize("name", NOTED)
def test_noted(
    registry: Registry, tracefs: Path, cgroupfs: Path, tree: Path, engine_name: str, name: str
) -> None:
    note, tracepoint = NOTED[name]
    if not (tracefs / "events" / tracepoint).is_dir():
        pytest.skip(f"this kernel has no {tracepoint}")
    try:
        registry.install(registry.prepare(OBJECTS / f"{name}.bpf.o", {}, False))
    except CollectorError as error:
        if name == "noted_kprobe" and "cannot be attached" in str(error):
            skip("this kernel has no kprobes")
        raise
    notes = "\n".join(registry._state.notes[name])
    assert note in notes
    if engine_name == "rstat":
        assert 'engine standalone: program "hst_own"' in notes
        assert INSIDE.get(name, "cannot call rstat") in notes
    elif engine_name == "native" and name == "noted_raw_tp":
        assert 'engine standalone: program "hst_own"' in notes
        assert "cannot call the kernel's stats maps" in notes
    else:
        assert "engine" not in notes
    # The kernel flushes, and is asked for totals, while it runs.
    for _ in range(50):
        (cgroupfs / "cgroup.stat").read_text()
        (tree / "cpu.stat").read_text()
    stats_map = registry._loaded[name].maps[0]
    assert stats_map.lookup(tree.stat().st_ino)[0] >= 0
    registry.unload(name)
    wait_until(_nothing_is_left, "programs and maps to go")


def test_there_are_enough() -> None:
    assert len(COMPILED) + len(EDITED) + len(PLACED) >= 100
