# SPDX-License-Identifier: GPL-2.0-only
"""Messages between the holder and a daemon: JSON objects, with descriptors, one a packet.

Over a Unix socket of type SOCK_SEQPACKET, which root alone can connect to. Who has connected is
known by the kernel's word (SO_PEERCRED), and its end by a pidfd.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import struct
from pathlib import Path
from typing import NamedTuple

__all__ = ("Channel", "Credentials", "PROTOCOL", "credentials", "listen")

# Of what holder and daemons say to each other, and of what a daemon leaves to the next: files in
# RUN, node ids, handles, cookies. To be raised where one of another version would take it wrongly.
PROTOCOL = 1

_MAX_MESSAGE = 128 << 10
_MAX_DESCRIPTORS = 2
_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
# struct ucred
_CREDENTIALS = struct.Struct("=3i")


class Credentials(NamedTuple):
    """Of who is at the other end of a socket, when it connected."""

    pid: int
    uid: int
    gid: int


def credentials(connection: socket.socket) -> Credentials:
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return Credentials(*_CREDENTIALS.unpack(data))


class Channel:
    """One end of a connection.

    :ivar pid: of who is at the other end, or was when it connected
    :ivar uid: and its user
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self.pid, self.uid, _ = credentials(connection)

    @classmethod
    def connect(cls, path: Path) -> Channel:
        """:raises OSError: nobody listens there"""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            connection.connect(str(path))
        except OSError as error:
            connection.close()
            raise OSError(error.errno, f"no holder answers: {error.strerror}", str(path)) from None
        return cls(connection)

    def fileno(self) -> int:
        return self._socket.fileno()

    def process(self) -> int:
        """A pidfd of who is at the other end.

        :raises ProcessLookupError: it has ended
        """
        pidfd = os.pidfd_open(self.pid)
        # While its end is open, nobody else has got the number.
        if select.select([self._socket], [], [], 0)[0] and not self._peek():
            os.close(pidfd)
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        return pidfd

    def _peek(self) -> bytes:
        try:
            return self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except OSError:
            return b""

    def send(self, message: dict[str, object], descriptors: tuple[int, ...] = ()) -> bool:
        """Never waits.

        :returns: whether it was sent: not if the other end has gone, or does not listen
        """
        data = json.dumps(message).encode()
        try:
            if descriptors:
                socket.send_fds(self._socket, [data], descriptors, _FLAGS)
            else:
                self._socket.send(data, _FLAGS)
        except OSError:
            return False
        return True

    def receive(self) -> tuple[dict, list[int]] | None:
        """Wait for a message.

        :returns: it, and the descriptors that came with it, which the caller closes; None if the
            other end has gone, or what came is no message
        """
        try:
            data, descriptors, _, _ = socket.recv_fds(
                self._socket, _MAX_MESSAGE, _MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
            message = json.loads(data) if data else None
        except (OSError, ValueError):
            return None
        if not isinstance(message, dict):
            for each in descriptors:
                os.close(each)
            return None
        return message, descriptors

    def close(self) -> None:
        self._socket.close()


def listen(path: Path, kind: int = socket.SOCK_SEQPACKET) -> socket.socket:
    """A listening socket for root, that does not block.

    :param kind: its type
    :raises OSError: it cannot be made
    """
    path.unlink(missing_ok=True)
    listener = socket.socket(
        socket.AF_UNIX, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    )
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.listen(16)
    return listener
