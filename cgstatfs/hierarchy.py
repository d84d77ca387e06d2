# SPDX-License-Identifier: GPL-2.0-only
"""The cgroup v2 hierarchy as a tree in memory, and where to find it.

Knows nothing of BPF or FUSE. The tree is filled by a scan of cgroupfs and kept current by
events (:mod:`cgstatfs.events`). Only the v2 hierarchy is covered.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ("Cgroup", "Hierarchy", "Mount", "find_cgroup2", "mounts")

_OCTAL = re.compile(rb"\\([0-7]{3})")


class Mount:
    """A line of ``/proc/self/mountinfo`` (proc(5))."""

    __slots__ = ("device", "root", "point", "type")

    def __init__(self, line: bytes) -> None:
        fields, _, rest = line.partition(b" - ")
        _, _, self.device, root, point, *_ = fields.split(b" ")
        self.root, self.point = self._unescape(root), self._unescape(point)
        self.type, *_ = rest.split(b" ")

    @staticmethod
    def _unescape(text: bytes) -> bytes:
        return _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), text)


def mounts() -> Iterator[Mount]:
    """What is mounted in this mount namespace, later mounts last."""
    with open("/proc/self/mountinfo", "rb") as table:
        for line in table:
            yield Mount(line.rstrip(b"\n"))


def _is_visible(mount: Mount) -> bool:
    """Whether nothing is mounted over it."""
    try:
        device = os.stat(mount.point).st_dev
    except OSError:
        return False
    return mount.device == b"%d:%d" % (os.major(device), os.minor(device))


def find_cgroup2() -> Path:
    """Where cgroup v2 is mounted; the whole hierarchy rather than a part of it.

    :raises FileNotFoundError: nowhere
    """
    found = [mount for mount in mounts() if mount.type == b"cgroup2" and _is_visible(mount)]
    if not found:
        raise FileNotFoundError(
            errno.ENOENT,
            "cgroup v2 is not mounted; mount -t cgroup2 none /sys/fs/cgroup",
            "/proc/self/mountinfo",
        )
    found.sort(key=lambda mount: mount.root != b"/")
    return Path(os.fsdecode(found[0].point))


class Cgroup:
    """A cgroup.

    :ivar id: the kernel's id, ``st_ino`` of its directory in cgroupfs
    :ivar parent: None for the root of the view
    :ivar children: by name
    :ivar alive: False from its removal (rmdir) on
    :ivar stat: its directory's attributes when they were last asked for
    :ivar stat_current: whether they still hold, and a change of them would be noticed
    :ivar lookups: references that the kernel holds on its directory in the mount
    :ivar uncounted: it may hold more, as an earlier daemon told of it
    """

    __slots__ = (
        "id", "parent", "name", "children", "alive", "stat", "stat_current", "lookups", "uncounted",
        "_ordered",
    )  # fmt: skip

    def __init__(self, id: int, parent: Cgroup | None, name: bytes) -> None:
        self.id = id
        self.parent = parent
        self.name = name
        self.children: dict[bytes, Cgroup] = {}
        self.alive = True
        self.stat: os.stat_result | None = None
        self.stat_current = False
        self.lookups = 0
        self.uncounted = False
        self._ordered: list[Cgroup] | None = None

    @property
    def ordered(self) -> list[Cgroup]:
        """The children by id: an order in which a listing can be resumed."""
        if self._ordered is None:
            self._ordered = sorted(self.children.values(), key=lambda child: child.id)
        return self._ordered

    @property
    def names(self) -> list[bytes]:
        """The path from the root of the view, as names."""
        names = []
        cgroup: Cgroup | None = self
        while cgroup is not None and cgroup.parent is not None:
            names.append(cgroup.name)
            cgroup = cgroup.parent
        return names[::-1]

    def _changed(self) -> None:
        self._ordered = None
        self.stat_current = False


class Hierarchy:
    """The cgroups below one cgroup, which is the root of the view.

    :param path: the directory of that cgroup in cgroupfs
    :raises OSError: it cannot be read
    """

    def __init__(self, path: Path) -> None:
        self.path = os.fsencode(path)
        self.root = Cgroup(os.stat(self.path).st_ino, None, b"")
        self.by_id = {self.root.id: self.root}
        self._listeners: list[Callable[[Cgroup], None]] = []

    def on_change(self, listener: Callable[[Cgroup], None]) -> None:
        """Call *listener* with every cgroup that was created or removed."""
        self._listeners.append(listener)

    def directory(self, cgroup: Cgroup) -> bytes:
        """The cgroup's directory in cgroupfs."""
        return b"/".join((self.path, *cgroup.names))

    def resolve(self, names: list[bytes]) -> Cgroup | None:
        """The live cgroup at a path, if there is one."""
        cgroup: Cgroup | None = self.root
        for name in names:
            cgroup = cgroup.children.get(name) if cgroup else None
        return cgroup

    def create(self, id: int, parent_id: int, name: bytes) -> None:
        """A cgroup was created. Known ones, and ones outside the view, are ignored."""
        parent = self.by_id.get(parent_id)
        if parent is None or id in self.by_id:
            return
        stale = parent.children.get(name)
        if stale and stale.id > id:
            return  # A scan has found its successor; ids only grow.
        if stale:
            self.remove(stale.id)
        cgroup = self.by_id[id] = parent.children[name] = Cgroup(id, parent, name)
        parent._changed()
        self._tell(cgroup)

    def remove(self, id: int) -> None:
        """A cgroup was removed, with all that is below it. Unknown ones are ignored."""
        cgroup = self.by_id.get(id)
        if cgroup is None or cgroup.parent is None:
            return
        below = [cgroup]
        for each in below:
            below.extend(each.children.values())
        for each in reversed(below):
            del self.by_id[each.id]
            del each.parent.children[each.name]
            each.alive = False
            each.parent._changed()
            self._tell(each)

    def _tell(self, cgroup: Cgroup) -> None:
        for listener in self._listeners:
            listener(cgroup)

    def scan(self) -> None:
        """Make the tree agree with cgroupfs, for the start and where events were lost."""
        stack = [(self.root, self.path)]
        while stack:
            cgroup, path = stack.pop()
            found = self._subdirectories(path)
            for name, child in list(cgroup.children.items()):
                if found.get(name) != child.id:
                    self.remove(child.id)
            for name, id in found.items():
                self.create(id, cgroup.id, name)
                child = cgroup.children.get(name)
                if child:
                    stack.append((child, path + b"/" + name))

    @staticmethod
    def _subdirectories(path: bytes) -> dict[bytes, int]:
        try:
            with os.scandir(path) as entries:
                # The inode number is the id; see kernfs_fop_readdir() in fs/kernfs/dir.c.
                return {
                    entry.name: entry.inode()
                    for entry in entries
                    if entry.is_dir(follow_symlinks=False)
                }
        except OSError as error:
            # Removed meanwhile, or so deep that no path leads there.
            if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENAMETOOLONG):
                return {}
            raise
