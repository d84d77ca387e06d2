# SPDX-License-Identifier: GPL-2.0-only
"""What goes on at a mount while its daemons come and go: each a process, that checks every number.

``python -m tests.t3_filesystem.hammer KIND MOUNT CGROUPFS FILE`` goes on until its standard input
ends, and then prints how often it did what, as JSON. What should not have happened is said on
standard error, with exit status 1.

The ground truth is in *FILE*: two words, of how many forks were begun and how many are done.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import select
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from cgstatfs import nodes

# What the documentation allows while a daemon is replaced: where the kernel cannot send requests
# anew, who waited is interrupted; and the rest of a text ends with the daemon that made it.
_INTERRUPTED = errno.EINTR
_LOST = errno.ESTALE

_TAG = nodes.tag(b"proc.events")
FIELDS = ["forks", "execs", "exits", "oom_kills", "attaches"]

done: Counter[str] = Counter()


def _truth(path: str) -> memoryview:
    with open(path, "r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 16)).cast("Q")


def _stop() -> bool:
    return bool(select.select([0], [], [], 0)[0])


def _fail(message: str) -> None:
    sys.exit(message)


def _again(call: Callable, *arguments: object) -> object:
    """Call, and once more for as often as it is interrupted."""
    while True:
        try:
            return call(*arguments)
        except OSError as error:
            if error.errno != _INTERRUPTED:
                raise
            done["interrupted"] += 1


def _forks(text: bytes) -> int:
    lines = text.decode().splitlines()
    if not text.endswith(b"\n") or [line.split()[0] for line in lines] != FIELDS:
        _fail(f"a text that is not whole: {text!r}")
    return int(lines[0].split()[1])


def _check(truth: memoryview, before: int, text: bytes) -> None:
    forks = _forks(text)
    if not before <= forks <= truth[0]:
        _fail(f"{forks} forks; {before} were done before, and {truth[0]} are begun")
    done["texts"] += 1


def _writer(_: Path, cgroup: Path, truth: memoryview) -> None:
    (cgroup / "cgroup.procs").write_text(str(os.getpid()))
    while not _stop():
        truth[0] += 1
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        truth[1] += 1
        done["forks"] += 1


def _whole(directory: Path, _: Path, truth: memoryview) -> None:
    while not _stop():
        before = truth[1]
        descriptor = _again(os.open, directory / "proc.events", os.O_RDONLY)
        text = _again(os.read, descriptor, 4096)
        try:
            rest = _again(os.read, descriptor, 4096)
        except OSError as error:
            _fail(f"at the end of a text: {error}")
        if rest:
            _fail(f"{rest!r} after {text!r}")
        os.close(descriptor)
        _check(truth, before, text)


def _held(directory: Path, _: Path, truth: memoryview) -> None:
    """A file and a directory that were opened before the first daemon ended."""
    descriptor = os.open(directory / "proc.events", os.O_RDONLY)
    at = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    os.chdir(directory)
    while not _stop():
        before = truth[1]
        _check(truth, before, _again(os.pread, descriptor, 4096, 0))
        if "proc.events" not in _again(os.listdir, at):
            _fail("a directory that is open lost its file")
        _again(os.stat, "proc.events")


def _pieces(directory: Path, _: Path, truth: memoryview) -> None:
    """A text that is read in pieces is one text, or its rest is lost in so many words."""
    while not _stop():
        before, text = truth[1], b""
        descriptor = _again(os.open, directory / "proc.events", os.O_RDONLY)
        try:
            while piece := _again(os.read, descriptor, 5):
                text += piece
            _check(truth, before, text)
        except OSError as error:
            if error.errno != _LOST:
                raise
            done["lost"] += 1
        os.close(descriptor)


def _wait_for_end(directory: Path) -> None:
    """The kernel answers from its cache until it is told; that takes a daemon."""
    for _ in range(6000):
        try:
            _again(os.stat, directory)
        except FileNotFoundError:
            return
        time.sleep(0.02)
    _fail("a directory outlived its cgroup")


def _wait_for_new(directory: Path, new: int, old: int) -> None:
    """Who listed the directory may have put back the old one, until the kernel is told once more."""
    for _ in range(6000):
        found = _again(os.stat, directory).st_ino
        if found == new:
            return
        if found != old:
            break
        done["late"] += 1
        time.sleep(0.02)
    _fail("a directory is not that of its cgroup")


def _cgroups(directory: Path, cgroup: Path, _: memoryview) -> None:
    """What is made is there, and what is removed is not, whoever serves."""
    path, shown = cgroup / f"x{os.getpid()}", directory / f"x{os.getpid()}"
    new = 0
    while not _stop():
        path.mkdir()
        old, new = new, path.stat().st_ino
        # At once for who opens anything in it.
        if _again(os.stat, shown / "proc.events").st_ino != nodes.file_node(new, _TAG):
            _fail("a file is not that of its cgroup")
        _wait_for_new(shown, new, old)
        held = _again(os.open, shown / "proc.events", os.O_RDONLY)
        path.rmdir()
        try:
            _again(os.stat, shown / "proc.events")
            _fail("a file outlived its cgroup")
        except FileNotFoundError:
            pass
        _wait_for_end(shown)
        try:
            _again(os.pread, held, 4096, 0)
            _fail("a removed cgroup was read")
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
        os.close(held)
        done["cgroups"] += 1


KINDS = {
    "writer": _writer, "whole": _whole, "held": _held, "pieces": _pieces, "cgroups": _cgroups,
}  # fmt: skip


def main() -> None:
    kind, directory, cgroup, truth = sys.argv[1:]
    print("begun", flush=True)
    try:
        KINDS[kind](Path(directory), Path(cgroup), _truth(truth))
    except OSError as error:
        _fail(f"{kind}: {error} after {dict(done)}")
    print(json.dumps(done))


if __name__ == "__main__":
    main()
