# SPDX-License-Identifier: GPL-2.0-only
"""Who asks, and which directories the kernel would let them search.

For what one request shows of many directories, which the kernel does not check. Whatever cannot
be found out for certain counts against who asks: all that is told here could have been walked to,
but not all that could have been walked to need be told.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

__all__ = ("Requester",)

# include/uapi/linux/capability.h: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
_PASSES_ALL = 1 << 1 | 1 << 2
# Of the initial user namespace, and of those that are no different for what counts here.
_ALL_IDS = ["0", "0", "4294967295"]


@dataclass(frozen=True)
class Requester:
    """A thread's credentials when it opened a file.

    :ivar uid: as the file system is told, in the daemon's user namespace
    :ivar groups: supplementary ones; None: unknown
    :ivar searches_all: it has a capability that opens all directories
    """

    uid: int
    gid: int
    groups: frozenset[int] | None
    searches_all: bool

    @classmethod
    def of(cls, uid: int, gid: int, pid: int) -> Requester:
        """Of a thread that waits for its request to be answered, and so cannot change meanwhile.

        :param pid: of the thread; 0: it is in no pid namespace of ours
        """
        unknown = cls(uid, gid, None, False)
        if not pid:
            return unknown
        try:
            status = _status(pid)
            # Another thread's, as ours has ended (it had the kernel read for it, and did not
            # wait), or /proc is that of another pid namespace.
            if int(status["Uid"].split()[3]) != uid or int(status["Gid"].split()[3]) != gid:
                return unknown
            groups = frozenset(map(int, status["Groups"].split()))
            capable = bool(int(status["CapEff"], 16) & _PASSES_ALL) and _maps_all_ids(pid)
        except (OSError, KeyError, ValueError, IndexError):
            return unknown
        return cls(uid, gid, groups, capable)

    @classmethod
    def passing_all(cls, uid: int) -> Requester:
        """One of whom it is known that all directories are open to it."""
        return cls(uid, -1, None, True)

    def may_search(self, directory: os.stat_result) -> bool:
        """Whether a directory can be walked through."""
        return self._may(directory, stat.S_IXOTH)

    def may_list(self, directory: os.stat_result) -> bool:
        """Whether what is in a directory can be found by who does not know it."""
        return self._may(directory, stat.S_IROTH | stat.S_IXOTH)

    def _may(self, directory: os.stat_result, wanted: int) -> bool:
        """acl_permission_check() in fs/namei.c, 6.12.

        :param wanted: bits of the mode, where they are for others
        """
        if self.searches_all:
            return True
        owner, group, others = (directory.st_mode >> bits & wanted == wanted for bits in (6, 3, 0))
        if directory.st_uid == self.uid:
            return owner
        if directory.st_gid == self.gid:
            return group
        if self.groups is None:
            return group and others
        return group if directory.st_gid in self.groups else others


def _status(pid: int) -> dict[str, str]:
    # A thread that is not the first of its process is found by its id, too, if not listed.
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        return dict(line.rstrip("\n").split(":", 1) for line in file)


def _maps_all_ids(pid: int) -> bool:
    """Whether a capability in its user namespace counts for all owners: with others it depends."""
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/{pid}/{name}", encoding="ascii") as file:
            if file.read().split() != _ALL_IDS:
                return False
    return True
