# SPDX-License-Identifier: GPL-2.0-only
"""What one user can take of what all share."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..conftest import Mounted, cgstatfs, let_all_in, wait_until

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
