# SPDX-License-Identifier: GPL-2.0-only
"""The engine that rides on the kernel's rstat.

Updates tell the kernel through a kfunc, and a program on the kernel's flush hook
``bpf_rstat_flush()`` folds (6.1 and later, with BPF trampolines). A lookup walks a sleepable
cgroup iterator over the one cgroup; the program flushes it and writes its total.
See bpf/cgstat.bpf.h, "flush and lookup: rstat".
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping

from .. import libbpf
from ..btf import kernel_functions
from ..objects import object_path
from ..valuetype import ValueType
from .base import EngineUnavailable, Lookup
from .hashed import HashedEngine

__all__ = ("Rstat",)


class Rstat(HashedEngine):
    name = "rstat"
    number = 1
    programs = (*HashedEngine.life_cycle, HashedEngine.populate, "flush", "read", "snapshot")
    attached = (*HashedEngine.life_cycle, "flush")
    reader = "read"
    snapshots_by = HashedEngine.snapshots_by | {"read"}
    # Those that may call rstat's kfuncs.
    callers = frozenset({"tp_btf", "fentry", "fentry.s", "fexit", "fexit.s", "fmod_ret",
                         "fmod_ret.s", "iter", "iter.s", "syscall"})  # fmt: skip
    calls = "rstat"
    # cgroup_rstat_updated() takes one of them. That is all of 6.1 to 6.15; later kernels are
    # lockless there, but not when they flush.
    inside_rstat = False

    def probe(self) -> None:
        try:
            if "bpf_rstat_flush" not in kernel_functions():
                raise EngineUnavailable("no bpf_rstat_flush() in this kernel; it needs 6.1 or later")
            self._probe_trampoline()
        except OSError as error:
            raise EngineUnavailable(f"{error.filename}: {error.strerror}") from None

    def _probe_trampoline(self) -> None:
        """Attach to the flush hook, as only trying shows whether the kernel allows it."""
        probe = libbpf.Object(object_path("probe_rstat"))
        try:
            probe.load()
            probe.programs["probe"].attach().close()
        except OSError as error:
            raise EngineUnavailable(
                "the kernel refuses BPF trampolines (fentry/bpf_rstat_flush: "
                f"{errno.errorcode.get(error.errno, error.errno)}); they take "
                "CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS, and no policy against them"
            ) from None
        finally:
            probe.close()

    def _flush(self, served: Mapping[str, int], size: int) -> Callable[[int], None]:
        def flush(cgroup_id: int) -> None:
            # No value: outside of the initial cgroup, and perhaps above it.
            _read(served[self.reader], cgroup_id, size)

        return flush

    def lookup(self, reader: int, value_type: ValueType) -> Lookup:
        size, unpack = value_type.size, value_type.unpack

        def look_up(cgroup_id: int) -> tuple[int, ...]:
            value = _read(reader, cgroup_id, size)
            if len(value) != size:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), f"cgroup {cgroup_id}")
            return unpack(value)

        return look_up


def _read(reader: int, cgroup_id: int, size: int) -> bytes:
    """Flush, and read the total; empty: there is no entry.

    :raises FileNotFoundError: there is no cgroup, so that nothing was flushed
    """
    # A link that stays would keep its cgroup from being released.
    link = libbpf.create_cgroup_iter_link(reader, libbpf.CGROUP_ITER_SELF_ONLY, cgroup_id)
    try:
        walk = libbpf.create_iter(link)
    finally:
        os.close(link)
    try:
        return os.read(walk, size)
    finally:
        os.close(walk)
