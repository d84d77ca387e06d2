# SPDX-License-Identifier: GPL-2.0-only
"""Snapshots of stats maps whose entries are elements of a hash; see bpf/cgstat_snapshot.h."""

from __future__ import annotations

import ctypes
import errno
import os
from array import array
from collections.abc import Callable

from ..libbpf import run_while_busy
from .buffer import Buffer

__all__ = ("Context", "HashedSnapshots")

# Entries that others' flushes change while it is made, in proportion and at least. Where that is
# not enough, it is made again.
_CHANGED_SHARE, _CHANGED_LEAST = 4, 256
_TRIES = 100
# With this much more room than at first there is enough for all that is in the snapshot.
_MOST = 3


class Context(ctypes.Structure):
    """``struct NAME_snapshot_ctx``."""

    _fields_ = [("count", ctypes.c_uint32), ("room", ctypes.c_uint32), ("ret", ctypes.c_int64)]


class HashedSnapshots:
    """Those of one stats map.

    :param program: descriptor of the one that copies
    :param flush: what is to be done before, with the id of the cgroup on top; None: the program
        flushes, and nobody else does while it copies
    """

    def __init__(
        self, program: int, buffer: Buffer, flush: Callable[[int], None] | None
    ) -> None:
        self._buffer = buffer
        self._flush = flush
        self._context = Context()
        self._run = run_while_busy(program, self._context)

    def take(self, ids: array, parents: array) -> bytes:
        """:data:`base.Snapshot`"""
        if self._flush:
            self._flush(ids[0])
        for attempt in range(_TRIES):
            result, records = self._copy(ids, parents, min(attempt, _MOST) + 1)
            if result != -errno.EAGAIN:
                break
        if result:
            raise OSError(-result, os.strerror(-result), f"snapshot of {len(ids)} cgroups")
        return records

    def _copy(self, ids: array, parents: array, generosity: int) -> tuple[int, bytes]:
        count, stride = len(ids), self._buffer.stride
        room = (count // _CHANGED_SHARE + _CHANGED_LEAST) * generosity if self._flush else 0
        words = self._buffer.words((2 * count if self._flush else count) + 2 * room)
        words[: count * stride : stride] = memoryview(ids)
        if self._flush:
            words[count * stride : 2 * count * stride : stride] = memoryview(parents)
        self._context.count, self._context.room = count, room
        return self._run(), words[: count * stride].tobytes()
