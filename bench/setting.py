# SPDX-License-Identifier: GPL-2.0-only
"""What cases need around them: cgroups, mounts, programs; all of it goes with the case."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from cgstatfs import libbpf
from cgstatfs.collectors import Collector
from cgstatfs.engines import Engine
from cgstatfs.hierarchy import find_cgroup2
from cgstatfs.loading import Request, load
from cgstatfs.runtime import Runtime

from .frame import Missing

__all__ = (
    "BUILD", "Mount", "Setting", "cgroup_id", "cpu_time", "moved", "on_cpus", "pinned_iterator", "remove_leftovers",
    "resident", "started", "wait_until",
)  # fmt: skip

_REPOSITORY = Path(__file__).parent.parent
BUILD = _REPOSITORY / "build" / "bench"
_PREFIX = "cgstat-bench-"
_T = TypeVar("_T")
_WAIT_SECONDS = 120


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait for something that will come.

    :raises Missing: it did not
    """
    deadline = time.monotonic() + _WAIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise Missing(f"waited {_WAIT_SECONDS} s for {what}")
        time.sleep(0.01)


def cgroup_id(directory: Path) -> int:
    return directory.stat().st_ino


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cpu_time(pid: int) -> int:
    """Nanoseconds that a process has run."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


def on_cpus(pid: int, cpus: set[int]) -> None:
    """Have all threads of a process run on some cpus alone."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), cpus)


@contextmanager
def moved(directory: Path) -> Iterator[None]:
    """Be in a cgroup, and then back in the root."""
    (directory / "cgroup.procs").write_text("0")
    try:
        yield
    finally:
        (find_cgroup2() / "cgroup.procs").write_text("0")


@contextmanager
def started(command: list[str | Path], **options: object) -> Iterator[subprocess.Popen]:
    """Have a program run, which SIGTERM ends."""
    try:
        process = subprocess.Popen(command, **options)
    except FileNotFoundError:
        raise Missing(f"{command[0]} is not installed") from None
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                stream.close()


def _remove_cgroup(directory: Path) -> None:
    """With all below it. What was in there, and cannot be in the root, ends."""
    for path, _, _ in os.walk(directory, topdown=False):
        for _ in range(1000):
            try:
                os.rmdir(path)
                break
            except FileNotFoundError:
                break
            except OSError:
                for pid in Path(path, "cgroup.procs").read_text().split():
                    if int(pid) != os.getpid():
                        with suppress(ProcessLookupError):
                            os.kill(int(pid), signal.SIGKILL)
                time.sleep(0.01)


def remove_leftovers() -> None:
    """Cgroups of runs that were killed."""
    for directory in find_cgroup2().glob(f"{_PREFIX}*-*"):
        pid = directory.name.removeprefix(_PREFIX).partition("-")[0]
        if not Path("/proc", pid).exists():
            _remove_cgroup(directory)


class Mount:
    """Our file system, mounted with the collectors that come with it."""

    def __init__(self, path: Path, cgroupfs: Path) -> None:
        self.path = path
        self._cgroupfs = cgroupfs
        self.runtime = Runtime(path)

    @property
    def pid(self) -> int:
        """Of the daemon."""
        state = self.runtime.read_state()
        assert state is not None
        return state.pid

    @property
    def holder(self) -> int:
        """The process id of who holds the mount."""
        state = self.runtime.read_state()
        assert state is not None
        return state.holder

    def of(self, cgroup: Path) -> Path:
        """A cgroup's directory in the mount."""
        return self.path / cgroup.relative_to(self._cgroupfs)


class Setting:
    """Where one case runs: entered anew for each.

    :ivar quick: whether it is for `bench-quick`
    """

    def __init__(self, quick: bool = False) -> None:
        self.quick = quick
        self.cgroupfs = find_cgroup2()
        self._made = 0

    def __enter__(self) -> Setting:
        self._stack = ExitStack()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def some(self, full: _T, quick: _T) -> _T:
        """How often, or how many."""
        return quick if self.quick else full

    def finally_do(self, action: Callable[[], object]) -> None:
        """Do something when the case ends."""
        self._stack.callback(action)

    def keep(self, context: AbstractContextManager[_T]) -> _T:
        """Enter a context until the case ends."""
        return self._stack.enter_context(context)

    def cgroup(self) -> Path:
        """A cgroup of the case's own."""
        self._made += 1
        directory = self.cgroupfs / f"{_PREFIX}{os.getpid()}-{self._made}"
        directory.mkdir()
        self._stack.callback(_remove_cgroup, directory)
        return directory

    def folder(self) -> Path:
        """An empty directory, in no cgroup file system."""
        return Path(self.keep(tempfile.TemporaryDirectory(prefix=_PREFIX)))

    def program(self, name: str) -> Path:
        """Of those in peers/.

        :raises Missing: it was not built
        """
        return self._built(name)

    def object(self, name: str) -> Path:
        """Of those in bpf/."""
        return self._built(f"{name}.bpf.o")

    @staticmethod
    def _built(name: str) -> Path:
        path = BUILD / name
        if not path.exists():
            raise Missing(f"{path.relative_to(_REPOSITORY)} was not built; see make bench")
        return path

    def load(self, path: Path, engine: Engine, initial: Path | None = None) -> Collector:
        """A collector, without a mount.

        :param initial: it counts there and below alone
        """
        initials = {"": cgroup_id(initial)} if initial else {}
        collector = load(Request(path, engine, cgroup_id(self.cgroupfs), initials))
        self._stack.callback(collector.close)
        return collector

    def open_object(self, name: str) -> libbpf.Object:
        """One of those in bpf/, loaded, that is no collector; the caller closes it.

        :raises Missing: this kernel does not take it
        """
        obj = libbpf.Object(self.object(name))
        try:
            obj.load()
        except OSError as error:
            obj.close()
            raise Missing(f"{name}.bpf.o: {error.strerror}") from None
        return obj

    def run(self, command: list[str | Path], cpus: set[int] | None = None) -> str:
        """What a program prints, on some cpus."""
        program = [] if cpus is None else ["taskset", "-c", ",".join(map(str, sorted(cpus)))]
        done = subprocess.run([*program, *command], stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout

    def mount(self) -> Mount:
        """Our file system.

        :raises Missing: it cannot be mounted
        """
        path = self.folder() / "mnt"
        path.mkdir()
        self._cgstatfs("mount", path)
        mount = Mount(path, self.cgroupfs)
        self._stack.callback(mount.runtime.log.unlink, missing_ok=True)
        self._stack.callback(self._unmount, path)
        return mount

    def _unmount(self, path: Path) -> None:
        """What is slow to end has been asked to, and will."""
        try:
            self._cgstatfs("umount", path)
        except Missing as error:
            print(f"  note: {error}")

    def load_into(self, mount: Mount, path: Path) -> None:
        """Have a collector served by a mount, which root alone may have written."""
        copy = self.folder() / path.name
        shutil.copyfile(path, copy)
        self._cgstatfs("load", "--mount", mount.path, copy)

    @staticmethod
    def _cgstatfs(*arguments: str | Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "cgstatfs", *arguments],
            cwd=_REPOSITORY, text=True, capture_output=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise Missing(done.stderr.strip())

    def peer_mount(self, command: Callable[[Path], list[str | Path]]) -> tuple[Path, int]:
        """A file system of others'.

        :param command: what serves it in the foreground, from the mount point
        :returns: where it is mounted, and the process id of who serves it
        """
        path = self.folder() / "mnt"
        path.mkdir()
        log = self.keep(open(path.parent / "log", "w+"))
        process = self.keep(started(command(path), stdout=log, stderr=subprocess.STDOUT))
        # Before it is ended.
        self._stack.callback(subprocess.run, ["umount", "-l", path], check=False, capture_output=True)

        def mounted() -> bool:
            if process.poll() is not None:
                log.seek(0)
                raise Missing(f"{command(path)[0]} ended: {re.sub('[^ -~]+', ' ', log.read()[-300:])}")
            return path.is_mount()

        wait_until(mounted, f"{command(path)[0]} to mount")
        return path, process.pid

    def lxcfs(self) -> tuple[Path, int]:
        """Debian's."""
        program = shutil.which("lxcfs")
        if program is None:
            raise Missing("lxcfs is not installed")
        folder = self.folder()
        return self.peer_mount(lambda path: [program, "-f", "-p", folder / "pid", path])


def pinned_iterator(setting: Setting, cgroup: Path) -> Path:
    """A file in bpffs: a cgroup iterator that flushes one cgroup and prints its counters.

    :raises Missing: this kernel does not take it
    """
    obj = setting.keep(closing(setting.open_object("iterators")))
    program = obj.programs["show"].fd
    link = libbpf.create_cgroup_iter_link(program, libbpf.CGROUP_ITER_SELF_ONLY, cgroup_id(cgroup))
    path = Path(f"/sys/fs/bpf/cgstat_bench_{os.getpid()}")
    try:
        libbpf.pin(link, path)
    finally:
        os.close(link)
    setting.finally_do(path.unlink)
    return path
