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

import pyfuse3
import trio

__all__ = ("poll_first",)

# The longest that the other tasks wait while requests come without a pause.
_TURN_SECONDS = 0.005
# About what waking somebody on another core takes, in a virtual machine twice.
_SPIN_SECONDS = 100e-6
# Spins that found nothing and are tried again: a `cat` has one at its end.
_CREDIT = 8


class _Waiting:
    """Waits until a descriptor is readable; in place of pyfuse3's function.

    Spinning pays when another request comes within the time. What found one is credit for more
    of it, and what did not is debt: who asks twice a second is not spun for, and with nobody
    asking there is no spinning at all.

    :param fd: by its number, so it goes on when the connection takes the place of what INIT was
        asked through
    """

    def __init__(self, fd: int) -> None:
        self._credit = 0
        self._turn = 0.0
        self._fd = fd
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        self._poll = poll.poll

    def _spin(self, since: float) -> bool:
        """Whether a request came soon."""
        poll, until = self._poll, since + _SPIN_SECONDS
        while time.perf_counter() < until:
            # Who asks may be waiting for this very cpu.
            os.sched_yield()
            if poll(0):
                return True
        return False

    async def wait(self) -> bool:
        """:returns: whether to go on, as pyfuse3 wants to know: it is a read that says when to end"""
        now = time.perf_counter()
        if now - self._turn > _TURN_SECONDS:
            self._turn = now
            await trio.lowlevel.checkpoint()
        if self._poll(0):
            return True
        if self._credit:
            if self._spin(now):
                self._credit = min(_CREDIT, self._credit + 1)
                return True
            self._credit -= 1
        slept = time.perf_counter()
        await trio.lowlevel.wait_readable(self._fd)
        self._turn = time.perf_counter()
        if self._turn - slept < 2 * _SPIN_SECONDS:
            self._credit = min(_CREDIT, self._credit + 1)
        return True


def poll_first(fd: int) -> None:
    """Have pyfuse3 wait like this for what it reads from *fd*.

    A version of it that does not call this function of its own by this name waits as it does
    without us, and is slower.
    """
    pyfuse3._wait_fuse_readable = _Waiting(fd).wait
