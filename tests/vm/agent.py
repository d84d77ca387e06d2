# SPDX-License-Identifier: GPL-2.0-only
"""A client of QEMU's guest agent: runs programs in a machine that has no network.

Covers what running programs takes. Requests and answers are a line of JSON each; the machine's
end is closed while no agent runs, and what is written then is answered later, or never.
"""

from __future__ import annotations

import base64
import itertools
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ("Agent", "AgentRefused", "AgentSilent")

# Between looks at whether there is still somebody who can answer, in seconds.
_LOOK_SECONDS = 1.0
# Until QEMU takes what is sent to it, which it does when it gets some of the cpus, in seconds.
_SEND_SECONDS = 20.0
# For as long a request may go unanswered until another is tried, in seconds.
_RETRY_SECONDS = 2.0
_POLL_SECONDS = 0.1


class AgentSilent(Exception):
    """There was no answer in time."""


class AgentRefused(Exception):
    """The agent could not do what it was asked; the message is its own."""


class Agent:
    """The agent in a machine.

    :param path: of the socket that QEMU listens at, or is about to.
    :param look: raises if nobody can answer any more; called every second or so.
    """

    def __init__(self, path: Path, look: Callable[[], None]) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        while self._socket.connect_ex(str(path)) != 0:
            look()
            time.sleep(_POLL_SECONDS)
        self._socket.settimeout(_LOOK_SECONDS)
        self._look = look
        self._received = b""
        self._numbers = itertools.count(1)

    def close(self) -> None:
        self._socket.close()

    def synchronise(self, seconds: float) -> None:
        """Wait for the agent to be there, and have no earlier answer taken for one to come.

        :raises AgentSilent: after that many seconds.
        """
        deadline = time.monotonic() + seconds
        while True:
            number = next(self._numbers)
            try:
                # Whoever reads takes what is before 0xff, of a request that was cut off, for an
                # error. Nobody may read for so long that no more can be sent.
                self._send("guest-sync-delimited", {"id": number}, b"\xff")
                until = min(deadline, time.monotonic() + _RETRY_SECONDS)
                while self._answer(until).get("return") != number:
                    pass
                return
            except AgentSilent:
                if time.monotonic() >= deadline:
                    raise

    def run(self, arguments: list[str], environment: dict[str, str], seconds: float) -> tuple[int, bytes]:
        """Run a program and wait for it; return its exit status, and what it and its children
        printed on stdout: as long as one of them has that open, the program is not done.

        A program that a signal killed has 128 and the signal as its status, as in a shell.

        :raises AgentSilent: after that many seconds; the program runs on.
        :raises AgentRefused: if it cannot be run.
        """
        deadline = time.monotonic() + seconds
        self.synchronise(seconds)
        started = self._call(
            "guest-exec", deadline, path=arguments[0], arg=arguments[1:],
            env=[f"{name}={value}" for name, value in environment.items()],
            **{"capture-output": True},
        )  # fmt: skip
        while True:
            state = self._call("guest-exec-status", deadline, pid=started["pid"])
            if state["exited"]:
                break
            if time.monotonic() >= deadline:
                raise AgentSilent(f"{arguments[0]} did not end within {seconds:g} s")
            time.sleep(_POLL_SECONDS)
        status = state["exitcode"] if "exitcode" in state else 128 + state["signal"]
        return status, base64.b64decode(state.get("out-data", ""))

    def _call(self, command: str, deadline: float, **arguments: object) -> dict:
        self._send(command, arguments)
        answer = self._answer(deadline)
        if "error" in answer:
            raise AgentRefused(f"{command}: {answer['error'].get('desc')}")
        return answer["return"]

    def _send(self, command: str, arguments: dict[str, object], before: bytes = b"") -> None:
        request = json.dumps({"execute": command, "arguments": arguments}).encode()
        self._socket.settimeout(_SEND_SECONDS)
        try:
            self._socket.sendall(before + request + b"\n")
        except OSError as error:
            self._look()
            raise AgentSilent(f"{command}: {error}") from None
        self._socket.settimeout(_LOOK_SECONDS)

    def _answer(self, deadline: float) -> dict:
        """Return the next answer; of one that is no answer, nothing."""
        while b"\n" not in self._received:
            self._received += self._receive(deadline)
        line, self._received = self._received.split(b"\n", 1)
        try:
            # Before 0xff there may be the beginning of what an agent was ended in.
            answer = json.loads(line.rpartition(b"\xff")[2])
        except ValueError:
            return {}
        return answer if isinstance(answer, dict) else {}

    def _receive(self, deadline: float) -> bytes:
        while True:
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                data = None
            except ConnectionError:
                data = b""
            if data:
                return data
            self._look()
            if time.monotonic() >= deadline:
                raise AgentSilent("no answer from the agent in the machine")
            if data == b"":
                # QEMU is about to end.
                time.sleep(_POLL_SECONDS)
