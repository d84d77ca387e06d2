# SPDX-License-Identifier: GPL-2.0-only
"""Bad collectors in a mount: each is reported once, and everything else goes on."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cgstatfs import loader
from cgstatfs.collectors import remove_pins
from cgstatfs.engines import ENGINES
from cgstatfs.loading import Request
from cgstatfs.runtime import Runtime

from ..conftest import BUILD, REPOSITORY, cgstatfs, wait_until
from ..fuzz.elf import KIND_VAR, btf_type, patched
from .test_program import mount, mountpoint  # noqa: F401

OBJECTS = BUILD / "tests" / "hostile"
GOOD = OBJECTS / "tiny.bpf.o"
FILE = "test.hostile"
SHIPPED = {"mm.reclaim", "proc.events", "sched.runqlat"}

# Of the compiled ones, some of each kind; what their reason has.
COMPILED = {
    "char_array": "(char[16]); use unsigned 64-bit",
    "tag_unknown": 'unknown tag "mean"',
    "file_slash": "etc/passwd",
    "file_newline": "use ASCII letters",
    "files_collide": '"m79" collides with "m2300"',
    "file_taken": '"proc.events" is taken',
    "license_missing": "licence",
    "map_missing": "declares no stats map",
    "map_pinned": "is to be pinned",
    "map_enormous": '"hst_map" cannot be created',
    "long_log": "R2 invalid mem access",
    "loop": "refused by the verifier",
    "tracepoint_missing": "cgroup_fly_away",
    "xdp": "cannot be attached",
}
# Of which libbpf 1.1 takes the name, without a look whether there is one.
_NO_NAME = struct.pack("<I", 0x7FFFFFFF)


def crash(data: bytes) -> bytes:
    """Kills libbpf 1.1: a variable's name is not in the BTF's strings."""
    return patched(data, btf_type(data, "hst_lists", KIND_VAR), _NO_NAME)


def make_bad(directory: Path) -> dict[str, str]:
    """Fill a directory with bad collectors.

    :returns: what their reasons have, by the names that they are listed with
    """
    for name in COMPILED:
        shutil.copy(OBJECTS / f"{name}.bpf.o", directory)
    data = GOOD.read_bytes()
    (directory / "empty.bpf.o").touch()
    (directory / "cut.bpf.o").write_bytes(data[: len(data) // 2])
    (directory / "crash.bpf.o").write_bytes(crash(data))
    (directory / "directory.bpf.o").mkdir()
    os.mkfifo(directory / "fifo.bpf.o")
    (directory / "dangling.bpf.o").symlink_to("nowhere")
    shutil.copy(GOOD, directory / "writable.bpf.o").chmod(0o666)
    # More than there is memory for.
    os.truncate(shutil.copy(GOOD, directory / "sparse.bpf.o"), 300 << 30)
    shutil.copy(GOOD, directory / "a b.bpf.o")
    shutil.copy(GOOD, directory / "a\nb.bpf.o")
    shutil.copy(GOOD, os.fsencode(directory) + b"/\xff.bpf.o")
    return COMPILED | {
        "empty": "is empty",
        "cut": "cannot be read as a BPF object",
        "crash": "",
        "directory": "not a regular file",
        "fifo": "not a regular file",
        "dangling": "No such file",
        "writable": "others than root",
        "sparse": "larger than 64 MiB",
        "a b": "use ASCII letters",
        r"a\nb": "use ASCII letters",
        r"\udcff": "begin with a letter",
    }


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "collectors.d"
    path.mkdir()
    return path


def listed(mountpoint: Path) -> str:  # noqa: F811
    """What ``cgstatfs list`` says of a mount."""
    result = cgstatfs("list")
    assert result.returncode == 0, result.stderr
    _, _, text = result.stdout.partition(f"{mountpoint}: engine ")
    lines = text.splitlines()
    end = next((n for n, line in enumerate(lines[1:], 1) if not line.startswith(" ")), len(lines))
    return "\n".join(lines[:end])


def on(mounted: Path, command: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    result = cgstatfs(command, "--mount", mounted, *arguments)
    assert "Traceback" not in result.stderr
    return result


def files(mountpoint: Path) -> set[str]:  # noqa: F811
    return {path.name for path in mountpoint.iterdir() if path.is_file()}


def test_many_bad_ones_and_a_good_one(mountpoint: Path, directory: Path) -> None:  # noqa: F811
    bad = make_bad(directory)
    # Last by name, so that all the others are before it.
    shutil.copy(GOOD, directory / "zz_good.bpf.o")
    mount("--collectors", directory, mountpoint)
    assert files(mountpoint) == {*SHIPPED, FILE}
    assert (mountpoint / FILE).read_text() == "0\n"
    runtime = Runtime(mountpoint)
    text, log = listed(mountpoint), runtime.log.read_text()
    for name, words in bad.items():
        assert text.count(f"  collector {name}: failed: {directory}/") == 1
        assert log.count(f"collector {name} is not available: {directory}/") == 1
        reason = text.partition(f"  collector {name}: failed: ")[2].partition("\n  collector ")[0]
        assert words in reason
        assert reason.count("\n") < 12
    assert text.count(": failed: ") == len(bad)
    assert "Traceback" not in log
    assert {path.name for path in runtime.pins.iterdir()} == {
        "mm_reclaim", "proc_events", "sched_runqlat", "zz_good",
    }  # fmt: skip


@pytest.fixture
def mounted(mountpoint: Path) -> Iterator[Path]:  # noqa: F811
    """A mount of the shipped collectors."""
    mount(mountpoint)
    yield mountpoint
    assert "Traceback" not in Runtime(mountpoint).log.read_text()


def check_unchanged(mounted: Path, before: str) -> None:
    assert files(mounted) == SHIPPED
    assert len(list(Runtime(mounted).pins.iterdir())) == len(SHIPPED)
    assert [line for line in listed(mounted).splitlines() if line.startswith("  collector ")] == [
        line for line in before.splitlines() if line.startswith("  collector ")
    ]


def test_loading_a_bad_one_changes_nothing(mounted: Path, directory: Path) -> None:
    before = listed(mounted)
    for name, words in make_bad(directory).items():
        path = directory / f"{name}.bpf.o"
        if not os.path.lexists(path):
            continue  # One of those whose names cannot be shown.
        result = on(mounted, "load", path)
        assert result.returncode == 1
        assert result.stderr.startswith(f"cgstatfs: {path}: "), result.stderr
        assert words in result.stderr
        assert result.stdout == ""
    check_unchanged(mounted, before)


def test_a_crash_of_the_loader(mounted: Path, directory: Path) -> None:
    """Of libbpf 1.1, that is: others may refuse the object."""
    path = directory / "crash.bpf.o"
    path.write_bytes(crash(GOOD.read_bytes()))
    result = on(mounted, "load", path)
    assert result.returncode == 1
    assert f"{path}: the loader died of it (SIGSEGV)" in result.stderr or "BPF object" in result.stderr
    assert files(mounted) == SHIPPED


def _loader_of(pid: int) -> int | None:
    """The process that loads a collector for a daemon."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            try:
                if b"cgstatfs.loader" in Path(f"/proc/{child}/cmdline").read_bytes():
                    return int(child)
            except FileNotFoundError:
                pass  # It has just ended.
    return None


def test_a_killed_loader(mounted: Path) -> None:
    """While the file system goes on answering."""
    pid, before = Runtime(mounted).read_state().pid, listed(mounted)
    path = OBJECTS / "too_complex.bpf.o"
    loading = subprocess.Popen(
        [sys.executable, "-m", "cgstatfs", "load", "--mount", mounted, path],
        cwd=REPOSITORY, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_until(lambda: _loader_of(pid) or loading.poll() is not None, "the loader")
    assert (mounted / "proc.events").read_text().startswith("forks ")
    os.kill(_loader_of(pid), signal.SIGKILL)
    assert loading.communicate()[1] == (
        f"cgstatfs: {path}: the loader was killed, by somebody or for want of memory; try again\n"
    )
    assert loading.returncode == 1
    check_unchanged(mounted, before)


def test_a_loader_whose_daemon_has_gone(mounted: Path) -> None:
    """It pins nothing: nobody would end it."""
    pins, root = Runtime(mounted).pins, mounted.stat().st_ino
    asked = loader._encode(Request(GOOD, ENGINES[-1](), root), pins / "orphan")
    own = b'"daemon": %d' % os.getpid()
    for daemon, status in ((b'"daemon": 1', 1), (own, 0)):
        done = subprocess.run(
            [sys.executable, "-m", "cgstatfs.loader"], input=asked.replace(own, daemon),
            capture_output=True, cwd=REPOSITORY,
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        assert (pins / "orphan").exists() == (status == 0)
    remove_pins(pins / "orphan")


def test_a_good_one_appears_everywhere_at_once(mounted: Path, tree: Path, cgroupfs: Path) -> None:
    (tree / "below").mkdir()
    mirror = mounted / tree.relative_to(cgroupfs)
    directories = [mounted, mirror, mirror / "below"]
    assert all(files(path) == SHIPPED for path in directories)
    result = on(mounted, "load", GOOD)
    assert (result.returncode, result.stdout) == (0, f"tiny: loaded; {FILE}\n"), result.stderr
    assert all(files(path) == {*SHIPPED, FILE} for path in directories)
    assert all((path / FILE).read_text() == "0\n" for path in directories)
