# SPDX-License-Identifier: GPL-2.0-only
"""The command line."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
from pathlib import Path

from . import __version__, inspection, mountpoint
from .collectors import CollectorError
from .daemon import SHIPPED, Settings, run
from .engines import ENGINES, EngineUnavailable
from .runtime import Runtime, State, mount_bpffs

__all__ = ("main",)

log = logging.getLogger("cgstatfs")

_EXIT_CODES = """\
exit codes:
  0  done
  1  it could not be done; one line on standard error says why
  2  the command line is wrong
"""

# Options of mount(8) that say what is the case anyway, or are for mount(8) itself.
_IGNORED_OPTIONS = {
    "defaults", "ro", "nosuid", "nodev", "noexec", "allow_other", "default_permissions",
    "auto", "noauto", "nofail", "_netdev",
}  # fmt: skip


class _Failure(Exception):
    """Ends the command with exit code 1 and this message."""


# What ends a command, or a daemon, and is explained in a line.
_EXPECTED = (OSError, EngineUnavailable, CollectorError)


def _say(error: OSError | EngineUnavailable | CollectorError) -> str:
    if isinstance(error, EngineUnavailable):
        return f"no engine can be used: {error}"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
    return str(error)


def _require_root() -> None:
    if os.geteuid() != 0:
        raise _Failure("not root: loading BPF programs and mounting need it; try sudo")


def _mount_point(text: str) -> Path:
    """Absolute, without symbolic links in it, as the mount table has it."""
    return Path(os.path.realpath(text))


# mount


def _settings(arguments: argparse.Namespace) -> Settings:
    engine, root = arguments.engine, arguments.root
    for option in ",".join(arguments.options).split(","):
        key, _, value = option.partition("=")
        if key == "engine" and value:
            engine = engine or value
        elif key == "root" and value:
            root = root or value
        elif option and option not in _IGNORED_OPTIONS and not option.startswith("x-"):
            raise _Failure(f'unknown mount option "{option}"; engine=NAME and root=CGROUP are known')
    names = [kind.name for kind in ENGINES]
    if engine not in (None, *names):
        raise _Failure(f'unknown engine "{engine}"; there are {", ".join(names)}')
    return Settings(_mount_point(arguments.mountpoint), root or "/", engine)


def _prepare(settings: Settings) -> Runtime:
    """Check what can be checked, take the lock, and clear away what a killed daemon left."""
    runtime = Runtime(settings.mount_point)
    _end_connection_of_dead(runtime)
    if not runtime.lock():
        raise _Failure(_why_locked(runtime))
    try:
        stale = mountpoint.mounted(settings.mount_point)
        if stale and stale.type == mountpoint.TYPE:
            log.warning("%s: clearing away the mount of a daemon that died", settings.mount_point)
            mountpoint.unmount(settings.mount_point, lazy=True)
        mountpoint.check_usable(settings.mount_point)
        mount_bpffs()
        runtime.clean()
    except OSError:
        runtime.remove()
        raise
    return runtime


def _end_connection_of_dead(runtime: Runtime) -> None:
    """Only where a killed daemon lingers does its connection; the number may be another's."""
    state = runtime.read_state()
    if state and state.connection and state.lingers():
        mountpoint.abort(state.connection)
        if runtime.lock(timeout=10):
            runtime.unlock_here()


def _why_locked(runtime: Runtime) -> str:
    path, state = runtime.mount_point, runtime.read_state()
    if mountpoint.mounted(path):
        return f"{path}: a cgstatfs is mounted there; cgstatfs umount ends it"
    if state is None:
        return f"{path}: a daemon for it starts or ends just now; try again"
    daemon = f"its daemon (pid {state.pid})"
    if not state.connection:
        return f"{path}: {daemon} is starting"
    return f"{path}: unmounted, and {daemon} still runs; it ends when the last file is closed"


def _report(state: State) -> str:
    lines = [f"{state.mount_point}: mounted, engine {state.engine} ({state.reason})"]
    lines += [f"collector {name} is not available: {why}" for name, why in state.failed.items()]
    return "\n".join(lines)


def _serve_in_foreground(settings: Settings, runtime: Runtime) -> int:
    try:
        run(settings, runtime, lambda state: print(_report(state), flush=True))
    finally:
        runtime.remove()
    return 0


def _serve_detached(settings: Settings, runtime: Runtime) -> int:
    """Fork the daemon, and return when the mount answers."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _become_daemon(runtime)
        os._exit(_run_child(settings, runtime, writer))
    os.close(writer)
    runtime.unlock_here()
    with open(reader) as pipe:
        message = pipe.read()
    if not message.startswith("+"):
        raise _Failure(message.strip() or f"the daemon ended without a word; see {runtime.log}")
    # Answered by the daemon, so that what follows this command finds it serving.
    os.stat(settings.mount_point)
    print(message[1:])
    return 0


def _become_daemon(runtime: Runtime) -> None:
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    output = os.open(runtime.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(null, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(null)
    os.close(output)


def _run_child(settings: Settings, runtime: Runtime, writer: int) -> int:
    """The daemon's life. Its first words go to the one who waits, in *writer*."""
    pipe: int | None = writer

    def tell(text: str) -> None:
        nonlocal pipe
        if pipe is not None:
            writer, pipe = pipe, None
            with open(writer, "wb") as file:
                file.write(text.encode("utf-8", "replace"))

    try:
        run(settings, runtime, lambda state: tell("+" + _report(state)))
        return 0
    except BrokenPipeError:
        pass  # Who started it was interrupted, and does not want it any more.
    except _EXPECTED as error:
        log.critical("%s", _say(error))
        tell(_say(error))
    except BaseException as error:
        log.critical("the daemon failed", exc_info=True)
        tell(f"the daemon failed: {error!r}; see {runtime.log}")
    finally:
        # Last, as the log stays only if something was logged.
        runtime.remove()
    return 1


def _mount(arguments: argparse.Namespace) -> int:
    _require_root()
    settings = _settings(arguments)
    runtime = _prepare(settings)
    return (_serve_in_foreground if arguments.foreground else _serve_detached)(settings, runtime)


# umount


def _umount(arguments: argparse.Namespace) -> int:
    _require_root()
    path = _mount_point(arguments.mountpoint)
    runtime = Runtime(path)
    entry = mountpoint.mounted(path)
    ours = entry is not None and entry.type == mountpoint.TYPE
    _end_connection_of_dead(runtime)
    state = runtime.read_state()
    if not ours and state is None and not runtime.pins.exists():
        raise _Failure(f"{path}: no cgstatfs is mounted there")
    if not ours and state and state.lives() and not state.connection:
        raise _Failure(_why_locked(runtime))
    if ours:
        try:
            mountpoint.unmount(path, lazy=arguments.lazy)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise _Failure(f"{path}: in use; --lazy unmounts it when it no longer is") from None
    if not runtime.lock(timeout=0 if arguments.lazy else 60):
        if arguments.lazy:
            return 0
        raise _Failure(_why_locked(runtime))
    runtime.remove()
    return 0


# check, list


def _check(_: argparse.Namespace) -> int:
    _require_root()
    if not inspection.check(SHIPPED):
        raise _Failure("cannot be mounted on this machine, for what is said above")
    return 0


def _list(_: argparse.Namespace) -> int:
    _require_root()
    inspection.list_maps()
    return 0


# The command itself


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cgstatfs",
        description="Shows statistics that BPF programs collect, per cgroup, as files.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cgstatfs {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, function, help, example):
        sub = commands.add_parser(
            name,
            help=help,
            description=help[0].upper() + help[1:] + ".",
            epilog=f"example:\n  {example}\n\n{_EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(function=function)
        return sub

    mount = command(
        "mount", _mount, "load the collectors and mount the file system",
        "cgstatfs mount --engine standalone --root /system.slice /cgstat",
    )  # fmt: skip
    mount.add_argument("mountpoint", metavar="MOUNTPOINT", help="an empty directory")
    mount.add_argument(
        "-o", dest="options", metavar="OPTION,...", action="append", default=[],
        help="as for mount(8): engine=NAME, root=CGROUP; what holds anyway is ignored",
    )  # fmt: skip
    mount.add_argument(
        "--engine", metavar="NAME", choices=[kind.name for kind in ENGINES],
        help=f"one of {', '.join(kind.name for kind in ENGINES)}; without it the best there is",
    )  # fmt: skip
    mount.add_argument("--root", metavar="CGROUP", help="show this cgroup and what is below it")
    mount.add_argument("--foreground", action="store_true", help="do not detach")

    umount = command(
        "umount", _umount, "unmount, and end the collectors", "cgstatfs umount /cgstat"
    )
    umount.add_argument("mountpoint", metavar="MOUNTPOINT")
    umount.add_argument("-l", "--lazy", action="store_true", help="also if it is in use")

    command(
        "check", _check, "say what works on this kernel, and what would make the rest work",
        "cgstatfs check",
    )  # fmt: skip
    command(
        "list", _list, "show the stats maps, what they cost and what they missed", "cgstatfs list"
    )
    return parser


def _fail(message: str) -> int:
    print(f"cgstatfs: {message}", file=sys.stderr)
    return 1


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console script.

    :returns: the exit code
    """
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    arguments = _parser().parse_args(argv)
    try:
        return arguments.function(arguments)
    except _Failure as error:
        return _fail(str(error))
    except BrokenPipeError:
        # Whoever read what we print has had enough; nothing more is to be said or flushed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except _EXPECTED as error:
        return _fail(_say(error))
    except KeyboardInterrupt:
        return _fail("interrupted")
