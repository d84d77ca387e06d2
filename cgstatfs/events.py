# SPDX-License-Identifier: GPL-2.0-only
"""Creations and removals of cgroups, from the kernel as they happen, into a hierarchy.

The programs of ``bpf/cgroup_events.bpf.c`` put each event into a ring buffer before mkdir()
or rmdir() returns. Whoever drains the buffer before answering a question answers with all
that had happened when it was asked.
"""

from __future__ import annotations

import logging
import mmap
import struct

from . import libbpf
from .hierarchy import Hierarchy
from .libbpf import CONSUMER, PRODUCER
from .objects import object_path

__all__ = ("CgroupEvents",)

log = logging.getLogger(__name__)

# struct cgroup_event
_EVENT = struct.Struct("=QQI256s")
_CREATED = 1


class CgroupEvents:
    """Follows the kernel's cgroup events.

    :param hierarchy: to keep current; scanned once, after the programs are attached
    :raises OSError: the kernel refuses the programs
    """

    def __init__(self, hierarchy: Hierarchy) -> None:
        self._hierarchy = hierarchy
        self._object = libbpf.Object(object_path("cgroup_events"))
        self._links: list[libbpf.Link] = []
        self._failed: Exception | None = None
        try:
            self._object.load()
            self._ring = libbpf.RingBuffer(self._object.maps["events"].fd, self._receive)
            self._dropped_map = mmap.mmap(
                self._object.maps["dropped"].fd, mmap.PAGESIZE, prot=mmap.PROT_READ
            )
            self._dropped = memoryview(self._dropped_map).cast("Q")
            self._dropped_seen = 0
            for program in self._object.programs.values():
                self._links.append(program.attach())
        except OSError:
            self._close_object()
            raise
        hierarchy.scan()
        self.drain()

    @property
    def fd(self) -> int:
        """Polls readable when there are events."""
        return self._ring.fd

    def _receive(self, record: bytes) -> None:
        # An exception cannot pass through libbpf; drain() raises it.
        try:
            id, parent, what, name = _EVENT.unpack_from(record)
            if what == _CREATED:
                self._hierarchy.create(id, parent, name.partition(b"\0")[0])
            else:
                self._hierarchy.remove(id)
        except Exception as error:
            self._failed = error

    def drain(self) -> None:
        """Apply every event that has happened.

        Precedes every answer, so it costs nothing when nothing has: an event that precedes a
        request was reserved before, as both went through the kernel.
        """
        positions = self._ring.positions
        if positions[CONSUMER] == positions[PRODUCER] and self._dropped[0] == self._dropped_seen:
            return
        self._ring.consume()
        # Cannot end in a loop of its own making: a scan causes no events.
        while self._dropped[0] != self._dropped_seen:
            dropped = self._dropped[0]
            log.warning(
                "%d cgroup events found the buffer full; reading cgroupfs anew",
                dropped - self._dropped_seen,
            )
            # What precedes the events that were dropped; after the scan it would undo it.
            self._ring.consume()
            self._hierarchy.scan()
            self._dropped_seen = dropped
            self._ring.consume()
        if self._failed:
            failed, self._failed = self._failed, None
            raise failed

    def _close_object(self) -> None:
        for link in self._links:
            link.close()
        self._object.close()

    def close(self) -> None:
        self._ring.close()
        self._dropped.release()
        self._dropped_map.close()
        self._close_object()
