# SPDX-License-Identifier: GPL-2.0-only
"""A lookup, from the daemon's request to bytes, and its parts."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

from cgstatfs import libbpf, loading
from cgstatfs.engines import Engine, choose

from ..frame import Missing, Table, Target, take_turns
from ..setting import Setting, cgroup_id, pinned_iterator

TITLE = "a lookup, from the daemon's request to bytes"
QUICK = True
GUESTS = False

OURS = "cgstatfs, a leaf: lookup and text"
CPU_STAT = "cgroupfs, cpu.stat read by Python"
_BOUND_US = 20


def _timed(call: Callable[[], object], count: int) -> Callable[[], float]:
    """Microseconds a call; a loop of Python's, 30 ns, is in it."""

    def sample() -> float:
        begin = time.thread_time_ns()
        for _ in range(count):
            call()
        return (time.thread_time_ns() - begin) / count / 1000

    return sample


def _map_lookup(fd: int, id: int, size: int) -> Callable[[], object]:
    """bpf_map_lookup_elem(2) of a hash, as fast as Python can."""
    key, value = ctypes.c_uint64(id), (ctypes.c_uint8 * size)()
    call, arguments = libbpf.lib.bpf_map_lookup_elem, (fd, ctypes.byref(key), ctypes.byref(value))
    return lambda: call(*arguments)


def _read_file(path: str | Path) -> Callable[[], object]:
    name = os.fspath(path)

    def read() -> None:
        fd = os.open(name, os.O_RDONLY)
        while os.read(fd, 4096):
            pass
        os.close(fd)

    return read


def _run_nothing(obj: libbpf.Object) -> Callable[[], int]:
    """An empty program, by the system call that runs one."""

    class Context(ctypes.Structure):
        _fields_ = [("unused", ctypes.c_uint64)]

    return libbpf.test_run(obj.programs["nothing"].fd, Context())


def measure(setting: Setting, engine: Engine, unit: str, calls: int, rounds: int) -> Table:
    """Of one engine, in this process, as the daemon does it."""
    cgroup = setting.cgroup()
    id = cgroup_id(cgroup)
    (stats_map,) = setting.load(setting.object("lookups"), engine).stats_maps
    value_type, look_up = stats_map.value_type, stats_map.lookup
    value = look_up(id)
    data = b"".join(element.to_bytes(8, sys.byteorder) for element in value)
    timed = partial(_timed, count=calls)
    subjects = {
        OURS: timed(lambda: value_type.format(look_up(id))),
        "cgstatfs, the part: lookup in the kernel, and elements": timed(lambda: look_up(id)),
        "cgstatfs, the part: elements": timed(lambda: value_type.unpack(data)),
        "cgstatfs, the part: text": timed(lambda: value_type.format(value)),
        CPU_STAT: timed(_read_file(cgroup / "cpu.stat")),
    }
    table = Table(f"a lookup of four counters, engine {engine.name}", unit)
    try:
        flat = setting.keep(closing(setting.open_object("iterators")))
        loading.walk(flat.programs["fill"].fd, libbpf.CGROUP_ITER_SELF_ONLY, id)
        pinned = pinned_iterator(setting, cgroup)
    except Missing as error:
        table.notes.append(str(error))
    else:
        subjects["an empty program run by bpf_prog_test_run"] = timed(_run_nothing(flat))
        subjects["hash, bpf_map_lookup_elem"] = timed(_map_lookup(flat.maps["counts"].fd, id, 32))
        subjects["pinned cgroup iterator read by Python"] = timed(_read_file(pinned))
    table.figures = take_turns(subjects, rounds)
    return table


def run(setting: Setting) -> Iterator[Table]:
    """Of the engine that this kernel has."""
    table = measure(setting, choose("auto")[0], "us", setting.some(1000, 500), setting.some(21, 9))
    table.targets.append(Target("us a leaf", table.figures[OURS], _BOUND_US))
    table.target("beside cgroupfs's cpu.stat", OURS, CPU_STAT, 1, 2)
    yield table
