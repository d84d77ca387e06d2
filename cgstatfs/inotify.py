# SPDX-License-Identifier: GPL-2.0-only
"""inotify(7), through the C library: the standard library has none, nor has Debian's a plain one.

Only what is used of it: a descriptor that does not block, watches, and the events that are there.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
from pathlib import Path
from typing import NamedTuple

__all__ = ("ATTRIB", "DONT_FOLLOW", "Event", "Inotify", "ONLYDIR", "Q_OVERFLOW")

# From <sys/inotify.h>
ATTRIB = 0x4
Q_OVERFLOW = 0x4000
ONLYDIR = 0x1000000
DONT_FOLLOW = 0x2000000

# struct inotify_event, without the name: wd, mask, cookie, len
_EVENT = struct.Struct("=iIII")
_BUFFER = 16384

_libc = ctypes.CDLL(None, use_errno=True)


class Event(NamedTuple):
    """Something that happened. *name*: in the directory that is watched; empty: to itself."""

    watch: int
    mask: int
    name: bytes


def _check(result: int, path: Path | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path and str(path))
    return result


class Inotify:
    """An inotify instance.

    :ivar poll: that of a :class:`select.poll`: ``poll(0)`` is empty if there are no events, and
        then takes a third of the time that a read does
    :raises OSError: ``EMFILE``: fs.inotify.max_user_instances
    """

    def __init__(self) -> None:
        self._fd = _check(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        self.poll = poll.poll

    def fileno(self) -> int:
        return self._fd

    def add_watch(self, path: Path, mask: int) -> int:
        """Watch a directory, and return the number of the watch.

        :raises OSError: ``ENOSPC``: fs.inotify.max_user_watches
        """
        return _check(
            _libc.inotify_add_watch(self._fd, os.fsencode(path), ctypes.c_uint32(mask)), path
        )

    def rm_watch(self, watch: int) -> None:
        """:raises OSError: ``EINVAL``: it ended with its directory"""
        _check(_libc.inotify_rm_watch(self._fd, watch))

    def read(self) -> list[Event]:
        """The events that there are, up to a buffer full; with more, it polls readable again."""
        try:
            data = os.read(self._fd, _BUFFER)
        except BlockingIOError:
            return []
        events = []
        offset = 0
        while offset < len(data):
            watch, mask, _, length = _EVENT.unpack_from(data, offset)
            offset += _EVENT.size
            events.append(Event(watch, mask, data[offset : offset + length].rstrip(b"\0")))
            offset += length
        return events

    def close(self) -> None:
        os.close(self._fd)
