# SPDX-License-Identifier: GPL-2.0-only
"""The command line.

What only some commands need is imported by those: a machine that mounts at boot waits for it.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from . import __version__, journal, mountpoint
from .available import COLLECTORS, wanted
from .channel import Channel
from .configuration import FILE, Settings, read_settings
from .engines import AUTO, ENGINES
from .failures import EXPECTED, say
from .processes import environment, python
from .runtime import Runtime, mount_bpffs

__all__ = ("main",)

log = logging.getLogger("cgstatfs")

_EXIT_CODES = """\
exit codes:
  0  done
  1  it could not be done; standard error says why
  2  the command line is wrong
"""

# Options of mount(8) that say what is the case anyway, or are for mount(8) itself; and what it
# makes of "defaults", of which nobody can expect that statistics be written to.
_IGNORED_OPTIONS = {
    "defaults", "ro", "nosuid", "nodev", "noexec", "allow_other", "default_permissions",
    "auto", "noauto", "nofail", "_netdev", "rw", "suid", "dev", "exec", "nouser", "async",
}  # fmt: skip
# Those that are ours, and take a value.
_OPTIONS = {
    "engine": "engine", "root": "root", "unserved-seconds": "limits.unserved-seconds",
    "watchdog-seconds": "limits.watchdog-seconds",
}  # fmt: skip
# For another daemon to come.
_RESTART_SECONDS = 180
# For a daemon to end that was unmounted.
_END_SECONDS = 10


class _Failure(Exception):
    """Ends the command with exit code 1 and this message."""


def _require_root() -> None:
    if os.geteuid() != 0:
        raise _Failure("not root: loading BPF programs and mounting need it; try sudo")


def _mount_point(text: str | Path) -> Path:
    """Absolute, without symbolic links in it, as the mount table has it.

    What is mounted there is not asked: it may wait for the very daemon that we are to be, or for
    one that this command is to end.
    """
    head, tail = os.path.split(os.fspath(text).rstrip("/"))
    if tail not in ("", ".", ".."):
        path = Path(os.path.realpath(head or "."), tail)
        if mountpoint.mounted(path):
            return path
    return Path(os.path.realpath(text))


# mount


def _settings(arguments: argparse.Namespace) -> Settings:
    """What is in force: the options of :func:`_add_settings`, and the configuration file."""
    given: dict[str, object] = {"engine": arguments.engine, "root": arguments.root}
    directories = [Path(os.path.abspath(each)) for each in arguments.collectors]
    for option in ",".join(arguments.options).split(","):
        key, _, value = option.partition("=")
        if key in _OPTIONS and value:
            name = _OPTIONS[key]
            given[name] = given.get(name) or (int(value) if value.isdecimal() else value)
        elif key == "collectors" and value:
            directories.append(Path(os.path.abspath(value)))
        elif option and option not in _IGNORED_OPTIONS and not option.startswith("x-"):
            raise _Failure(f'unknown mount option "{option}"; {", ".join(_OPTIONS)} and collectors '
                           "take a value")  # fmt: skip
    for directory in directories:
        if not directory.is_dir():
            raise _Failure(f"{directory}: no such directory of collectors")
    point = arguments.mountpoint
    given["mount-point"] = None if point is None else os.path.abspath(point)
    settings = read_settings(
        Path(os.path.abspath(arguments.config)) if arguments.config else None,
        {key: value for key, value in given.items() if value},
    )
    return replace(
        settings, mount_point=_mount_point(settings.mount_point), directories=tuple(directories)
    )


def _warn(settings: Settings) -> None:
    for line in settings.unknown_collectors(_collectors(settings)):
        log.warning("%s", line)


def _collectors(settings: Settings) -> dict[str, Path]:
    """The collectors that there are, by name; of those that are turned off as well."""
    return wanted((COLLECTORS, *settings.directories))


def _prepare(settings: Settings) -> Runtime:
    """Check what can be checked, take the lock, and clear away what was left by who was killed."""
    runtime = Runtime(settings.mount_point)
    # After umount(8), which waits for no daemon, one may be about to end.
    if not runtime.lock(timeout=0 if mountpoint.mounted(settings.mount_point) else _END_SECONDS):
        raise _Failure(_why_locked(runtime))
    try:
        _end_stale(settings.mount_point)
        mountpoint.check_usable(settings.mount_point)
        mount_bpffs()
        state = runtime.read_state()
        if state is None or not state.kept:
            runtime.clean()
    except OSError:
        runtime.remove()
        raise
    return runtime


def _end_stale(path: Path) -> None:
    """A mount whose lock nobody holds: its holder was killed, and its daemon.

    Some process of theirs may wait in the kernel for somebody who waits for them; so the
    connection is aborted, too.
    """
    number = mountpoint.connection(path)
    if number is not None:
        log.warning("%s: clearing away the mount of a daemon that died", path)
        mountpoint.abort(number)
        mountpoint.unmount(path, lazy=True)


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


def _daemon_command(arguments: argparse.Namespace, settings: Settings) -> list[str]:
    """Given what we were given: the configuration file may be another for the next daemon."""
    command = [*python("cgstatfs"), "serve"]
    for option, value in (("--engine", arguments.engine), ("--root", arguments.root)):
        command += [option, value] if value else []
    if arguments.config:
        command += ["--config", os.path.abspath(arguments.config)]
    for options in arguments.options:
        command += ["-o", options]
    for directory in arguments.collectors:
        command += ["--collectors", os.path.abspath(directory)]
    return [*command, str(settings.mount_point)]


def _holder_command(
    arguments: argparse.Namespace, settings: Settings, runtime: Runtime, report: int | None
) -> list[str]:
    command = [
        *python("cgstatfs.holder"), "--lock", str(runtime.lock_descriptor),
        "--limit", str(settings.unserved_seconds), "--watchdog", str(settings.watchdog_seconds),
    ]  # fmt: skip
    if report is not None:
        command += ["--report", str(report)]
    return [*command, str(settings.mount_point), "--", *_daemon_command(arguments, settings)]


def _become_holder(arguments: argparse.Namespace, settings: Settings, runtime: Runtime) -> None:
    """Does not return. The holder is a program of its own, as it is to be small."""
    os.set_inheritable(runtime.lock_descriptor, True)
    command = _holder_command(arguments, settings, runtime, None)
    sys.stdout.flush()
    os.chdir("/")
    os.execve(command[0], command, environment())


def _mount_detached(arguments: argparse.Namespace, settings: Settings, runtime: Runtime) -> int:
    """Start the holder, and return when the mount answers."""
    reader, writer = os.pipe()
    with open(runtime.log, "ab", buffering=0) as output:
        subprocess.Popen(
            _holder_command(arguments, settings, runtime, writer), env=environment(), cwd="/",
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            pass_fds=(writer, runtime.lock_descriptor),
        )  # fmt: skip
    os.close(writer)
    runtime.unlock_here()
    with open(reader) as pipe:
        message = pipe.read()
    if not message.startswith("+"):
        raise _Failure(message.strip() or f"the holder ended without a word; see {runtime.log}")
    # Answered by the daemon, so that what follows this command finds it serving.
    os.stat(settings.mount_point)
    print(message[1:])
    return 0


def _mount(arguments: argparse.Namespace) -> int:
    _require_root()
    settings = _settings(arguments)
    _warn(settings)
    runtime = _prepare(settings)
    if arguments.foreground:
        _become_holder(arguments, settings, runtime)
    return _mount_detached(arguments, settings, runtime)


def _hold(arguments: argparse.Namespace) -> int:
    """For a service manager, which starts the daemons, too."""
    from .holder import Holder

    _require_root()
    settings = _settings(arguments)
    _warn(settings)
    _make_mount_point(settings.mount_point)
    runtime = _prepare(settings)
    # The daemon may write there alone; see systemd/cgstatfs.service.
    runtime.make_pins()
    holder = Holder(
        runtime, None, lambda *_: None, settings.unserved_seconds, settings.watchdog_seconds
    )
    journal.notify("READY=1")
    return holder.run()


def _make_mount_point(path: Path) -> None:
    """As systemd does for its mount units: nobody else is there to make it."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    # Not looked at where it is there: what is mounted may wait for us.
    with suppress(FileExistsError):
        path.mkdir(mode=0o755)


def _serve(arguments: argparse.Namespace) -> int:
    """The daemon."""
    from .daemon import run

    _require_root()
    settings = _settings(arguments)
    os.chdir("/")
    return run(settings, Runtime(settings.mount_point), lambda _: journal.notify("READY=1"))


# umount, restart


def _umount(arguments: argparse.Namespace) -> int:
    _require_root()
    path = _mount_point(arguments.mountpoint)
    runtime = Runtime(path)
    entry = mountpoint.mounted(path)
    ours = entry is not None and entry.type == mountpoint.TYPE
    state = runtime.read_state()
    if not ours and state is None and not runtime.pins.exists():
        raise _Failure(f"{path}: no cgstatfs is mounted there")
    if not ours and state and state.lives() and not state.connection:
        raise _Failure(_why_locked(runtime))
    if ours:
        if arguments.keep_counting:
            _tell_holder(runtime, {"keep": True})
        _unmount(runtime, arguments.lazy)
    if not runtime.lock(timeout=0 if arguments.lazy else 60):
        if arguments.lazy:
            return 0
        raise _Failure(_why_locked(runtime))
    # By the holder, unless it was killed, or there is no mount and what was kept is to go.
    runtime.remove(keep_counting=arguments.keep_counting)
    return 0


def _unmount(runtime: Runtime, lazy: bool) -> None:
    if runtime.lock():
        # Nobody answers any more; umount2() alone does not wait for that.
        _end_stale(runtime.mount_point)
        runtime.unlock_here()
        return
    try:
        mountpoint.unmount(runtime.mount_point, lazy=lazy)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        _tell_holder(runtime, {"keep": False})
        raise _Failure(f"{runtime.mount_point}: in use; --lazy unmounts it when it no longer is") from None


def _tell_holder(runtime: Runtime, message: dict[str, object]) -> None:
    channel = Channel.connect(runtime.holder_socket)
    channel.send(message)
    if channel.receive() is None:
        raise _Failure(f"{runtime.mount_point}: its holder does not answer")
    channel.close()


def _restart(arguments: argparse.Namespace) -> int:
    """End the daemon, and wait for another."""
    from .filesystem import ABOUT

    _require_root()
    runtime = _running(arguments)
    before = runtime.read_state()
    _tell_holder(runtime, {"restart": True})
    deadline = time.monotonic() + _RESTART_SECONDS
    while time.monotonic() < deadline:
        state = runtime.read_state()
        if state and before and state.served > before.served and state.connection and state.lives():
            # Answered when it serves: that is never in the kernel's cache.
            os.stat(runtime.mount_point / os.fsdecode(ABOUT))
            return 0
        time.sleep(0.05)
    raise _Failure(f"{runtime.mount_point}: no daemon has come; see {runtime.log}")


# load, unload, reload, adopt


def _running(arguments: argparse.Namespace) -> Runtime:
    """The mount to be changed: the one that is named, or the only one."""
    if arguments.mount:
        path = _mount_point(arguments.mount)
        runtime = Runtime(path)
        if not runtime.is_held():
            raise _Failure(f"{path}: no cgstatfs is mounted there")
        return runtime
    found = [runtime for runtime in Runtime.all() if runtime.is_held()]
    if len(found) != 1:
        points = ", ".join(str(r.mount_point) for r in found)
        raise _Failure(f"several are mounted: {points}; choose with --mount" if found else
                       "no cgstatfs is mounted; cgstatfs mount MOUNTPOINT")  # fmt: skip
    return found[0]


def _ask(arguments: argparse.Namespace, question: dict[str, object]) -> int:
    from . import control

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


def _status(arguments: argparse.Namespace) -> int:
    return _ask(arguments, {"do": "status"})


# new, build


def _new(arguments: argparse.Namespace) -> int:
    from . import authoring

    path = authoring.write_new(arguments.name, Path(), bcc=arguments.bcc)
    do = "load" if arguments.bcc else "build"
    print(f"{path}: written; next: cgstatfs {do} {path}")
    return 0


def _build(arguments: argparse.Namespace) -> int:
    from . import authoring, btf, inspection

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
    from . import inspection
    from .daemon import find_root

    _require_root()
    settings = _settings(arguments)
    if not inspection.check(settings, _collectors(settings)):
        raise _Failure("cannot be mounted on this machine, for what is said above")
    find_root(settings)
    return 0


def _list(_: argparse.Namespace) -> int:
    from . import inspection

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
        help=f"as for mount(8): {', '.join(_OPTIONS)}, collectors; what holds anyway is ignored",
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

    def mounting(name, function, help, example):
        sub = command(name, function, help, example)
        _add_settings(sub)
        return sub

    mount = mounting(
        "mount", _mount, "load the collectors and mount the file system",
        "cgstatfs mount --engine standalone --root /system.slice /cgstat",
    )  # fmt: skip
    mount.add_argument("--foreground", action="store_true", help="do not detach")
    mounting(
        "hold", _hold, "hold a mount for daemons that a service manager starts",
        "cgstatfs hold /cgstat",
    )  # fmt: skip
    mounting("serve", _serve, "serve a mount that is held", "cgstatfs serve /cgstat")

    umount = command(
        "umount", _umount, "unmount, and end the collectors", "cgstatfs umount /cgstat"
    )
    umount.add_argument("mountpoint", metavar="MOUNTPOINT")
    umount.add_argument("-l", "--lazy", action="store_true", help="also if it is in use")
    umount.add_argument(
        "--keep-counting", action="store_true",
        help="leave the collectors to the next mount, or to an umount without this",
    )  # fmt: skip

    def changing(name, function, help, example):
        sub = command(name, function, help, example)
        sub.add_argument("--mount", metavar="MOUNTPOINT", help="which one, if several are mounted")
        return sub

    changing("status", _status, "say how a running mount is", "cgstatfs status")
    changing("restart", _restart, "have another daemon serve a running mount", "cgstatfs restart")
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
    journal.set_up()
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
    except EXPECTED as error:
        return _fail(say(error))
    except KeyboardInterrupt:
        return _fail("interrupted")
