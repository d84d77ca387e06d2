# SPDX-License-Identifier: GPL-2.0-only
"""The engine of kernels that have stats maps themselves: ``BPF_MAP_TYPE_CGROUP_STATS``.

The kernel makes, folds and frees the entries, inside its own rstat. An update writes to the array
that a kfunc gives; a lookup is ``BPF_MAP_LOOKUP_ELEM``. The patches are in kernel/, the update in
bpf/cgstat_entries.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from array import array
from collections.abc import Mapping

from .. import libbpf, struct_ops
from ..btf import kernel_map_types
from ..valuetype import ValueType
from .base import Engine, EngineUnavailable, Lookup, Setting, Snapshot, Usage

__all__ = ("Native",)

_TYPE = "BPF_MAP_TYPE_CGROUP_STATS"
# BPF_F_CGROUP_STATS_* of include/uapi/linux/bpf.h
_FLAGS = {"CGSTAT_NO_PERCPU": 1 << 19, "CGSTAT_NO_HIERARCHY": 1 << 20}
_NO_CGROUP = (1 << 64) - 1
# struct cgstat_ctl: where updates that were lost are counted.
_LOST = slice(32, 40)


def _type_number() -> int:
    """The number of the map type, which only this kernel's BTF tells: others have another one.

    :raises EngineUnavailable: there is none
    """
    try:
        number = kernel_map_types().get(_TYPE)
    except OSError as error:
        raise EngineUnavailable(f"{error.filename}: {error.strerror}") from None
    if number is None:
        raise EngineUnavailable(f"this kernel has no {_TYPE}; it needs the patches in kernel/")
    return number


class _Snapshots:
    """Snapshots of one stats map.

    :param fd: its descriptor
    """

    def __init__(self, fd: int, value_type: ValueType) -> None:
        self._fd = fd
        self._elements = value_type.elements
        self._room = 1024

    def take(self, ids: array, parents: array) -> bytes:
        """:data:`base.Snapshot`"""
        self._room = max(self._room, 2 * len(ids))
        while (found := self._all()) is None:
            self._room *= 2
        keys, values = found
        places = {id: place for place, id in enumerate(keys)}
        size = self._elements
        records = array("Q", bytes(8 * (1 + size) * len(ids)))
        for place, id in enumerate(ids):
            at = places.get(id)
            if at is not None:
                start = place * (1 + size)
                records[start] = id
                records[start + 1 : start + 1 + size] = values[at * size : (at + 1) * size]
        return records.tobytes()

    def _all(self) -> tuple[array, array] | None:
        """Ids and values of all entries there are; None if there is no room for them."""
        keys = (ctypes.c_uint64 * self._room)()
        values = (ctypes.c_uint64 * (self._room * self._elements))()
        count, last = ctypes.c_uint32(self._room), ctypes.c_uint64()
        result = libbpf.lib.bpf_map_lookup_batch(
            self._fd, None, ctypes.byref(last), keys, values, ctypes.byref(count), None
        )
        if result != -errno.ENOENT:
            libbpf.check(result, "snapshot")
            return None
        found = count.value
        return array("Q", keys[:found]), array("Q", values[: found * self._elements])


class Native(Engine):
    name = "native"
    number = 2
    parts = ("native", "ctl")
    programs = ()
    attached = ()
    populate = None
    reader = "native"
    snapshots_by = frozenset({"native"})
    # Those that may call the kfuncs: all but raw tracepoints' without types.
    callers = frozenset({
        "tp_btf", "fentry", "fentry.s", "fexit", "fexit.s", "fmod_ret", "fmod_ret.s", "iter",
        "iter.s", "lsm", "lsm.s", "syscall", "tp", "tracepoint", "kprobe", "kretprobe", "ksyscall",
        "kretsyscall", "uprobe", "uretprobe", "uprobe.s", "uretprobe.s", "usdt", "kprobe.multi",
        "kretprobe.multi",
    })  # fmt: skip
    calls = "the kernel's stats maps"
    aggregator = "aggregator"

    def probe(self) -> None:
        """Ask for a map of a cgroup that there is not, as one of all cgroups takes memory."""
        try:
            os.close(libbpf.create_map(_type_number(), "probe", 8, 8, 0, map_extra=_NO_CGROUP))
        except FileNotFoundError:
            return
        except OSError as error:
            name = errno.errorcode.get(error.errno, str(error.errno))
            hint = "; it takes CONFIG_BPF_CGROUP_STATS" if error.errno == errno.EINVAL else ""
            raise EngineUnavailable(
                f"the kernel knows {_TYPE}, and refuses to make one ({name}){hint}"
            ) from None
        raise EngineUnavailable(f"the kernel's {_TYPE} is another: it takes any initial cgroup")

    def configure(self, parts: Mapping[str, libbpf.Map], setting: Setting) -> None:
        native = parts["native"]
        native.type = _type_number()
        native.set_extra(setting.initial)
        native.set_flags(sum(_FLAGS[flag] for flag in setting.flags))

    def lookup(self, reader: int, value_type: ValueType) -> Lookup:
        key, value = ctypes.c_uint64(), ctypes.create_string_buffer(value_type.size)
        pointers = ctypes.byref(key), ctypes.byref(value)
        look_up_element, unpack = libbpf.lib.bpf_map_lookup_elem, value_type.unpack

        def look_up(cgroup_id: int) -> tuple[int, ...]:
            key.value = cgroup_id
            result = look_up_element(reader, *pointers)
            if result < 0:
                raise OSError(-result, os.strerror(-result), f"cgroup {cgroup_id}")
            return unpack(value)

        return look_up

    def snapshot(self, served: Mapping[str, int], value_type: ValueType) -> Snapshot:
        return _Snapshots(served["native"], value_type).take

    def aggregate(self, program: int, parts: Mapping[str, int], link: int | None) -> int:
        if link is None:
            return struct_ops.register(program, parts["native"])
        struct_ops.replace(link, program, parts["native"])
        return os.dup(link)

    def usage(self, parts: Mapping[str, int]) -> Usage:
        """Entries come and go while they are counted, and memory is the kernel's own figure."""
        entries = sum(1 for _ in libbpf.map_keys(parts["native"], 8))
        ctl, size = parts["ctl"], libbpf.map_info(parts["ctl"]).value_size
        value = libbpf.map_lookup(ctl, bytes(4), size) or bytes(size)
        lost = int.from_bytes(value[_LOST], sys.byteorder)
        return Usage(entries, None, None, libbpf.map_memory(parts["native"]), 0, 0, lost)
