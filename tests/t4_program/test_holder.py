# SPDX-License-Identifier: GPL-2.0-only
"""What the holder does when daemons do not come, do not fit, or are not wanted any more."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cgstatfs import mountpoint as mounting
from cgstatfs.privileges import SERVING
from cgstatfs.runtime import RUN, Runtime, State

from ..conftest import REPOSITORY, cgstatfs, wait_until, without_daemon
from .test_program import check_ended, fails, holder, kill, mount, mountpoint  # noqa: F401

# Above it, as far as these tests see, nobody is waited for.
LONG = 30


def state(mountpoint: Path) -> State:  # noqa: F811
    found = Runtime(mountpoint).read_state()
    assert found
    return found


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """A configuration file; no daemon starts while it is wrong."""
    file = tmp_path / "cgstatfs.toml"
    file.write_text("")
    return file


def waits(*command: str | Path) -> subprocess.Popen[str]:
    """A command that cannot end just now."""
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(1)
    assert process.poll() is None, process.communicate()
    return process


def test_who_waits_is_served_by_the_next(mountpoint: Path, settings: Path) -> None:  # noqa: F811
    mount("--config", settings, "-o", "unserved-seconds=3600", mountpoint)
    with without_daemon(mountpoint, settings):
        waiting = [
            waits("cat", mountpoint / "proc.events"), waits("ls", mountpoint), waits("df", mountpoint),
        ]  # fmt: skip
        # Whoever is killed does not wait.
        killed = waits("cat", mountpoint / "mm.reclaim")
        killed.kill()
        assert killed.wait(timeout=LONG) == -signal.SIGKILL
    for process in waiting:
        _, wrong = process.communicate(timeout=600)
        assert process.returncode == 0, wrong
    assert state(mountpoint).served > 1


def test_umount_without_a_daemon(mountpoint: Path, settings: Path) -> None:  # noqa: F811
    mount("--config", settings, "-o", "unserved-seconds=3600", mountpoint)
    with without_daemon(mountpoint, settings):
        # umount(8) may look at the mount first, and then waits; the system call does not.
        assert cgstatfs("umount", mountpoint).returncode == 0
    assert not mounting.mounted(mountpoint)
    assert not Runtime(mountpoint).pins.exists()


@pytest.mark.parametrize("loop", [False, True], ids=["no daemon", "a restart loop"])
def test_a_mount_that_nobody_serves_is_given_up(
    mountpoint: Path, settings: Path, loop: bool  # noqa: F811
) -> None:
    """Not served at all, or again and again for a moment."""
    mount("--config", settings, "-o", "unserved-seconds=3", mountpoint)
    runtime = Runtime(mountpoint)
    if loop:
        while runtime.is_held():
            found = runtime.read_state()
            if found and found.lives():
                os.kill(found.pid, signal.SIGKILL)
            time.sleep(0.05)
    else:
        with without_daemon(mountpoint, settings):
            process = waits("cat", mountpoint / "proc.events")
            _, wrong = process.communicate(timeout=600)
            assert process.returncode == 1 and os.strerror(errno.ECONNABORTED) in wrong
            wait_until(lambda: not runtime.is_held(), "the holder to give up")
    assert not mounting.mounted(mountpoint)
    wait_until(lambda: not runtime.pins.exists(), "the collectors to end")
    assert os.listdir(mountpoint) == []
    assert "3 s without a daemon: giving up the mount" in runtime.log.read_text()


def serve(mountpoint: Path, package: Path = REPOSITORY) -> subprocess.Popen[str]:  # noqa: F811
    """Start another daemon of a mount."""
    return subprocess.Popen(
        [sys.executable, "-m", "cgstatfs", "serve", mountpoint], cwd=package, text=True,
        env={**os.environ, "PYTHONPATH": str(package)}, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_a_second_daemon_waits_for_the_first_to_end(mountpoint: Path) -> None:  # noqa: F811
    first = mount(mountpoint)
    second = serve(mountpoint)
    try:
        time.sleep(3)
        assert second.poll() is None and state(mountpoint).pid == first
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: state(mountpoint).pid == second.pid, "the second to serve")
        assert (mountpoint / "proc.events").read_text().startswith("forks ")
    finally:
        second.kill()
        second.communicate()


@pytest.mark.parametrize(
    "file, ours, theirs, why",
    [
        ("filesystem.py", "writeback_cache = False", "writeback_cache = True",
         "needs of the connection flags 0x"),
        ("channel.py", "PROTOCOL = 1\n", "PROTOCOL = 2\n",
         "speaks protocol 2, and the holder (pid {holder}), which is of the version that mounted, "
         "speaks 1"),
    ],
    ids=["FUSE", "the holder"],
)  # fmt: skip
def test_a_version_that_does_not_fit(
    mountpoint: Path, tmp_path: Path, file: str, ours: str, theirs: str, why: str  # noqa: F811
) -> None:
    """It refuses to serve what another one negotiated, and the one that fits goes on."""
    first = mount("-o", "unserved-seconds=3600", mountpoint)
    shutil.copytree(REPOSITORY / "cgstatfs", tmp_path / "other" / "cgstatfs")
    source = tmp_path / "other" / "cgstatfs" / file
    text = source.read_text()
    assert text.count(ours) == 1
    source.write_text(text.replace(ours, theirs))
    before = state(mountpoint)
    other = serve(mountpoint, tmp_path / "other")
    time.sleep(2)
    os.kill(first, signal.SIGKILL)
    _, wrong = other.communicate(timeout=600)
    assert other.returncode == 1
    why = why.format(holder=holder(mountpoint))
    assert why in wrong and "; to run it, unmount and mount anew" in wrong
    assert "Traceback" not in wrong
    assert (mountpoint / "proc.events").read_text().startswith("forks ")
    # Those who may look at the log alone find it there, and what was written for the next is as
    # it was: of the one that fits.
    wait_until(lambda: state(mountpoint).served > before.served, "the one that fits")
    assert why in Runtime(mountpoint).log.read_text()
    assert state(mountpoint).loaded == before.loaded


def test_what_a_later_version_wrote_of_itself(mountpoint: Path) -> None:  # noqa: F811
    """Going back to an earlier version loses nothing that it knows of."""
    mount("-o", "unserved-seconds=3600", mountpoint)
    assert cgstatfs("unload", "--mount", mountpoint, "mm_reclaim").returncode == 0
    before = state(mountpoint)
    path = RUN / f"{Runtime(mountpoint).name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"since": 2}))
    os.kill(before.pid, signal.SIGKILL)
    wait_until(lambda: state(mountpoint).served > before.served, "the next daemon")
    os.stat(mountpoint / "proc.events")
    assert not (mountpoint / "mm.reclaim").exists()
    assert state(mountpoint).connection == before.connection


def test_counting_goes_on_between_mounts(
    mountpoint: Path, tree: Path, cgroupfs: Path, work: Path  # noqa: F811
) -> None:
    mount(mountpoint)
    assert cgstatfs("umount", "--keep-counting", mountpoint).returncode == 0
    assert not mounting.mounted(mountpoint)
    listed = cgstatfs("list").stdout
    assert f"{mountpoint}: engine " in listed and "not mounted, but counting" in listed
    subprocess.run([work, "fork", tree, "4"], check=True)
    mount(mountpoint)
    path = mountpoint / tree.relative_to(cgroupfs) / "proc.events"
    assert path.read_text().startswith("forks 4\n")
    assert cgstatfs("umount", "--keep-counting", mountpoint).returncode == 0
    assert Runtime(mountpoint).pins.exists()
    assert cgstatfs("umount", mountpoint).returncode == 0
    check_ended(mountpoint)
    assert "no cgstatfs is mounted there" in fails("umount", mountpoint)


def test_a_busy_umount_changes_nothing(mountpoint: Path) -> None:  # noqa: F811
    pid = mount(mountpoint)
    with open(mountpoint / "proc.events"):
        assert "in use" in fails("umount", "--keep-counting", mountpoint)
    assert state(mountpoint).pid == pid
    # What the refused one asked for does not hold any more, whoever unmounts.
    subprocess.run(["umount", mountpoint], check=True)
    check_ended(mountpoint)


def test_a_daemon_without_its_holder_ends_with_the_mount(mountpoint: Path) -> None:  # noqa: F811
    pid = mount(mountpoint)
    os.kill(holder(mountpoint), signal.SIGKILL)
    wait_until(lambda: "the holder has gone" in Runtime(mountpoint).log.read_text(), "the log")
    assert (mountpoint / "proc.events").read_text().startswith("forks ")
    assert "is mounted there" in fails("mount", mountpoint)
    subprocess.run(["umount", mountpoint], check=True)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the daemon to end")
    assert not Runtime(mountpoint).pins.exists()


def test_collectors_that_were_changed_while_it_was_served(
    mountpoint: Path, tree: Path, cgroupfs: Path, work: Path  # noqa: F811
) -> None:
    """What was unloaded stays so, and what was loaded goes on, whoever serves."""
    mount(mountpoint)
    path = mountpoint / tree.relative_to(cgroupfs) / "proc.events"
    subprocess.run([work, "fork", tree, "3"], check=True)
    assert cgstatfs("unload", "--mount", mountpoint, "sched_runqlat").returncode == 0
    assert cgstatfs("restart", "--mount", mountpoint).returncode == 0
    assert not (mountpoint / "sched.runqlat").exists()
    subprocess.run([work, "fork", tree, "2"], check=True)
    assert path.read_text().startswith("forks 5\n")


def test_it_keeps_the_capabilities_that_it_needs(mountpoint: Path) -> None:  # noqa: F811
    pid = mount(mountpoint)
    (teller,) = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    serving = sum(1 << capability for capability in SERVING)
    for process, wanted in ((pid, serving), (teller, 0)):
        status = Path(f"/proc/{process}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in status.splitlines())
        for name in ("CapPrm", "CapEff", "CapBnd"):
            assert int(fields[name], 16) == wanted, name
        assert int(fields["CapInh"], 16) == int(fields["CapAmb"], 16) == 0
        assert fields["NoNewPrivs"] == "1"


def test_a_foreign_user_cannot_reach_the_holder(mountpoint: Path) -> None:  # noqa: F811
    mount(mountpoint)
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c",
         "import socket, sys\n"
         "socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect(sys.argv[1])",
         Runtime(mountpoint).holder_socket],
        capture_output=True, text=True,
    )  # fmt: skip
    assert "PermissionError" in done.stderr
    assert (mountpoint / "proc.events").read_text()


def test_a_killed_pair_is_cleared_away_by_the_next_mount(mountpoint: Path) -> None:  # noqa: F811
    mount(mountpoint)
    kill(mountpoint)
    assert mount(mountpoint)
    assert state(mountpoint).served == 1
