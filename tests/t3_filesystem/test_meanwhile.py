# SPDX-License-Identifier: GPL-2.0-only
"""What happens to cgroups while no daemon serves the mount is right when one does again."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..conftest import SCALE, Mounted, cgroup_id, remove_tree, wait_until, without_daemon
from .test_takeover import daemon, mounted_anew, served, wait_for_next

FILES = {"mm.reclaim", "proc.events", "sched.runqlat"}
# Killed, and no other comes; or it is there, and learns of nothing, and is then killed, or goes on.
HOW = ("killed", "stopped, then killed", "stopped, then continued")


@dataclass
class World:
    """A mount, and a cgroup of one thing's own that happens below it."""

    mount: Mounted
    top: Path
    work: Path

    def fork(self, cgroup: str, count: int) -> None:
        subprocess.run([self.work, "fork", self.top / cgroup, str(count)], check=True)

    def shown(self, cgroup: str = "") -> Path:
        return self.mount.of(self.top / cgroup)

    def counts(self, cgroup: str = "") -> tuple[int, int]:
        """forks and attaches, as read from the mount."""
        text = (self.shown(cgroup) / "proc.events").read_text()
        found = dict(line.split() for line in text.splitlines())
        return int(found["forks"]), int(found["attaches"])

    def is_new(self, cgroup: str) -> bool:
        return self.shown(cgroup).stat().st_ino == cgroup_id(self.top / cgroup)

    def check_gone(self, cgroup: str) -> None:
        """At once for who opens or lists; a cached name goes when the kernel is told of it."""
        with pytest.raises(FileNotFoundError):
            (self.shown(cgroup) / "proc.events").read_bytes()
        # Its parent may be gone as well, and asking first would be a race with the invalidation.
        with suppress(FileNotFoundError):
            assert Path(cgroup).name not in os.listdir(self.shown(cgroup).parent)
        wait_until(lambda: not self.shown(cgroup).exists(), f"{cgroup} to go")


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A file or directory, for as long as it is held open."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def check_no_device(descriptor: int) -> None:
    with pytest.raises(OSError) as raised:
        os.pread(descriptor, 4096, 0)
    assert raised.value.errno == errno.ENODEV


@contextmanager
def unserved(mount: Mounted, settings: Path, how: str) -> Iterator[None]:
    before, pid = served(mount), daemon(mount)
    if how == "killed":
        with without_daemon(mount.path, settings):
            yield
            assert served(mount) == before, "a daemon served, in a test of none"
    else:
        os.kill(pid, signal.SIGSTOP)
        stat = Path(f"/proc/{pid}/stat")
        wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "it to stop")
        yield
        os.kill(pid, signal.SIGCONT if how.endswith("continued") else signal.SIGKILL)
    if not how.endswith("continued"):
        wait_for_next(mount, before)


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """A configuration file; no daemon starts while it is wrong."""
    file = tmp_path / "cgstatfs.toml"
    file.write_text("")
    return file


@pytest.fixture
def mount(
    engine_name: str, cgroupfs: Path, tmp_path: Path, settings: Path
) -> Iterator[Mounted]:
    limits = "unserved-seconds=3600,watchdog-seconds=3600"
    with mounted_anew(
        engine_name, cgroupfs, tmp_path / "mnt", "--config", settings, "-o", limits
    ) as mount:
        yield mount


# What happens: each is begun while it is served, goes on while it is not, and is checked when it
# is again. What begins may have to know whether the same daemon goes on.

Happening = Generator[None, None, None]


def created(world: World, _: bool) -> Happening:
    """Where the kernel had asked for the name, and been told that there is none."""
    for _ in range(2):
        assert not world.shown("a").exists()
    yield
    (world.top / "a/b").mkdir(parents=True)
    world.fork("a/b", 4)
    yield
    assert world.is_new("a") and world.is_new("a/b")
    assert set(os.listdir(world.shown("a"))) == FILES | {"b"}
    assert world.counts("a/b") == world.counts("a") == world.counts() == (4, 1)


def removed(world: World, _: bool) -> Happening:
    """With what was counted before, and meanwhile, and no daemon has ever read."""
    (world.top / "a/b/c").mkdir(parents=True)
    world.fork("a/b/c", 3)
    assert world.shown("a/b/c").stat()
    with (
        opened(world.shown("a/b/c") / "proc.events") as held, opened(world.shown("a/b")) as directory,
        opened(world.top / "a/b") as theirs,
    ):  # fmt: skip
        yield
        world.fork("a/b/c", 2)
        world.fork("a/b", 5)
        remove_tree(world.top / "a")
        yield
        check_no_device(held)
        assert os.fstat(held).st_nlink == 0
        for each in (directory, theirs):
            assert os.listdir(each) == []
            assert os.fstat(each).st_mode == 0o40755
            with pytest.raises(FileNotFoundError):
                os.stat("proc.events", dir_fd=each)
    for each in ("a/b/c", "a/b", "a"):
        world.check_gone(each)
    assert world.counts() == (10, 3)


def made_anew(world: World, _: bool) -> Happening:
    (world.top / "a/b/c").mkdir(parents=True)
    world.fork("a/b/c", 3)
    old = world.shown("a/b/c").stat().st_ino
    with (
        opened(world.shown("a/b/c") / "proc.events") as held, opened(world.shown("a/b")) as directory,
    ):  # fmt: skip
        yield
        for count in (1, 2):
            remove_tree(world.top / "a")
            (world.top / "a/b/c").mkdir(parents=True)
            world.fork("a/b/c", count)
        yield
        # Before anybody tells the kernel that the names lead elsewhere now.
        assert world.counts("a/b/c") == world.counts("a/b") == world.counts("a") == (2, 1)
        assert world.counts() == (6, 3)
        assert os.listdir(directory) == []
        assert os.fstat(directory).st_mode == 0o40755
        check_no_device(held)
    for each in ("a", "a/b", "a/b/c"):
        wait_until(lambda: world.is_new(each), f"the name of {each}")  # noqa: B023
    assert world.shown("a/b/c").stat().st_ino != old


def exchanged(world: World, _: bool) -> Happening:
    """What a rename would be, if cgroups could be renamed; and one that becomes the other's child."""
    for each in ("a", "b"):
        (world.top / each).mkdir()
        assert world.is_new(each)
    world.fork("a", 3)
    world.fork("b", 4)
    yield
    remove_tree(world.top / "a")
    remove_tree(world.top / "b")
    (world.top / "b/a").mkdir(parents=True)
    world.fork("b/a", 1)
    yield
    world.check_gone("a")
    assert world.counts("b/a") == world.counts("b") == (1, 1)
    assert world.counts() == (8, 3)
    wait_until(lambda: world.is_new("b"), "the name of b")
    assert world.is_new("b/a") and set(os.listdir(world.shown("b"))) == FILES | {"a"}


def never_seen(world: World, _: bool) -> Happening:
    """Created and removed again, with no daemon that could have heard of it."""
    assert world.counts() == (0, 0)
    yield
    for count in range(1, 21):
        (world.top / "a/b").mkdir(parents=True)
        world.fork("a/b", count)
        remove_tree(world.top / "a")
    yield
    world.check_gone("a/b")
    world.check_gone("a")
    assert set(os.listdir(world.shown())) == FILES
    assert world.counts() == (sum(range(1, 21)), 20)


def other_attributes(world: World, _: bool) -> Happening:
    """Of what the kernel has cached, and then of what it cached after."""
    def same() -> bool:
        theirs, ours = world.shown("a").stat(), (world.top / "a").stat()
        return (theirs.st_mode & 0o7777, theirs.st_uid, theirs.st_gid, theirs.st_nlink) == (
            ours.st_mode & 0o7777, ours.st_uid, ours.st_gid, ours.st_nlink
        )  # fmt: skip

    (world.top / "a").mkdir()
    assert same()
    yield
    (world.top / "a").chmod(0o710)
    os.chown(world.top / "a", 1234, 4321)
    (world.top / "a/b").mkdir()
    (world.top / "a/b").chmod(0o2700)
    yield
    wait_until(same, "owner, mode and links of then")
    assert world.shown("a/b").stat().st_mode & 0o7777 == 0o2700
    (world.top / "a").chmod(0o755)
    wait_until(same, "the mode of now")


def named_like_a_file(world: World, _: bool) -> Happening:
    """A cgroup goes before a file of its name."""
    for each in ("a", "b/proc.events"):
        (world.top / each).mkdir(parents=True)
    assert world.counts("a") == (0, 0) and world.is_new("b/proc.events")
    yield
    (world.top / "a/proc.events").mkdir()
    (world.top / "b/proc.events").rmdir()
    yield
    wait_until(lambda: world.shown("a/proc.events").is_dir(), "the directory")
    assert world.is_new("a/proc.events")
    wait_until(lambda: world.shown("b/proc.events").is_file(), "the file to come out again")
    assert world.counts("b") == (0, 0)


def partly_read(world: World, same_daemon: bool) -> Happening:
    """Of a cgroup that goes, and of one that stays: the rest of it, or in so many words none."""
    for each in ("stays", "goes"):
        (world.top / each).mkdir()
    with (
        opened(world.shown("stays") / "proc.events") as stays,
        opened(world.shown("goes") / "proc.events") as goes,
    ):  # fmt: skip
        for each in (stays, goes):
            assert os.read(each, 5) == b"forks"
        yield
        world.fork("stays", 7)
        (world.top / "goes").rmdir()
        yield
        for each in (stays, goes):
            if same_daemon:
                assert os.read(each, 3) == b" 0\n", "not the text that it began with"
            else:
                with pytest.raises(OSError) as raised:
                    os.read(each, 3)
                assert raised.value.errno == errno.ESTALE
        assert os.pread(stays, 4096, 0).startswith(b"forks 7\n")
        check_no_device(goes)


def partly_listed(world: World, _: bool) -> Happening:
    """What stays is listed once, whoever lists the rest of a directory."""
    stay = {f"stay{number}" for number in range(300)}
    for number, name in enumerate(sorted(stay)):
        (world.top / name).mkdir()
        (world.top / f"go{number}").mkdir()
    with os.scandir(world.shown()) as entries:
        found = [next(entries).name for _ in range(20)]
        yield
        for number in range(300):
            (world.top / f"go{number}").rmdir()
            (world.top / f"come{number}").mkdir()
        yield
        found += [entry.name for entry in entries]
    assert len(found) == len(set(found))
    assert stay | FILES <= set(found)
    new = {f"come{number}" for number in range(300)}
    assert set(os.listdir(world.shown())) == stay | FILES | new


def moved(world: World, _: bool) -> Happening:
    """A task from one cgroup to another, which then goes."""
    for each in ("a", "b"):
        (world.top / each).mkdir()
    task = subprocess.Popen(["sleep", "1000"])
    try:
        (world.top / "a/cgroup.procs").write_text(str(task.pid))
        assert world.counts("a") == (0, 1)
        yield
        (world.top / "b/cgroup.procs").write_text(str(task.pid))
    finally:
        task.kill()
        task.wait()
    remove_tree(world.top / "a")
    yield
    assert world.counts("b") == (0, 1)
    assert world.counts() == (0, 2)


HAPPENINGS: tuple[Callable[[World, bool], Happening], ...] = (
    created, exchanged, made_anew, moved, named_like_a_file, never_seen, other_attributes,
    partly_listed, partly_read, removed,
)  # fmt: skip


FORKS = 4 + 8 + 6 + sum(range(1, 21)) + 7 + 10


# Guests take minutes for a daemon to come.
@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=[pytest.mark.on_host] if how != "killed" else []) for how in HOW]
)
def test_what_happens_while_no_daemon_serves(
    mount: Mounted, settings: Path, tree: Path, work: Path, how: str
) -> None:
    with ExitStack() as stack:
        happenings = []
        for begin in HAPPENINGS:
            top = tree / begin.__name__
            top.mkdir()
            happening = begin(World(mount, top, work), how.endswith("continued"))
            happenings.append(stack.enter_context(closing(happening)))
        for each in happenings:
            next(each)
        with unserved(mount, settings, how):
            for each in happenings:
                next(each)
        for each in happenings:
            assert next(each, "done") == "done"
    # Folded into the one above all of them: what each happening's cgroup was checked to have.
    assert World(mount, tree, work).counts()[0] == FORKS


class Model:
    """What there should be below a cgroup: names, and forks by path, of the dead in their parents."""

    def __init__(self, world: World, random: random.Random) -> None:
        self._world = world
        self._random = random
        self._forks = {"": 0}
        self._modes: dict[str, int] = {}
        self._ever: set[str] = set()

    def _some(self) -> str:
        return self._random.choice(sorted(self._forks))

    def _make(self) -> None:
        cgroup = f"{self._some()}/{self._random.choice('abc')}".lstrip("/")
        if cgroup not in self._forks and cgroup.count("/") < 4:
            (self._world.top / cgroup).mkdir()
            self._forks[cgroup] = 0
            self._modes[cgroup] = 0o755
            self._ever.add(cgroup)

    def _remove(self) -> None:
        cgroup = self._some()
        if not cgroup:
            return
        remove_tree(self._world.top / cgroup)
        parent = cgroup.rpartition("/")[0]
        for each in [name for name in self._forks if f"{name}/".startswith(f"{cgroup}/")]:
            self._forks[parent] += self._forks.pop(each)

    def _fork(self) -> None:
        cgroup, count = self._some(), self._random.randint(1, 5)
        self._world.fork(cgroup, count)
        self._forks[cgroup] += count

    def _change_mode(self) -> None:
        cgroup = self._some()
        if cgroup:
            self._modes[cgroup] = self._random.choice([0o700, 0o711, 0o755])
            (self._world.top / cgroup).chmod(self._modes[cgroup])

    def change(self, count: int) -> None:
        for _ in range(count):
            self._random.choice(
                [self._make, self._make, self._make, self._remove, self._fork, self._change_mode]
            )()

    def check(self) -> None:
        for cgroup in sorted(self._forks):
            below = {each for each in self._forks if not cgroup or f"{each}/".startswith(f"{cgroup}/")}
            forks = sum(self._forks[each] for each in below)
            assert self._world.counts(cgroup)[0] == forks, cgroup
            depth = cgroup.count("/") + 1 if cgroup else 0
            children = {Path(each).name for each in below - {cgroup} if each.count("/") == depth}
            assert set(os.listdir(self._world.shown(cgroup))) == FILES | children, cgroup
        for cgroup in self._forks.keys() - {""}:
            wait_until(lambda: self._is_right(cgroup), f"{cgroup} to be as it is")  # noqa: B023
        for cgroup in self._ever - self._forks.keys():
            self._world.check_gone(cgroup)

    def _is_right(self, cgroup: str) -> bool:
        status = self._world.shown(cgroup).stat()
        return self._world.is_new(cgroup) and status.st_mode & 0o7777 == self._modes[cgroup]


@pytest.mark.on_host
def test_random_changes_while_no_daemon_serves(
    mount: Mounted, settings: Path, tree: Path, work: Path
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    model = Model(World(mount, tree, work), random.Random(seed))
    for number in range(len(HOW) * max(1, int(SCALE))):
        model.change(15)
        model.check()
        with unserved(mount, settings, HOW[number % len(HOW)]):
            model.change(25)
        model.check()
