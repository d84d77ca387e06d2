# SPDX-License-Identifier: GPL-2.0-only
"""A stats map's values of all cgroups of a subtree, as one text.

A line a cgroup, parents before their children: the path below the cgroup on top, which itself is
``/``, and the elements. The values are a snapshot; lines are made as they are read, some at a
time, and always come out the same, so that none has to be kept.

Knows nothing of BPF or FUSE.
"""

from __future__ import annotations

import itertools
import struct
import sys
from array import array
from bisect import bisect_right
from collections.abc import Callable

from .hierarchy import Cgroup
from .valuetype import ValueType

__all__ = ("MakeText", "Subtree", "SubtreeText", "make_text")

# Of lines that are made at a time, about.
_BATCH_BYTES = 1 << 16
_PATH_BYTES = 40
# Of a name in a list, besides itself.
_NAME_BYTES = 8 + sys.getsizeof(b"")

# As in /proc/self/mounts: mangle() in fs/proc_namespace.c, 6.12. Names have no newline.
_TO_ESCAPE = " \t\n\\#"
_ESCAPED = {ord(each): f"\\{ord(each):03o}" for each in _TO_ESCAPE}


class Subtree:
    """Cgroups at and below one, parents before their children, brothers side by side.

    :param may: whether a directory can be walked through, and whether it can be listed: else it is
        not among them with what is below it, or is, and nothing below it; None: all can
    :param longest: path that is shown, in bytes: where longer ones lead nobody can walk
    :ivar parents: places of the parents in :attr:`cgroups`
    """

    def __init__(
        self, top: Cgroup, may: Callable[[Cgroup], tuple[bool, bool]] | None = None,
        longest: int = sys.maxsize,
    ) -> None:  # fmt: skip
        self.longest = longest
        self.cgroups = cgroups = [top]
        self.parents = parents = array("Q", [0])
        # Grows while it is walked.
        for place, cgroup in enumerate(cgroups):
            if not cgroup.children:
                continue
            children = cgroup.children.values()
            if may:
                children = [child for child in children if may(child)[0]] if may(cgroup)[1] else []
            cgroups.extend(children)
            parents.extend(itertools.repeat(place, len(children)))

    @property
    def ids(self) -> array:
        return array("Q", [cgroup.id for cgroup in self.cgroups])


class SubtreeText:
    """The text.

    :param records: in the order of the cgroups: a word that is 0 if there is nothing to show, and
        the elements of a value
    :ivar length: of the whole text; None before the end of it was come to
    """

    def __init__(self, subtree: Subtree, records: bytes, value_type: ValueType) -> None:
        # No more of the cgroups: one that is removed would take its memory for as long as the text is
        # there.
        self._names = names = [cgroup.name for cgroup in subtree.cgroups]
        self._names_memory = _NAME_BYTES * len(names) + sum(map(len, names))
        self._parents = subtree.parents
        self._longest = subtree.longest
        self._records = records
        self._type = value_type
        # Words of a record.
        self._words = 1 + value_type.elements
        self._lines = max(1, _BATCH_BYTES // (len(value_type.line_template) + _PATH_BYTES))
        # Where the batches begin in the text, as far as that is known.
        self._starts = [0]
        # The batch that was made last.
        self._made = (-1, b"")
        self.length: int | None = None

    @property
    def memory(self) -> int:
        """Bytes that it takes, about."""
        parents = self._parents.itemsize * len(self._parents)
        return len(self._records) + parents + self._names_memory + len(self._made[1])

    def read(self, offset: int, size: int) -> bytes:
        """A part of the text; empty at its end."""
        parts = []
        batch = bisect_right(self._starts, offset) - 1
        while size > 0 and batch * self._lines < len(self._names):
            text = self._batch(batch)
            start = offset - self._starts[batch]
            part = text[start : start + size]
            parts.append(part)
            offset, size, batch = offset + len(part), size - len(part), batch + 1
        return b"".join(parts)

    def _batch(self, batch: int) -> bytes:
        if self._made[0] != batch:
            first = batch * self._lines
            last = min(first + self._lines, len(self._names))
            self._made = batch, self._make(first, last)
            if batch == len(self._starts) - 1:
                self._starts.append(self._starts[batch] + len(self._made[1]))
                if last == len(self._names):
                    self.length = self._starts[-1]
        return self._made[1]

    def _make(self, first: int, last: int) -> bytes:
        size, paths = self._words, self._paths(first, last)
        words = struct.unpack_from(f"={(last - first) * size}Q", self._records, 8 * size * first)
        if not all(words[::size]) or max(map(len, paths)) > self._longest:
            shown = [
                place for place, path in enumerate(paths)
                if words[place * size] and len(path) <= self._longest
            ]  # fmt: skip
            paths = [paths[place] for place in shown]
            words = tuple(itertools.chain.from_iterable(
                words[place * size : (place + 1) * size] for place in shown
            ))  # fmt: skip
        together = "".join(paths)
        if any(each in together for each in _TO_ESCAPE):
            paths = [path.translate(_ESCAPED) for path in paths]
        return self._type.format_lines(paths, words).encode("latin-1")

    def _paths(self, first: int, last: int) -> list[str]:
        """In latin-1, so that each byte is a character; not escaped."""
        paths = []
        parent, prefix = -1, ""
        for place in range(first, last):
            if not place:
                paths.append("/")
                continue
            if self._parents[place] != parent:
                parent = self._parents[place]
                prefix = self._prefix(parent)
            paths.append(prefix + self._names[place].decode("latin-1"))
        return paths

    def _prefix(self, place: int) -> str:
        names = []
        while place:
            names.append(self._names[place].decode("latin-1"))
            place = self._parents[place]
        return "/".join(["", *reversed(names), ""])


# From the cgroups that are to be shown.
MakeText = Callable[[Subtree], SubtreeText]


def make_text(snapshot: Callable[[array, array], bytes], value_type: ValueType) -> MakeText:
    """:param snapshot: of the values, see :data:`cgstatfs.engines.base.Snapshot`"""

    def make(subtree: Subtree) -> SubtreeText:
        records = snapshot(subtree.ids, subtree.parents)
        return SubtreeText(subtree, records, value_type)

    return make
