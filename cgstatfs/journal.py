# SPDX-License-Identifier: GPL-2.0-only
"""Where what is logged goes, and how often; and how systemd is told that a process is ready."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time

__all__ = ("Seldom", "notify", "set_up")

# How long nothing more is said of what users can have happen all the time.
_SAID_SECONDS = 60.0

# syslog(3)'s, as sd-daemon(3) wants them at the beginning of a line.
_PRIORITIES = {
    logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2,
}  # fmt: skip


class _Prefixed(logging.Formatter):
    """For the journal, which has times and processes of its own. One line for each event."""

    def format(self, record: logging.LogRecord) -> str:
        priority = _PRIORITIES.get(record.levelno, 6)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())


def _to_journal() -> bool:
    """Whether standard error is the journal's; see systemd.exec(5) of ``$JOURNAL_STREAM``."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(2)
        return (status.st_dev, status.st_ino) == (int(device), int(inode))
    except (OSError, ValueError):
        return False


def set_up() -> None:
    """Log to standard error, which may lead to the journal or a file."""
    handler = logging.StreamHandler(sys.stderr)
    if _to_journal():
        handler.setFormatter(_Prefixed("%(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def notify(state: str) -> None:
    """Tell systemd, if it has asked to be told; see sd_notify(3).

    :param state: such as ``READY=1``
    """
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
        try:
            connection.connect("\0" + path[1:] if path.startswith("@") else path)
            connection.send(state.encode())
        except OSError:
            logging.getLogger(__name__).warning("systemd cannot be told: %s", state)


class Seldom:
    """Whether to say something that may happen all the time: once a minute."""

    def __init__(self) -> None:
        self._said = -_SAID_SECONDS

    def __call__(self) -> bool:
        now = time.monotonic()
        if now - self._said < _SAID_SECONDS:
            return False
        self._said = now
        return True
