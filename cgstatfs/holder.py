# SPDX-License-Identifier: GPL-2.0-only
"""The holder: keeps a FUSE connection while daemons come and go.

A mount is only as lasting as the process that holds its descriptor of ``/dev/fuse``. So that is
a small one of its own, which serves nothing: it mounts, hands the descriptor to one daemon at a
time, and waits. It learns of a daemon's end by a pidfd, of a hung one by missing heartbeats (and
then kills it), and of the unmount from the daemon. It never looks at the mount: while nobody
serves, that would wait for the very daemon that it is to provide.

::

    daemon                              holder
    {"hello": VERSION}            ->
                                  <-    {"protocol": PROTOCOL, "taken": N, "watchdog": SECONDS,
                                         "init": HEX, "answer": HEX}              device, lock
    the first one, with neither:
    {"mount": true}               ->
                                  <-    {"init": HEX}   what the kernel asks a new file system
    {"answer": HEX}               ->                    what libfuse says to that
                                  <-    {"connection": N}                         device, lock
    then:
    {"ready": TEXT}               ->                    or {"failed": TEXT}
    {"alive": true}               ->                    every so often
    {"unmounted": true}           ->                    the last that is heard of it

    command                             holder
    {"restart": true}             ->                    another daemon, please
    {"keep": true}                ->                    leave the collectors, at the end; or not

With no daemon, every access to the mount waits. A balance of the time without one grows then,
and shrinks while there is one; when it comes to the limit, restart loops included, the holder
gives the mount up: it closes the descriptor, which ends all waiting, and unmounts.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import select
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from . import journal, mountpoint, wire
from .channel import PROTOCOL, Channel, listen
from .runtime import Runtime

__all__ = ("HEARTBEATS", "main")

log = logging.getLogger("cgstatfs.holder")

# Heartbeats in the time after which a daemon without one is killed.
HEARTBEATS = 3
# For those whose requests are under way when the mount is to end.
_GRACE_SECONDS = 2.0
# Between daemons that end at once.
_FIRST_DELAY, _LAST_DELAY = 0.1, 5.0
# The kernel says FUSE_INIT when it mounts.
_INIT_SECONDS = 10.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _Daemon:
    """A process that has asked for the connection, or serves.

    :ivar heard: when it was last heard, by the monotonic clock
    :ivar leaving: it has said its last
    """

    def __init__(self, channel: Channel, pidfd: int) -> None:
        self.channel = channel
        self.pidfd = pidfd
        self.pid = channel.pid
        self.ready = False
        self.leaving = False
        self.heard = time.monotonic()

    def kill(self, number: int) -> None:
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            pass

    def close(self) -> None:
        self.channel.close()
        os.close(self.pidfd)


class Holder:
    """Holds one mount's connection, until it is unmounted or given up.

    :param runtime: locked by the caller
    :param command: starts a daemon; None if somebody else does, who sees how it ends
    :param report: told once how the start went: the first daemon's words, and whether it serves
    :param limit: seconds without a daemon after which the mount is given up
    :param watchdog: seconds without a heartbeat after which a daemon is killed
    """

    def __init__(
        self, runtime: Runtime, command: list[str] | None, report: Callable[[str, bool], None],
        limit: float, watchdog: float,
    ) -> None:  # fmt: skip
        self._runtime = runtime
        self._command = command
        self._report = report
        self._limit = limit
        self._watchdog = watchdog
        self._selector = selectors.DefaultSelector()
        self._listener = listen(runtime.holder_socket)
        self._watch(self._listener, self._accept)
        # Polls readable when the connection has ended. Registered with no events, which leaves
        # errors; only while nobody serves, as it wakes us once a request.
        self._device_ended = select.epoll()
        self._watch(self._device_ended, self._device_gone)
        self._device: int | None = None
        self._init = b""
        self._answer = b""
        self._daemon: _Daemon | None = None
        self._process: subprocess.Popen | None = None
        self._waiting: list[_Daemon] = []
        self._taken = 0
        self._keep = False
        self._ended = False
        self._status = 0
        self._failure = ""
        # The balance, and since when it grows or shrinks.
        self._unserved = 0.0
        self._since = time.monotonic()
        self._delay = 0.0
        self._next_start = 0.0 if command else float("inf")
        self._stop_at = float("inf")
        self._kill_at = float("inf")

    def _watch(self, what: object, action: Callable[[], None]) -> None:
        self._selector.register(what, selectors.EVENT_READ, action)

    def _ignore(self, what: object) -> None:
        """Watch it no more, if it was watched."""
        with contextlib.suppress(KeyError):
            self._selector.unregister(what)

    # Time

    @property
    def _serving(self) -> bool:
        return self._daemon is not None and self._daemon.ready

    def _account(self) -> None:
        """Bring the balance up to now; called before what changes its direction."""
        now = time.monotonic()
        passed, self._since = now - self._since, now
        if self._device is not None:
            self._unserved = max(0.0, self._unserved + (-passed if self._serving else passed))

    def _deadlines(self) -> list[float]:
        deadlines = [self._stop_at, self._kill_at]
        if self._process is None and self._daemon is None and not self._stopping:
            deadlines.append(self._next_start)
        if self._device is not None and not self._serving:
            deadlines.append(self._since + self._limit - self._unserved)
        if self._daemon and self._daemon.ready:
            deadlines.append(self._daemon.heard + self._watchdog)
        return deadlines

    @property
    def _stopping(self) -> bool:
        return self._stop_at != float("inf")

    def run(self) -> int:
        """Hold until the end; an exit code."""
        read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        self._watch(read, lambda: (os.read(read, 64), self._stop()))
        try:
            while not self._ended:
                self._wait()
                self._check_time()
        finally:
            self._end()
        if self._failure:
            # Last, so that who is told can try again.
            with contextlib.suppress(BrokenPipeError):
                self._report(self._failure, False)
        return self._status

    def _wait(self) -> None:
        """For the next thing to happen or to do, and take note of it."""
        deadline = min(self._deadlines())
        timeout = None if deadline == float("inf") else max(0.0, deadline - time.monotonic())
        for key, _ in self._selector.select(timeout):
            if key.fileobj in self._selector.get_map():
                self._do(key.data)
        if self._daemon and time.monotonic() > deadline + self._watchdog / HEARTBEATS:
            # We did not run, and so perhaps nobody did.
            self._daemon.heard = time.monotonic()

    @staticmethod
    def _do(action: Callable[[], None]) -> None:
        """What goes wrong with one daemon is not to end the mount."""
        try:
            action()
        except Exception:
            log.exception("the holder failed at something, and goes on")

    def _check_time(self) -> None:
        now = time.monotonic()
        self._account()
        if self._ended:
            return
        if now >= self._stop_at:
            self._finish()
        elif self._device is not None and self._unserved >= self._limit:
            self._finish(f"{self._limit:g} s without a daemon: giving up the mount")
        elif now >= self._kill_at:
            self._kill_at = float("inf")
            self._kill_daemon("did not end when asked to")
        elif self._daemon and self._daemon.ready and now >= self._daemon.heard + self._watchdog:
            self._daemon.heard = now
            self._kill_daemon(f"has not been heard of for {self._watchdog:g} s")
        elif now >= self._next_start and not self._daemon and not self._process and not self._stopping:
            self._start()

    def _kill_daemon(self, why: str) -> None:
        if self._daemon:
            log.error("the daemon (pid %d) %s: killing it", self._daemon.pid, why)
            self._daemon.kill(signal.SIGKILL)

    # Daemons

    def _start(self) -> None:
        """Start a daemon; later after each that ends at once."""
        assert self._command
        self._delay = min(max(_FIRST_DELAY, 2 * self._delay), _LAST_DELAY)
        self._next_start = float("inf")
        # A session of its own: what a terminal sends to all is for us to decide upon.
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, start_new_session=True, cwd="/"
        )
        pidfd = os.pidfd_open(self._process.pid)
        self._watch(pidfd, lambda: self._reap(pidfd))

    def _reap(self, pidfd: int) -> None:
        """A daemon that we started has ended; whether it served or not."""
        self._ignore(pidfd)
        os.close(pidfd)
        process, self._process = self._process, None
        status = process.wait()
        if self._daemon and self._daemon.pid == process.pid:
            self._lost()
        if not self._answer and not self._ended:
            self._fail(f"the daemon ended without a word (exit status {status}); see {self._runtime.log}")
            return
        self._next_start = time.monotonic() + self._delay

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        connection.setblocking(True)
        channel = Channel(connection)
        try:
            if channel.uid:
                raise PermissionError
            daemon = _Daemon(channel, channel.process())
        except OSError:
            channel.close()
            return
        self._watch(channel, lambda: self._first_words(daemon))

    def _first_words(self, daemon: _Daemon) -> None:
        """Of who has connected: a daemon, or a command."""
        self._ignore(daemon.channel)
        received = daemon.channel.receive()
        message = received[0] if received else {}
        for each in received[1] if received else ():
            os.close(each)
        if "hello" in message:
            self._waiting.append(daemon)
            self._next()
            return
        if message.get("restart"):
            self._restart()
        self._keep = bool(message.get("keep", self._keep))
        daemon.channel.send({"done": bool(message)})
        daemon.close()

    def _next(self) -> None:
        """Give the connection to who waits for it, if nobody else has it."""
        if self._daemon or not self._waiting or self._ended:
            return
        daemon = self._daemon = self._waiting.pop(0)
        self._taken += 1
        daemon.heard = time.monotonic()
        self._watch(daemon.channel, self._hear)
        self._watch(daemon.pidfd, self._lost)
        welcome = {
            "protocol": PROTOCOL, "taken": self._taken, "watchdog": self._watchdog,
            "init": self._init.hex(), "answer": self._answer.hex(),
        }  # fmt: skip
        if self._device is not None:
            self._leave_device()
        daemon.channel.send(welcome, self._descriptors())

    def _descriptors(self) -> tuple[int, ...]:
        return () if self._device is None else (self._device, self._runtime.lock_descriptor)

    def _lost(self) -> None:
        """The daemon has ended, for certain: nobody else answers requests now."""
        daemon = self._daemon
        if daemon is None:
            return
        self._account()
        # Its last words may be unread.
        while self._daemon and select.select([daemon.channel], [], [], 0)[0]:
            if not self._hear():
                break
        self._ignore(daemon.channel)
        self._ignore(daemon.pidfd)
        self._daemon = None
        self._kill_at = float("inf")
        if daemon.ready and not self._ended:
            log.warning("the daemon (pid %d) has ended; the mount waits for the next", daemon.pid)
        daemon.close()
        if not self._answer and not self._ended:
            self._fail("the daemon ended before it had mounted")
        self._watch_device()
        self._next()

    def _hear(self) -> bool:
        """:returns: whether there was anything to hear"""
        daemon = self._daemon
        assert daemon
        received = daemon.channel.receive()
        if received is None:
            self._ignore(daemon.channel)
            return False
        message, _ = received
        daemon.heard = time.monotonic()
        if "mount" in message:
            self._mount(daemon)
        elif "answer" in message:
            self._negotiated(daemon, bytes.fromhex(message["answer"]))
        elif "ready" in message:
            self._account()
            daemon.ready = True
            self._delay = 0.0 if self._unserved < self._limit / 2 else self._delay
            try:
                self._report(message["ready"], True)
            except BrokenPipeError:
                self._finish()  # Who asked for it was interrupted, and does not want it any more.
        elif "failed" in message:
            log.error("the daemon (pid %d) cannot serve: %s", daemon.pid, message["failed"])
            if not self._answer:
                self._fail(message["failed"])
        elif "unmounted" in message:
            daemon.leaving = True
            self._finish()
        return True

    def _restart(self) -> None:
        """End the daemon, by force if need be; the next comes as after any end."""
        if self._daemon:
            log.info("restarting the daemon (pid %d)", self._daemon.pid)
            self._daemon.kill(signal.SIGTERM)
            self._kill_at = time.monotonic() + max(10.0, self._watchdog)

    # The connection

    def _mount(self, daemon: _Daemon) -> None:
        """Mount for the first daemon, and pass on what the kernel asks of a new file system."""
        try:
            self._device = mountpoint.open_device()
            mountpoint.mount(self._device, self._runtime.mount_point)
            if not select.select([self._device], [], [], _INIT_SECONDS)[0]:
                raise TimeoutError(None, "the kernel does not begin", "/dev/fuse")
            self._init = os.read(self._device, wire.MIN_BUFFER)
        except OSError as error:
            self._drop_device()
            daemon.channel.send({"error": error.errno, "text": error.strerror, "file": error.filename})
            return
        self._since = time.monotonic()
        daemon.channel.send({"init": self._init.hex()})

    def _negotiated(self, daemon: _Daemon, answer: bytes) -> None:
        assert self._device is not None
        os.write(self._device, answer)
        self._answer = answer
        number = mountpoint.connection(self._runtime.mount_point) or 0
        daemon.channel.send({"connection": number}, self._descriptors())

    def _drop_device(self) -> None:
        """End the connection: the last one to close it does."""
        self._unmount()
        if self._device is not None:
            self._leave_device()
            os.close(self._device)
            self._device = None

    def _watch_device(self) -> None:
        """While nobody serves, as an unmount would go unnoticed."""
        if self._device is not None:
            self._device_ended.register(self._device, 0)

    def _leave_device(self) -> None:
        try:
            self._device_ended.unregister(self._device)
        except FileNotFoundError:
            pass

    def _device_gone(self) -> None:
        if self._device_ended.poll(0):
            self._finish()

    # The end

    def _fail(self, why: str) -> None:
        """The first daemon could not begin. Who started it may start another."""
        self._drop_device()
        self._init = b""
        if self._command:
            self._failure = why
            self._ended, self._status = True, 1

    def _stop(self) -> None:
        """As a signal asks for: unmount, let what is under way be answered, and end."""
        if self._stopping:
            return
        self._unmount()
        self._stop_at = time.monotonic() + (_GRACE_SECONDS if self._serving else 0)

    def _finish(self, failure: str = "") -> None:
        if failure:
            log.critical("%s: %s", self._runtime.mount_point, failure)
        self._ended, self._status = True, int(bool(failure))

    def _unmount(self) -> None:
        if self._device is None:
            return
        try:
            mountpoint.unmount_if_ours(self._runtime.mount_point)
        except OSError as error:
            log.error("%s: not unmounted: %s", self._runtime.mount_point, error.strerror)

    def _end(self) -> None:
        """Close the connection, wait for the daemon, and clear away."""
        self._drop_device()
        for daemon in [self._daemon, *self._waiting]:
            if daemon:
                self._end_daemon(daemon)
        if self._process:
            self._process.kill()
            self._process.wait()
        self._listener.close()
        self._runtime.remove(keep_counting=self._keep)

    def _end_daemon(self, daemon: _Daemon) -> None:
        """It ends by itself, having met the end of the connection, or is made to.

        How it ended is what a service manager goes by, so that who is on the way is let go.
        """
        daemon.kill(signal.SIGTERM)
        grace = self._watchdog if daemon.leaving else _GRACE_SECONDS
        if not select.select([daemon.pidfd], [], [], grace)[0]:
            daemon.kill(signal.SIGKILL)
            select.select([daemon.pidfd], [], [])
        daemon.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cgstatfs.holder")
    parser.add_argument("--limit", type=float, required=True)
    parser.add_argument("--watchdog", type=float, required=True)
    parser.add_argument("--lock", type=int, required=True, help="its descriptor")
    parser.add_argument("--report", type=int, help="descriptor for how the start went")
    parser.add_argument("mount_point", type=Path)
    parser.add_argument("command", nargs="+", help="that starts a daemon")
    return parser


def _report_to(descriptor: int | None) -> Callable[[str, bool], None]:
    """Tells once, in words that begin with + for a start that went well."""
    told = False

    def report(text: str, good: bool) -> None:
        nonlocal told
        if told:
            return
        told = True
        if descriptor is not None and good:
            # Away from who started it; not before it has mounted, as a process group of systemd's
            # is all that may pass its automount point while that is waited for.
            os.setsid()
        if descriptor is None:
            print(text if good else f"cgstatfs: {text}", file=sys.stdout if good else sys.stderr, flush=True)
            return
        with open(descriptor, "wb") as pipe:
            pipe.write((("+" if good else "") + text).encode("utf-8", "replace"))

    return report


def main(argv: list[str] | None = None) -> int:
    """Hold the connection of a mount that ``cgstatfs mount`` begins; see there."""
    arguments = _parser().parse_args(argv)
    journal.set_up()
    runtime = Runtime(arguments.mount_point)
    runtime.adopt_lock(arguments.lock)
    return Holder(
        runtime, arguments.command, _report_to(arguments.report), arguments.limit, arguments.watchdog
    ).run()


if __name__ == "__main__":
    sys.exit(main())
