# SPDX-License-Identifier: GPL-2.0-only
"""The engine that keeps its own lists of what was updated, in BPF maps.

Needs BTF and ``tp_btf`` programs, no BPF trampolines. A lookup runs a ``syscall`` program
that flushes and copies the total. See bpf/cgstat.bpf.h, "flush and lookup: standalone".
"""

from __future__ import annotations

import ctypes
import os

from ..btf import kernel_functions
from ..libbpf import run_while_busy
from ..valuetype import ValueType
from .base import EngineUnavailable, Lookup
from .hashed import HashedEngine

__all__ = ("Standalone",)


class Standalone(HashedEngine):
    name = "standalone"
    number = 0
    programs = (*HashedEngine.life_cycle, HashedEngine.populate, "lookup", "snapshot")
    attached = HashedEngine.life_cycle
    reader = "lookup"

    def probe(self) -> None:
        try:
            # bpf_cgroup iterators came with 6.1, as did hashes that may allocate anywhere.
            if "bpf_iter_cgroup" not in kernel_functions():
                raise EngineUnavailable("no cgroup iterator in this kernel; it needs 6.1 or later")
        except OSError as error:
            raise EngineUnavailable(f"{error.filename}: {error.strerror}") from None

    def lookup(self, reader: int, value_type: ValueType) -> Lookup:
        class Context(ctypes.Structure):
            """``struct NAME_lookup_ctx``."""

            _fields_ = [
                ("id", ctypes.c_uint64),
                ("ret", ctypes.c_int64),
                ("total", ctypes.c_uint64 * value_type.elements),
            ]

        context = Context()
        run = run_while_busy(reader, context)
        total = memoryview(context).cast("B")[Context.total.offset :]
        unpack = value_type.unpack

        def look_up(cgroup_id: int) -> tuple[int, ...]:
            context.id = cgroup_id
            result = run()
            if result:
                raise OSError(-result, os.strerror(-result), f"cgroup {cgroup_id}")
            return unpack(total)

        return look_up
