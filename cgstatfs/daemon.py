# SPDX-License-Identifier: GPL-2.0-only
"""The daemon: load the collectors, mount, serve until unmounted."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

import pyfuse3
import trio

from . import control, mountpoint
from .attributes import Attributes
from .changes import Changes
from .collectors import CollectorError
from .configuration import Settings
from .engines import choose
from .events import CgroupEvents
from .filesystem import FileSystem
from .hierarchy import Hierarchy, find_cgroup2
from .invalidation import Invalidator
from .registry import Registry
from .runtime import Runtime, State

__all__ = ("COLLECTORS", "find_root", "run")

log = logging.getLogger(__name__)

# For those whose requests are under way when the daemon is told to stop.
_GRACE_SECONDS = 2.0

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SIGNALS = (*_STOP_SIGNALS, signal.SIGHUP)

# Where collectors are dropped in.
COLLECTORS = Path("/etc/cgstatfs/collectors.d")


def _load_collectors(registry: Registry, state: State) -> None:
    """Load what can be loaded; one that cannot does not stop the others."""
    for name, path in registry.wanted().items():
        try:
            registry.install(registry.prepare(path, {}, keep=False))
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
    mount_point: Path, connection: int, ended: trio.Event, reload: Callable[[], None]
) -> None:
    """SIGHUP has the collectors' directories read anew; the others end the mount.

    To end it: unmount, go on serving those who are in the middle of something, then abort.

    Nothing here may end the loop while requests are unanswered: the thread that invalidates
    names may wait for them, and the loop would wait for the thread. So signals after the first
    are received too, and ignored.
    """
    with trio.open_signal_receiver(*_SIGNALS) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        while await anext(signals) == signal.SIGHUP:
            reload()
        await trio.to_thread.run_sync(_unmount_if_mounted, mount_point)
        with trio.move_on_after(_GRACE_SECONDS):
            await ended.wait()
        await trio.to_thread.run_sync(mountpoint.abort, connection)
        await ended.wait()


async def _end_gone(registry: Registry) -> None:
    """End collectors whose initial cgroup was removed."""
    while True:
        wake = trio.Event()
        registry.on_gone = wake.set
        registry.end_gone()
        await wake.wait()


async def _serve(
    state: State,
    events: CgroupEvents,
    attributes: Attributes,
    invalidator: Invalidator,
    registry: Registry,
    changes: Changes,
    listener: socket.socket,
) -> None:
    ended = trio.Event()
    async with trio.open_nursery() as nursery:

        def reload() -> None:
            nursery.start_soon(changes.reload)

        nursery.start_soon(
            _obey_signals, Path(state.mount_point), state.connection, ended, reload
        )
        nursery.start_soon(_keep_running, control.serve, listener, changes.answer)
        nursery.start_soon(_keep_running, _end_gone, registry)
        nursery.start_soon(_keep_running, _follow, events.fd, events.drain)
        nursery.start_soon(_keep_running, _follow, attributes.fd, attributes.drain)
        nursery.start_soon(_keep_running, invalidator.run)
        await _serve_requests()
        ended.set()
        nursery.cancel_scope.cancel()


def _unmount_if_mounted(path: Path) -> None:
    """After a signal or an error: nobody should meet a mount without a daemon."""
    entry = mountpoint.mounted(path)
    if entry and entry.type == mountpoint.TYPE:
        mountpoint.unmount(path, lazy=True)


def run(settings: Settings, runtime: Runtime, ready: Callable[[State], None]) -> None:
    """Mount and serve until unmounted or told to stop.

    :param runtime: locked by the caller
    :param ready: called when it is mounted and requests are about to be served; what it raises
        ends the mount
    :raises OSError: something that is needed is missing; nothing is left behind
    :raises EngineUnavailable: the engine, or any engine
    :raises CollectorError: no collector can be used
    """
    cgroupfs, root = find_root(settings)
    engine, reason = choose(settings.engine)
    with ExitStack() as stack:
        # Signals wait until we serve, soon, and while what was done is undone.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        stack.callback(runtime.clean)
        # First, so that whatever ends this process, others see what it left.
        state = State.of_this_process(settings.mount_point, engine.name, reason)
        runtime.write_state(state)
        runtime.make_pins()
        hierarchy = Hierarchy(root)
        events = CgroupEvents(hierarchy)
        stack.callback(events.close)
        invalidator = Invalidator(hierarchy)
        attributes = Attributes(hierarchy, invalidator.attributes_changed)
        stack.callback(attributes.close)
        file_system = FileSystem(
            hierarchy, attributes, events.drain,
            open_files_per_user=settings.open_files_per_user,
            snapshot_memory=settings.snapshot_memory,
        )  # fmt: skip
        registry = Registry(
            engine, os.stat(cgroupfs).st_ino, runtime.pins, (COLLECTORS, *settings.directories),
            hierarchy, file_system, state, lambda: runtime.write_state(state),
            settings.off,
        )  # fmt: skip
        stack.callback(registry.close)
        _load_collectors(registry, state)
        listener = stack.enter_context(control.listen(runtime.socket))
        device = mountpoint.open_device()
        # From here on libfuse closes the descriptor.
        pyfuse3.init(file_system, f"/dev/fd/{device}", set())
        stack.callback(pyfuse3.close, unmount=False)
        mountpoint.mount(device, settings.mount_point)
        stack.callback(_unmount_if_mounted, settings.mount_point)
        state.connection = mountpoint.connection(settings.mount_point) or 0
        runtime.write_state(state)
        stack.callback(signal.pthread_sigmask, signal.SIG_BLOCK, _SIGNALS)
        ready(state)
        changes = Changes(registry, cgroupfs)
        trio.run(_serve, state, events, attributes, invalidator, registry, changes, listener)
