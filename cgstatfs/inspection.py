# SPDX-License-Identifier: GPL-2.0-only
"""``cgstatfs check`` and ``cgstatfs list``: what this kernel can do, and what is loaded.

``list`` reads what is pinned in bpffs, so it needs no daemon that answers.
"""

from __future__ import annotations

import os
import platform
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import __version__, btf, collectors, libbpf
from .engines import ENGINES, Engine, EngineUnavailable
from .hierarchy import find_cgroup2
from .objects import object_path
from .runtime import Runtime
from .valuetype import ValueType

__all__ = ("check", "list_maps")

# The head of struct cgstat_ctl
_CTL = struct.Struct("=5Q")
# struct cgstat_config
_CONFIG = struct.Struct("=4I")
# struct htab_elem and struct bucket in kernel/bpf/hashtab.c, 6.12
_HASH_ELEMENT, _HASH_BUCKET = 48, 16


@contextmanager
def _pinned(path: Path) -> Iterator[int]:
    fd = libbpf.get_pinned(path)
    try:
        yield fd
    finally:
        os.close(fd)


# check


def _check_engines() -> Engine | None:
    """Print what each engine needs; the best that works."""
    best: Engine | None = None
    for kind in ENGINES:
        engine = kind()
        try:
            engine.probe()
        except EngineUnavailable as error:
            print(f"engine {engine.name}: cannot be used: {error}")
            continue
        print(f"engine {engine.name}: can be used" + ("" if best else ", and is chosen"))
        best = best or engine
    return best


def _check_collectors(names: tuple[str, ...], engine: Engine, root_id: int) -> bool:
    """Whether there is one that works: the others do not stop it."""
    works = False
    for name in names:
        try:
            collector = collectors.load(object_path(name), engine, root_id)
        except (OSError, collectors.CollectorError) as error:
            print(f"collector {name}: cannot be used: {error}")
            continue
        works = True
        files = ", ".join(stats_map.file for stats_map in collector.maps)
        collector.close()
        print(f"collector {name}: can be used; file {files}")
    return works


def _check_file(path: str, present: str, absent: str) -> bool:
    exists = os.path.exists(path)
    print(f"{path}: {present if exists else absent}")
    return exists


def check(names: tuple[str, ...]) -> bool:
    """Print what works here, and what would make the rest work.

    :param names: of the collectors to try
    :returns: whether everything needed for a mount is there
    """
    print(f"cgstatfs {__version__}, kernel {platform.release()}, {libbpf.possible_cpus()} cpus")
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
    engine = _check_engines()
    if engine is None:
        return False
    return _check_collectors(names, engine, os.stat(cgroupfs).st_ino) and works


# list


def _hash_bytes(fd: int, elements: int) -> int:
    """Memory of a hash that allocates its elements as they come."""
    info = libbpf.map_info(fd)
    buckets = 1 << (info.max_entries - 1).bit_length()
    size = _HASH_ELEMENT + -(-info.key_size // 8) * 8 + info.value_size
    return buckets * _HASH_BUCKET + elements * size


def _engine_name(maps: Path) -> str:
    with _pinned(maps / "config") as fd:
        number = _CONFIG.unpack(libbpf.map_lookup(fd, bytes(4), _CONFIG.size))[0]
    return next((kind.name for kind in ENGINES if kind.number == number), str(number))


def _describe_elements(value_type: ValueType) -> Iterator[str]:
    for field in value_type.fields:
        kind = f", log2 histogram of {field.length} buckets" if field.log2 else (
            f", array of {field.length}" if field.length else ""
        )  # fmt: skip
        unit = f", {field.unit}" if field.unit else ""
        yield f"{field.name or '(value)'}: {field.operation}{unit}{kind}"


def _list_map(maps: Path, prefix: str) -> None:
    with (
        _pinned(maps / f"{prefix}_entries") as entries_fd,
        _pinned(maps / f"{prefix}_pairs") as pairs_fd,
        _pinned(maps / f"{prefix}_ctl") as ctl_fd,
    ):
        info = libbpf.map_info(entries_fd)
        described = btf.describe(info.btf_id, info.btf_value_type_id)
        ctl_size = libbpf.map_info(ctl_fd).value_size
        entries, pairs, spilled, displaced, lost = _CTL.unpack_from(
            libbpf.map_lookup(ctl_fd, bytes(4), ctl_size)
        )
        memory = _hash_bytes(entries_fd, entries) + _hash_bytes(pairs_fd, pairs)
    if described is None:
        return
    file, value_type = described
    print(f"  {file}: engine {_engine_name(maps)}")
    for line in _describe_elements(value_type):
        print(f"    {line}")
    print(f"    entries {entries} of {info.max_entries}, per-cpu arrays {pairs}, "
          f"memory {memory // 1024} KiB")  # fmt: skip
    print(f"    updates spilled {spilled}, displaced {displaced}, lost {lost}")


def _list_collector(directory: Path) -> None:
    maps = directory / "maps"
    for path in sorted(maps.glob("*_entries")):
        _list_map(maps, path.name.removesuffix("_entries"))
    missed = []
    for path in sorted((directory / "programs").iterdir()):
        with _pinned(path) as fd:
            missed.append((path.name, libbpf.recursion_misses(fd)))
    total = sum(count for _, count in missed)
    details = ", ".join(f"{name} {count}" for name, count in missed if count)
    print(f"    runs that BPF skipped {total}" + (f": {details}" if details else ""))


def list_maps() -> None:
    """Print the stats maps of every mount: elements, memory, and what was missed."""
    found = [(runtime, state) for runtime in Runtime.all() if (state := runtime.read_state())]
    if not found:
        print("no cgstatfs is mounted")
    for runtime, state in found:
        dead = "" if state.lives() else "; its daemon was killed, and cgstatfs umount ends the rest"
        print(f"{state.mount_point}: engine {state.engine}{dead}")
        for directory in sorted(runtime.pins.iterdir()) if runtime.pins.is_dir() else ():
            print(f"  collector {directory.name}")
            _list_collector(directory)
        for name, reason in state.failed.items():
            print(f"  collector {name}: failed: {reason}")
