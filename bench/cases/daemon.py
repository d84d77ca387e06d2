# SPDX-License-Identifier: GPL-2.0-only
"""What the daemon takes: memory by cgroups, cpu when idle and when cgroups come and go."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..frame import Figure, Missing, Table, Target
from ..setting import Setting, cpu_time, resident

TITLE = "the daemon: memory, and cpu when idle and when cgroups come and go"
QUICK = True
GUESTS = False

_MIB = 1 << 20
_BOUND_MIB = 64
_AT = 10_000


def _memory(setting: Setting, pids: dict[str, int], root: Path, mount: Path) -> Table:
    table = Table("resident memory", "MiB")
    top, made = setting.cgroup(), 0
    for count in setting.some((10, 1000, _AT, 50_000), (10, 1000, _AT)):
        for number in range(made, count):
            # Not all in one directory.
            group = top / str(number // 100)
            if number % 100 == 0:
                group.mkdir()
            else:
                (group / str(number)).mkdir()
        made = count
        for _ in os.walk(mount / top.relative_to(root)):
            pass
        for name, pid in pids.items():
            table.figures[f"{name}, {count} cgroups, all listed"] = Figure((resident(pid) / _MIB,))
    figure = table.figures[f"cgstatfs, the daemon, {_AT} cgroups, all listed"]
    table.targets.append(Target(f"MiB at {_AT} cgroups", figure, _BOUND_MIB, 2 * _BOUND_MIB))
    return table


def _spent(pids: dict[str, int], what: Callable[[], object], rounds: int, unit: Callable[[float], float]) -> dict[str, Figure]:
    """The cpu time that each of them spends while something is done."""
    samples: dict[str, list[float]] = {name: [] for name in pids}
    for _ in range(rounds):
        before = {name: cpu_time(pid) for name, pid in pids.items()}
        what()
        for name, pid in pids.items():
            samples[name].append(unit(cpu_time(pid) - before[name]))
    return {name: Figure(tuple(values)) for name, values in samples.items()}


def _come_and_go(top: Path, count: int) -> None:
    """A thousand a second."""
    begin = time.monotonic()
    for number in range(count):
        path = top / f"c{number}"
        path.mkdir()
        path.rmdir()
        time.sleep(max(0, begin + number / 1000 - time.monotonic()))


def run(setting: Setting) -> Iterator[Table]:
    """Beside lxcfs, which knows of no cgroup until it is asked."""
    mount = setting.mount()
    pids = {"cgstatfs, the daemon": mount.pid, "cgstatfs, the holder": mount.holder}
    try:
        pids["lxcfs"] = setting.lxcfs()[1]
    except Missing:
        pass
    seconds = setting.some(3, 1)
    top = setting.cgroup()
    idle = Table("cpu when idle", "ms a second")
    # What it was asked before has been answered.
    time.sleep(0.5)
    idle.figures = _spent(pids, lambda: time.sleep(seconds), 5, lambda ns: ns / 1e6 / seconds)
    idle.targets.append(Target("ms a second, idle", idle.figures["cgstatfs, the daemon"], 0))
    idle.notes.append("cgroups that others make or remove meanwhile wake the daemon")
    yield idle
    churn = Table("cpu while 1,000 cgroups a second are made and removed", "ms for each thousand")
    count = setting.some(2000, 500)
    churn.figures = _spent(pids, lambda: _come_and_go(top, count), 5, lambda ns: ns / 1e3 / count)
    yield churn
    yield _memory(setting, pids, setting.cgroupfs, mount.path)
