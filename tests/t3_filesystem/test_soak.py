# SPDX-License-Identifier: GPL-2.0-only
"""A long life in short: cgroups come and go by the thousand while files are read.

CGSTATFS_TEST_SCALE=100 makes it 100,000 of them, about as many as a busy machine sees in a day.
Then a leak of 32 bytes for each is found; in the default size one of 2 kB, and any of an entry, a
descriptor or a watch.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from cgstatfs.collectors import Collector

from ..conftest import (
    SCALE, Loaded, Mounted, cgstatfs, dying, live_cgroups, make_engine, remove_tree, times, wait_until,
)  # fmt: skip
from .test_takeover import daemon, mounted_anew

FILES = ("proc.events", "sched.runqlat", "mm.reclaim")
# The first warms up; what follows is compared with the second.
BATCHES = 20 if SCALE >= 5 else 4
# Of a batch: made and removed one by one, unread but by who reads everything; and those of a
# batch that live at once, and are all read.
SHORT_LIVED = times(1_000) // BATCHES // 2
READ = times(1_000) // BATCHES - SHORT_LIVED
FORKING = 20
FORKS = SHORT_LIVED + len(range(0, READ, FORKING))
# Bytes of memory that may be more for no reason, of which Python takes a lot at once; and bytes for
# each cgroup that are no leak yet.
NOISE, LEAK = 1 << 20, 20
# Of the file of what the kernel was told: bytes of a line, and lines in excess of what is known,
# each with one that it was forgotten; see known.py.
KNOWN_LINE, KNOWN_LINES = 40, 2 * READ + 4096


def private_memory(pid: int) -> int:
    """Bytes that are a process's own, whether in memory or swapped out."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kilobytes = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in lines)}
    return (kilobytes["Anonymous"] + kilobytes["Swap"]) << 10


def resident(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def watches(pid: int) -> int:
    """Of inotify."""
    count = 0
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        try:
            count += path.read_text().count("inotify wd:")
        except FileNotFoundError:
            continue
    return count


def locked_memory(fd: int) -> int:
    """Bytes that a BPF map takes, by the kernel's word."""
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("memlock:"))


class Life:
    """A mount that shows one cgroup alone, so that what others do takes no memory of its daemon's."""

    def __init__(self, mount: Mounted, tree: Path, work: Path) -> None:
        self.mount, self.tree, self.work = mount, tree, work
        pid = daemon(mount)
        (teller,) = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        self.processes = {"daemon": pid, "teller": teller, "holder": mount.runtime.read_state().holder}
        pins = mount.runtime.pins
        collectors = [Collector.from_pins(path) for path in pins.iterdir()]
        self.loaded = Loaded(make_engine(mount.engine), collectors)

    def read(self, directory: Path) -> None:
        """All that is there, as far as it is still."""
        for path, _, names in os.walk(self.mount.of(directory)):
            for name in names:
                try:
                    (Path(path) / name).read_bytes()
                except OSError:
                    continue

    def batch(self) -> None:
        churn = subprocess.Popen([self.work, "churn", self.tree / "churn", str(SHORT_LIVED), "x"])
        top = self.tree / "read"
        made = [top / f"s{number % 7}" / f"c{number}" for number in range(READ)]
        for number, cgroup in enumerate(made):
            cgroup.mkdir(parents=True)
            assert self.mount.of(cgroup).stat().st_ino
            if number % FORKING == 0:
                subprocess.run([self.work, "fork", cgroup, "1"], check=True)
        self.read(self.tree)
        held = [
            os.open(self.mount.of(cgroup) / "proc.events", os.O_RDONLY) for cgroup in made[:20]
        ]
        for cgroup in made:
            cgroup.rmdir()
        for descriptor in held:
            os.close(descriptor)
        remove_tree(top)
        self.read(self.tree)
        assert churn.wait() == 0

    def settle(self) -> None:
        """Until nothing is left of what is gone. Others' cgroups come and go all the time."""
        wait_until(lambda: dying(self.tree) == 0, "the kernel to release the cgroups")
        for file in FILES:
            (self.mount.path / file).read_bytes()
            wait_until(
                lambda: self.loaded.entries_below(file, self.tree) == live_cgroups(self.tree),  # noqa: B023
                f"entries of {file} to go",
            )
            wait_until(
                lambda: self.loaded.ids(file, "pairs") <= self.loaded.ids(file, "entries"),  # noqa: B023
                f"arrays of {file} to go",
            )
        pid = self.processes["daemon"]
        # Of the cgroup shown and of those in it. The others were removed.
        wait_until(lambda: watches(pid) <= len(live_cgroups(self.tree)), "watches to go")

    def sizes(self) -> dict[str, int]:
        found = {}
        for name, pid in self.processes.items():
            found[f"{name}'s memory"] = private_memory(pid)
            found[f"{name}'s resident"] = resident(pid)
            found[f"{name}'s descriptors"] = descriptors(pid)
        found["inotify watches"] = watches(self.processes["daemon"])
        maps = [fd for each in self.loaded.collectors for fd in each.maps.values()]
        found["maps' memory"] = sum(map(locked_memory, maps))
        found["maps' elements of ours"] = sum(
            len(self.loaded.entries_below(file, self.tree)) for file in FILES
        )
        found["known to the kernel"] = self.mount.runtime.known.stat().st_size
        found["open files' blocks"] = self.mount.runtime.open_files.stat().st_blocks
        return found

    def forks(self) -> int:
        return int((self.mount.path / "proc.events").read_text().split()[1])


@contextmanager
def reading(life: Life) -> Iterator[None]:
    """Somebody who reads the file of all of them, all the time, from outside."""
    with ExitStack() as stack:
        script = "import sys\nwhile True: open(sys.argv[1]).read()"
        reader = subprocess.Popen([sys.executable, "-c", script, life.mount.path / "proc.events"])
        stack.callback(reader.wait)
        stack.callback(reader.kill)
        yield
        assert reader.poll() is None


@pytest.mark.on_host
def test_cgroups_that_come_and_go_leave_nothing(
    engine_name: str, tree: Path, work: Path, tmp_path: Path
) -> None:
    (tree / "churn").mkdir()
    root = f"/{tree.name}"
    with mounted_anew(engine_name, tree, tmp_path / "mnt", "--root", root) as mount:
        life = Life(mount, tree, work)
        history = []
        for _ in range(BATCHES):
            with reading(life):
                life.batch()
            life.settle()
            history.append(life.sizes())
            print(history[-1], flush=True)
        assert life.forks() == BATCHES * FORKS
        for each in life.loaded.collectors:
            each.close()
        assert mount.log() == ""
        # The next daemon takes over what is there alone.
        assert cgstatfs("restart", "--mount", mount.path).returncode == 0
        assert len(mount.runtime.known.read_bytes().splitlines()) <= len(live_cgroups(tree))
    before, after = history[1], history[-1]
    cgroups = (BATCHES - 2) * (SHORT_LIVED + READ)
    for name in ("daemon", "teller", "holder"):
        more = after[f"{name}'s memory"] - before[f"{name}'s memory"]
        assert more <= NOISE + LEAK * cgroups, f"{more} bytes for {cgroups} cgroups"
        assert after[f"{name}'s descriptors"] == before[f"{name}'s descriptors"]
    # Watches are as many as there are cgroups, or fewer.
    assert after["inotify watches"] <= len(live_cgroups(tree))
    assert after["maps' elements of ours"] == before["maps' elements of ours"]
    assert after["known to the kernel"] <= KNOWN_LINE * KNOWN_LINES
    assert after["open files' blocks"] == before["open files' blocks"]
