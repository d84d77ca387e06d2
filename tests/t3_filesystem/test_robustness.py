# SPDX-License-Identifier: GPL-2.0-only
"""No request, name, reader or exception takes the mount down."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from cgstatfs.runtime import Runtime

from ..conftest import REPOSITORY, Mounted, cgstatfs, times, wait_until

OPERATIONS = times(10_000)
KILLED_READERS = times(2_000)


def test_random_operations_of_an_unprivileged_user(
    mounted: Mounted, tree: Path, tmp_path: Path, alive: None
) -> None:
    (tree / "a/b").mkdir(parents=True)
    script = tmp_path / "random_operations.py"
    shutil.copy(Path(__file__).with_name("random_operations.py"), script)
    for directory in (tmp_path, *tmp_path.parents):
        if directory != Path("/tmp") and directory.is_relative_to("/tmp"):
            directory.chmod(0o755)
    seed = random.randrange(1 << 30)
    workers = [
        subprocess.Popen(
            ["/usr/bin/python3", script, str(seed + number), str(OPERATIONS // 2),
             mounted.of(tree)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            user=65534, group=65534, extra_groups=[],
        )
        for number in range(2)
    ]  # fmt: skip
    for worker in workers:
        out, errors = worker.communicate()
        assert worker.returncode == 0, f"seed {seed}: {errors}"
        assert out == f"{OPERATIONS // 2}\n"


def idle(pid: int) -> bool:
    """Whether a process waits in epoll_wait(2), and in nothing else."""
    text = Path(f"/proc/{pid}/syscall").read_text()
    return text != "running\n" and int(text.split()[0]) in (232, 281)


def opens(pid: int) -> bool:
    """Whether a process stays in openat(2)."""
    path = Path(f"/proc/{pid}/syscall")
    before = path.read_text()
    time.sleep(0.05)
    return before.split()[0] == "257" and path.read_text() == before


def test_readers_killed_at_any_moment(
    mounted: Mounted, tree: Path, work: Path, alive: None
) -> None:
    """Also between a request waking the daemon and the daemon reading it.

    The next request would set a daemon going that hangs there, so none is made: it has to
    come to rest by itself.
    """
    file = mounted.of(tree) / "proc.events"
    rng = random.Random(1)
    for _ in range(KILLED_READERS):
        reader = subprocess.Popen([work, "read", tree, str(file)], stdout=subprocess.PIPE)
        # It has begun.
        assert reader.stdout.read(1) == b"f"
        time.sleep(rng.random() / 500)
        reader.kill()
        reader.communicate()
        wait_until(lambda: idle(mounted.pid), "the daemon to come to rest", seconds=120)


def test_a_reader_killed_while_the_daemon_is_stopped(
    mounted: Mounted, tree: Path, work: Path, alive: None
) -> None:
    file = mounted.of(tree) / "proc.events"
    os.kill(mounted.pid, signal.SIGSTOP)
    try:
        reader = subprocess.Popen([work, "read", tree, str(file)], stdout=subprocess.DEVNULL)
        wait_until(lambda: opens(reader.pid), "the reader to wait for the daemon")
        reader.kill()
        reader.wait()
    finally:
        os.kill(mounted.pid, signal.SIGCONT)
    assert file.read_bytes().startswith(b"forks ")


@pytest.mark.on_host
def test_an_unexpected_exception_is_eio_and_no_more(
    engine_name: str, tmp_path: Path, cgroupfs: Path
) -> None:
    path = tmp_path / "mnt"
    path.mkdir()
    runtime = Runtime(path)
    broken = Path(__file__).with_name("broken")
    result = cgstatfs(
        "mount", "--engine", engine_name, path,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{broken}"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    try:
        for _ in range(3):
            with pytest.raises(OSError) as error:
                (path / "mm.reclaim").read_bytes()
            assert error.value.errno == errno.EIO
            assert (path / "proc.events").read_text().startswith("forks ")
        assert "ZeroDivisionError" in runtime.log.read_text()
    finally:
        assert cgstatfs("umount", path).returncode == 0
        runtime.log.unlink()
