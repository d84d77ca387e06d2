# SPDX-License-Identifier: GPL-2.0-only
"""The open files, where the daemon after this one finds them.

What a handle stands for, who opened it, and how long the text is that its last read at offset 0
gave: so that the next daemon knows that who has read so far is at the end, and whose every open
file is. The texts themselves end with the daemon.

A file of slots, mapped: four words each, which are aligned, so that a kill leaves each either as
it was or as it is to be. A slot is in use while its first word, written last, is not 0.

=====  ===========================================================================
word   what
=====  ===========================================================================
0      the handle
1      the cgroup's id
2      the user's id in the upper half; in the lower half the map's tag, 1 in bit 30 for
       a file in ``.tree``, and 1 in bit 31 if all directories are open to its opener
3      1 more than the length of the text; 0 if nothing was read yet. As long as the
       length is not known, it is more than any
=====  ===========================================================================
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ("OpenFiles", "Slot", "UNKNOWN")

_WORDS = 4
_TREE, _SEARCHES_ALL = 1 << 30, 1 << 31
_TAG_MASK = _TREE - 1
# In place of a length.
UNKNOWN = 1 << 62
# Sparse: what was never used takes no memory.
SLOTS = 1 << 18


class Slot(NamedTuple):
    """What is known of an open file. :ivar length: of its text; None if nothing was read"""

    index: int
    handle: int
    cgroup: int
    user: int
    tag: int
    length: int | None
    tree: bool
    searches_all: bool


class OpenFiles:
    """The file.

    :param path: of it; made if it is not there
    :raises OSError: it cannot be made
    """

    def __init__(self, path: Path) -> None:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(file, SLOTS * _WORDS * 8)
            self._map = mmap.mmap(file, SLOTS * _WORDS * 8)
            used = self._used(file)
        finally:
            os.close(file)
        self._words = memoryview(self._map).cast("Q")
        self._free: list[int] = []
        # Slots from here on were never used.
        self._end = used

    @staticmethod
    def _used(file: int) -> int:
        """One more than the last slot that may be in use: the rest of the file is a hole."""
        end = offset = 0
        size = _WORDS * 8
        while True:
            try:
                start = os.lseek(file, offset, os.SEEK_DATA)
            except OSError:
                return min(SLOTS, -(-end // size))
            end = offset = os.lseek(file, start, os.SEEK_HOLE)

    def recover(self) -> Iterator[Slot]:
        """What is open, by earlier daemons' word; to be asked for once, first."""
        words = self._words
        for index in range(self._end):
            at = index * _WORDS
            if not words[at]:
                self._free.append(index)
                continue
            user, rest = words[at + 2] >> 32, words[at + 2] & 0xFFFFFFFF
            length = words[at + 3] - 1 if words[at + 3] else None
            yield Slot(
                index, words[at], words[at + 1], user, rest & _TAG_MASK, length,
                bool(rest & _TREE), bool(rest & _SEARCHES_ALL),
            )  # fmt: skip

    def add(
        self, handle: int, cgroup: int, user: int, tag: int, tree: bool = False,
        searches_all: bool = False,
    ) -> int | None:  # fmt: skip
        """A file is being opened.

        :param tree: it is one in ``.tree``
        :param searches_all: all directories are open to who opens it
        :returns: its slot; None if there are too many
        """
        if self._free:
            index = self._free.pop()
        elif self._end < SLOTS:
            index = self._end
            self._end += 1
        else:
            return None
        at, words = index * _WORDS, self._words
        words[at + 1] = cgroup
        words[at + 2] = user << 32 | tag | tree * _TREE | searches_all * _SEARCHES_ALL
        words[at + 3] = 0
        words[at] = handle
        return index

    def read(self, index: int, length: int) -> None:
        """A text is about to be answered with."""
        self._words[index * _WORDS + 3] = length + 1

    def remove(self, index: int) -> None:
        """A file was closed."""
        self._words[index * _WORDS] = 0
        self._free.append(index)

    def close(self) -> None:
        self._words.release()
        self._map.close()
