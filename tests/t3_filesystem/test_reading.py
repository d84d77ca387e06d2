# SPDX-License-Identifier: GPL-2.0-only
"""Reads: offset 0 is a new flushing lookup, later offsets continue its snapshot."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import threading
from pathlib import Path

import pytest

from ..conftest import Mounted, cgroup_id, times, wait_for_exits
from ..t2_bpf.test_exactness import FORKS, check_all_ended, fork_in


def fork(work: Path, directory: Path, count: int) -> None:
    subprocess.run([work, "fork", directory, str(count)], check=True)


def fork_and_settle(mounted: Mounted, work: Path, directory: Path, count: int) -> None:
    """The first tasks there, and then nothing happens any more."""
    fork(work, directory, count)
    wait_for_exits((mounted.of(directory) / "proc.events").read_bytes, count + 1)


def forks(text: bytes) -> int:
    name, number = text.split(b"\n")[0].split()
    assert name == b"forks"
    return int(number)


def test_formats(mounted: Mounted, tree: Path) -> None:
    directory = mounted.of(tree)
    keys = [line.split()[0] for line in (directory / "proc.events").read_text().splitlines()]
    assert keys == ["forks", "execs", "exits", "oom_kills", "attaches"]
    total, histogram = (directory / "sched.runqlat").read_text().splitlines()
    assert total == "wait_total_ns 0"
    name, *buckets = histogram.split()
    assert name == "wait_ns"
    assert buckets[:4] == ["count=0", "1=0", "2=0", "4=0"]
    assert buckets[-2:] == [f"{1 << 38}=0", "inf=0"]


def test_offset_0_is_new_and_later_offsets_continue(
    mounted: Mounted, tree: Path, work: Path
) -> None:
    with open(mounted.of(tree) / "proc.events", "rb", buffering=0) as file:
        assert file.read(8) == b"forks 0\n"
        fork(work, tree, 5)
        rest = file.read()
        assert b"exits 0\n" in rest
        assert file.read() == b""
        file.seek(0)
        assert forks(file.read()) == 5
        # As the kernel's seq files do.
        fork(work, tree, 1)
        assert os.pread(file.fileno(), 100, 6).startswith(b"5\n")
        assert os.pread(file.fileno(), 100, 0).startswith(b"forks 6\n")
        assert os.pread(file.fileno(), 100, 1 << 40) == b""


def test_one_byte_at_a_time(mounted: Mounted, tree: Path, work: Path) -> None:
    fork_and_settle(mounted, work, tree, 2)
    path = mounted.of(tree) / "sched.runqlat"
    whole = path.read_bytes()
    with open(path, "rb", buffering=0) as file:
        assert b"".join(iter(lambda: file.read(1), b"")) == whole


def test_open_files_do_not_disturb_each_other(mounted: Mounted, tree: Path, work: Path) -> None:
    path = mounted.of(tree) / "proc.events"
    files = []
    for number in range(20):
        file = open(path, "rb", buffering=0)
        assert file.read(6) == b"forks "
        files.append((number, file))
        fork(work, tree, 1)
    for number, file in files:
        assert forks(b"forks " + file.read()) == number
        file.close()


def test_a_first_read_past_the_start(mounted: Mounted, tree: Path) -> None:
    with open(mounted.of(tree) / "proc.events", "rb", buffering=0) as file:
        assert os.pread(file.fileno(), 5, 2) == b"rks 0"


def test_a_removed_cgroups_open_file(mounted: Mounted, tree: Path) -> None:
    a = tree / "a"
    for partly in (False, True):
        a.mkdir()
        with open(mounted.of(a) / "proc.events", "rb", buffering=0) as file:
            if partly:
                assert file.read(6) == b"forks "
            a.rmdir()
            if partly:
                assert os.read(file.fileno(), 4096).startswith(b"0\nexecs")
            with pytest.raises(OSError) as error:
                file.read()
            assert error.value.errno == errno.ENODEV
            file.seek(0)
            with pytest.raises(OSError) as error:
                file.read()
            assert error.value.errno == errno.ENODEV
            os.fstat(file.fileno())


def test_forks_are_exact_while_all_files_are_read(
    mounted: Mounted, tree: Path, work: Path
) -> None:
    a, ab, abc, a2 = tree / "a", tree / "a/b", tree / "a/b/c", tree / "a2"
    for directory in (a, ab, abc, a2):
        directory.mkdir()
    reader = subprocess.Popen(
        ["sh", "-c", f"while grep -rh . {mounted.of(tree)} >/dev/null; do :; done"]
    )
    try:
        check_all_ended(fork_in(work, [abc, ab, a, a2]))
        assert reader.poll() is None
    finally:
        reader.kill()
        reader.wait()
    each = 2 * FORKS
    for directory, count in {abc: each, ab: 2 * each, a: 3 * each, a2: each}.items():
        assert forks((mounted.of(directory) / "proc.events").read_bytes()) == count


def test_many_readers_at_once(mounted: Mounted, tree: Path, work: Path, alive: None) -> None:
    path = mounted.of(tree) / "proc.events"
    fork_and_settle(mounted, work, tree, 3)
    wrong: list[bytes] = []

    def read() -> None:
        for _ in range(times(20)):
            text = path.read_bytes()
            if forks(text) != 3:
                wrong.append(text)

    threads = [threading.Thread(target=read) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_size_is_the_length_of_the_text(mounted: Mounted, tree: Path, work: Path) -> None:
    path = mounted.of(tree) / "proc.events"
    assert path.stat().st_size == len(path.read_bytes())
    fork_and_settle(mounted, work, tree, 12)
    assert path.stat().st_size == len(path.read_bytes())
    assert path.stat().st_mode == 0o100444
    assert path.stat().st_nlink == 1


def test_sendfile_gives_the_whole_text_of_now(mounted: Mounted, tree: Path, work: Path) -> None:
    """Though the text has grown since its length was last asked for."""
    path = mounted.of(tree) / "proc.events"
    exits = 0
    with open(path, "rb") as other:
        for count in (0, 9, 90, 1):
            path.stat()
            fork(work, tree, count)
            exits += count + 1
            # Reads of what is open do not ask for the length.
            wait_for_exits(lambda: os.pread(other.fileno(), 4096, 0), exits)
            with open(path, "rb") as file:
                reader, writer = os.pipe()
                sent = os.sendfile(writer, file.fileno(), None, 1 << 16)
                assert os.read(reader, 1 << 16) == path.read_bytes()
                assert sent == len(path.read_bytes())
                os.close(reader)
                os.close(writer)


def test_mmap(mounted: Mounted, tree: Path, work: Path, alive: None) -> None:
    """A shared one is refused, as on cgroupfs; a private one is a copy."""
    path = mounted.of(tree) / "proc.events"
    fork_and_settle(mounted, work, tree, 3)
    text = path.read_bytes()
    with open(path, "rb") as file:
        with pytest.raises(OSError) as error:
            mmap.mmap(file.fileno(), 10, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        assert error.value.errno == errno.ENODEV
        with mmap.mmap(
            file.fileno(), len(text), flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ
        ) as copy:
            assert copy[:] == text


def test_statfs(mounted: Mounted) -> None:
    """As cgroupfs's, but for the number and the flags of the mount; so df leaves it out."""
    status, theirs = os.statvfs(mounted.path), os.statvfs(mounted.cgroupfs)
    for name in dir(status):
        if name.startswith("f_") and name not in ("f_flag", "f_fsid"):
            assert getattr(status, name) == getattr(theirs, name), name
    assert status.f_flag & os.ST_RDONLY
    listed = {
        option: subprocess.run(["df", *option], capture_output=True, text=True).stdout
        for option in ((), ("--all",))
    }
    assert f" {mounted.path}\n" in listed[("--all",)]
    assert f" {mounted.path}\n" not in listed[()]


def test_ids_in_the_map_agree(mounted: Mounted, tree: Path, work: Path) -> None:
    fork_and_settle(mounted, work, tree, 4)
    text = (mounted.of(tree) / "proc.events").read_bytes()
    assert text == mounted.held("proc_events", "events", tree)
    assert cgroup_id(tree) == mounted.of(tree).stat().st_ino
