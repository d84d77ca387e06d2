# SPDX-License-Identifier: GPL-2.0-only
"""Whoever waits for requests spins for those that come soon, and for no others."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
import trio

from cgstatfs import requests


class _Counting(requests._Waiting):
    spins = found = 0

    def _spin(self, since: float) -> bool:
        self.spins += 1
        found = super()._spin(since)
        self.found += found
        return found


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def _serve(waiting: _Counting, reader: int, count: int, answer: int | None = None) -> None:
    """Wait for that many requests of a byte, and answer each."""

    async def serve() -> None:
        for _ in range(count):
            await waiting.wait()
            assert os.read(reader, 1) == b"x"
            if answer is not None:
                os.write(answer, b"y")

    trio.run(serve)


def test_not_for_who_asks_now_and_then(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    waiting = _Counting(reader)

    def ask() -> None:
        for _ in range(100):
            time.sleep(0.005)
            os.write(writer, b"x")

    asking = threading.Thread(target=ask)
    asking.start()
    _serve(waiting, reader, 100)
    asking.join()
    # A thread that gets no cpu for a while looks like a request that came soon.
    assert waiting.spins < 20


def test_for_who_asks_again_at_once(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    theirs, ours = os.pipe()
    waiting = _Counting(reader)
    child = os.fork()
    if not child:
        for _ in range(3000):
            os.write(writer, b"x")
            os.read(theirs, 1)
        os._exit(0)
    try:
        _serve(waiting, reader, 3000, ours)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(theirs)
        os.close(ours)
    # On a machine with much else to do there are few.
    assert waiting.found
