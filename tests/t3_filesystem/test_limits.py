# SPDX-License-Identifier: GPL-2.0-only
"""What one user can take of what all share."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..conftest import Mounted, cgstatfs, let_all_in, times, wait_for_exits, wait_until

ONE_ENGINE = True

# The memory is the least that can be set.
_OPEN_FILES, _SNAPSHOTS = 300, 64 << 10

# For each line that comes in, "open N", "read N" or "close N": how often it could be done (each
# read is of another of the open files), and what then came.
_USER = """
import errno, os, sys
os.setgroups([]); os.setgid(65534); os.setuid(int(sys.argv[2]))
files = []
def one(what, number):
    if what == "open":
        files.append(os.open(sys.argv[1], os.O_RDONLY))
    elif what == "read":
        assert os.pread(files[number], 1 << 20, 0)
    else:
        os.close(files.pop())
print("ready", flush=True)
for line in sys.stdin:
    what, times = line.split()
    done, why = 0, "ok"
    try:
        while done < int(times):
            one(what, done)
            done += 1
    except OSError as error:
        why = errno.errorcode[error.errno]
    print(done, why, flush=True)
"""


class User:
    """Somebody who is not root, and opens a file many times."""

    def __init__(self, path: Path, id: int) -> None:
        self._process = subprocess.Popen(
            ["/usr/bin/python3", "-c", _USER, path, str(id)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout.readline() == "ready\n"

    def does(self, what: str, times: int) -> tuple[int, str]:
        """Open, read or close: how often it could be done, and what ended it."""
        self._process.stdin.write(f"{what} {times}\n")
        self._process.stdin.flush()
        done, why = self._process.stdout.readline().split()
        return int(done), why

    def end(self) -> None:
        self._process.communicate()


@pytest.fixture
def limited(
    engine_name: str, cgroupfs: Path, tmp_path: Path
) -> Iterator[Mounted]:
    """A mount with narrow limits, from a file."""
    file, path = tmp_path / "cgstatfs.toml", tmp_path / "mnt"
    file.write_text(
        f"[limits]\nopen-files-per-user = {_OPEN_FILES}\nsnapshot-memory = {_SNAPSHOTS}\n"
    )
    path.mkdir()
    let_all_in(path)
    result = cgstatfs("mount", "--config", file, "--engine", engine_name, path)
    assert result.returncode == 0, result.stderr
    mount = Mounted(path, cgroupfs, engine_name)
    yield mount
    result = cgstatfs("umount", path)
    assert result.returncode == 0, result.stderr
    mount.runtime.log.unlink(missing_ok=True)


@pytest.mark.on_host
def test_the_texts_of_open_files_are_bounded(limited: Mounted, tree: Path) -> None:
    path = limited.of(tree) / "sched.runqlat"
    length = len(path.read_bytes())
    fit = _SNAPSHOTS // length
    assert 10 < fit < _OPEN_FILES, "choose another file"
    user, others = User(path, 65534), User(path, 65533)
    try:
        assert user.does("open", _OPEN_FILES + 1) == (_OPEN_FILES, "EMFILE")
        assert others.does("open", 2) == (2, "ok")
        assert user.does("read", _OPEN_FILES) == (fit, "ENFILE")
        # What was taken once can be read anew, by others nothing, and root is not bound.
        assert user.does("read", fit) == (fit, "ok")
        assert others.does("read", 1) == (0, "ENFILE")
        with path.open("rb") as root:
            assert len(root.read()) == length
        # Said, and said once.
        assert limited.log().count("\n") == limited.log().count("limits.snapshot-memory") == 1
        # Closing returns it, soon; the first of those that are closed had not been read.
        assert user.does("close", _OPEN_FILES - fit) == (_OPEN_FILES - fit, "ok")
        assert others.does("read", 1) == (0, "ENFILE")
        assert user.does("close", 2) == (2, "ok")
        wait_until(lambda: others.does("read", 2) == (2, "ok"), "their memory")
    finally:
        user.end()
        others.end()
    late = User(path, 65532)
    try:
        assert late.does("open", fit) == (fit, "ok")
        wait_until(lambda: late.does("read", fit) == (fit, "ok"), "all memory")
    finally:
        late.end()


@pytest.mark.on_host
def test_snapshots_of_subtrees_are_bounded(limited: Mounted, tree: Path) -> None:
    """What they take are the values, more than the text that is made of them at a time."""
    for number in range(300):
        (tree / f"c{number}").mkdir()
    large = limited.of(tree) / ".tree/sched.runqlat"
    small = limited.of(tree / "c1") / ".tree/sched.runqlat"
    users = [User(large, 65534), User(small, 65533)]
    try:
        for user in users:
            assert user.does("open", 1) == (1, "ok")
        for _ in range(2):
            assert users[0].does("read", 1) == (0, "ENFILE")
            assert users[1].does("read", 1) == (1, "ok")
        assert len(large.read_bytes().splitlines()) == 301
        assert limited.log().count("limits.snapshot-memory") == 1
        # Root's count, too.
        with large.open("rb", buffering=0) as root:
            assert root.read(1)
            other = User(limited.of(tree / "c2") / ".tree/sched.runqlat", 65532)
            assert other.does("open", 1) == (1, "ok")
            assert other.does("read", 1) == (0, "ENFILE")
        wait_until(lambda: other.does("read", 1) == (1, "ok"), "root's memory")
        other.end()
    finally:
        for user in users:
            user.end()


@pytest.mark.skipif(
    "CGSTATFS_TEST_GUEST" in os.environ,
    reason="thousands of opens, slow in a guest, and the same on every kernel",
)
def test_one_users_open_files_are_bounded(mounted: Mounted, tree: Path, alive: None) -> None:
    """So nobody can keep others from opening a file."""
    script = (
        "import errno, os, resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "count = 0\n"
        "try:\n"
        "    while True:\n"
        "        os.open(sys.argv[1], os.O_RDONLY); count += 1\n"
        "except OSError as error:\n"
        "    print(count, errno.errorcode[error.errno])\n"
        "sys.stdout.flush(); sys.stdin.read()\n"
    )
    path = mounted.of(tree) / "proc.events"
    user = subprocess.Popen(
        ["/usr/bin/python3", "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        assert user.stdout.readline() == "4096 EMFILE\n"
        assert path.read_bytes().startswith(b"forks ")
    finally:
        user.communicate()
    reader = ["cat", path]
    result = subprocess.run(reader, user=65534, group=65534, extra_groups=[], capture_output=True)
    assert result.stdout.startswith(b"forks ")


# Each waits for all to be there; then all open and read at once.
_CROWD = """
import os, sys
path, count = sys.argv[1], int(sys.argv[2])
os.setgroups([]); os.setgid(65534); os.setuid(65534)
start, wrong = os.pipe(), 0
for number in range(count):
    if not os.fork():
        os.close(start[1])
        os.read(start[0], 1)
        with open(path, "rb", buffering=0) as file:
            text = file.read()
        os._exit(text != os.fsencode(sys.argv[3]))
os.close(start[1])
for number in range(count):
    wrong += os.wait()[1] != 0
print(wrong)
"""


@pytest.mark.on_host
def test_a_thousand_readers_at_once(
    mounted: Mounted, tree: Path, work: Path, alive: None
) -> None:
    """Of a user's: each gets the whole text, and so does who reads meanwhile."""
    path = mounted.of(tree) / "sched.runqlat"
    subprocess.run([work, "fork", tree, "3"], check=True)
    wait_for_exits((mounted.of(tree) / "proc.events").read_bytes, 4)
    text = path.read_text()
    command = ["/usr/bin/python3", "-c", _CROWD, path, "1000", text]
    crowd = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    # Root's turn comes meanwhile, too.
    while crowd.poll() is None:
        assert path.read_text() == text
    assert crowd.stdout.read() == "0\n"


def _pause_in(path: Path, count: int) -> subprocess.Popen[bytes]:
    """Somebody who has opened a file so often, read a byte of each, and stops there."""
    script = (
        "import os, signal, sys\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "files = [open(sys.argv[1], 'rb', buffering=0) for _ in range(int(sys.argv[2]))]\n"
        "for file in files: file.read(1)\n"
        "print(flush=True)\n"
        "os.kill(os.getpid(), signal.SIGSTOP)\n"
        "assert all(len(file.read()) > 100 for file in files)\n"
    )
    slow = subprocess.Popen(
        ["/usr/bin/python3", "-c", script, path, str(count)], stdout=subprocess.PIPE
    )
    assert slow.stdout.readline() == b"\n"
    return slow


@pytest.mark.on_host  # where reads take as long as they should
def test_slow_readers_delay_nobody(mounted: Mounted, tree: Path) -> None:
    """Hundreds that stopped in the middle of a text: others read as before."""
    path = mounted.of(tree) / "sched.runqlat"

    def fastest() -> float:
        best = float("inf")
        for _ in range(times(100)):
            start = time.perf_counter()
            path.read_bytes()
            best = min(best, time.perf_counter() - start)
        return best

    alone, beside = [], []
    for _ in range(3):
        alone.append(fastest())
        slow = _pause_in(path, times(500))
        try:
            beside.append(fastest())
        finally:
            slow.send_signal(signal.SIGCONT)
            # They go on where they were.
            slow.communicate()
        assert slow.returncode == 0
    assert min(beside) < 2 * min(alone), (alone, beside)


@pytest.mark.on_host
@pytest.mark.log("inotify's queue overflowed")
def test_who_changes_modes_all_the_time(mounted: Mounted, tree: Path, alive: None) -> None:
    """Somebody to whom cgroups were given, and who does nothing else: others read on."""
    script = (
        "import os, sys\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "print(flush=True)\n"
        "while True:\n"
        "    for mode in 0o700, 0o755:\n"
        "        for path in sys.argv[1:]: os.chmod(path, mode)\n"
    )
    theirs = [tree / "a", tree / "b"]
    for path in theirs:
        path.mkdir()
        os.chown(path, 65534, 65534)
        (mounted.of(path) / "proc.events").read_bytes()
    busy = subprocess.Popen(["/usr/bin/python3", "-c", script, *theirs], stdout=subprocess.PIPE)
    try:
        assert busy.stdout.readline() == b"\n"
        for _ in range(times(200)):
            assert (mounted.of(tree) / "proc.events").read_bytes().startswith(b"forks ")
    finally:
        busy.kill()
        busy.communicate()
    # And what they made last is known.
    for path in theirs:
        wait_until(lambda: mounted.of(path).stat().st_mode == path.stat().st_mode, "the mode")  # noqa: B023
