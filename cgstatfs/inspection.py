# SPDX-License-Identifier: GPL-2.0-only
"""``cgstatfs check`` and ``cgstatfs list``: what this kernel can do, and what is loaded.

``list`` reads what is pinned in bpffs, so it needs no daemon that answers.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

from . import __version__, btf, libbpf, loader
from .collectors import Collector, CollectorError, StatsMap
from .configuration import Settings
from .engines import AUTO, ENGINES, Engine, EngineUnavailable
from .hierarchy import find_cgroup2
from .registry import request_for
from .runtime import Runtime, State
from .valuetype import ValueType

__all__ = ("check", "describe_elements", "list_maps")


# check


def _check_engines(wanted: str) -> Engine | None:
    """Print what each engine needs; the one that is chosen, as :func:`engines.choose` does."""
    chosen: Engine | None = None
    for kind in ENGINES:
        engine = kind()
        try:
            engine.probe()
        except EngineUnavailable as error:
            print(f"engine {engine.name}: cannot be used: {error}")
            continue
        choose = chosen is None and wanted in (AUTO, engine.name)
        print(f"engine {engine.name}: can be used" + (", and is chosen" if choose else ""))
        chosen = engine if choose else chosen
    return chosen


def _check_collectors(
    paths: dict[str, Path], off: frozenset[str], engine: Engine, root_id: int
) -> bool:
    """Whether there is one that works: the others do not stop it.

    Each is loaded as a mount would load it, and ends.
    """
    works = False
    for name, path in paths.items():
        if name in off:
            print(f"collector {libbpf.printable(name)}: is turned off")
            continue
        try:
            files, notes = loader.load_apart(request_for(path, engine, root_id), None)
        except CollectorError as error:
            print(f"collector {libbpf.printable(name)}: cannot be used: {error}")
            continue
        works = True
        print(f"collector {name}: can be used; file {', '.join(files)}")
        for note in notes:
            print(f"collector {name}: {note}")
    return works


def _check_file(path: str, present: str, absent: str) -> bool:
    exists = os.path.exists(path)
    print(f"{path}: {present if exists else absent}")
    return exists


def check(settings: Settings, paths: dict[str, Path]) -> bool:
    """Print what is set, what works here, and what would make the rest work.

    :param paths: of the collectors to try, by name; of those that are turned off as well
    :returns: whether everything needed for a mount is there
    """
    print(f"cgstatfs {__version__}, kernel {platform.release()}, {libbpf.possible_cpus()} cpus")
    for line in (*settings.describe(paths), *settings.unknown_collectors(paths)):
        print(line)
    works = _check_file("/dev/fuse", "there", "missing; modprobe fuse")
    works &= _check_file(
        "/sys/kernel/btf/vmlinux", "there", "missing; the kernel needs CONFIG_DEBUG_INFO_BTF"
    )
    try:
        cgroupfs = find_cgroup2()
        print(f"cgroup v2: mounted at {cgroupfs}")
    except OSError as error:
        print(f"cgroup v2: {error.strerror}")
        return False
    engine = _check_engines(settings.engine)
    if engine is None:
        return False
    root_id = os.stat(cgroupfs).st_ino
    return _check_collectors(paths, settings.off, engine, root_id) and works


# list


def describe_elements(value_type: ValueType) -> Iterator[str]:
    """A line for each element of a value, or array of such."""
    for field in value_type.fields:
        kind = f", {field.histogram} histogram of {field.length} buckets" if field.histogram else (
            f", distinct keys by HyperLogLog of {8 * field.length} registers" if field.distinct else
            f", array of {field.length}" if field.length else ""
        )  # fmt: skip
        unit = f", {field.unit}" if field.unit else ""
        yield f"{field.path or '(value)'}: {field.operation}{unit}{kind}"


def _list_map(collector: Collector, stats_map: StatsMap) -> None:
    usage = collector.usage(stats_map.prefix)
    flags = "".join(f", {btf.FLAGS[flag]}" for flag in sorted(stats_map.flags))
    initial = f", initial cgroup {stats_map.initial}" if stats_map.initial else ""
    print(f"  {stats_map.file}: engine {collector.engine.name}{flags}{initial}")
    for line in describe_elements(stats_map.value_type):
        print(f"    {line}")
    room = "" if usage.room is None else f" of {usage.room}"
    pairs = "" if usage.pairs is None else f", per-cpu arrays beyond slots {usage.pairs}"
    print(f"    entries {usage.entries}{room}{pairs}, memory {usage.memory // 1024} KiB")
    print(f"    updates spilled {usage.spilled}, displaced {usage.displaced}, lost {usage.lost}")


def _list_collector(directory: Path) -> None:
    collector = Collector.from_pins(directory)
    try:
        for stats_map in collector.stats_maps:
            _list_map(collector, stats_map)
        missed = collector.misses()
    finally:
        collector.close()
    total = sum(missed.values())
    details = ", ".join(f"{name} {count}" for name, count in missed.items() if count)
    print(f"    runs that BPF skipped {total}" + (f": {details}" if details else ""))


def _condition(runtime: Runtime, state: State) -> str:
    if runtime.is_held():
        return "" if state.lives() else "; its daemon has ended, and another will come"
    if state.kept:
        return "; not mounted, but counting; cgstatfs mount shows it again, and cgstatfs umount ends it"
    return "; its daemon was killed, and cgstatfs umount ends the rest"


def list_maps() -> None:
    """Print the stats maps of every mount: elements, memory, and what was missed."""
    found = [(runtime, state) for runtime in Runtime.all() if (state := runtime.read_state())]
    if not found:
        print("no cgstatfs is mounted")
    for runtime, state in found:
        print(f"{state.mount_point}: engine {state.engine}{_condition(runtime, state)}")
        for directory in sorted(runtime.pins.iterdir()) if runtime.pins.is_dir() else ():
            if "~" in directory.name:
                continue  # It is being loaded.
            print(f"  collector {directory.name}")
            try:
                _list_collector(directory)
            except (OSError, CollectorError) as error:
                # Unloaded just now, or another version's.
                print(f"    cannot be read: {error}")
            for note in state.notes.get(directory.name, ()):
                print(f"    note: {note}")
        for name, what in state.adopted.items():
            print(f"  {name}: adopted from {what['path']}: {what['description']}")
        for name, reason in state.failed.items():
            print(f"  collector {name}: failed: {reason}")
