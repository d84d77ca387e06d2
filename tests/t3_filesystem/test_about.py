# SPDX-License-Identifier: GPL-2.0-only
"""What the file system says of itself, in .cgstatfs."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from cgstatfs import __version__

from ..conftest import Mounted, cgstatfs, wait_until

ONE_ENGINE = True
HEALTH = [
    "updates_lost", "updates_displaced", "runs_skipped", "entries", "memory", "lookups", "maps",
    "failed_collectors", "restarts", "limits_hit", "errors", "last_error",
]  # fmt: skip
MAPS = ["mm.reclaim", "proc.events", "sched.runqlat"]


def flat(path: Path) -> dict[str, str]:
    return dict(line.split(" ", 1) for line in path.read_text().splitlines())


def test_it_is_there_for_who_asks_for_it(mounted: Mounted) -> None:
    about = mounted.path / ".cgstatfs"
    assert ".cgstatfs" not in os.listdir(mounted.path)
    assert sorted(os.listdir(about)) == sorted(["engine", "health", "version", *MAPS])
    assert (about / "version").read_text() == f"{__version__}\n"
    assert (about / "engine").read_text() == f"{mounted.engine}\n"
    assert list(flat(about / "health")) == HEALTH
    for name in os.listdir(about):
        status = (about / name).stat()
        assert status.st_mode == 0o100444 and status.st_uid == 0
        assert status.st_ino != (mounted.path / "proc.events").stat().st_ino
    assert about.stat().st_mode == 0o040555
    found = subprocess.run(["find", about], text=True, capture_output=True, check=True)
    assert len(found.stdout.splitlines()) == 7


def test_find_and_grep_do_not_fall_into_it(mounted: Mounted) -> None:
    found = subprocess.run(["find", mounted.path], text=True, capture_output=True, check=True)
    assert ".cgstatfs" not in found.stdout


def test_nothing_else_is_in_it(mounted: Mounted, tree: Path) -> None:
    about = mounted.path / ".cgstatfs"
    for path in (about / "none", about / "..", mounted.of(tree) / ".cgstatfs"):
        if path.name == "..":
            assert (path / "proc.events").exists()
            continue
        with pytest.raises(FileNotFoundError):
            path.stat()
    with pytest.raises(OSError, match="Read-only"):
        (about / "health").write_text("0")
    with pytest.raises(NotADirectoryError):
        os.listdir(about / "health")


def test_lookups_are_counted(mounted: Mounted) -> None:
    about = mounted.path / ".cgstatfs" / "proc.events"
    before = int(flat(about)["lookups"])
    # What was counted is told for a second.
    for _ in range(3):
        (mounted.path / "proc.events").read_text()
    wait_until(lambda: int(flat(about)["lookups"]) >= before + 3, "the lookups to be seen")
    assert int(flat(about)["entries"]) > 0
    health = flat(mounted.path / ".cgstatfs" / "health")
    assert int(health["maps"]) == 3 and int(health["lookups"]) >= before + 3


def test_anybody_may_read_it(mounted: Mounted) -> None:
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat",
         mounted.path / ".cgstatfs" / "health"], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("updates_lost ")


def test_the_command_says_the_same(mounted: Mounted) -> None:
    done = cgstatfs("status", "--mount", mounted.path)
    assert done.returncode == 0, done.stderr
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert names[: 2 + len(HEALTH)] == ["version", "engine", *HEALTH]
    assert {"proc.events.lookups", "mm.reclaim.entries"} < set(names)


@pytest.mark.log("updates_lost 0")
def test_a_signal_has_it_logged(mounted: Mounted) -> None:
    os.kill(mounted.pid, signal.SIGUSR1)
    wait_until(lambda: "updates_lost 0, " in mounted.log(), "it to be logged")
    assert (mounted.path / "proc.events").read_text()
