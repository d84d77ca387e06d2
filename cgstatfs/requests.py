# SPDX-License-Identifier: GPL-2.0-only
"""How the daemon waits for requests.

pyfuse3 has trio schedule its task twice per request, once for a lock and once for the descriptor,
which is most of what a request costs. There is one such task and nothing to lock, and while
requests come there is one to be read already, or very soon: across cores it takes longer to wake
the daemon than to answer. So the descriptor is polled first, for a moment after a request, and
trio asked when nothing comes; the other tasks get their turn now and then.
"""

from __future__ import annotations

import os
import select
import time
from types import SimpleNamespace

import pyfuse3
import trio

__all__ = ("poll_first",)

# The longest that the other tasks wait while requests come without a pause.
_TURN_SECONDS = 0.005
# About what waking somebody on another core takes, in a virtual machine twice.
_SPIN_SECONDS = 100e-6
# Spins that found nothing and are tried again: a `cat` has one at its end.
_CREDIT = 8


class _NoLock:
    """In place of :class:`trio.Lock`, as one task alone takes it."""

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *_: object) -> None:
        pass


class _Waiting:
    """Waits until a descriptor is readable.

    Spinning pays when another request comes within the time. What found one is credit for more
    of it, and what did not is debt: who asks twice a second is not spun for, and with nobody
    asking there is no spinning at all.
    """

    def __init__(self) -> None:
        self._credit = 0
        self._turn = 0.0
        # By the descriptor's number, so it goes on when the connection takes the place of what
        # INIT was asked through.
        self._poll = select.poll()
        self._fd = -1

    def _watch(self, fd: int) -> None:
        if self._fd >= 0:
            self._poll.unregister(self._fd)
        self._poll.register(fd, select.POLLIN)
        self._fd = fd

    def _spin(self, since: float) -> bool:
        """Whether a request came soon."""
        poll, until = self._poll.poll, since + _SPIN_SECONDS
        while time.perf_counter() < until:
            # Who asks may be waiting for this very cpu.
            os.sched_yield()
            if poll(0):
                return True
        return False

    async def __call__(self, fd: int) -> None:
        if fd != self._fd:
            self._watch(fd)
        now = time.perf_counter()
        if now - self._turn > _TURN_SECONDS:
            self._turn = now
            await trio.lowlevel.checkpoint()
        if self._poll.poll(0):
            return
        if self._credit:
            if self._spin(now):
                self._credit = min(_CREDIT, self._credit + 1)
                return
            self._credit -= 1
        slept = time.perf_counter()
        await trio.lowlevel.wait_readable(fd)
        self._turn = time.perf_counter()
        if self._turn - slept < 2 * _SPIN_SECONDS:
            self._credit = min(_CREDIT, self._credit + 1)


def poll_first() -> None:
    """Have pyfuse3 wait like this, as its own switch to asyncio does it."""
    lowlevel = SimpleNamespace(**vars(trio.lowlevel) | {"wait_readable": _Waiting()})
    pyfuse3.trio = SimpleNamespace(**vars(trio) | {"Lock": _NoLock, "lowlevel": lowlevel})
