# SPDX-License-Identifier: GPL-2.0-only
"""What updates, lookups and flushes cost with the series, in instructions.

Without arguments: in guests whose clocks count instructions, the kernel with the series and
the one without it; `make measure-kernel`. Noise is what the guest does besides, its timer above
all; so each figure is the median of several, and those that are compared take turns.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from cgstatfs import libbpf, loading
from cgstatfs.engines import Native, Rstat
from cgstatfs.hierarchy import find_cgroup2

from ..conftest import BUILD, REPOSITORY, cgroup_id

OBJECTS = BUILD / "tests"
PATCHED, UNPATCHED = "native-fast", "unpatched-fast"
NOTHING, ADD, OBSERVE = range(3)
ROUNDS, CALLS, LOOKUPS, FLUSHES = 7, 2000, 200, 20
CGROUPS = 200
_CALL = 0x63676D73
_prctl = ctypes.CDLL(None).prctl
_MARK = "figures: "


@contextmanager
def _cgroups(root: Path) -> Iterator[Path]:
    """A parent of many, and this process in one of them."""
    top = root / f"cgstat-measure-{os.getpid()}"
    directories = [top, *(top / str(number) for number in range(CGROUPS))]
    for directory in directories:
        directory.mkdir()
    (top / "0" / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield top
    finally:
        (root / "cgroup.procs").write_text(str(os.getpid()))
        for directory in reversed(directories):
            directory.rmdir()


def _taken(function: Callable[[], object], count: int) -> float:
    begin = time.monotonic_ns()
    for _ in range(count):
        function()
    return (time.monotonic_ns() - begin) / count


def _call(what: int) -> Callable[[], object]:
    arguments = _CALL, ctypes.c_ulong(what), ctypes.c_ulong(1000), 0, 0
    return lambda: _prctl(*arguments)


def _engine(kind: type, top: Path, root: Path) -> dict[str, float]:
    """Of one engine, alone."""
    request = loading.Request(OBJECTS / "measured.bpf.o", kind(), cgroup_id(root))
    nothing, add, observe = map(_call, (NOTHING, ADD, OBSERVE))
    with closing(loading.load(request)) as collector:
        look_up = collector.stats_maps[0].lookup
        leaf, parent = cgroup_id(top / "0"), cgroup_id(top)

        def add_and_look_up() -> None:
            add()
            look_up(parent)

        found: dict[str, list[float]] = {"add": [], "observe": [], "lookup": [], "lookup_updated": []}
        for _ in range(ROUNDS):
            # Listed once; a flush comes after many updates.
            add()
            base = _taken(nothing, CALLS)
            found["add"].append(_taken(add, CALLS) - base)
            found["observe"].append(_taken(observe, CALLS) - base)
            look_up(parent)
            found["lookup"].append(_taken(lambda: look_up(leaf), LOOKUPS))
            pair = _taken(add_and_look_up, LOOKUPS)
            found["lookup_updated"].append(pair - base)
    return {name: statistics.median(values) for name, values in found.items()}


def _flush(top: Path) -> dict[str, float]:
    """The kernel's own, of nothing and of all below."""
    obj = libbpf.Object(OBJECTS / "flush_cost.bpf.o")
    obj.load()
    with closing(obj):
        mark, flush = (obj.programs[name].fd for name in ("mark", "flush"))

        def flushed() -> int:
            took = loading.walk(flush, libbpf.CGROUP_ITER_SELF_ONLY, cgroup_id(top))
            return int.from_bytes(took, sys.byteorder)

        found: dict[str, list[float]] = {"flush_nothing": [], "flush_updated": []}
        for _ in range(FLUSHES):
            flushed()
            found["flush_nothing"].append(flushed())
            loading.walk(mark, libbpf.CGROUP_ITER_DESCENDANTS_PRE, cgroup_id(top))
            found["flush_updated"].append(flushed())
    return {name: statistics.median(values) for name, values in found.items()}


def _here(engines: tuple[type, ...]) -> dict[str, dict[str, float]]:
    os.sched_setaffinity(0, {0})
    root = find_cgroup2()
    with _cgroups(root) as top:
        found = {"kernel": _flush(top)}
        return found | {kind.name: _engine(kind, top, root) for kind in engines}


def _in_guest(variant: str) -> dict[str, dict[str, float]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.vm", "--kernel", variant, "--counting", "--timeout", "1800",
         "--", "python", "-m", __spec__.name, variant],
        cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    for line in done.stdout.splitlines():
        _, mark, figures = line.partition(_MARK)
        if mark and done.returncode == 0:
            return json.loads(figures)
    sys.exit(f"error: {variant}: no figures; the guest printed:\n{done.stdout}")


def _compare(what: str, one: float, other: float) -> None:
    print(f"{what:52} {one:9.0f} {other:9.0f} {one / other:7.3f}")


def main() -> None:
    """Run from the command line."""
    if sys.argv[1:]:
        engines = (Native, Rstat) if sys.argv[1] == PATCHED else ()
        print(_MARK + json.dumps(_here(engines)))
        return
    patched, unpatched = _in_guest(PATCHED), _in_guest(UNPATCHED)
    native, rstat = patched[Native.name], patched[Rstat.name]
    print(f"{'instructions':52} {'native':>9} {'rstat':>9} {'ratio':>7}")
    _compare("an update: one addition", native["add"], rstat["add"])
    _compare("an update: a histogram and a sum", native["observe"], rstat["observe"])
    _compare("a lookup by the daemon, nothing updated", native["lookup"], rstat["lookup"])
    _compare(
        "an update, and a lookup of the parent", native["lookup_updated"], rstat["lookup_updated"]
    )
    print(f"\n{'cgroup_rstat_flush(), no stats map':52} {'patched':>9} {'not':>9} {'ratio':>7}")
    for name, what in ("flush_nothing", "nothing updated"), ("flush_updated", f"{CGROUPS} cgroups updated"):
        _compare(what, patched["kernel"][name], unpatched["kernel"][name])


if __name__ == "__main__":
    main()
