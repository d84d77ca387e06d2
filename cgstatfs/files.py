# SPDX-License-Identifier: GPL-2.0-only
"""Reading files that root put there, and others may have: what is read is what was checked."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from .collectors import CollectorError

__all__ = ("FileRefused", "read_collector", "read_regular")

_MAX_COLLECTOR = 64 << 20


class FileRefused(Exception):
    """A file is not taken; the message has the reason and the way out, without the path."""


def _check_trusted(status: os.stat_result) -> None:
    """Refuse what somebody else than root could have written: root is going to act on it."""
    if status.st_uid:
        raise FileRefused(f"is owned by user {status.st_uid}, and not by root; chown root")
    if status.st_mode & 0o022:
        raise FileRefused("others than root can write to it; chmod go-w")


def _check_place(path: Path) -> None:
    """Refuse what is where somebody else than root could put another file of root's; a link, too."""
    for directory in (path.parent, Path(os.path.realpath(path)).parent):
        status = os.stat(directory)
        if status.st_uid:
            raise FileRefused(
                f"is in {directory}, which is owned by user {status.st_uid}, and not by root; move "
                "it to a directory of root's"
            )
        # In /tmp, say, it can be replaced by its owner alone.
        if status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX:
            raise FileRefused(
                f"is in {directory}, to which others than root can write; chmod go-w {directory}"
            )


def read_regular(path: Path, limit: int, *, trusted: bool) -> bytes:
    """The contents of a regular file.

    :param limit: its largest size in bytes, a multiple of 1024
    :param trusted: refuse what others than root could have written, or put there
    :raises FileRefused: it is no such file
    :raises OSError: it cannot be read
    """
    # A FIFO would keep us waiting, and so would some regular files of procfs and tracefs.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise FileRefused("is not a regular file")
        if trusted:
            _check_trusted(status)
            _check_place(path)
        data = _read(fd, limit)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(fd)
    if len(data) > limit:
        size = f"{limit >> 20} MiB" if limit >> 20 else f"{limit >> 10} KiB"
        raise FileRefused(f"is larger than {size}")
    return data


def _read(fd: int, limit: int) -> bytes:
    """To the end, or a little more than is taken."""
    data = bytearray()
    while len(data) <= limit and (more := os.read(fd, 1 << 20)):
        data += more
    return bytes(data)


def read_collector(path: Path, *, trusted: bool = False) -> bytes:
    """The contents of a collector's file.

    :param trusted: as in :func:`read_regular`
    :raises CollectorError: it is none; with the reason, without the path
    :raises OSError: it cannot be read
    """
    try:
        data = read_regular(path, _MAX_COLLECTOR, trusted=trusted)
    except FileRefused as refused:
        raise CollectorError(str(refused)) from None
    if not data:
        raise CollectorError("is empty")
    return data
