# SPDX-License-Identifier: GPL-2.0-only
"""Tell the kernel that names and attributes which it caches no longer hold.

To invalidate a name the kernel takes the directory's lock, which somebody may hold who waits for
our answer to a request; so whoever tells the kernel may wait for us, in a way that no signal
ends. It is a process of its own: a daemon that is killed is gone at once, and the next one can
give the answer that this waits for. What waits is bounded by what the kernel has cached.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
from collections.abc import Iterable

import trio

from . import nodes, wire
from .hierarchy import Cgroup, Hierarchy
from .privileges import keep_only

__all__ = ("Invalidator", "Teller")

log = logging.getLogger(__name__)


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
        try:
            os.write(descriptors[0], notification)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return
            # The kernel does not know it any more.
            if error.errno != errno.ENOENT:
                log.warning("the kernel refused the notification %r: %s", notification, error)


class Invalidator:
    """Collects what changed; :meth:`run` has the kernel told."""

    def __init__(self, hierarchy: Hierarchy, teller: Teller) -> None:
        self._root = hierarchy.root
        self._teller = teller
        self._removed: dict[int, Cgroup] = {}
        self._changed: dict[int, Cgroup] = {}
        self._wake = trio.Event()
        hierarchy.on_change(self._on_change)

    def _cached(self, cgroup: Cgroup) -> bool:
        return cgroup.lookups > 0 or cgroup is self._root

    def _node(self, cgroup: Cgroup) -> int:
        return nodes.ROOT if cgroup is self._root else cgroup.id

    def _on_change(self, cgroup: Cgroup) -> None:
        if not cgroup.alive and self._cached(cgroup):
            self._removed[cgroup.id] = cgroup
            self._wake.set()
        # Its number of links changed, and its times.
        if cgroup.parent is not None:
            self.attributes_changed(cgroup.parent)

    def attributes_changed(self, cgroup: Cgroup) -> None:
        """A directory's owner, group, mode, links or times changed."""
        if self._cached(cgroup):
            self._changed[cgroup.id] = cgroup
            self._wake.set()

    def taken_over(self, gone: Iterable[Cgroup], hierarchy: Hierarchy) -> None:
        """What the kernel has cached is from before; these of it were removed meanwhile."""
        self._removed |= {cgroup.id: cgroup for cgroup in gone}
        for cgroup in hierarchy.by_id.values():
            self.attributes_changed(cgroup)
        self._wake.set()

    async def run(self) -> None:
        """Have the kernel told, as things change, until cancelled."""
        told = trio.socket.from_stdlib_socket(self._teller.socket)
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            removed, self._removed = self._removed, {}
            changed, self._changed = self._changed, {}
            for cgroup in removed.values():
                if not self._known_anew(cgroup):
                    # Not FUSE_NOTIFY_DELETE: who is just on the way through the directory would
                    # get ENOENT, though the path leads to a cgroup made anew.
                    await told.send(wire.inval_entry(self._node(cgroup.parent), cgroup.name))
            for cgroup in changed.values():
                await told.send(wire.inval_inode(self._node(cgroup)))

    @staticmethod
    def _known_anew(cgroup: Cgroup) -> bool:
        """The kernel looked the name up again, and knows the cgroup made anew under it."""
        successor = cgroup.parent.children.get(cgroup.name)
        return successor is not None and successor.lookups > 0
