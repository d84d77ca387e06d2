# SPDX-License-Identifier: GPL-2.0-only
"""Reading collectors' files, which may be anything: what is read is what was checked."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from .collectors import CollectorError

__all__ = ("read_collector",)

_MAX_FILE = 64 << 20


def _check_trusted(status: os.stat_result) -> None:
    """Refuse what somebody else than root could have written: it is going to be kernel code."""
    if status.st_uid:
        raise CollectorError(f"is owned by user {status.st_uid}, and not by root; chown root")
    if status.st_mode & 0o022:
        raise CollectorError("others than root can write to it; chmod go-w")


def read_collector(path: Path, *, trusted: bool = False) -> bytes:
    """The contents of a collector's file.

    :param trusted: refuse what others than root could have written
    :raises CollectorError: it is none; with the reason, without the path
    :raises OSError: it cannot be read
    """
    # A FIFO would keep us waiting, and so would some regular files of procfs and tracefs.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise CollectorError("is not a regular file")
        if trusted:
            _check_trusted(status)
        data = _read(fd)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(fd)
    if len(data) > _MAX_FILE:
        raise CollectorError(f"is larger than {_MAX_FILE >> 20} MiB")
    if not data:
        raise CollectorError("is empty")
    return data


def _read(fd: int) -> bytes:
    """To the end, or a little more than is taken."""
    data = bytearray()
    while len(data) <= _MAX_FILE and (more := os.read(fd, 1 << 20)):
        data += more
    return bytes(data)
