# SPDX-License-Identifier: GPL-2.0-only
"""The daemon: load the collectors, or take over those that are there, and serve requests."""

from __future__ import annotations

import errno
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

import pyfuse3
import trio

from . import control
from .about import About
from .attributes import Attributes
from .available import COLLECTORS
from .changes import Changes
from .collectors import CollectorError
from .configuration import Settings
from .engines import AUTO, Engine, choose
from .events import CgroupEvents
from .failures import EXPECTED, say
from .filesystem import FileSystem
from .hierarchy import Hierarchy, find_cgroup2
from .invalidation import Invalidator, Teller
from .known import Known
from .openfiles import OpenFiles
from .privileges import SERVING, keep_only
from .registry import Registry
from .requests import poll_first
from .runtime import Runtime, State
from .takeover import Connection

__all__ = ("find_root", "run")

log = logging.getLogger(__name__)

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SIGNALS = (*_STOP_SIGNALS, signal.SIGHUP, signal.SIGUSR1)

# Exit statuses, by which systemd/cgstatfs.service decides whether there is to be another daemon:
# after the first two, but not if there is no mount to serve, as the first could not make it, or
# as it was unmounted.
_TOLD, _FAILED, _NOT_MOUNTED, _UNMOUNTED = 0, 1, 3, 4


def _load_collectors(registry: Registry, state: State) -> None:
    """Load what can be loaded and is not pinned yet; one that cannot does not stop the others.

    What is pinned and has changed is loaded anew where a mount begins, and else when asked for.
    """
    registry.take_over()
    wanted = registry.wanted()
    for name in registry.stale(wanted):
        registry.unload(name)
    for name, path in wanted.items():
        try:
            if name in state.unloaded or (state.served > 1 and registry.goes_on(name, path)):
                continue
            if not registry.is_current(name, path):
                registry.install(registry.prepare(path, {}, keep=True))
        except Exception as error:
            registry.failed(name, error)
    if registry.is_empty:
        reasons = "; ".join(state.failed.values())
        raise CollectorError(
            "no collector can be used: " + (reasons or "all are turned off; leave one on")
        )


def find_root(settings: Settings) -> tuple[Path, Path]:
    """The mount of cgroup v2, and the directory of the cgroup to show.

    :raises OSError: there is no such mount, or cgroup
    """
    cgroupfs = find_cgroup2()
    root = cgroupfs / settings.root.strip("/")
    inside = root.is_dir() and ".." not in root.parts
    if not inside or root.stat().st_dev != cgroupfs.stat().st_dev:
        reason = f"no such cgroup; see root ({settings.origin('root')})"
        raise FileNotFoundError(errno.ENOENT, reason, str(root))
    return cgroupfs, root


async def _keep_running(task: Callable[..., Awaitable[None]], *arguments: object) -> None:
    """Run a task that should never end; an exception is logged, and does not end the mount."""
    while True:
        try:
            await task(*arguments)
        except Exception:
            log.exception("%s failed; it goes on in a second", task.__name__)
            await trio.sleep(1)


async def _follow(fd: int, drain: Callable[[], None]) -> None:
    """Keep up with events while nobody asks anything."""
    while True:
        await trio.lowlevel.wait_readable(fd)
        drain()


def _is_would_block(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_is_would_block(inner) for inner in error.exceptions)
    return isinstance(error, BlockingIOError)


async def _serve_requests() -> None:
    """Answer requests until the file system is unmounted.

    The descriptor does not block: if a reader is killed after its request has woken us and
    before we read it, there is nothing to read, and a blocking read would hold up everything
    until the next request. pyfuse3 then ends its loop, which is begun again.
    """
    while True:
        try:
            await pyfuse3.main(1, 1)
            return
        except (BlockingIOError, BaseExceptionGroup) as error:
            if not _is_would_block(error):
                raise


async def _obey_signals(
    stop: Callable[[], None], reload: Callable[[], None], about: About
) -> None:
    """SIGHUP has the collectors' directories read anew; SIGUSR1 has the daemon say how it is; the
    others end it.

    Not the mount, which is the holder's. Requests are answered one at a time, each without
    waiting for anything, so none is left half done.
    """
    with trio.open_signal_receiver(*_SIGNALS) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        while (number := await anext(signals)) not in _STOP_SIGNALS:
            if number == signal.SIGHUP:
                reload()
            else:
                log.info("%s", ", ".join(about.lines()))
    stop()


async def _end_gone(registry: Registry) -> None:
    """End collectors whose initial cgroup was removed."""
    while True:
        wake = trio.Event()
        registry.on_gone = wake.set
        registry.end_gone()
        await wake.wait()


class _Daemon:
    """What is made before it serves, and how it serves.

    :param stack: what is to be undone
    """

    def __init__(
        self, settings: Settings, runtime: Runtime, connection: Connection, teller: Teller,
        stack: ExitStack,
    ) -> None:  # fmt: skip
        self.runtime = runtime
        self.ended = False
        self.connection = connection
        cgroupfs, root = find_root(settings)
        previous = runtime.read_state()
        engine, reason = _choose(settings, previous)
        # First, so that whatever ends this process, others see what it left.
        self.state = State.of_this_process(settings.mount_point, engine.name, reason, previous)
        self.state.served = connection.taken
        self.state.holder = connection.holder
        self._changed()
        runtime.make_pins()
        self.hierarchy = Hierarchy(root)
        self.events = CgroupEvents(self.hierarchy)
        stack.callback(self.events.close)
        self.invalidator = Invalidator(self.hierarchy, teller)
        self.attributes = Attributes(self.hierarchy, self.invalidator.permissions_changed)
        stack.callback(self.attributes.close)
        known, open_files = Known(runtime.known, self.hierarchy), OpenFiles(runtime.open_files)
        stack.callback(known.close)
        stack.callback(open_files.close)
        self.file_system = FileSystem(
            self.hierarchy, self.attributes, self.events.drain, self.invalidator, known,
            open_files, open_files_per_user=settings.open_files_per_user,
            snapshot_memory=settings.snapshot_memory,
        )  # fmt: skip
        self.registry = Registry(
            engine, os.stat(cgroupfs).st_ino, runtime.pins, (COLLECTORS, *settings.directories),
            self.hierarchy, self.file_system, self.state, self._changed, settings.off,
        )  # fmt: skip
        stack.callback(self.registry.close)
        self.about = About(self.registry, self.state, lambda: self.file_system.limits_hit)
        self.file_system.show_about(self.about.files)
        self.changes = Changes(self.registry, cgroupfs, self.about)
        _load_collectors(self.registry, self.state)
        self.listener = stack.enter_context(control.listen(runtime.socket))

    def _changed(self) -> None:
        self.runtime.write_state(self.state)

    async def serve(self, ready: Callable[[State], None]) -> None:
        """Serve until unmounted or told to stop."""
        # What the daemons before told the kernel holds for this one.
        gone = self.file_system.recover()
        await self.connection.begin()
        self.state.connection = self.connection.number or self.state.connection
        self._changed()
        self.invalidator.begin(self.connection.descriptor)
        if self.connection.taken > 1:
            self.invalidator.taken_over(gone, self.hierarchy)
        async with trio.open_nursery() as nursery:

            def reload() -> None:
                nursery.start_soon(self.changes.reload)

            for task, *arguments in (
                (control.serve, self.listener, self.changes.answer),
                (_end_gone, self.registry),
                (_follow, self.events.fd, self.events.drain),
                (_follow, self.attributes.fd, self.attributes.drain),
                (self.invalidator.tell_names,),
                (self.invalidator.tell_links,),
                (self.invalidator.tell_permissions, self.attributes.drain),
                (self.connection.keep_alive,),
                (_mourn, self.connection),
            ):
                nursery.start_soon(_keep_running, task, *arguments)
            nursery.start_soon(_obey_signals, nursery.cancel_scope.cancel, reload, self.about)
            ready(self.state)
            await _serve_requests()
            # Also where it was aborted: nobody is served any more.
            self.connection.unmounted()
            self.ended = True
            nursery.cancel_scope.cancel()


def _choose(settings: Settings, previous: State | None) -> tuple[Engine, str]:
    """The engine: what loaded the collectors that are there goes on with them."""
    if previous is None or settings.engine not in (AUTO, previous.engine):
        return choose(settings.engine)
    engine, _ = choose(previous.engine)
    return engine, previous.reason


async def _mourn(connection: Connection) -> None:
    """The mount does not end with its holder, but with us, who now hold it alone."""
    await connection.wait_for_end()
    connection.orphaned = True
    log.critical("the holder has gone; the mount will end with this daemon")
    await trio.sleep_forever()


def run(settings: Settings, runtime: Runtime, ready: Callable[[State], None]) -> int:
    """Serve the mount that a holder holds, as the next of its daemons, until that ends.

    Nothing is cleared away: the holder does that, or there will be another daemon.

    :param ready: called when requests are about to be served
    :returns: an exit status; why it could not serve was logged, and told to the holder
    :raises OSError: there is no holder
    """
    # Signals wait until we serve, soon; and when we have ended, they make no other end of it.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    for number in _STOP_SIGNALS:
        signal.signal(number, lambda *_: None)
    teller = Teller()
    connection = Connection(runtime)
    keep_only(SERVING)
    try:
        with ExitStack() as stack:
            daemon = _Daemon(settings, runtime, connection, teller, stack)
            poll_first(connection.descriptor)
            pyfuse3.init(daemon.file_system, connection.path, set())
            stack.callback(pyfuse3.close, unmount=False)

            def tell(state: State) -> None:
                connection.ready(report(state))
                ready(state)

            trio.run(daemon.serve, tell)
        if connection.orphaned and daemon.ended:
            runtime.remove()
        return _UNMOUNTED if daemon.ended else _TOLD
    except EXPECTED as error:
        log.error("%s", say(error))
        connection.failed(say(error))
    except Exception as error:
        log.critical("the daemon failed", exc_info=True)
        connection.failed(f"the daemon failed: {error!r}; see {runtime.log}")
    return _FAILED if connection.mounted else _NOT_MOUNTED


def report(state: State) -> str:
    """What who mounted it is told."""
    lines = [f"{state.mount_point}: mounted, engine {state.engine} ({state.reason})"]
    lines += [f"collector {name} is not available: {why}" for name, why in state.failed.items()]
    return "\n".join(lines)
