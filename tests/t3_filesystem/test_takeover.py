# SPDX-License-Identifier: GPL-2.0-only
"""The mount outlives its daemons: killed, hanging and replaced, under a load that checks all."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from cgstatfs.runtime import Runtime

from ..conftest import REPOSITORY, SCALE, Mounted, cgstatfs, times, wait_until
from .hammer import _forks

KINDS = ("writer", "writer", "whole", "whole", "held", "pieces", "cgroups")
# Guests are slow to start a daemon: of several that run, each takes a minute.
WATCHDOG = 3
KILLS = times(20) if SCALE >= 1 else 1


@contextmanager
def mounted_anew(
    engine: str, cgroupfs: Path, path: Path, *options: str | Path,
    command: Callable[..., subprocess.CompletedProcess[str]] = cgstatfs,
) -> Iterator[Mounted]:  # fmt: skip
    """A mount of the test's own, whose daemons it may kill; nothing of it is left.

    :param command: the ``cgstatfs`` that mounts and unmounts
    """
    path.mkdir(exist_ok=True)
    # On a loaded machine more time may pass without a daemon than with one.
    options = options or ("-o", "unserved-seconds=3600")
    done = command("mount", "--engine", engine, *options, path)
    assert done.returncode == 0, done.stderr
    runtime = Runtime(path)
    try:
        yield Mounted(path, cgroupfs, engine)
    finally:
        done = command("umount", "-l", path)
        wait_until(lambda: not runtime.pins.exists(), "the holder to end")
        # An empty one the holder removes, a little later than the pins.
        with suppress(FileNotFoundError):
            print(runtime.log.read_text())
        runtime.log.unlink(missing_ok=True)
    assert done.returncode == 0, done.stderr


def daemon(mount: Mounted) -> int:
    """The pid of who serves now."""
    state = mount.runtime.read_state()
    return state.pid


def served(mount: Mounted) -> int:
    state = mount.runtime.read_state()
    return state.served if state else 0


def wait_for_next(mount: Mounted, before: int) -> None:
    def has_come() -> bool:
        assert mount.runtime.holder_socket.exists(), mount.log()
        return served(mount) > before

    wait_until(has_come, "another daemon to serve")
    os.stat(mount.path / "proc.events")


# Other mounts would live on in there when they are unmounted elsewhere.
_BIND = """
mount --bind "$1" "$2" || exit
for each in $(findmnt -r -n -t fuse.cgstatfs -o TARGET); do
    [ "$each" = "$2" ] || umount -l "$each"
done
shift 2
exec "$@"
"""


@contextmanager
def hammered(mount: Mounted, tree: Path, tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Load at a mount; at its end, everything that was counted and checked is exact.

    Gives a function that fails if any of the load has ended.
    """
    directory, parts = mount.of(tree), []
    with ExitStack() as stack:
        truths = []
        for number, kind in enumerate(KINDS):
            if kind == "writer":
                truths.append(tmp_path / f"truth{number}")
                truths[-1].write_bytes(bytes(16))
                (tree / f"w{number}").mkdir()
        for number, kind in enumerate((*KINDS, "whole")):
            at = number % len(truths)
            shown = directory / f"w{at}"
            command = [
                sys.executable, "-m", "tests.t3_filesystem.hammer", kind, str(shown),
                str(tree / f"w{at}"), str(truths[at]),
            ]  # fmt: skip
            if number == len(KINDS):
                # In a mount namespace of its own, by a bind mount that was made before.
                there = tmp_path / "bound"
                there.mkdir()
                command[4] = str(there)
                command = ["unshare", "-m", "sh", "-c", _BIND, "sh", shown, there, *command]
            part = subprocess.Popen(
                command, cwd=REPOSITORY, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
            stack.callback(part.kill)
            parts.append(part)
            assert part.stdout.readline() == "begun\n", part.stderr.read()

        def check() -> None:
            for part in parts:
                assert part.poll() is None, part.stderr.read()

        yield check
        done: Counter[str] = Counter()
        for part in parts:
            said, wrong = part.communicate("\n")
            assert part.returncode == 0, wrong
            done.update(json.loads(said))
        print(dict(done))
        total = 0
        for number, truth in enumerate(truths):
            count = int.from_bytes(truth.read_bytes()[:8], sys.byteorder)
            assert _forks((directory / f"w{number}/proc.events").read_bytes()) == count
            total += count
        assert _forks((directory / "proc.events").read_bytes()) == total
        assert min(done["forks"], done["texts"], done["cgroups"]) > 0, done


@pytest.mark.log("the daemon (pid")
def test_killed_at_any_moment(
    engine_name: str, cgroupfs: Path, tree: Path, tmp_path: Path
) -> None:
    with (
        mounted_anew(engine_name, cgroupfs, tmp_path / "mnt") as mount,
        hammered(mount, tree, tmp_path) as check,
    ):
        for _ in range(KILLS):
            before = served(mount)
            time.sleep(random.random() / 2)
            os.kill(daemon(mount), signal.SIGKILL)
            wait_for_next(mount, before)
            check()


@pytest.mark.on_host
def test_stopped_or_hanging(
    engine_name: str, cgroupfs: Path, tree: Path, tmp_path: Path
) -> None:
    """A daemon that does not get on is killed, and another comes; who waits does not hang."""
    with (
        mounted_anew(
            engine_name, cgroupfs, tmp_path / "mnt", "-o", f"unserved-seconds=3600,watchdog-seconds={WATCHDOG}"
        ) as mount,
        hammered(mount, tree, tmp_path) as check,
    ):
        for _ in range(times(5)):
            before = served(mount)
            os.kill(daemon(mount), signal.SIGSTOP)
            wait_for_next(mount, before)
            check()


@pytest.mark.on_host
def test_restarted(engine_name: str, cgroupfs: Path, tree: Path, tmp_path: Path) -> None:
    with (
        mounted_anew(engine_name, cgroupfs, tmp_path / "mnt") as mount,
        hammered(mount, tree, tmp_path) as check,
    ):
        for _ in range(times(5)):
            before = served(mount)
            done = cgstatfs("restart", "--mount", mount.path)
            assert done.returncode == 0, done.stderr
            assert served(mount) > before
            check()
