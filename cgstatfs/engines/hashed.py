# SPDX-License-Identifier: GPL-2.0-only
"""What the engines share that keep entries and per-cpu arrays in hashes of their own.

Programs make an entry when a cgroup is made, and delete it after its release. See
bpf/cgstat_entries.h.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from .. import libbpf
from ..valuetype import ValueType
from .base import Engine, Setting, Snapshot, Usage
from .buffer import BUFFERS, Buffer
from .snapshots import HashedSnapshots

__all__ = ("HashedEngine",)

_MAX_PAIRS = 1 << 18
# struct cgstat_slot, without the values
_SLOT = 24
# The head of struct cgstat_ctl
_COUNTERS = struct.Struct("=5Q")
# struct htab_elem and struct bucket in kernel/bpf/hashtab.c, 6.12
_HASH_ELEMENT, _HASH_BUCKET = 48, 16


def _hash_bytes(info: libbpf.MapInfo, elements: int) -> int:
    """Memory of a hash that allocates its elements as they come."""
    buckets = 1 << (info.max_entries - 1).bit_length()
    size = _HASH_ELEMENT + -(-info.key_size // 8) * 8 + info.value_size
    return buckets * _HASH_BUCKET + elements * size


def _slots(elements: int) -> int:
    """Of one cpu: a power of two, ``cgstat_slot_bits()`` in bpf/cgstat_update.h."""
    return next((slots for most, slots in ((13, 256), (29, 128), (61, 64)) if elements <= most), 32)


class HashedEngine(Engine):
    """An engine whose entries are elements of a hash."""

    parts = ("entries", "pairs", "slots", "lists", "ctl", BUFFERS)
    snapshots_by = frozenset({"snapshot", BUFFERS})
    life_cycle = ("release", "mkdir")
    populate = "populate"

    def configure(self, parts: Mapping[str, libbpf.Map], setting: Setting) -> None:
        cpus = libbpf.possible_cpus()
        parts["lists"].max_entries = cpus
        # What finds no room here is spilled, at some cost and without loss.
        percpu = "CGSTAT_NO_PERCPU" not in setting.flags
        room = min(parts["entries"].max_entries * cpus, _MAX_PAIRS)
        parts["pairs"].max_entries = room if percpu else 1
        slots = parts["slots"]
        slots.max_entries = cpus * _slots((slots.value_size - _SLOT) // 8) if percpu else 1

    def _flush(self, served: Mapping[str, int], size: int) -> Callable[[int], None] | None:
        """What a snapshot needs done before; None: its program does it."""
        return None

    def snapshot(self, served: Mapping[str, int], value_type: ValueType) -> Snapshot:
        return HashedSnapshots(
            served["snapshot"], Buffer(served[BUFFERS], value_type),
            self._flush(served, value_type.size),
        ).take  # fmt: skip

    def usage(self, parts: Mapping[str, int]) -> Usage:
        ctl, size = parts["ctl"], libbpf.map_info(parts["ctl"]).value_size
        value = libbpf.map_lookup(ctl, bytes(4), size) or bytes(size)
        entries, pairs, spilled, displaced, lost = _COUNTERS.unpack_from(value)
        info = libbpf.map_info(parts["entries"])
        memory = _hash_bytes(info, entries) + _hash_bytes(libbpf.map_info(parts["pairs"]), pairs)
        if "slots" in parts:
            slots = libbpf.map_info(parts["slots"])
            memory += slots.max_entries * slots.value_size
        return Usage(entries, info.max_entries, pairs, memory, spilled, displaced, lost)
