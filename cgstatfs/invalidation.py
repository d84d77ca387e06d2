# SPDX-License-Identifier: GPL-2.0-only
"""Tell the kernel that names and attributes which it caches no longer hold.

To invalidate a name the kernel takes the directory's lock, which somebody may hold who waits for
our answer to a request; so whoever tells the kernel may wait for us, in a way that no signal
ends. It is a process of its own: a daemon that is killed is gone at once, and the next one can
give the answer that this waits for. What waits is bounded by what the kernel has cached.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import trio

from . import nodes, wire
from .hierarchy import Cgroup, Hierarchy
from .privileges import keep_only

__all__ = ("Invalidator", "Teller")

log = logging.getLogger(__name__)

# Seconds from the first change of a directory's links until the kernel is told, of all others in
# that time as well; and from the last one of an owner or mode, see Invalidator.tell_permissions().
_LINKS_SECONDS, _PERMISSIONS_SECONDS = 0.02, 1.0


class Teller:
    """The process that writes notifications. To be made before there are threads."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            try:
                ours.close()
                _tell(theirs)
            finally:
                os._exit(0)
        theirs.close()
        self.socket = ours

    def begin(self, device: int) -> None:
        """Hand it the connection."""
        socket.send_fds(self.socket, [b"."], [device])


def _tell(theirs: socket.socket) -> None:
    """The process's life: until the daemon has gone, or the connection."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    keep_only(())
    _, descriptors, _, _ = socket.recv_fds(theirs, 1, 1)
    while descriptors and (notification := theirs.recv(wire.MIN_BUFFER)):
        if not _notify(descriptors[0], notification):
            return


def _notify(device: int, notification: bytes) -> bool:
    """Write a notification. Returns whether there will be a use for another."""
    try:
        os.write(device, notification)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return False
        # The kernel does not know it any more.
        if error.errno != errno.ENOENT:
            log.warning("the kernel refused the notification %r: %s", notification, error)
    return True


@dataclass
class _Change:
    """Of an owner, group or mode.

    :ivar due: when the kernel is to be told
    :ivar walked: threads that have walked the path anew since
    """

    due: float
    walked: set[int] = field(default_factory=set)


class Invalidator:
    """Collects what changed; the methods that are called ``tell_…`` have the kernel told.

    The kernel checks who may pass a directory by the owner and mode that it has cached, before it
    asks us anything. So whoever opens something below a directory of whose change it has not been
    told may have passed by what no longer holds, and is turned back if so.

    :ivar permissions: the directories of whose change of owner or mode it has not been told, each
        with the last one; soonest due first
    """

    def __init__(self, hierarchy: Hierarchy, teller: Teller) -> None:
        self._root = hierarchy.root
        self._teller = teller
        self._device = -1
        self._removed: dict[int, Cgroup] = {}
        self._linked: set[Cgroup] = set()
        self.permissions: dict[Cgroup, _Change] = {}
        self._on_removal, self._on_link, self._on_permission = (trio.Event() for _ in range(3))
        hierarchy.on_change(self._on_change)

    def begin(self, device: int) -> None:
        """The connection is there."""
        self._device = device
        self._teller.begin(device)

    def _cached(self, cgroup: Cgroup) -> bool:
        return cgroup.lookups > 0 or cgroup.uncounted or cgroup is self._root

    def _node(self, cgroup: Cgroup) -> int:
        return nodes.ROOT if cgroup is self._root else cgroup.id

    def _on_change(self, cgroup: Cgroup) -> None:
        if not cgroup.alive and self._cached(cgroup):
            self._removed[cgroup.id] = cgroup
            self._on_removal.set()
        # Its number of links changed, and its times.
        if cgroup.parent is not None and self._cached(cgroup.parent):
            self._linked.add(cgroup.parent)
            self._on_link.set()

    def permissions_changed(self, cgroup: Cgroup) -> None:
        """A directory's owner, group or mode changed."""
        if self._cached(cgroup):
            self.permissions.pop(cgroup, None)
            self.permissions[cgroup] = _Change(time.monotonic() + _PERMISSIONS_SECONDS)
            self._on_permission.set()

    def taken_over(self, gone: Iterable[Cgroup], hierarchy: Hierarchy) -> None:
        """What the kernel has cached is from before; these of it were removed meanwhile.

        To be called when the connection is there: those who waited are answered from then on.
        """
        self._removed |= {cgroup.id: cgroup for cgroup in gone}
        self._on_removal.set()
        for cgroup in hierarchy.by_id.values():
            self.permissions_changed(cgroup)

    def recent(self, cgroup: Cgroup) -> list[Cgroup]:
        """Which directories on the way to a cgroup, and its own, have changed owner or mode."""
        found, each = [], cgroup
        while each is not None:
            if each in self.permissions:
                found.append(each)
            each = each.parent
        return found

    def turns_back(self, passed: Iterable[Cgroup], thread: int) -> bool:
        """Whether a thread has to walk a path anew, on which these have changed.

        It has, once for each change; and the kernel is told, so that it asks for them then.

        :param thread: its id
        """
        anew = False
        for cgroup in passed:
            walked = self.permissions[cgroup].walked
            if thread not in walked:
                if not walked:
                    self._tell(cgroup)
                walked.add(thread)
                anew = True
        return anew

    def _tell(self, cgroup: Cgroup) -> None:
        """Here, and not by the teller: the kernel waits for nobody to take this."""
        _notify(self._device, wire.inval_inode(self._node(cgroup)))

    async def tell_names(self) -> None:
        """Have the kernel told of removed cgroups, until cancelled."""
        told = trio.socket.from_stdlib_socket(self._teller.socket)
        while True:
            await self._on_removal.wait()
            self._on_removal = trio.Event()
            removed, self._removed = self._removed, {}
            for cgroup in removed.values():
                # Not FUSE_NOTIFY_DELETE: who is just on the way through the directory would get
                # ENOENT, though the path leads to a cgroup made anew.
                await told.send(wire.inval_entry(
                    self._node(cgroup.parent), cgroup.name, expire=self._known_anew(cgroup)
                ))  # fmt: skip

    async def tell_links(self) -> None:
        """Tell the kernel of directories in which cgroups came or went, until cancelled."""
        while True:
            await self._on_link.wait()
            await trio.sleep(_LINKS_SECONDS)
            self._on_link = trio.Event()
            linked, self._linked = self._linked, set()
            # Of the others it is told later.
            for cgroup in linked - self.permissions.keys():
                self._tell(cgroup)

    async def tell_permissions(self, drain: Callable[[], None]) -> None:
        """Tell the kernel of owners and modes that changed, until cancelled.

        This is for those who only look, and not soon. The kernel takes no attributes that were
        asked for before it was told (``fuse_change_attributes()`` in fs/fuse/inode.c, 6.12), and
        goes by the old ones: told just then, it would refuse somebody whom the change lets in, and
        who is therefore asking.

        :param drain: reports what has changed
        """
        while True:
            await self._on_permission.wait()
            self._on_permission = trio.Event()
            while self.permissions:
                first = next(iter(self.permissions.values()))
                await trio.sleep(max(0, first.due - time.monotonic()))
                drain()
                self._tell_permissions(time.monotonic())

    def _tell_permissions(self, now: float) -> None:
        due = itertools.takewhile(lambda each: each[1].due <= now, self.permissions.items())
        for cgroup, _ in list(due):
            del self.permissions[cgroup]
            self._tell(cgroup)

    @staticmethod
    def _known_anew(cgroup: Cgroup) -> bool:
        """The kernel looked the name up again, and knows the cgroup made anew under it.

        Or it did, and who listed the directory before has put the old one in its place since.
        """
        successor = cgroup.parent.children.get(cgroup.name)
        return successor is not None and successor.lookups > 0
