# SPDX-License-Identifier: GPL-2.0-only
"""Owner, group, mode and times of cgroups' directories, remembered and kept current.

No cgroup event says that a directory's owner or mode changed (systemd changes them after
mkdir); inotify on cgroupfs does. A directory is watched from when attributes below it are
first asked for until it is removed.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable

from . import inotify
from .hierarchy import Cgroup, Hierarchy
from .journal import Seldom

__all__ = ("Attributes",)

log = logging.getLogger(__name__)

_MASK = inotify.ATTRIB | inotify.ONLYDIR | inotify.DONT_FOLLOW


class Attributes:
    """Attributes of directories.

    :param changed: called with each cgroup whose owner, group or mode changed
    """

    def __init__(self, hierarchy: Hierarchy, changed: Callable[[Cgroup], None]) -> None:
        self._hierarchy = hierarchy
        self._changed = changed
        self._inotify = inotify.Inotify()
        self._cgroup_of: dict[int, Cgroup] = {}
        self._watch_of: dict[int, int] = {}
        self._limit_hit = False
        self._says_overflow = Seldom()
        hierarchy.on_change(self._unwatch_removed)

    @property
    def fd(self) -> int:
        """Polls readable when attributes changed."""
        return self._inotify.fileno()

    def get(self, cgroup: Cgroup) -> tuple[os.stat_result, bool]:
        """A live cgroup's attributes, and whether a change of them would be noticed.

        :raises OSError: ``ENOENT``: it was just removed
        """
        if cgroup.stat_current:
            return cgroup.stat, True
        # Watch first: what changes after the stat is then reported.
        parent = cgroup.parent or cgroup
        watched = parent.id in self._watch_of or self._watch(parent)
        cgroup.stat = os.stat(self._hierarchy.directory(cgroup), follow_symlinks=False)
        cgroup.stat_current = watched
        return cgroup.stat, watched

    def _watch(self, cgroup: Cgroup) -> bool:
        if self._limit_hit:
            return False
        try:
            watch = self._inotify.add_watch(self._hierarchy.directory(cgroup), _MASK)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                self._limit_hit = True
                log.warning(
                    "no more inotify watches; changes of owner and mode show after a second "
                    "where they are not watched; raise fs.inotify.max_user_watches"
                )
                return False
            raise
        self._watch_of[cgroup.id] = watch
        self._cgroup_of[watch] = cgroup
        return True

    def _unwatch_removed(self, cgroup: Cgroup) -> None:
        watch = self._watch_of.pop(cgroup.id, None) if not cgroup.alive else None
        if watch is None:
            return
        del self._cgroup_of[watch]
        self._limit_hit = False
        try:
            self._inotify.rm_watch(watch)
        except OSError:
            pass  # It went with the directory.

    def drain(self) -> None:
        """Report what has changed.

        Hundreds of changes at most: who makes more of them all the time is not waited for.
        """
        if self._inotify.poll(0):
            for event in dict.fromkeys(self._inotify.read()):
                self._report(event)

    def _report(self, event: inotify.Event) -> None:
        if event.mask & inotify.Q_OVERFLOW:
            self._report_all()
            return
        cgroup = self._cgroup_of.get(event.watch)
        if cgroup is not None and event.name:
            cgroup = cgroup.children.get(event.name)
        if cgroup is not None:
            cgroup.stat_current = False
            self._changed(cgroup)

    def _report_all(self) -> None:
        # Who owns two cgroups can have it happen all the time.
        if self._says_overflow():
            log.warning("inotify's queue overflowed; reading all attributes anew")
        for cgroup in self._hierarchy.by_id.values():
            cgroup.stat_current = False
            self._changed(cgroup)

    def close(self) -> None:
        self._inotify.close()
