# SPDX-License-Identifier: GPL-2.0-only
"""The buffer that a program and user space share: an array in memory that both have."""

from __future__ import annotations

import mmap
import os
import sys

from .. import libbpf
from ..valuetype import ValueType

__all__ = ("BUFFERS", "BUFFER_FLAGS", "Buffer")

# Ending of the map of maps whose one element it is.
BUFFERS = "buffers"
# BPF_F_MMAPABLE, and BPF_F_INNER_MAP: of another size than was declared.
BUFFER_FLAGS = 1 << 10 | 1 << 12
_ARRAY = 2
_PAGE = mmap.PAGESIZE


class Buffer:
    """An array of places: a word, and the value of a stats map.

    It is as large as was needed, and stays, since the kernel takes a grace period, which is
    milliseconds, to put another in its place. That another is there can be: a collector that goes
    on with the maps of one that it replaces has this one, too. Only one of them is in use at any
    time, since all snapshots are made by the daemon, one after the other.

    :param outer: descriptor of the map of maps
    :ivar stride: words of a place
    """

    def __init__(self, outer: int, value_type: ValueType) -> None:
        self._outer = outer
        self.stride = 1 + value_type.elements
        self._places = self._id = 0
        self._words: memoryview | None = None

    def words(self, places: int) -> memoryview:
        """Its words, of 64 bits; there are so many places at least.

        :raises OSError: ``ENOMEM``
        """
        if self._words is None or self._places < places or not self._in_place():
            self._grow(max(self._places, places + places // 4))
        assert self._words
        return self._words

    def _in_place(self) -> bool:
        # Of an element that is a map user space sees the id.
        return libbpf.map_lookup(self._outer, bytes(4), 4) == self._id.to_bytes(4, sys.byteorder)

    def _grow(self, places: int) -> None:
        size = 8 * self.stride
        fd = libbpf.create_map(_ARRAY, "buffer", 4, size, places, map_flags=BUFFER_FLAGS)
        try:
            shared = mmap.mmap(fd, -(-places * size // _PAGE) * _PAGE)
            libbpf.map_update(self._outer, bytes(4), fd.to_bytes(4, sys.byteorder))
            self._id = libbpf.map_info(fd).id
        finally:
            os.close(fd)
        self._words, self._places = memoryview(shared).cast("Q"), places
