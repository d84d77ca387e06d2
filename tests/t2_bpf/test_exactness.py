# SPDX-License-Identifier: GPL-2.0-only
"""Totals are exactly what was done, under load, on all cpus, whatever happens meanwhile."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ..conftest import Loaded, dying, live_cgroups, times, wait_until

FORKS = 300
SHORT_LIVED = max(400, times(2000))
EVENTS = "proc.events"


@contextmanager
def reading(loaded: Loaded, directories: list[Path]) -> Iterator[None]:
    """Look everything up over and over, and see that no count ever goes down."""
    stop = threading.Event()
    failed: list[BaseException] = []

    def loop() -> None:
        seen = dict.fromkeys(directories, 0)
        try:
            while not stop.is_set():
                for directory in directories:
                    forks = loaded.one(EVENTS, directory, "forks")
                    assert forks >= seen[directory]
                    seen[directory] = forks
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert not failed, failed


def fork_in(work: Path, directories: list[Path]) -> list[subprocess.Popen]:
    """Two workers in each, so that they meet on a cpu and across cpus."""
    return [
        subprocess.Popen([work, "fork", directory, str(FORKS)])
        for directory in directories
        for _ in range(2)
    ]


def check_all_ended(workers: list[subprocess.Popen]) -> None:
    for worker in workers:
        assert worker.wait() == 0


def check_nothing_missed(loaded: Loaded) -> None:
    """What is placed so that BPF cannot skip it was not skipped."""
    misses = loaded.misses(EVENTS)
    assert misses["on_fork"] == misses["on_exit"] == 0, misses


def test_forks_in_a_tree_are_exact_while_read(loaded: Loaded, tree: Path, work: Path) -> None:
    a, ab, abc, a2 = tree / "a", tree / "a/b", tree / "a/b/c", tree / "a2"
    for directory in (a, ab, abc, a2):
        directory.mkdir()
    with reading(loaded, [tree, a, ab, abc, a2]):
        check_all_ended(fork_in(work, [abc, ab, a, a2]))
    each = 2 * FORKS
    expected = {abc: each, ab: 2 * each, a: 3 * each, a2: each, tree: 4 * each}
    assert {d: loaded.one(EVENTS, d, "forks") for d in expected} == expected
    # The workers end there as well, and each came by a migration.
    wait_until(
        lambda: loaded.one(EVENTS, tree, "exits") == 4 * each + 8, "the last exits to be switched"
    )
    assert loaded.one(EVENTS, tree, "attaches") == 8
    check_nothing_missed(loaded)


def test_counts_of_destroyed_cgroups_stay_and_entries_go(
    loaded: Loaded, tree: Path, work: Path
) -> None:
    a, b = tree / "a", tree / "a/b"
    b.mkdir(parents=True)
    with reading(loaded, [tree, a, b]):
        workers = fork_in(work, [b])
        churners = [
            subprocess.Popen([work, "churn", a, str(SHORT_LIVED // 2), name])
            for name in ("x", "y")
        ]
        check_all_ended([*workers, *churners])
    expected = 2 * FORKS + SHORT_LIVED
    assert loaded.one(EVENTS, a, "forks") == expected
    wait_until(lambda: dying(tree) == 0, "the kernel to release the cgroups")
    # The last ones are deleted by the next flush at the latest.
    assert loaded.one(EVENTS, a, "forks") == expected
    for file in (EVENTS, "sched.runqlat", "mm.reclaim"):
        loaded.value(file, a)
        assert loaded.entries_below(file, tree) == live_cgroups(tree)
        # Others' cgroups come and go.
        wait_until(
            lambda: loaded.ids(file, "pairs") <= loaded.ids(file, "entries"),  # noqa: B023
            "arrays without an entry to go",
        )
    check_nothing_missed(loaded)


def test_churn_without_a_reader_leaves_little_behind(
    loaded: Loaded, tree: Path, work: Path
) -> None:
    """Nobody has to read for memory to follow live cgroups."""
    subprocess.run([work, "churn", tree, str(SHORT_LIVED // 4), "x"], check=True)
    wait_until(lambda: dying(tree) == 0, "the kernel to release the cgroups")
    wait_until(
        lambda: len(loaded.entries_below(EVENTS, tree)) < 50, "most of the entries to go"
    )


def home(hierarchy: Path) -> Path:
    """Where the test itself is in a v1 hierarchy, that is mounted under its controller's name."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if hierarchy.name in controllers.split(","):
            return hierarchy / path.lstrip("/")
    raise AssertionError(f"{hierarchy} is not in /proc/self/cgroup")


def test_v1_hierarchies_change_nothing(
    loaded: Loaded, cgroupfs: Path, tree: Path, work: Path
) -> None:
    """The ids of v1 cgroups collide with those of v2."""
    v1 = [
        path
        for path in map(Path("/sys/fs/cgroup").joinpath, ("freezer", "memory", "pids"))
        if (path / "tasks").exists()
    ]
    if not v1:
        pytest.skip("no v1 hierarchy is mounted here")
    b = tree / "b"
    b.mkdir()
    loaded.value(EVENTS, tree)
    before = loaded.ids(EVENTS, "entries")
    made = []
    homes = {hierarchy: home(hierarchy) for hierarchy in v1}
    worker = subprocess.Popen([work, "fork", b, str(FORKS)])
    try:
        for number in range(100):
            for hierarchy in v1:
                directory = hierarchy / f"cgstat-test-{os.getpid()}-{number}"
                try:
                    directory.mkdir()
                except OSError:
                    continue  # cpuset and the like may want to be set up first.
                made.append(directory)
                (directory / "tasks").write_text(str(os.getpid()))
                (homes[hierarchy] / "tasks").write_text(str(os.getpid()))
                if number % 2:
                    directory.rmdir()
                    made.pop()
        assert worker.wait() == 0
        # No entry for a v1 cgroup, and none of v2's taken for one of v1's and deleted.
        wait_until(
            lambda: loaded.ids(EVENTS, "entries") <= before | live_cgroups(cgroupfs),
            "no entry to be one of a v1 cgroup",
        )
        assert live_cgroups(tree) <= loaded.ids(EVENTS, "entries")
        assert loaded.one(EVENTS, b, "forks") == FORKS
        # Moving the test about in v1 is no migration in v2.
        assert loaded.one(EVENTS, tree, "attaches") == 1
    finally:
        for directory in made:
            directory.rmdir()


def test_cgroups_that_exist_at_load_have_entries(loaded: Loaded, cgroupfs: Path) -> None:
    wait_until(
        lambda: live_cgroups(cgroupfs) <= loaded.ids(EVENTS, "entries"), "every cgroup's entry"
    )


def test_lookup_of_an_unknown_cgroup(loaded: Loaded) -> None:
    with pytest.raises(FileNotFoundError):
        loaded.value(EVENTS, 1 << 40)


def test_deep_hierarchy(loaded: Loaded, tree: Path, work: Path) -> None:
    deepest = tree
    for _ in range(40):
        deepest = deepest / "d"
        deepest.mkdir()
    subprocess.run([work, "fork", deepest, "7"], check=True)
    assert loaded.one(EVENTS, deepest, "forks") == 7
    assert loaded.one(EVENTS, tree, "forks") == 7
