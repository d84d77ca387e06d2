# SPDX-License-Identifier: GPL-2.0-only
"""What people read files with prints what the map holds."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import Mounted, wait_for_exits

ONE_ENGINE = True

# File, collector, and the map's name in the collector's source
FILES = {
    "mm.reclaim": ("mm_reclaim", "reclaim"),
    "proc.events": ("proc_events", "events"),
    "sched.runqlat": ("sched_runqlat", "runqlat"),
}


def run(*command: str | Path, **options: object) -> bytes:
    result = subprocess.run(list(command), capture_output=True, **options)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def held(mounted: Mounted, tree: Path, work: Path) -> dict[Path, bytes]:
    """Files, in two cgroups where nothing happens any more, and what the maps hold."""
    a = tree / "a"
    a.mkdir()
    run(work, "fork", a, "7")
    run(work, "fork", tree, "5")
    wait_for_exits((mounted.of(tree) / "proc.events").read_bytes, 14)
    texts = {}
    for cgroup in (tree, a):
        for file, (collector, prefix) in FILES.items():
            path = mounted.of(cgroup) / file
            path.read_bytes()
            texts[path] = mounted.held(collector, prefix, cgroup)
    assert texts[mounted.of(tree) / "proc.events"].startswith(b"forks 12\n")
    return texts


READERS = {
    "cat": ["cat"],
    "head": ["head", "-n", "1000"],
    "tail": ["tail", "-n", "1000"],
    "tail of bytes": ["tail", "-c", "+1"],
    "grep": ["grep", ""],
    "sed": ["sed", ""],
    "awk": ["awk", "{print}"],
    "dd": ["dd", "bs=7", "status=none"],
    "sort": ["sort"],
    "busybox cat": ["busybox", "cat"],
    "python": [sys.executable, "-c", "import sys; print(open(sys.argv[1]).read(), end='')"],
}


@pytest.mark.parametrize("tool", READERS)
def test_readers(held: dict[Path, bytes], tool: str) -> None:
    command = READERS[tool]
    for path, text in held.items():
        argument = f"if={path}" if tool == "dd" else path
        expected = text
        if tool == "sort":
            expected = b"".join(sorted(text.splitlines(keepends=True)))
        options = {"env": {**os.environ, "LC_ALL": "C"}}
        assert run(*command, argument, **options) == expected


COPIERS = {
    "cp": ["cp"],
    "cp --preserve": ["cp", "-p"],
    "cp without reflink": ["cp", "--reflink=never"],
    "busybox cp": ["busybox", "cp"],
    "rsync": ["rsync", "-a"],
    "rsync twice": ["rsync", "-a"],
    "install": ["install", "-m", "644"],
}


@pytest.mark.parametrize("tool", COPIERS)
def test_copiers(held: dict[Path, bytes], tool: str, tmp_path: Path) -> None:
    for path, text in held.items():
        target = tmp_path / "copy"
        for _ in range(2 if tool == "rsync twice" else 1):
            run(*COPIERS[tool], path, target)
        assert target.read_bytes() == text
        target.unlink()


def test_shutil(held: dict[Path, bytes], tmp_path: Path) -> None:
    for path, text in held.items():
        for copy in (shutil.copyfile, shutil.copy, shutil.copy2):
            copy(path, tmp_path / "copy")
            assert (tmp_path / "copy").read_bytes() == text
            (tmp_path / "copy").unlink()


def test_copies_of_the_whole_tree(
    mounted: Mounted, tree: Path, held: dict[Path, bytes], tmp_path: Path
) -> None:
    directory = mounted.of(tree)
    run("cp", "-r", directory, tmp_path / "cp")
    run("rsync", "-a", f"{directory}/", tmp_path / "rsync")
    shutil.copytree(directory, tmp_path / "copytree")
    run("tar", "-C", directory, "-cf", tmp_path / "tree.tar", ".")
    (tmp_path / "tar").mkdir()
    run("tar", "-C", tmp_path / "tar", "-xf", tmp_path / "tree.tar")
    for path, text in held.items():
        for name in ("cp", "rsync", "copytree", "tar"):
            assert (tmp_path / name / path.relative_to(directory)).read_bytes() == text, name


def test_finders(mounted: Mounted, tree: Path, held: dict[Path, bytes]) -> None:
    directory = mounted.of(tree)
    expected = sorted([*map(str, held), str(directory), str(directory / "a")])
    assert sorted(run("find", directory).decode().splitlines()) == expected
    assert sorted(run("find", directory, "-type", "f").decode().split()) == sorted(map(str, held))
    walked = [os.path.join(top, name) for top, _, names in os.walk(directory) for name in names]
    assert sorted(walked) == sorted(map(str, held))
    tree_output = run("tree", "-if", "--noreport", directory).decode().splitlines()
    assert sorted(tree_output) == expected
    listing = run("ls", "-A", directory).decode().split()
    assert listing == ["a", "mm.reclaim", "proc.events", "sched.runqlat"]
    assert run("ls", "-a", directory).decode().split()[:2] == [".", ".."]
    assert run("sh", "-c", "echo *", cwd=directory).decode().split() == listing
    assert run("sh", "-c", "echo */mm.*", cwd=directory) == b"a/mm.reclaim\n"


def test_grep_and_friends(mounted: Mounted, tree: Path, held: dict[Path, bytes]) -> None:
    directory = mounted.of(tree)
    lines = run("grep", "-r", ".", directory, "--include=proc.events").decode().splitlines()
    expected = {
        f"{path}:{line}"
        for path, text in held.items()
        if path.name == "proc.events"
        for line in text.decode().splitlines()
    }
    assert set(lines) == expected
    for path, text in held.items():
        count = [str(text.count(b"\n")), str(len(text.split())), str(len(text)), str(path)]
        assert run("wc", path).decode().split() == count
        assert run("wc", "-c", path).decode().split()[0] == str(len(text))
        assert run("stat", "-c", "%s %A %F", path).decode() == (
            f"{len(text)} -r--r--r-- regular file\n"
        )
        assert run("du", "-b", path).decode().split()[0] == str(len(text))
        assert run("du", path).decode().split()[0] == "0"
        assert run("diff", path, path) == b""
        assert run("cmp", path, path) == b""
        with open(path, "rb") as redirected:
            assert run("cat", stdin=redirected) == text
        assert run("head", "-c", "6", path) == text[:6]
        assert run("tail", "-n", "1", path) == text.splitlines(keepends=True)[-1]
    first, second = directory / "proc.events", directory / "a/proc.events"
    result = subprocess.run(["diff", first, second], capture_output=True)
    assert result.returncode == 1
    assert b"< forks 12\n" in result.stdout and b"> forks 7\n" in result.stdout


def test_watch(held: dict[Path, bytes]) -> None:
    path, text = next((p, t) for p, t in held.items() if p.name == "proc.events")
    wanted = text.splitlines()[0]
    terminal, output = os.openpty()
    watch = subprocess.Popen(
        ["watch", "-n", "0.5", "-t", "cat", path], stdin=output, stdout=output, stderr=output,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
    )  # fmt: skip
    os.close(output)
    try:
        seen = b""
        while wanted not in seen:
            assert select.select([terminal], [], [], 600)[0], seen
            seen += os.read(terminal, 4096)
    finally:
        watch.kill()
        watch.wait()
        os.close(terminal)
