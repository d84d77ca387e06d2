# SPDX-License-Identifier: GPL-2.0-only
"""Tell the kernel that names and attributes which it caches no longer hold.

Done in a thread of its own, a batch at a time: to invalidate a name the kernel takes the
directory's lock, which somebody may hold who waits for our answer to a request. What waits
here is bounded by what the kernel has cached.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable

import pyfuse3
import trio

from . import nodes
from .hierarchy import Cgroup, Hierarchy

__all__ = ("Invalidator",)

log = logging.getLogger(__name__)


class Invalidator:
    """Collects what changed; :meth:`run` tells the kernel."""

    def __init__(self, hierarchy: Hierarchy) -> None:
        self._root = hierarchy.root
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

    async def run(self) -> None:
        """Tell the kernel, as things change, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            removed, self._removed = self._removed, {}
            changed, self._changed = self._changed, {}
            await trio.to_thread.run_sync(
                self._invalidate, list(removed.values()), list(changed.values())
            )

    def _invalidate(self, removed: list[Cgroup], changed: list[Cgroup]) -> None:
        for cgroup in removed:
            parent = cgroup.parent
            successor = parent.children.get(cgroup.name)
            # The kernel looked the name up again, and knows the cgroup made anew under it.
            if successor is not None and successor.lookups > 0:
                continue
            # Not FUSE_NOTIFY_DELETE: who is just on the way through the directory would get
            # ENOENT, though the path leads to a cgroup made anew.
            self._call(pyfuse3.invalidate_entry, self._node(parent), cgroup.name)
        for cgroup in changed:
            self._call(pyfuse3.invalidate_inode, self._node(cgroup), True)

    @staticmethod
    def _call(function: Callable[..., None], *arguments: object) -> None:
        try:
            function(*arguments)
        except OSError as error:
            # ENOENT: the kernel does not know it any more.
            if error.errno != errno.ENOENT:
                log.warning("the kernel refused to invalidate %r: %s", arguments, error)
