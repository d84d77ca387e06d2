# SPDX-License-Identifier: GPL-2.0-only
"""Ways to mount that a booted machine is not needed for: the mount helper, the pair that a service
manager starts, and the script and the supervisor's line in docs/operators.md, as they are there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cgstatfs import mountpoint as mounting
from cgstatfs.available import SHIPPED
from cgstatfs.runtime import Runtime

from ..conftest import REPOSITORY, wait_until
from ..documents import DOCS, sections
from .test_program import check_ended, kill, mountpoint  # noqa: F401


@pytest.fixture
def command(tmp_path: Path) -> dict[str, str]:
    """An environment that has the command."""
    path = tmp_path / "bin" / "cgstatfs"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -m cgstatfs "$@"\n')
    path.chmod(0o755)
    return os.environ | {
        "PATH": f"{path.parent}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY),
    }  # fmt: skip


def documented(language: str, mountpoint: Path, directory: Path) -> Path:  # noqa: F811
    (text,) = (block for section in sections(DOCS / "operators.md") for block in section.blocks(language))
    path = directory / language
    path.write_text(text.replace("/cgstat", str(mountpoint)))
    path.chmod(0o755)
    return path


def answers(mountpoint: Path) -> bool:  # noqa: F811
    return (mountpoint / "proc.events").read_text().startswith("forks ")


def test_the_script(mountpoint: Path, tmp_path: Path, command: dict[str, str]) -> None:  # noqa: F811
    script = documented("sh", mountpoint, tmp_path)

    def run(word: str) -> None:
        subprocess.run([script, word], env=command, check=True, timeout=600)

    run("start")
    first = Runtime(mountpoint).read_state().pid
    run("restart")
    assert answers(mountpoint) and Runtime(mountpoint).read_state().pid != first
    with open(mountpoint / "proc.events"):
        run("stop")
        assert not mounting.mounted(mountpoint)
    # But for the log, which has the restart in it.
    wait_until(lambda: not Runtime(mountpoint).pins.exists(), "the collectors to end")


def test_the_line_of_a_supervisor(
    mountpoint: Path, tmp_path: Path, command: dict[str, str]  # noqa: F811
) -> None:
    """What was killed, with its daemon, is started again, and cleared away."""
    line = documented("run", mountpoint, tmp_path)

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen([line], env=command, stdout=subprocess.PIPE, text=True)
        assert "mounted, engine" in process.stdout.readline()
        return process

    with start() as process:
        assert answers(mountpoint)
        kill(mountpoint)
    assert process.returncode == -signal.SIGKILL
    with start() as process:
        assert answers(mountpoint)
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 0
    check_ended(mountpoint)


def test_the_mount_helper(mountpoint: Path, command: dict[str, str]) -> None:  # noqa: F811
    """As mount(8) calls it for a line of fstab(5) with "defaults"."""

    def helper(options: str) -> tuple[int, str]:
        done = subprocess.run(
            ["sh", REPOSITORY / "systemd" / "mount.fuse.cgstatfs", "cgstatfs", mountpoint, "-o", options],
            env=command, text=True, capture_output=True, timeout=600,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    status, said = helper("rw,no-such-option")
    assert status == 32 and 'unknown mount option "no-such-option"' in said
    assert helper("rw,suid,dev,exec,auto,nouser,async,allow_other,nofail") == (0, "")
    assert answers(mountpoint)
    served = Runtime(mountpoint).read_state()
    assert helper("rw,allow_other") == (0, "")
    assert Runtime(mountpoint).read_state() == served
    status, said = helper("rw,remount")
    assert status == 32 and "nothing of it can be changed while it is mounted" in said
    # umount(8) does not wait for the daemon's end, however slow that is.
    os.kill(served.holder, signal.SIGSTOP)
    later = threading.Timer(2, os.kill, (served.holder, signal.SIGCONT))
    later.start()
    subprocess.run(["umount", mountpoint], check=True)
    assert helper("rw,allow_other") == (0, "")
    later.join()
    assert answers(mountpoint) and Runtime(mountpoint).read_state().pid != served.pid


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    return tmp_path / "cgstatfs.toml"


@pytest.fixture
def start(
    mountpoint: Path, settings: Path  # noqa: F811
) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts what a service manager does: hold, or serve."""
    with ExitStack() as processes:

        def run(word: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-m", "cgstatfs", word, "--config", settings, mountpoint],
                cwd=REPOSITORY, text=True, stderr=subprocess.PIPE,
            )  # fmt: skip
            processes.callback(process.wait)
            processes.callback(process.kill)
            return process

        yield run


def test_what_a_service_manager_starts(
    mountpoint: Path, settings: Path, start: Callable[[str], subprocess.Popen[str]]  # noqa: F811
) -> None:
    """By the daemon's exit status it can tell whether there is to be another."""
    settings.write_text("[collectors]\n" + "".join(f"{name} = false\n" for name in SHIPPED))
    mountpoint.rmdir()
    holder = start("hold")
    wait_until(lambda: Runtime(mountpoint).is_held(), "the holder")
    # There is nothing to mount.
    daemon = start("serve")
    assert "no collector can be used: all are turned off" in daemon.communicate(timeout=600)[1]
    assert daemon.returncode == 3
    settings.write_text("")
    for number in (signal.SIGTERM, signal.SIGKILL):
        daemon = start("serve")
        wait_until(lambda: _serves(mountpoint, daemon), "it to serve")
        assert answers(mountpoint)
        daemon.send_signal(number)
        daemon.communicate(timeout=600)
        # Another may come.
        assert daemon.returncode == {signal.SIGTERM: 0, signal.SIGKILL: -signal.SIGKILL}[number]
    daemon = start("serve")
    assert answers(mountpoint)
    mounting.unmount(mountpoint)
    assert daemon.communicate(timeout=600)[1] == "" and daemon.returncode == 4
    holder.communicate(timeout=600)
    assert holder.returncode == 0
    check_ended(mountpoint)


def _serves(mountpoint: Path, daemon: subprocess.Popen[str]) -> bool:  # noqa: F811
    state = Runtime(mountpoint).read_state()
    return bool(state and state.pid == daemon.pid and state.connection)
