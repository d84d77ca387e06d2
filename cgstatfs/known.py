# SPDX-License-Identifier: GPL-2.0-only
"""Which directories the kernel has been told of, for the daemon after this one.

The kernel keeps names for as long as nobody tells it that they have gone. If a cgroup is removed
while no daemon serves, the next one has to, and can only if it knows what was told. So each
directory is written down before the first answer that tells of it: one that was and never was
told of is invalidated for nothing, which harms nobody.

A file of lines, appended to: a cgroup's id, its parent's, and its name, which has no newline (see
``cgroup_mkdir()`` in kernel/cgroup/cgroup.c, 6.12). A line that a kill has cut short is the last.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from .hierarchy import Cgroup, Hierarchy

__all__ = ("Known",)

# Lines of the dead in excess of those of the living before it is written anew.
_SLACK = 4096


def _line(cgroup: Cgroup) -> bytes:
    assert cgroup.parent
    return b"%d %d %b\n" % (cgroup.id, cgroup.parent.id, cgroup.name)


class Known:
    """The file.

    :param path: of it; made if it is not there
    :raises OSError: it cannot be read or made
    """

    def __init__(self, path: Path, hierarchy: Hierarchy) -> None:
        self._path = path
        self._hierarchy = hierarchy
        self._ids: set[int] = set()
        self._lines = 0
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def recover(self) -> list[Cgroup]:
        """Take over what earlier daemons told: it counts as known.

        :returns: the cgroups among that which are gone
        """
        gone: dict[int, Cgroup] = {}
        for id, parent_id, name in self._read():
            cgroup = self._hierarchy.by_id.get(id)
            if cgroup is None:
                # A parent precedes its children.
                parent = self._hierarchy.by_id.get(parent_id) or gone.get(parent_id)
                cgroup = gone[id] = Cgroup(id, parent or self._hierarchy.root, name)
                cgroup.alive = False
            cgroup.lookups += 1
            self._ids.add(id)
        # Also for the sake of a line that was cut short.
        self.compact()
        return list(gone.values())

    def _read(self) -> Iterator[tuple[int, int, bytes]]:
        with open(self._path, "rb") as file:
            for line in file:
                id, _, rest = line.partition(b" ")
                parent, _, name = rest.partition(b" ")
                if name.endswith(b"\n"):
                    yield int(id), int(parent), name[:-1]

    def add(self, cgroup: Cgroup) -> None:
        """Before the kernel is told of a directory."""
        if cgroup.id in self._ids or cgroup.parent is None:
            return
        self._ids.add(cgroup.id)
        os.write(self._file, _line(cgroup))
        self._lines += 1
        if self._lines > 2 * len(self._ids) + _SLACK:
            self.compact()

    def forget(self, cgroup: Cgroup) -> None:
        """The kernel does not refer to it any more. Its line stays until there are too many."""
        self._ids.discard(cgroup.id)

    def compact(self) -> None:
        """Write it anew with what is known: removed ones too, which may be in somebody's path."""
        new = self._path.with_suffix(".new")
        lines = [line for line in self._read() if line[0] in self._ids]
        with open(new, "wb") as file:
            for id, parent, name in lines:
                file.write(b"%d %d %b\n" % (id, parent, name))
        new.rename(self._path)
        os.close(self._file)
        self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        self._lines = len(lines)

    def close(self) -> None:
        os.close(self._file)
