# SPDX-License-Identifier: GPL-2.0-only
"""How a daemon comes by its FUSE connection, from the holder; see :mod:`cgstatfs.holder`.

libfuse serves nobody before it has answered FUSE_INIT, which the kernel sends once. So it begins
at one end of a socket pair, into the other of which goes the request that the holder keeps. Then
the connection itself takes the place of that end.
"""

from __future__ import annotations

import os
import socket
import subprocess

import pyfuse3
import trio

from . import __version__, wire
from .channel import PROTOCOL, Channel
from .holder import HEARTBEATS
from .runtime import Runtime

__all__ = ("Connection",)

# Any request is smaller, as nothing can be written; the kernel wants room for one that writes.
_BUFFER = 2 << 20


def _misfit(why: str) -> wire.Incompatible:
    return wire.Incompatible(f"version {__version__} {why}; to run it, unmount and mount anew")


class Connection:
    """To the holder, and by its leave to the kernel. Waits until no other daemon has it.

    :ivar taken: which daemon of the mount this is: 1 for the first
    :ivar watchdog: seconds without a heartbeat after which the holder kills us
    :ivar number: by which fusectl knows the connection; 0 if the daemon before us has said so
    :ivar holder: its process id
    :ivar orphaned: it has gone
    :raises OSError: there is no holder
    :raises wire.Incompatible: the holder is of a version that speaks otherwise; it is told
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._channel = Channel.connect(runtime.holder_socket)
        self._device = -1
        self.holder = self._channel.pid
        self.orphaned = False
        self.number = 0
        self._channel.send({"hello": __version__})
        welcome = self._receive()
        self._check_protocol(welcome)
        self.taken: int = welcome["taken"]
        self.watchdog: float = welcome["watchdog"]
        self._init = bytes.fromhex(welcome["init"])
        self._answer = bytes.fromhex(welcome["answer"])
        # What libfuse takes for the connection, and our end of it.
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._theirs = theirs.detach()
        os.set_blocking(self._theirs, False)

    def _check_protocol(self, welcome: dict) -> None:
        theirs = welcome.get("protocol", 0)
        if theirs != PROTOCOL:
            why = _misfit(
                f"speaks protocol {PROTOCOL}, and the holder (pid {self.holder}), which is of the "
                f"version that mounted, speaks {theirs}"
            )
            self.failed(str(why))
            raise why

    @property
    def mounted(self) -> bool:
        """Whether the mount is there: a daemon has served it, or is about to."""
        return bool(self._answer)

    @property
    def path(self) -> str:
        """What pyfuse3 is to be given as mount point."""
        return f"/dev/fd/{self._theirs}"

    @property
    def descriptor(self) -> int:
        """The connection, when :meth:`begin` is done. libfuse closes it."""
        return self._theirs

    def _receive(self) -> dict:
        received = self._channel.receive()
        if received is None:
            raise ConnectionError(None, "the holder has gone", str(self._runtime.holder_socket))
        message, descriptors = received
        if descriptors:
            self._device, lock = descriptors
            # With the lock, as whoever has the connection must be known to be there.
            self._runtime.adopt_lock(lock)
        if "error" in message:
            raise OSError(message["error"], message["text"], message["file"])
        return message

    async def begin(self) -> None:
        """Negotiate, and take the connection.

        :raises OSError: it cannot be mounted
        :raises wire.Incompatible: it was negotiated by a version whose needs were others
        """
        if not self._answer:
            self._channel.send({"mount": True})
            self._init = bytes.fromhex(self._receive()["init"])
        answer = wire.with_parallel_lookups(self._init, await self._ask_libfuse(self._init))
        if not self._answer:
            self._channel.send({"answer": answer.hex()})
            self.number = self._receive()["connection"]
            self._answer = answer
        elif different := wire.differences(self._answer, answer):
            raise _misfit(f"needs of the connection {', '.join(different)}")
        else:
            await self._settle()
        os.dup2(self._device, self._theirs, inheritable=False)
        os.close(self._device)
        self._ours.close()

    async def _ask_libfuse(self, request: bytes) -> bytes:
        """Have a request answered."""
        self._ours.send(request)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main, 1, 1)
            await trio.lowlevel.wait_readable(self._ours)
            nursery.cancel_scope.cancel()
        return self._ours.recv(_BUFFER)

    async def _settle(self) -> None:
        """See to what the daemon before us had read and not answered: nobody else will."""
        if wire.resend(self._device):
            return
        # Whoever waits has a lower number than the next request. There has to be one: a process
        # that nobody waits for, as it may have to wait for us.
        subprocess.Popen(
            ["stat", "-f", self._runtime.mount_point], stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        while True:
            await trio.lowlevel.wait_readable(self._device)
            try:
                request = os.read(self._device, _BUFFER)
            except BlockingIOError:
                continue
            except OSError:
                return  # Unmounted, as libfuse will find.
            if not wire.expects_no_answer(request):
                break
        wire.interrupt_before(self._device, request)
        answer = await self._ask_libfuse(request)
        try:
            os.write(self._device, answer)
        except FileNotFoundError:
            pass  # Who asked was killed.

    # Words to the holder

    def ready(self, text: str) -> None:
        self._channel.send({"ready": text})

    def failed(self, text: str) -> None:
        self._channel.send({"failed": text})

    def unmounted(self) -> None:
        self._channel.send({"unmounted": True})

    async def keep_alive(self) -> None:
        """Be heard of until cancelled: for as long as this thread, which serves, gets on."""
        while True:
            self._channel.send({"alive": True})
            await trio.sleep(self.watchdog / HEARTBEATS)

    async def wait_for_end(self) -> None:
        """Until the holder has gone, which says nothing meanwhile."""
        await trio.lowlevel.wait_readable(self._channel)
