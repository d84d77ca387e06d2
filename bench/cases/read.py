# SPDX-License-Identifier: GPL-2.0-only
"""open, read, read to the end, close of one file."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..frame import Figure, Missing, Table, take_turns
from ..setting import Setting, cpu_time, on_cpus, pinned_iterator

TITLE = "open, read, read to the end, close, of one file through the mount"
QUICK = True
GUESTS = False

OURS, LIBFUSE, LXCFS = "cgstatfs, proc.events", "C libfuse, a constant", "lxcfs, proc/loadavg"
PYFUSE3 = "pyfuse3, a constant: the limit in Python"
# Of peers/read_file.c
_WARM_UP = 20


@dataclass
class _File:
    """One that is read. :ivar pid: of who serves it; 0: the kernel"""

    path: Path
    pid: int = 0


def _lxcfs(setting: Setting) -> _File:
    mount, pid = setting.lxcfs()
    return _File(mount / "proc" / "loadavg", pid)


def _constant(setting: Setting, *command: str | Path) -> _File:
    mount, pid = setting.peer_mount(lambda path: [*command, path])
    return _File(mount / "file", pid)


def _files(setting: Setting, table: Table) -> dict[str, _File]:
    cgroup = setting.cgroup()
    mount = setting.mount()
    files = {OURS: _File(mount.of(cgroup) / "proc.events", mount.pid)}
    peers: dict[str, Callable[[], _File]] = {
        LIBFUSE: lambda: _constant(setting, setting.program("constant")),
        PYFUSE3: lambda: _constant(setting, sys.executable, "-m", "bench.peers.constant"),
        LXCFS: lambda: _lxcfs(setting),
        "pinned cgroup iterator": lambda: _File(pinned_iterator(setting, cgroup)),
        "cgroupfs, cpu.stat": lambda: _File(cgroup / "cpu.stat"),
    }
    for name, make in peers.items():
        try:
            files[name] = make()
        except Missing as error:
            table.notes.append(f"{name} is missing: {error}")
    return files


class _Reader:
    """Reads a file, and takes the time of it."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._program = setting.program("read_file")
        self._count = setting.some(1000, 300)
        # Of the last that was read.
        self.cpu_us = 0.0

    def __call__(self, file: _File, cpus: set[int]) -> float:
        """Microseconds each, by the clock."""
        if file.pid:
            on_cpus(file.pid, cpus)
        before = cpu_time(file.pid) if file.pid else 0
        command = [self._program, file.path, str(self._count)]
        took, own = map(float, self._setting.run(command, {0}).split())
        served = cpu_time(file.pid) - before if file.pid else 0
        self.cpu_us = (own + served / (self._count + _WARM_UP)) / 1000
        return took / 1000


def run(setting: Setting) -> Iterator[Table]:
    """Same core, then different ones; and what cpu time it takes, which others do not add to."""
    same = Table("open, read, read, close: reader and daemon on one core", "us")
    different = Table("open, read, read, close: on different cores", "us")
    cpu = Table("open, read, read, close: cpu time of reader and daemon, on one core", "us")
    files = _files(setting, same)
    read = _Reader(setting)
    spent: dict[str, list[float]] = {name: [] for name in files}

    def read_on_one(name: str) -> float:
        took = read(files[name], {0})
        spent[name].append(read.cpu_us)
        return took

    subjects = {f"0{name}": partial(read_on_one, name) for name in files}
    if len(os.sched_getaffinity(0)) > 1:
        subjects |= {f"1{name}": partial(read, file, {1}) for name, file in files.items()}
    else:
        different.notes.append("there is one core")
    figures = take_turns(subjects, setting.some(21, 5))
    same.figures = {name[1:]: figure for name, figure in figures.items() if name[0] == "0"}
    different.figures = {name[1:]: figure for name, figure in figures.items() if name[0] == "1"}
    cpu.figures = {name: Figure(tuple(values)) for name, values in spent.items()}
    for table, what, bound, alarm in (
        (same, "one core", 1.7, None), (different, "different cores", 1, None), (cpu, "cpu time", 1.7, 15),
    ):  # fmt: skip
        table.target(f"{what}, beside C libfuse", OURS, LIBFUSE, bound, alarm)
        table.target(f"{what}, beside lxcfs", OURS, LXCFS, 1, alarm)
        yield table
