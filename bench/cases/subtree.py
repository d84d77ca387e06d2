# SPDX-License-Identifier: GPL-2.0-only
"""One statistic of a whole subtree."""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

from cgstatfs import libbpf, loading

from ..frame import Missing, Table, take_turns
from ..setting import Mount, Setting, cgroup_id

TITLE = "one statistic of a whole subtree"
QUICK = True
GUESTS = False

_FILE = "bench.counters"
_SIZE = 32
_BATCH = 4096
_COMMANDS = 100

_TREE = "cgstatfs, one read of .tree"
_FILES = "cgstatfs, file by file: one cat of all"
_GREP = "grep -r over cpu.stat in cgroupfs"
_FLOOR = "cgroup iterator that flushes, looks each up and prints nothing"


def _timed(action: Callable[[], object]) -> Callable[[], float]:
    """Milliseconds."""

    def sample() -> float:
        begin = time.perf_counter_ns()
        action()
        return (time.perf_counter_ns() - begin) / 1e6

    return sample


def _make(top: Path, count: int) -> list[Path]:
    """So many below one, a hundred in each directory."""
    made = []
    for number in range(count):
        path = top / f"slice{number // 100}"
        if number % 100 == 0:
            path.mkdir()
        else:
            path = path / f"unit{number}.service"
            path.mkdir()
        made.append(path)
    return made


def _quiet(*command: str | Path) -> Callable[[], object]:
    return lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def _cat_each(paths: list[Path]) -> Callable[[], float]:
    """Commands, of which some stand for all."""
    some = paths[: _COMMANDS]

    def sample() -> float:
        begin = time.perf_counter_ns()
        for path in some:
            subprocess.run(["cat", path / _FILE], stdout=subprocess.DEVNULL, check=True)
        return (time.perf_counter_ns() - begin) / 1e6 * len(paths) / len(some)

    return sample


def _python_loop(paths: list[Path]) -> Callable[[], object]:
    names = [os.fspath(path / "cpu.stat") for path in paths]

    def loop() -> None:
        for name in names:
            fd = os.open(name, os.O_RDONLY)
            while os.read(fd, 4096):
                pass
            os.close(fd)

    return loop


class _WholeMap:
    """As exporters do it: read all of a map, resolve ids to paths, make a line of each."""

    def __init__(self, fd: int, root: Path) -> None:
        self._fd = fd
        self._root = os.fspath(root)
        self._paths: dict[int, str] = {}

    def _elements(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """By BPF_MAP_LOOKUP_BATCH."""
        keys = (ctypes.c_uint64 * _BATCH)()
        values = (ctypes.c_uint64 * (_BATCH * _SIZE // 8))()
        position, next_position = ctypes.c_uint64(), ctypes.c_uint64()
        first = True
        while True:
            count = ctypes.c_uint32(_BATCH)
            at = None if first else ctypes.byref(position)
            error = libbpf.lib.bpf_map_lookup_batch(
                self._fd, at, ctypes.byref(next_position), keys, values, ctypes.byref(count), None
            )
            if error < 0 and not count.value:
                return
            numbers = list(values[: count.value * _SIZE // 8])
            width = _SIZE // 8
            for index, id in enumerate(keys[: count.value]):
                yield id, tuple(numbers[index * width : (index + 1) * width])
            if error < 0:
                return
            position.value, first = next_position.value, False

    def _resolve(self) -> None:
        """Ids of directories, by walking all."""
        stack = [self._root]
        while stack:
            # Others remove theirs meanwhile.
            with suppress(FileNotFoundError), os.scandir(stack.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        self._paths[entry.inode()] = entry.path
                        stack.append(entry.path)

    def read(self) -> bytes:
        """Ids that are known from the read before are not resolved again."""
        lines = []
        for id, value in self._elements():
            if id not in self._paths:
                self._resolve()
            path = self._paths.get(id, str(id))
            lines.append("%s forks=%d execs=%d exits=%d oom_kills=%d\n" % (path, *value))
        return "".join(lines).encode()

    def read_anew(self) -> bytes:
        """All are resolved."""
        self._paths.clear()
        return self.read()


def _tree(mount: Mount, top: Path) -> Callable[[], object] | None:
    path = mount.of(top) / ".tree" / _FILE
    if not path.exists():
        return None

    def read() -> None:
        fd = os.open(path, os.O_RDONLY)
        while os.read(fd, 1 << 17):
            pass
        os.close(fd)

    return read


def run(setting: Setting) -> Iterator[Table]:
    """Everybody reads four counters of each, or all that cpu.stat has."""
    count = setting.some(10_000, 300)
    mount = setting.mount()
    setting.load_into(mount, setting.object("lookups"))
    top = setting.cgroup()
    paths = _make(top, count)
    table = Table(f"one statistic of {count} cgroups", "ms")
    subjects: dict[str, Callable[[], float]] = {}
    if tree := _tree(mount, top):
        subjects[_TREE] = _timed(tree)
    else:
        table.notes.append("this version has no .tree")
    files = [os.fspath(mount.of(path) / _FILE) for path in paths]
    arguments = ("xargs", "-n", "100000", "cat")
    names = "\n".join(files)
    subjects[_FILES] = _timed(
        lambda: subprocess.run(arguments, input=names, text=True, stdout=subprocess.DEVNULL, check=True)
    )
    subjects["cgstatfs, file by file: a cat each"] = _cat_each([mount.of(path) for path in paths])
    subjects[_GREP] = _timed(_quiet("grep", "-r", ".", top, "--include=cpu.stat"))
    subjects["cpu.stat in cgroupfs, a loop in Python"] = _timed(_python_loop(paths))
    try:
        obj = setting.keep(closing(setting.open_object("iterators")))
    except Missing as error:
        table.notes.append(str(error))
    else:
        id = cgroup_id(top)
        loading.walk(obj.programs["fill"].fd, libbpf.CGROUP_ITER_DESCENDANTS_PRE, id)
        whole = _WholeMap(obj.maps["counts"].fd, setting.cgroupfs)
        subjects["whole map in user space, paths known"] = _timed(whole.read)
        subjects["whole map in user space, paths resolved"] = _timed(whole.read_anew)
        walk = obj.programs["walk"].fd
        subjects[_FLOOR] = _timed(
            lambda: loading.walk(walk, libbpf.CGROUP_ITER_DESCENDANTS_PRE, id)
        )
    table.figures = take_turns(subjects, setting.some(7, 3))
    table.target("one read beside file by file", _TREE, _FILES, 0.1, 0.5)
    table.target("one read beside grep -r over cgroupfs", _TREE, _GREP, 1 / 3, 1)
    table.target("one read beside the floor", _TREE, _FLOOR, 5, 200)
    yield table
