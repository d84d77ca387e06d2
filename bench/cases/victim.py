# SPDX-License-Identifier: GPL-2.0-only
"""What collectors cost those whom they count."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path

from cgstatfs.collectors import Collector
from cgstatfs.engines import choose
from cgstatfs.loading import Request, load
from cgstatfs.mountpoint import ensure_mounted
from cgstatfs.objects import object_path

from ..frame import Figure, Missing, Table, Target, difference, ratio
from ..setting import Setting, cgroup_id, moved, started

TITLE = "what collectors add to the time of those whom they count"
QUICK = False
GUESTS = False

_TRACEFS = Path("/sys/kernel/tracing")

# By the statistic, what bpftrace runs for it. Those that print tell when they are attached.
_RUNQLAT = """
tracepoint:sched:sched_wakeup, tracepoint:sched:sched_wakeup_new { @since[args->pid] = nsecs; }
tracepoint:sched:sched_switch {
    if (args->prev_state == 0) { @since[args->prev_pid] = nsecs; }
    $since = @since[args->next_pid];
    if ($since) {
        @total[cgroup] = sum(nsecs - $since);
        @wait[cgroup] = hist(nsecs - $since);
    }
    delete(@since[args->next_pid]);
}
"""
_EVENTS = """
tracepoint:sched:sched_process_fork { @forks[cgroup] = count(); }
tracepoint:sched:sched_process_exec { @execs[cgroup] = count(); }
tracepoint:sched:sched_process_exit { @exits[cgroup] = count(); }
tracepoint:cgroup:cgroup_attach_task { @attaches[cgroup] = count(); }
"""
_RECLAIM = """
tracepoint:vmscan:mm_vmscan_direct_reclaim_begin,
tracepoint:vmscan:mm_vmscan_memcg_reclaim_begin { @since[tid] = nsecs; }
tracepoint:vmscan:mm_vmscan_direct_reclaim_end,
tracepoint:vmscan:mm_vmscan_memcg_reclaim_end {
    @pages[cgroup] = sum(args->nr_reclaimed);
    @stall[cgroup] = hist(nsecs - @since[tid]);
    delete(@since[tid]);
}
"""
_UP = 'interval:ms:100 { printf("up\\n"); }'

# How often, in a sample: some hundredths of a second.
_LOADS = {"exec": 100, "pingpong": 10_000, "syscalls": 200_000}
_NAMES = {
    "exec": "fork, exec and exit", "pingpong": "a context switch there and back",
    "syscalls": "a system call",
}  # fmt: skip
_OFF = "nothing attached"


@contextmanager
def _ours(name: str, root: int) -> Iterator[None]:
    collector: Collector = load(Request(object_path(name), choose("auto")[0], root))
    with closing(collector):
        yield


@contextmanager
def _bpftrace(program: str) -> Iterator[None]:
    """What it says at its end is not wanted."""
    with started(
        ["bpftrace", "-e", program + _UP], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as tracer:
        if tracer.stdout.readline() == "" or "up" not in tracer.stdout.readline() + tracer.stdout.readline():
            raise Missing("bpftrace ended")
        yield
        tracer.kill()


@contextmanager
def _tool(*command: str) -> Iterator[None]:
    """One of libbpf-tools, which do not say when they are attached."""
    with started(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as tool:
        time.sleep(0.7)
        if tool.poll() is not None:
            raise Missing(f"{command[0]} ended with {tool.returncode}")
        yield
        tool.kill()


_Attached = Callable[[], AbstractContextManager[None]]


def _subjects(root: int) -> dict[str, tuple[str, _Attached]]:
    """By name: the statistic, and how it is collected."""
    return {
        _OFF: ("", nullcontext),
        "cgstatfs, sched.runqlat": ("sched.runqlat", partial(_ours, "sched_runqlat", root)),
        "libbpf-tools, runqlat": ("sched.runqlat", partial(_tool, "runqlat", "3600")),
        "libbpf-tools, runqlat by PID namespace": (
            "sched.runqlat", partial(_tool, "runqlat", "--pidnss", "3600"),
        ),
        "bpftrace, run queue latency by cgroup": ("sched.runqlat", partial(_bpftrace, _RUNQLAT)),
        "cgstatfs, proc.events": ("proc.events", partial(_ours, "proc_events", root)),
        "libbpf-tools, exitsnoop": ("proc.events", partial(_tool, "exitsnoop")),
        "bpftrace, forks, execs, exits by cgroup": ("proc.events", partial(_bpftrace, _EVENTS)),
        "cgstatfs, mm.reclaim": ("mm.reclaim", partial(_ours, "mm_reclaim", root)),
        "libbpf-tools, drsnoop": ("mm.reclaim", partial(_tool, "drsnoop")),
        "bpftrace, reclaim by cgroup": ("mm.reclaim", partial(_bpftrace, _RECLAIM)),
    }


def _usable(subjects: dict[str, tuple[str, _Attached]], notes: list[str]) -> list[str]:
    names = []
    for name, (_, attached) in subjects.items():
        try:
            with attached():
                names.append(name)
        except Missing as error:
            notes.append(f"{name} is missing: {error}")
    return names


def run(setting: Setting) -> Iterator[Table]:
    """Each is attached, runs all loads, and is detached; then the next."""
    if not (_TRACEFS / "events").exists():
        ensure_mounted(_TRACEFS, b"tracefs", b"")
        setting.finally_do(partial(subprocess.run, ["umount", _TRACEFS], check=False))
    program, cgroup = setting.program("load"), setting.cgroup()
    subjects = _subjects(cgroup_id(setting.cgroupfs))
    notes: list[str] = []
    names = _usable(subjects, notes)
    samples: dict[str, dict[str, list[float]]] = {load: {} for load in _LOADS}
    for number in range(setting.some(5, 2)):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            _, attached = subjects[name]
            with attached(), moved(cgroup):
                for load_name, count in _LOADS.items():
                    taken = min(float(setting.run([program, load_name, str(count)], {0})) for _ in range(2))
                    samples[load_name].setdefault(name, []).append(taken)
    for load_name, found in samples.items():
        figures = {name: Figure(tuple(values)) for name, values in found.items()}
        yield _table(load_name, figures, subjects, notes)


def _table(
    load_name: str, figures: dict[str, Figure], subjects: dict[str, tuple[str, _Attached]], notes: list[str]
) -> Table:
    """What each adds, and whether ours adds less than each of the others."""
    off = figures[_OFF]
    table = Table(f"added to {_NAMES[load_name]}", "ns", notes=list(notes))
    table.notes.append(f"it takes {off.median:,.0f} ns with nothing attached")
    for name, figure in figures.items():
        if name != _OFF:
            table.figures[name] = difference(figure, off)
    for ours, (statistic, _) in subjects.items():
        if not ours.startswith("cgstatfs") or ours not in figures:
            continue
        for peer in table.figures:
            # All of the time, not what was added: that can be nothing, or less.
            if peer != ours and subjects[peer][0] == statistic and statistic != "mm.reclaim":
                value = ratio(figures[ours], figures[peer])
                table.targets.append(Target(f"all of the time, {statistic} beside {peer}", value, 1))
    return table
