# SPDX-License-Identifier: GPL-2.0-only
"""The little of FUSE's protocol that libfuse does not speak for us.

Where a connection changes hands: what the first message negotiated, and what is to become of
requests that a daemon had read when it ended. And notifications, which any process with the
descriptor may write. Layouts are those of include/uapi/linux/fuse.h, 6.12.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator

__all__ = (
    "Incompatible", "MIN_BUFFER", "differences", "expects_no_answer", "inval_entry", "inval_inode",
    "interrupt_before", "resend", "unique", "with_parallel_lookups",
)  # fmt: skip

# FUSE_MIN_READ_BUFFER; a read with less is refused.
MIN_BUFFER = 8192

# struct fuse_in_header: len, opcode, unique, ...
_IN_HEADER = struct.Struct("=IIQ")
# struct fuse_out_header: len, error, unique
_OUT_HEADER = struct.Struct("=IiQ")
# In a notification "error" is what it tells, and unique is 0.
_NOTIFY_INVAL_INODE, _NOTIFY_INVAL_ENTRY, _NOTIFY_RESEND = 2, 3, 7
_INVAL_INODE = struct.Struct("=Qqq")
_INVAL_ENTRY = struct.Struct("=QII")
_EXPIRE_ONLY = 1
_FORGET, _INTERRUPT, _BATCH_FORGET = 2, 36, 42
# struct fuse_init_out, up to what is unused
_INIT_OUT = struct.Struct("=IIIIHHIIHHIIHH")
_INIT_FIELDS = (
    "major", "minor", "max_readahead", "flags", "max_background", "congestion_threshold",
    "max_write", "time_gran", "max_pages", "map_alignment", "flags2", "max_stack_depth",
    "request_timeout", "unused",
)  # fmt: skip

# Of struct fuse_init_in and struct fuse_init_out, behind their headers
_FLAGS = struct.Struct("=I")
_IN_FLAGS, _OUT_FLAGS = 40 + 12, 16 + 12
_PARALLEL_DIROPS = 1 << 18

# Numbers of requests grow by 2 (FUSE_REQ_ID_STEP). Since nobody reads a second request before
# the first is answered, the last one read is not far below the next; interrupts have odd ones.
_UNIQUE_STEP = 2
_WINDOW = 65536


class Incompatible(Exception):
    """This version cannot serve what another one has mounted."""


def unique(request: bytes) -> int:
    """The number of a request, which its answer carries, too."""
    return _IN_HEADER.unpack_from(request)[2]


def expects_no_answer(request: bytes) -> bool:
    return _IN_HEADER.unpack_from(request)[1] in (_FORGET, _INTERRUPT, _BATCH_FORGET)


def _init_out(answer: bytes) -> Iterator[tuple[str, int]]:
    body = answer[_OUT_HEADER.size :].ljust(_INIT_OUT.size, b"\0")
    return zip(_INIT_FIELDS, _INIT_OUT.unpack_from(body))


def with_parallel_lookups(request: bytes, answer: bytes) -> bytes:
    """An answer to FUSE_INIT that allows what pyfuse3 does not ask for: several lookups in a
    directory at once.

    We answer one request at a time, so nothing depends on it but those who wait: without, all
    but the first wait for a lock in the kernel (``fuse_lock_inode()`` in fs/fuse/inode.c, 6.12),
    where they cannot be killed.
    """
    if not _FLAGS.unpack_from(request, _IN_FLAGS)[0] & _PARALLEL_DIROPS:
        return answer
    flags = _FLAGS.unpack_from(answer, _OUT_FLAGS)[0] | _PARALLEL_DIROPS
    return answer[:_OUT_FLAGS] + _FLAGS.pack(flags) + answer[_OUT_FLAGS + _FLAGS.size :]


def differences(before: bytes, now: bytes) -> list[str]:
    """In what two answers to the same FUSE_INIT differ, in words; empty if in nothing."""
    if before == now:
        return []
    return [
        f"{name} {one:#x}, not {other:#x}"
        for (name, one), (_, other) in zip(_init_out(now), _init_out(before))
        if one != other
    ] or ["of another length"]


def resend(device: int) -> bool:
    """Have the kernel queue anew what was read and not answered.

    :returns: whether it can, from 6.9
    """
    try:
        os.write(device, _OUT_HEADER.pack(_OUT_HEADER.size, _NOTIFY_RESEND, 0))
    except OSError as error:
        # Else it was unmounted, and nobody waits.
        return error.errno != errno.EINVAL
    return True


def interrupt_before(device: int, request: bytes) -> None:
    """Answer ``EINTR`` to what was read before a request and not answered.

    Nothing with a lower number still waits to be read: the kernel numbers requests as it queues
    them (``fuse_send_one()``, or ``queue_request_and_unlock()``, in fs/fuse/dev.c, 6.1).
    """
    number = unique(request)
    for each in range(max(_UNIQUE_STEP, number - _WINDOW), number, _UNIQUE_STEP):
        try:
            os.write(device, _OUT_HEADER.pack(_OUT_HEADER.size, -errno.EINTR, each))
        except FileNotFoundError:
            pass  # It was answered.


def inval_inode(node: int) -> bytes:
    """The notification that a node's attributes are to be asked for anew."""
    size = _OUT_HEADER.size + _INVAL_INODE.size
    # From a negative offset: the attributes alone.
    return _OUT_HEADER.pack(size, _NOTIFY_INVAL_INODE, 0) + _INVAL_INODE.pack(node, -1, 0)


def inval_entry(parent: int, name: bytes, *, expire: bool = False) -> bytes:
    """The notification that a name in a directory is to be looked up anew.

    :param expire: it may lead to the same node then, which stays as it is. Kernels before 6.2
        drop it all the same: who has it as working directory does not learn its path any more.
    """
    body = _INVAL_ENTRY.pack(parent, len(name), _EXPIRE_ONLY if expire else 0) + name + b"\0"
    return _OUT_HEADER.pack(_OUT_HEADER.size + len(body), _NOTIFY_INVAL_ENTRY, 0) + body
