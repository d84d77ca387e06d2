# SPDX-License-Identifier: GPL-2.0-only
"""How commands ask a running daemon to change its collectors, and how it is.

A Unix stream socket that root alone can connect to; a line of JSON each way, a connection each
time::

    {"do": "load", "path": "/abs/mystats.bpf.o", "initials": {"": "/system.slice"}, "keep": false}
    {"do": "unload", "name": "mystats"}
    {"do": "reload", "keep": false}
    {"do": "adopt", "name": "theirs", "path": "/sys/fs/bpf/theirs"}
    {"do": "status"}

    {"done": ["mystats: loaded"]}   or   {"error": "why", "done": [...]}
"""

from __future__ import annotations

import errno
import json
import logging
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from . import channel
from .libbpf import printable

__all__ = ("Refused", "ask", "listen", "serve")

log = logging.getLogger(__name__)

_MAX_LINE = 64 << 10
# For who connects and says nothing.
_PATIENCE_SECONDS = 10

# From a question to the lines of what was done. Raises Refused.
Answer = Callable[[dict], Awaitable[list[str]]]


class Refused(Exception):
    """What was asked for was not done, or not all of it. :ivar done: what was"""

    def __init__(self, reason: str, done: list[str] | None = None) -> None:
        super().__init__(reason)
        self.done = done or []


def listen(path: Path) -> socket.socket:
    """A listening socket for root.

    :raises OSError: it cannot be made
    """
    return channel.listen(path, socket.SOCK_STREAM)


async def _read_line(stream: trio.SocketStream) -> bytes:
    data = b""
    while not data.endswith(b"\n") and len(data) <= _MAX_LINE:
        more = await stream.receive_some(_MAX_LINE)
        if not more:
            break
        data += more
    return data


def _user(stream: trio.SocketStream) -> int:
    return channel.credentials(stream.socket).uid


async def _answer(stream: trio.SocketStream, answer: Answer) -> dict[str, object]:
    if _user(stream):
        return {"error": "only root may ask"}
    question = None
    with trio.move_on_after(_PATIENCE_SECONDS):
        question = await _read_line(stream)
    try:
        asked = json.loads(question or b"")
        if not isinstance(asked, dict):
            raise ValueError
    except (ValueError, RecursionError):
        return {"error": "the question is no line of JSON"}
    try:
        return {"done": await answer(asked)}
    except Refused as refused:
        return {"error": str(refused), "done": refused.done}
    except Exception as error:
        log.exception("a command could not be answered")
        return {"error": f"the daemon failed at it ({error!r}); see its log"}


async def serve(listener: socket.socket, answer: Answer) -> None:
    """Answer questions until cancelled; what goes wrong with one is logged, and ends that one."""

    async def one(stream: trio.SocketStream) -> None:
        try:
            async with stream:
                said = json.dumps(await _answer(stream, answer)).encode()
                await stream.send_all(said + b"\n")
        except trio.BrokenResourceError:
            pass  # Who asked has gone.

    await trio.serve_listeners(one, [trio.SocketListener(trio.socket.from_stdlib_socket(listener))])


def _shown(text: str) -> str:
    """What names of others' are in a message does nothing to a terminal."""
    return "\n".join(map(printable, text.splitlines()))


def ask(path: Path, question: dict[str, object]) -> list[str]:
    """Ask a daemon, and wait for it.

    :param path: of its socket
    :returns: what was done, in lines
    :raises Refused: it was not done
    :raises OSError: no daemon answers
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        try:
            connection.connect(str(path))
        except OSError as error:
            raise OSError(error.errno, f"no daemon answers: {error.strerror}", str(path)) from None
        connection.sendall(json.dumps(question).encode() + b"\n")
        with connection.makefile("rb") as answers:
            answer = answers.readline()
    try:
        said = json.loads(answer)
    except ValueError:
        raise OSError(errno.EPIPE, "the daemon ended before it had answered", str(path)) from None
    done = [_shown(line) for line in said.get("done", ())]
    if "error" in said:
        raise Refused(_shown(said["error"]), done)
    return done
