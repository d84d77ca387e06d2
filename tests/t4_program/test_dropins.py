# SPDX-License-Identifier: GPL-2.0-only
"""Directories of collectors: what is dropped in, changed and removed there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cgstatfs.objects import object_path
from cgstatfs.runtime import RUN, Runtime

from ..conftest import BUILD, cgstatfs, wait_until
from .test_program import fails, mount, mountpoint  # noqa: F401

CALLS, PROPERTIES = (BUILD / "tests" / f"{name}.bpf.o" for name in ("calls", "properties"))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "collectors.d"
    path.mkdir()
    return path


@pytest.fixture
def mounted(mountpoint: Path, directory: Path) -> Iterator[Path]:  # noqa: F811
    """A mount with drop-ins from *directory*; nothing is in there yet."""
    mount("--collectors", directory, mountpoint)
    yield mountpoint


def names(path: Path) -> set[str]:
    return {name for name in os.listdir(path) if name.startswith("test.")}


def ok(*arguments: str | Path) -> str:
    result = cgstatfs(*arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def on(mounted: Path, command: str, *arguments: str | Path) -> str:
    """A command for this mount; there may be others on the machine."""
    return ok(command, "--mount", mounted, *arguments)


def refused(mounted: Path, command: str, *arguments: str | Path) -> str:
    return fails(command, "--mount", mounted, *arguments)


def test_what_is_there_at_the_start(mountpoint: Path, directory: Path) -> None:  # noqa: F811
    shutil.copy(CALLS, directory / "mine.bpf.o")
    (directory / "README").write_text("no collector")
    (directory / "mine.bpf.c").write_text("no collector either")
    mount("--collectors", directory, mountpoint)
    assert names(mountpoint) == {"test.calls"}
    assert "collector mine" in ok("list")
    # As is what comes with the package.
    assert (mountpoint / "proc.events").exists()


def test_a_drop_in_goes_before_what_comes_with_the_package(
    mountpoint: Path, directory: Path  # noqa: F811
) -> None:
    shutil.copy(CALLS, directory / "mm_reclaim.bpf.o")
    mount("-o", f"collectors={directory}", mountpoint)
    assert names(mountpoint) == {"test.calls"}
    assert not (mountpoint / "mm.reclaim").exists()


def test_no_such_directory(mountpoint: Path, tmp_path: Path) -> None:  # noqa: F811
    assert "no such directory" in fails("mount", "--collectors", tmp_path / "absent", mountpoint)


def test_reload(mounted: Path, directory: Path) -> None:
    shutil.copy(CALLS, directory / "one.bpf.o")
    shutil.copy(PROPERTIES, directory / "two.bpf.o")
    text = on(mounted, "reload")
    assert "one: loaded; test.calls\n" in text
    assert names(mounted) == {"test.calls", "test.kinds", "test.shared", "test.own"}
    assert on(mounted, "reload") == "nothing has changed\n"
    (directory / "two.bpf.o").unlink()
    # A file that is replaced in one step, as packages do it.
    shutil.copy(BUILD / "tests" / "few.bpf.o", directory / "new")
    (directory / "new").rename(directory / "one.bpf.o")
    text = on(mounted, "reload")
    assert "two: unloaded" in text and "one: loaded" in text
    assert names(mounted) == {"test.calls"}
    # What was unloaded by hand is loaded again, being there.
    on(mounted, "unload", "one")
    assert names(mounted) == set()
    on(mounted, "reload")
    assert names(mounted) == {"test.calls"}


def test_what_runs_is_replaced_only_when_asked_for(
    mountpoint: Path, directory: Path, tree: Path, cgroupfs: Path, work: Path  # noqa: F811
) -> None:
    """By a reload, or where a mount begins; and not by a daemon that comes in between.

    While one collector replaces another nobody counts, and counting is to go on when a daemon
    is killed, or upgraded.
    """
    file = directory / "proc_events.bpf.o"
    shutil.copy(object_path("proc_events"), file)
    mount("--collectors", directory, mountpoint)
    loaded = []

    def check(count: int) -> str:
        subprocess.run([work, "fork", tree, "3"], check=True)
        text = (mountpoint / tree.relative_to(cgroupfs) / "proc.events").read_text()
        assert text.startswith(f"forks {count}\n")
        loaded.append(Runtime(mountpoint).read_state().loaded["proc_events"]["digest"])
        return ok("list")

    def change() -> None:
        """Into another file of the same meaning: what follows its sections means nothing."""
        file.write_bytes(file.read_bytes() + b"\n")

    assert "its file has changed" not in check(3)
    change()
    on(mountpoint, "restart")
    assert "note: its file has changed since it was loaded; cgstatfs reload --keep" in check(6)
    on(mountpoint, "restart")
    assert check(9).count("its file has changed") == 1
    assert "proc_events: loaded" in on(mountpoint, "reload", "--keep")
    assert "its file has changed" not in check(12)
    change()
    ok("umount", "--keep-counting", mountpoint)
    mount("--collectors", directory, mountpoint)
    assert "its file has changed" not in check(15)
    first, same, again, reloaded, anew = loaded
    assert first == same == again and len({first, reloaded, anew}) == 3
    # What was changed and then put back is as it was.
    change()
    on(mountpoint, "restart")
    assert "its file has changed" in check(18)
    file.write_bytes(file.read_bytes()[:-1])
    on(mountpoint, "restart")
    assert "its file has changed" not in check(21)


def test_sighup_reloads(mounted: Path, directory: Path) -> None:
    pid = Runtime(mounted).read_state().pid
    shutil.copy(CALLS, directory / "one.bpf.o")
    os.kill(pid, signal.SIGHUP)
    wait_until(lambda: names(mounted) == {"test.calls"}, "the drop-in to be loaded", seconds=120)
    (directory / "one.bpf.o").unlink()
    (directory / "bad.bpf.o").write_text("bad")
    os.kill(pid, signal.SIGHUP)
    wait_until(lambda: names(mounted) == set(), "the drop-in to be unloaded", seconds=120)
    wait_until(lambda: "bad.bpf.o" in ok("list"), "the bad one to be listed", seconds=120)
    assert (mounted / "proc.events").read_text()


def test_what_fails_goes_on_as_it_was(mounted: Path, directory: Path) -> None:
    shutil.copy(CALLS, directory / "one.bpf.o")
    on(mounted, "reload")
    (directory / "one.bpf.o").write_bytes(CALLS.read_bytes()[:3000])
    result = cgstatfs("reload", "--mount", mounted)
    assert result.returncode == 1 and "one.bpf.o: cannot be read" in result.stderr
    assert names(mounted) == {"test.calls"}
    assert "collector one: failed: " in ok("list")
    shutil.copy(CALLS, directory / "one.bpf.o")
    on(mounted, "reload")
    assert "failed" not in ok("list")


def test_what_is_loaded_by_hand_stays(mounted: Path, directory: Path) -> None:
    assert on(mounted, "load", CALLS) == "calls: loaded; test.calls\n"
    on(mounted, "reload")
    assert names(mounted) == {"test.calls"}
    assert "taken, by collector calls" in refused(mounted, "load", BUILD / "tests" / "few.bpf.o")
    assert names(mounted) == {"test.calls"}
    on(mounted, "unload", "calls")
    assert names(mounted) == set()
    assert "there are: mm_reclaim, proc_events, sched_runqlat" in refused(mounted, "unload", "calls")


def test_others_files_are_refused(mounted: Path, directory: Path) -> None:
    path = directory / "one.bpf.o"
    shutil.copy(CALLS, path)
    for mode, owner, why in (
        (0o664, 0, "others than root can write to it"),
        (0o646, 0, "others than root can write to it"),
        (0o644, 65534, "is owned by user 65534, and not by root"),
    ):
        path.chmod(mode)
        os.chown(path, owner, 0)
        assert why in refused(mounted, "load", path)
        # Nor is it tried.
        assert f"collector one: cannot be used: {path}: {why}" in ok("check", "--collectors", directory)
    path.chmod(0o644)
    os.chown(path, 0, 0)
    link = directory.parent / "link.bpf.o"
    link.symlink_to(path)
    for place in (path, link):
        directory.chmod(0o775)
        assert f"is in {directory}, to which others than root can write" in refused(mounted, "load", place)
        directory.chmod(0o755)
        os.chown(directory, 65534, 0)
        assert f"is in {directory}, which is owned by user 65534" in refused(mounted, "load", place)
        assert "one: cannot be used" in ok("check", "--collectors", directory)
        os.chown(directory, 0, 0)
    assert names(mounted) == set()
    on(mounted, "load", link)


def test_what_would_wait_for_the_mount_itself(mounted: Path, directory: Path) -> None:
    """Or for anybody: the mount goes on answering, and so do commands."""
    assert "No such file" in refused(mounted, "adopt", "x", mounted / "absent")
    assert "no such cgroup" in refused(mounted, "load", "--initial", f"/../../..{mounted}/absent", CALLS)
    shutil.copy(CALLS, directory / "one.bpf.o")
    on(mounted, "reload")
    (directory / "one.bpf.o").unlink()
    os.mkfifo(directory / "one.bpf.o")
    assert "one.bpf.o: is not a regular file" in refused(mounted, "reload")
    assert names(mounted) == {"test.calls"}
    assert (mounted / "proc.events").read_text()


def test_what_is_adopted_is_others(mounted: Path) -> None:
    own = Runtime(mounted).pins / "proc_events/maps/events_entries"
    assert own.exists()
    assert "is a part of a collector of cgstatfs" in refused(mounted, "adopt", "mine", own)


def test_wrong_commands(mounted: Path, directory: Path) -> None:
    assert "has to end in .bpf.o or .bcc.c" in refused(mounted, "load", "/etc/passwd")
    assert "No such file" in refused(mounted, "load", "/no/such.bpf.o")
    assert "takes /CGROUP" in refused(mounted, "load", "--initial", "x", CALLS)
    assert "no stats map" in refused(mounted, "load", "--initial", "x.y=/", CALLS)
    assert "no cgstatfs is mounted there" in refused(directory, "load", CALLS)
    for command in ("load", "unload", "reload", "adopt"):
        assert f"example:\n  cgstatfs {command}" in ok(command, "--help")


def test_several_mounts(mounted: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.mkdir()
    mount(second)
    try:
        message = fails("load", CALLS)
        assert "several are mounted" in message and str(second) in message
        on(second, "load", CALLS)
        assert names(second) == {"test.calls"}
        assert names(mounted) == set()
    finally:
        ok("umount", second)
    assert "no cgstatfs is mounted there" in refused(second, "load", CALLS)


def test_the_socket_is_roots_and_bears_anything(mounted: Path) -> None:
    path = Runtime(mounted).socket
    assert path.stat().st_mode & 0o777 == 0o600
    for question in (b"", b"\n", b"nonsense\n", b"[]\n", b"{}\n", b'{"do": "load"}\n',
                     b'{"do": "load", "path": 7, "initials": {}, "keep": false}\n',
                     b'{"do": "load", "path": "/x", "initials": [], "keep": false}\n',
                     b'{"do": "load", "path": "/x", "initials": {"": "/a\\u0000"}, "keep": false}\n',
                     b"[" * 60_000 + b"\n", b'{"do": "unload", "name": {}}\n', b'{"do": "adopt"}\n', b"x" * 100_000 + b"\n"):  # fmt: skip
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            try:
                connection.sendall(question)
                connection.shutdown(socket.SHUT_WR)
                answer = connection.makefile().readline()
            except (BrokenPipeError, ConnectionResetError):
                continue  # More than it wants to read.
            assert "error" in json.loads(answer), question
    assert "Traceback" not in Runtime(mounted).log.read_text()
    assert (mounted / "proc.events").read_text()


def test_nothing_is_left(mounted: Path, directory: Path) -> None:
    on(mounted, "load", CALLS)
    ok("umount", mounted)
    assert not list(RUN.glob(f"{Runtime(mounted).name}.*"))
