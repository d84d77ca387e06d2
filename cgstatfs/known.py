# SPDX-License-Identifier: GPL-2.0-only
"""Which directories the kernel has been told of, for the daemon after this one.

The kernel keeps names for as long as nobody tells it that they have gone. If a cgroup is removed
while no daemon serves, the next one has to, and can only if it knows what was told. So each
directory is written down before the first answer that tells of it: one that was and never was
told of is invalidated for nothing, which harms nobody.

A file of lines, appended to: a cgroup's id, its parent's, and its name, which has no newline (see
``cgroup_mkdir()`` in kernel/cgroup/cgroup.c, 6.12); or the id alone, of one that the kernel has
forgotten again. A line that a kill has cut short is the last.
"""

from __future__ import annotations

import os
from pathlib import Path

from .hierarchy import Cgroup, Hierarchy

__all__ = ("Known",)

# Lines in excess of those of what is known before it is written anew.
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
        for id, (parent_id, name) in self._read().items():
            cgroup = self._hierarchy.by_id.get(id)
            if cgroup is None:
                # A parent precedes its children.
                parent = self._hierarchy.by_id.get(parent_id) or gone.get(parent_id)
                cgroup = gone[id] = Cgroup(id, parent or self._hierarchy.root, name)
                cgroup.alive = False
            cgroup.lookups += 1
            cgroup.uncounted = True
            self._ids.add(id)
        # Also for the sake of a line that was cut short.
        self.compact()
        return list(gone.values())

    def _read(self) -> dict[int, tuple[int, bytes]]:
        """Parents' ids and names, by id."""
        found = {}
        with open(self._path, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                id, _, rest = line[:-1].partition(b" ")
                parent, _, name = rest.partition(b" ")
                if name:
                    found[int(id)] = int(parent), name
                else:
                    found.pop(int(id), None)
        return found

    def add(self, cgroup: Cgroup) -> None:
        """Before the kernel is told of a directory."""
        if cgroup.id in self._ids or cgroup.parent is None:
            return
        self._ids.add(cgroup.id)
        self._append(_line(cgroup))

    def forget(self, cgroup: Cgroup) -> None:
        """The kernel does not refer to it any more."""
        if cgroup.id in self._ids:
            self._ids.remove(cgroup.id)
            self._append(b"%d\n" % cgroup.id)

    def _append(self, line: bytes) -> None:
        os.write(self._file, line)
        self._lines += 1
        if self._lines > 2 * len(self._ids) + _SLACK:
            self.compact()

    def compact(self) -> None:
        """Write it anew with what is known: removed ones too, which may be in somebody's path."""
        new = self._path.with_suffix(".new")
        lines = self._read()
        with open(new, "wb") as file:
            for id, (parent, name) in lines.items():
                file.write(b"%d %d %b\n" % (id, parent, name))
        new.rename(self._path)
        os.close(self._file)
        self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        self._lines = len(lines)

    def close(self) -> None:
        os.close(self._file)
