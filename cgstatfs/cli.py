# SPDX-License-Identifier: GPL-2.0-only
"""The command line."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path

from . import __version__, authoring, btf, control, inspection, mountpoint
from .collectors import CollectorError
from .configuration import FILE, ConfigurationError, Settings, read_settings
from .daemon import COLLECTORS, find_root, run
from .engines import AUTO, ENGINES, EngineUnavailable
from .registry import wanted
from .runtime import Runtime, State, mount_bpffs

__all__ = ("main",)

log = logging.getLogger("cgstatfs")

_EXIT_CODES = """\
exit codes:
  0  done
  1  it could not be done; standard error says why
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
_EXPECTED = (OSError, EngineUnavailable, CollectorError, ConfigurationError)


def _say(error: Exception) -> str:
    if isinstance(error, EngineUnavailable):
        return f"no engine can be used: {error}"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
    return str(error)


def _require_root() -> None:
    if os.geteuid() != 0:
        raise _Failure("not root: loading BPF programs and mounting need it; try sudo")


def _mount_point(text: str | Path) -> Path:
    """Absolute, without symbolic links in it, as the mount table has it."""
    return Path(os.path.realpath(text))


# mount


def _settings(arguments: argparse.Namespace) -> Settings:
    """What is in force: the options of :func:`_add_settings`, and the configuration file."""
    engine, root = arguments.engine, arguments.root
    directories = [Path(os.path.abspath(each)) for each in arguments.collectors]
    for option in ",".join(arguments.options).split(","):
        key, _, value = option.partition("=")
        if key == "engine" and value:
            engine = engine or value
        elif key == "root" and value:
            root = root or value
        elif key == "collectors" and value:
            directories.append(Path(os.path.abspath(value)))
        elif option and option not in _IGNORED_OPTIONS and not option.startswith("x-"):
            raise _Failure(f'unknown mount option "{option}"; engine=NAME, root=CGROUP and '
                           "collectors=DIR are known")  # fmt: skip
    for directory in directories:
        if not directory.is_dir():
            raise _Failure(f"{directory}: no such directory of collectors")
    point = arguments.mountpoint
    point = None if point is None else os.path.abspath(point)
    given = {"mount-point": point, "engine": engine, "root": root}
    settings = read_settings(
        Path(os.path.abspath(arguments.config)) if arguments.config else None,
        {key: value for key, value in given.items() if value},
    )
    return replace(
        settings, mount_point=_mount_point(settings.mount_point), directories=tuple(directories)
    )


def _collectors(settings: Settings) -> dict[str, Path]:
    """The collectors that there are, by name; of those that are turned off as well."""
    return wanted((COLLECTORS, *settings.directories))


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
    for line in settings.unknown_collectors(_collectors(settings)):
        log.warning("%s", line)
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


# load, unload, reload, adopt


def _running(arguments: argparse.Namespace) -> Runtime:
    """The mount to be changed: the one that is named, or the only one."""
    if arguments.mount:
        path = _mount_point(arguments.mount)
        runtime = Runtime(path)
        state = runtime.read_state()
        if state is None or not state.lives():
            raise _Failure(f"{path}: no cgstatfs is mounted there")
        return runtime
    found = [r for r in Runtime.all() if (state := r.read_state()) and state.lives()]
    if len(found) != 1:
        points = ", ".join(str(r.mount_point) for r in found)
        raise _Failure(f"several are mounted: {points}; choose with --mount" if found else
                       "no cgstatfs is mounted; cgstatfs mount MOUNTPOINT")  # fmt: skip
    return found[0]


def _ask(arguments: argparse.Namespace, question: dict[str, object]) -> int:
    _require_root()
    try:
        done, status = control.ask(_running(arguments).socket, question), 0
    except control.Refused as refused:
        done, status = refused.done, _fail(str(refused))
    for line in done:
        print(line)
    return status


def _load(arguments: argparse.Namespace) -> int:
    initials = {}
    for each in arguments.initial:
        file, _, cgroup = each.partition("=") if not each.startswith("/") else ("", "", each)
        if not cgroup.startswith("/"):
            raise _Failure(f'--initial {each}: takes /CGROUP or STATSMAP=/CGROUP')
        initials[file] = cgroup
    path = os.path.abspath(arguments.file)
    if not path.endswith((".bpf.o", ".bcc.c")):
        raise _Failure(f"{path}: no collector; its name has to end in .bpf.o or .bcc.c")
    return _ask(arguments, {"do": "load", "path": path, "initials": initials, "keep": arguments.keep})


def _unload(arguments: argparse.Namespace) -> int:
    return _ask(arguments, {"do": "unload", "name": arguments.name})


def _reload(arguments: argparse.Namespace) -> int:
    return _ask(arguments, {"do": "reload", "keep": arguments.keep})


def _adopt(arguments: argparse.Namespace) -> int:
    path = os.path.abspath(arguments.map)
    return _ask(arguments, {"do": "adopt", "name": arguments.name, "path": path})


# new, build


def _new(arguments: argparse.Namespace) -> int:
    path = authoring.write_new(arguments.name, Path(), bcc=arguments.bcc)
    do = "load" if arguments.bcc else "build"
    print(f"{path}: written; next: cgstatfs {do} {path}")
    return 0


def _build(arguments: argparse.Namespace) -> int:
    output = Path(arguments.output) if arguments.output else None
    built = authoring.build(Path(arguments.file), output, arguments.for_clang)
    print(f"{built.path}: built")
    for about in built.maps:
        flags = "".join(f", {btf.FLAGS[flag]}" for flag in sorted(about.flags))
        count = about.value_type.elements
        print(f"  {about.file}: {count} element{'s' if count != 1 else ''}{flags}")
        for line in inspection.describe_elements(about.value_type):
            print(f"    {line}")
    for note in built.notes:
        print(f"  note: {note}")
    return 0


# check, list


def _check(arguments: argparse.Namespace) -> int:
    _require_root()
    settings = _settings(arguments)
    if not inspection.check(settings, _collectors(settings)):
        raise _Failure("cannot be mounted on this machine, for what is said above")
    find_root(settings)
    return 0


def _list(_: argparse.Namespace) -> int:
    _require_root()
    inspection.list_maps()
    return 0


# The command itself


def _add_settings(sub: argparse.ArgumentParser) -> None:
    """What a mount's settings are made of; see :func:`_settings`."""
    engines = [kind.name for kind in ENGINES]
    sub.add_argument(
        "mountpoint", metavar="MOUNTPOINT", nargs="?",
        help="an empty directory; if it is not given, that of the configuration file",
    )  # fmt: skip
    sub.add_argument(
        "-o", dest="options", metavar="OPTION,...", action="append", default=[],
        help="as for mount(8): engine=NAME, root=CGROUP; what holds anyway is ignored",
    )  # fmt: skip
    sub.add_argument(
        "--engine", metavar="NAME", choices=[*engines, AUTO],
        help=f"one of {', '.join(engines)}, or {AUTO}: the best there is",
    )  # fmt: skip
    sub.add_argument("--root", metavar="CGROUP", help="show this cgroup and what is below it")
    sub.add_argument(
        "--collectors", metavar="DIR", action="append", default=[],
        help=f"load the collectors in there, besides those in {COLLECTORS}",
    )  # fmt: skip
    sub.add_argument(
        "--config", metavar="FILE",
        help=f"read the settings that are not given here from there, instead of {FILE}",
    )  # fmt: skip


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
    _add_settings(mount)
    mount.add_argument("--foreground", action="store_true", help="do not detach")

    umount = command(
        "umount", _umount, "unmount, and end the collectors", "cgstatfs umount /cgstat"
    )
    umount.add_argument("mountpoint", metavar="MOUNTPOINT")
    umount.add_argument("-l", "--lazy", action="store_true", help="also if it is in use")

    def changing(name, function, help, example):
        sub = command(name, function, help, example)
        sub.add_argument("--mount", metavar="MOUNTPOINT", help="which one, if several are mounted")
        return sub

    keep = "go on with the counts of the one that is replaced, if the type is the same"
    load = changing(
        "load", _load, "load a collector into a running mount",
        "cgstatfs load --initial /system.slice ./mystats.bpf.o",
    )  # fmt: skip
    load.add_argument("file", metavar="FILE", help="NAME.bpf.o or NAME.bcc.c")
    load.add_argument("--keep", action="store_true", help=keep)
    load.add_argument(
        "--initial", metavar="[STATSMAP=]/CGROUP", action="append", default=[],
        help="count in this cgroup and below it alone, for as long as it exists",
    )  # fmt: skip
    unload = changing("unload", _unload, "end a collector of a running mount", "cgstatfs unload mystats")
    unload.add_argument("name", metavar="NAME")
    reload = changing(
        "reload", _reload, "load and unload what has changed in the collectors' directories",
        "cgstatfs reload --keep",
    )  # fmt: skip
    reload.add_argument("--keep", action="store_true", help=keep)
    adopt = changing(
        "adopt", _adopt, "show a map that another tool has pinned",
        "cgstatfs adopt theirs /sys/fs/bpf/theirs",
    )  # fmt: skip
    adopt.add_argument("name", metavar="NAME", help="of the file")
    adopt.add_argument("map", metavar="PINNED_MAP")

    new = command(
        "new", _new, "write the source of a new collector, to start from", "cgstatfs new mystats"
    )
    new.add_argument("name", metavar="NAME", help="of the collector, and of the file it shows")
    new.add_argument("--bcc", action="store_true", help="one that bcc compiles when it is loaded")
    build = command(
        "build", _build, "compile a collector", "cgstatfs build mystats.bpf.c -- -DLIMIT=100"
    )
    build.add_argument(
        "-o", dest="output", metavar="OUT", help="what to make; else NAME.bpf.o next to the source"
    )
    build.add_argument("file", metavar="NAME.bpf.c")
    build.usage = "cgstatfs build [-h] [-o OUT] NAME.bpf.c [-- CLANG_OPTION ...]"

    check = command(
        "check", _check,
        "say what a mount with these options would be set to, what of it works on this kernel, and "
        "what would make the rest work",
        "cgstatfs check --config ./cgstatfs.toml",
    )  # fmt: skip
    _add_settings(check)
    command(
        "list", _list, "show the stats maps, what they cost and what they missed", "cgstatfs list"
    )
    return parser


def _fail(message: str) -> int:
    for line in message.splitlines():
        print(f"cgstatfs: {line}", file=sys.stderr)
    return 1


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    """The command line, and what of it a build hands on to clang.

    Not by argparse: to it what follows ``--`` are arguments of ours that begin with a dash.
    """
    if argv[:1] != ["build"] or "--" not in argv:
        return argv, []
    at = argv.index("--")
    return argv[:at], argv[at + 1 :]


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console script.

    :returns: the exit code
    """
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    own, for_clang = _split(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_args(own, argparse.Namespace(for_clang=for_clang))
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
