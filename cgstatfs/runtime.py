# SPDX-License-Identifier: GPL-2.0-only
"""What a mount leaves outside its processes: a lock, sockets, files for the next daemon, a log,
and pins in bpffs.

All are named for the mount point, so that several mounts do not meet. The lock is held while
the holder or the daemon lives; what is found without its lock being held is stale. Nothing stays
when the mount has ended, but a log that is not empty, and what is to go on counting.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

from .channel import Channel
from .mountpoint import ensure_mounted

__all__ = ("RUN", "Runtime", "State", "mount_bpffs")

RUN = Path("/run/cgstatfs")
_BPFFS = Path("/sys/fs/bpf")
_PINS = _BPFFS / "cgstatfs"
# What leaves room for the rest of a socket's path: sockaddr_un has 108 bytes.
_MAX_NAME = 80


def mount_bpffs() -> None:
    """Mount bpffs where everybody expects it, unless it is there.

    :raises OSError: it cannot be mounted
    """
    ensure_mounted(_BPFFS, b"bpf", b"mode=0700")


def _escape(path: Path) -> str:
    """A mount point as a file name, without dots, which bpffs reserves."""
    text = os.fsencode(path).strip(b"/").decode("latin-1") or "-"
    name = re.sub(r"[^A-Za-z0-9_/]", lambda m: f"\\x{ord(m[0]):02x}", text).replace("/", "-")
    if len(name) <= _MAX_NAME:
        return name
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
    return f"{name[: _MAX_NAME - len(digest) - 1]}-{digest}"


class _Process(NamedTuple):
    """Of proc(5)'s ``/proc/PID/stat``. :ivar started: in ticks since boot"""

    state: bytes
    started: int


def _process(pid: int) -> _Process | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return _Process(fields[0], int(fields[19]))


@dataclass
class State:
    """What a daemon tells the other commands.

    :ivar started: when, in ticks since boot: a later process may have its id
    :ivar holder: the process id of who holds the mount
    :ivar connection: its number in fusectl; 0 before it is mounted
    :ivar served: which daemon of the mount it is: 1 for the first
    :ivar kept: the mount was ended, and its collectors were left
    :ivar failed: why collectors could not be loaded, by name
    :ivar notes: what users of those that were should know
    :ivar loaded: what collectors were loaded from, by name
    :ivar unloaded: names of collectors that were asked to be, and stay so
    :ivar adopted: others' maps, by the name of their file
    """

    pid: int
    started: int
    mount_point: str
    engine: str
    reason: str
    holder: int = 0
    connection: int = 0
    served: int = 1
    kept: bool = False
    failed: dict[str, str] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    loaded: dict[str, dict[str, str]] = field(default_factory=dict)
    unloaded: list[str] = field(default_factory=list)
    adopted: dict[str, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def of_this_process(
        cls, mount_point: Path, engine: str, reason: str, previous: State | None
    ) -> State:
        """:param previous: of the daemon before, whose collectors are taken over"""
        pid = os.getpid()
        process = _process(pid)
        assert process is not None
        state = cls(pid, process.started, str(mount_point), engine, reason)
        if previous:
            for name in ("connection", "notes", "loaded", "unloaded", "adopted"):
                setattr(state, name, getattr(previous, name))
        return state

    def _process(self) -> _Process | None:
        process = _process(self.pid)
        return process if process and process.started == self.started else None

    def lives(self) -> bool:
        """Whether the daemon does, and is more than a zombie."""
        process = self._process()
        return process is not None and process.state not in b"ZX"


class Runtime:
    """The files of one mount point."""

    def __init__(self, mount_point: Path) -> None:
        self.mount_point = mount_point
        self.name = _escape(mount_point)
        self.pins = _PINS / self.name
        self.log = RUN / f"{self.name}.log"
        self.socket = RUN / f"{self.name}.sock"
        self.holder_socket = RUN / f"{self.name}.hold"
        self.known = RUN / f"{self.name}.known"
        self.open_files = RUN / f"{self.name}.open"
        self._lock_path = RUN / f"{self.name}.lock"
        self._state_path = RUN / f"{self.name}.json"
        self._lock: int | None = None

    @classmethod
    def all(cls) -> Iterator[Runtime]:
        """Of every mount that has left its state."""
        for path in sorted(RUN.glob("*.json")) if RUN.is_dir() else ():
            try:
                yield cls(Path(json.loads(path.read_text())["mount_point"]))
            except (OSError, ValueError, KeyError, TypeError):
                continue

    def lock(self, timeout: float = 0) -> bool:
        """Take the lock, for as long as this process lives or until :meth:`unlock_here`.

        :param timeout: seconds to wait for it
        :returns: whether we have it; if not, a daemon does
        """
        RUN.mkdir(mode=0o755, exist_ok=True)
        deadline = time.monotonic() + timeout
        while not self._try_lock():
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)
        return True

    def _try_lock(self) -> bool:
        lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who held it before may have removed the file; another one counts then.
            if os.path.samestat(os.fstat(lock), os.stat(self._lock_path)):
                self._lock, lock = lock, -1
                return True
        except (BlockingIOError, FileNotFoundError):
            pass
        finally:
            if lock >= 0:
                os.close(lock)
        return False

    @property
    def lock_descriptor(self) -> int:
        """Whoever has a copy of it holds the lock."""
        assert self._lock is not None
        return self._lock

    def adopt_lock(self, descriptor: int) -> None:
        """Hold the lock by a descriptor that another process has given us."""
        os.set_inheritable(descriptor, False)
        self._lock = descriptor

    def unlock_here(self) -> None:
        """Let go of the lock in this process; others that were given it keep it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def is_held(self) -> bool:
        """Whether there is a holder; there may be no daemon just now."""
        try:
            Channel.connect(self.holder_socket).close()
        except OSError:
            return False
        return True

    def read_state(self) -> State | None:
        """What a daemon wrote, perhaps of a later version: what we do not know, we do without."""
        known = {each.name for each in fields(State)}
        try:
            found = json.loads(self._state_path.read_text())
            return State(**{key: value for key, value in found.items() if key in known})
        except (OSError, ValueError, TypeError, AttributeError):
            return None

    def write_state(self, state: State) -> None:
        new = self._state_path.with_suffix(".new")
        new.write_text(json.dumps(asdict(state)))
        new.rename(self._state_path)

    def make_pins(self) -> None:
        """Make the directory for the pins, in one that nobody else can write to.

        :raises OSError: ``EPERM``: somebody else made it (bpffs may be writable for all)
        """
        _PINS.mkdir(mode=0o700, exist_ok=True)
        status = os.lstat(_PINS)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid or status.st_mode & 0o022:
            raise OSError(
                errno.EPERM, "is not root's alone; remove it, and mount bpffs with mode=0700",
                str(_PINS),
            )  # fmt: skip
        self.pins.mkdir(mode=0o700, exist_ok=True)

    def clean(self, keep_counting: bool = False) -> None:
        """Remove pins and state; the lock must be held.

        :param keep_counting: leave what counts, and what is known of it, to the next mount
        """
        for path in (self.socket, self.holder_socket, self.known, self.open_files):
            path.unlink(missing_ok=True)
        state = self.read_state() if keep_counting else None
        if state:
            state.kept = True
            self.write_state(state)
            return
        shutil.rmtree(self.pins, ignore_errors=True)
        try:
            self.pins.parent.rmdir()
        except OSError:
            pass  # Other mounts' pins are there, or bpffs is not mounted.
        self._state_path.unlink(missing_ok=True)

    def remove(self, keep_counting: bool = False) -> None:
        """Remove all that need not stay; the lock, which must be held, is let go of with it."""
        self.clean(keep_counting)
        if self.log.exists() and not self.log.stat().st_size:
            self.log.unlink()
        self._lock_path.unlink(missing_ok=True)
        self.unlock_here()
