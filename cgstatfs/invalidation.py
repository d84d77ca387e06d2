# SPDX-License-Identifier: GPL-2.0-only
"""Tell the kernel that names and attributes which it caches no longer hold.

Done in a thread of its own, a batch at a time: to invalidate a name the kernel takes the
directory's lock, which somebody may hold who waits for our answer to a request. What waits
here is bounded by what the kernel has cached.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable

import pyfuse3
import trio

from . import nodes
from .hierarchy import Cgroup, Hierarchy

__all__ = ("Invalidator",)

log = logging.getLogger(__name__)

# The kernel does not know the name or inode (any more), or the directory cannot be marked as
# deleted because somebody is in it; its name is forgotten nonetheless.
_HARMLESS = (errno.ENOENT, errno.ENOTEMPTY, errno.EBUSY)


class Invalidator:
    """Collects what changed; :meth:`run` tells the kernel.

    :param file_names: of the files that every directory has
    """

    def __init__(self, hierarchy: Hierarchy, file_names: Iterable[bytes]) -> None:
        self._root = hierarchy.root
        self._file_names = file_names
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
            # Files that are open would make the kernel refuse to mark their directory as
            # deleted, and libfuse complain.
            for name in self._file_names:
                self._call(pyfuse3.invalidate_entry, cgroup.id, name)
            parent = self._node(cgroup.parent)
            self._call(pyfuse3.invalidate_entry, parent, cgroup.name, cgroup.id)
        for cgroup in changed:
            self._call(pyfuse3.invalidate_inode, self._node(cgroup), True)

    @staticmethod
    def _call(function: Callable[..., None], *arguments: object) -> None:
        try:
            function(*arguments)
        except OSError as error:
            if error.errno not in _HARMLESS:
                log.warning("the kernel refused to invalidate %r: %s", arguments, error)
