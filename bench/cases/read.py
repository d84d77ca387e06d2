# SPDX-License-Identifier: GPL-2.0-only
"""open, read, read to the end, close of one file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..frame import Missing, Table, take_turns
from ..setting import Setting, on_cpus, pinned_iterator

TITLE = "open, read, read to the end, close, of one file through the mount"
QUICK = True
GUESTS = False


@dataclass
class _File:
    """One that is read. :ivar pid: of who serves it; 0: the kernel"""

    path: Path
    pid: int = 0


def _lxcfs(setting: Setting) -> _File:
    mount, pid = setting.lxcfs()
    return _File(mount / "proc" / "loadavg", pid)


def _constant(setting: Setting) -> _File:
    program = setting.program("constant")
    mount, pid = setting.peer_mount(lambda path: [program, path])
    return _File(mount / "file", pid)


def _files(setting: Setting, table: Table) -> dict[str, _File]:
    cgroup = setting.cgroup()
    mount = setting.mount()
    files = {"cgstatfs, proc.events": _File(mount.of(cgroup) / "proc.events", mount.pid)}
    peers: dict[str, Callable[[], _File]] = {
        "C libfuse, a constant": lambda: _constant(setting),
        "lxcfs, proc/loadavg": lambda: _lxcfs(setting),
        "pinned cgroup iterator": lambda: _File(pinned_iterator(setting, cgroup)),
        "cgroupfs, cpu.stat": lambda: _File(cgroup / "cpu.stat"),
    }
    for name, make in peers.items():
        try:
            files[name] = make()
        except Missing as error:
            table.notes.append(f"{name} is missing: {error}")
    return files


def run(setting: Setting) -> Iterator[Table]:
    """Same core, then different ones."""
    placements = {"reader and daemon on one core": {0}, "on different cores": {1}}
    tables = {
        text: Table(f"open, read, read, close: {text}", "us") for text in placements
    }
    files = _files(setting, tables["on different cores"])
    reader = setting.program("read_file")
    count = setting.some(1000, 300)

    def read(file: _File, cpus: set[int]) -> float:
        if file.pid:
            on_cpus(file.pid, cpus)
        return float(setting.run([reader, file.path, str(count)], {0})) / 1000

    subjects = {
        f"{text}/{name}": (lambda file=file, cpus=cpus: read(file, cpus))
        for text, cpus in placements.items() if cpus <= os.sched_getaffinity(0)
        for name, file in files.items()
    }  # fmt: skip
    figures = take_turns(subjects, setting.some(21, 9))
    for text, table in tables.items():
        table.figures = {name: figures[f"{text}/{name}"] for name in files if f"{text}/{name}" in figures}
    same, different = tables.values()
    ours = "cgstatfs, proc.events"
    same.target("beside C libfuse", ours, "C libfuse, a constant", 1.7, 8)
    same.target("beside lxcfs", ours, "lxcfs, proc/loadavg", 1, 6)
    different.target("beside C libfuse", ours, "C libfuse, a constant", 1, 6)
    different.target("beside lxcfs", ours, "lxcfs, proc/loadavg", 1, 6)
    yield from tables.values()
