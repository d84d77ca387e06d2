# SPDX-License-Identifier: GPL-2.0-only
"""Directories are the cgroups of cgroupfs: names, ids, attributes, creation, removal."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from pathlib import Path

import pytest

from ..conftest import Mounted, cgroup_id, times, wait_until

ONE_ENGINE = True


def directories(path: Path) -> set[bytes]:
    with os.scandir(os.fsencode(path)) as entries:
        return {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}


def walk(root: Path) -> set[Path]:
    return {Path(path).relative_to(root) for path, _, _ in os.walk(root)}


def test_the_whole_tree_is_there(mounted: Mounted, tree: Path) -> None:
    for name in ("a/b/c", "a/d", "e"):
        (tree / name).mkdir(parents=True)
    for path, names, _ in os.walk(tree):
        mirror = mounted.of(Path(path))
        assert directories(mirror) == set(map(os.fsencode, names))
        assert mirror.stat().st_ino == cgroup_id(Path(path))
    # Others' cgroups come and go.
    wait_until(lambda: walk(mounted.path) == walk(mounted.cgroupfs), "both trees to agree")


@pytest.mark.parametrize(
    "name", [b"caf\xe9", b"\xff\xfe", b"a b\t'\"\\", b"-rf", b"x" * 255, "日本".encode()]
)
def test_names_are_bytes(mounted: Mounted, tree: Path, name: bytes) -> None:
    os.mkdir(os.path.join(os.fsencode(tree), name))
    mirror = os.path.join(os.fsencode(mounted.of(tree)), name)
    assert directories(mounted.of(tree)) == {name}
    assert os.stat(mirror).st_ino == os.stat(os.path.join(os.fsencode(tree), name)).st_ino
    with open(os.path.join(mirror, b"proc.events")) as file:
        assert file.read().startswith("forks 0\n")


def test_attributes_are_those_of_cgroupfs(mounted: Mounted, tree: Path) -> None:
    a = tree / "a"
    a.mkdir()
    a.chmod(0o750)
    os.chown(a, 12, 34)

    def attributes(directory: Path) -> tuple[int, ...]:
        status = directory.stat()
        return status.st_mode, status.st_uid, status.st_gid, status.st_ino, status.st_nlink

    for directory in (a, tree, mounted.cgroupfs):
        # Cached ones may lag: the number of links here.
        wait_until(
            lambda: attributes(mounted.of(directory)) == attributes(directory),  # noqa: B023
            f"the attributes of {directory}",
        )


def test_changes_of_attributes_are_followed(mounted: Mounted, tree: Path) -> None:
    a, b = tree / "a", tree / "a/b"
    b.mkdir(parents=True)
    mirror = mounted.of(b)
    assert stat.S_IMODE(mirror.stat().st_mode) == 0o755
    for mode, owner in ((0o700, 1), (0o755, 2), (0o711, 0)):
        b.chmod(mode)
        os.chown(b, owner, owner)
        wait_until(lambda: mirror.stat().st_mode == b.stat().st_mode, "the new mode")  # noqa: B023
        wait_until(lambda: mirror.stat().st_uid == owner, "the new owner")  # noqa: B023
    # The number of links, too, which find(1) goes by.
    assert mounted.of(a).stat().st_nlink == 3
    (a / "c").mkdir()
    wait_until(lambda: mounted.of(a).stat().st_nlink == 4, "the new number of links")


def test_a_new_cgroup_is_there_at_once(mounted: Mounted, tree: Path) -> None:
    for number in range(times(200)):
        name = f"n{number}"
        assert not mounted.of(tree / name).exists()
        (tree / name).mkdir()
        assert mounted.of(tree / name).stat().st_ino == cgroup_id(tree / name)


def test_a_removed_cgroup_is_gone_at_once(mounted: Mounted, tree: Path) -> None:
    """Also where the kernel has its name cached."""
    for number in range(times(200)):
        directory = tree / f"r{number}"
        directory.mkdir()
        file = mounted.of(directory) / "proc.events"
        file.read_bytes()
        directory.rmdir()
        with pytest.raises(FileNotFoundError):
            file.open()


def test_a_cgroup_made_anew_is_the_new_one(mounted: Mounted, tree: Path, work: Path) -> None:
    a, b = tree / "a", tree / "a/b"
    for number in range(times(50)):
        b.mkdir(parents=True)
        file = mounted.of(b) / "proc.events"
        assert file.read_text().startswith("forks 0\n")
        subprocess.run([work, "fork", b, "3"], check=True)
        assert file.read_text().startswith("forks 3\n")
        assert mounted.of(b).stat().st_ino == cgroup_id(b)
        b.rmdir()
        if number % 2:
            a.rmdir()


def test_a_cgroup_made_anew_lists_as_the_new_one(mounted: Mounted, tree: Path) -> None:
    a = tree / "a"
    for number in range(times(100)):
        (a / f"b{number}").mkdir(parents=True)
        expected = [f"b{number}", "mm.reclaim", "proc.events", "sched.runqlat"]
        assert sorted(os.listdir(mounted.of(a))) == expected
        (a / f"b{number}").rmdir()
        a.rmdir()
        if number % 2:
            with pytest.raises(FileNotFoundError):
                os.listdir(mounted.of(a))


def test_cgroups_deeper_than_a_path_can_say(mounted: Mounted, tree: Path, alive: None) -> None:
    """They are out of reach, and harm nobody."""
    descriptors = [os.open(tree, os.O_RDONLY)]
    name = "d" * 250
    try:
        for _ in range(20):
            os.mkdir(name, dir_fd=descriptors[-1])
            descriptors.append(os.open(name, os.O_RDONLY, dir_fd=descriptors[-1]))
        found = subprocess.run(["find", mounted.of(tree), "-name", "proc.events"],
                               capture_output=True, text=True)  # fmt: skip
        assert 10 < len(found.stdout.splitlines()) < 20
    finally:
        for descriptor in reversed(descriptors[:-1]):
            os.rmdir(name, dir_fd=descriptor)
        for descriptor in descriptors:
            os.close(descriptor)


def test_stat_of_a_removed_cgroup_ends(mounted: Mounted, tree: Path) -> None:
    """It may lag behind, being cached, until the kernel is told; no time is promised here."""
    a = tree / "a"
    a.mkdir()
    assert mounted.of(a).stat()
    a.rmdir()
    wait_until(lambda: not mounted.of(a).exists(), "the cached name to go")


def _exists(name: str, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory)
    except FileNotFoundError:
        return False
    return True


def test_a_directory_held_open(mounted: Mounted, tree: Path) -> None:
    """As in cgroupfs: it can be stat'ed, lists empty, and holds nothing."""
    a, b = tree / "a", tree / "a/b"
    b.mkdir(parents=True)
    holder = os.open(mounted.of(a), os.O_RDONLY | os.O_DIRECTORY)
    theirs = os.open(a, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert os.listdir(holder)
        b.rmdir()
        a.rmdir()
        for descriptor in (holder, theirs):
            assert stat.S_ISDIR(os.stat(descriptor).st_mode)
            assert os.listdir(descriptor) == []
            with pytest.raises(FileNotFoundError):
                os.open("proc.events", os.O_RDONLY, dir_fd=descriptor)
            # The listing had it cached.
            wait_until(lambda: not _exists("b", descriptor), "the cached name to go")  # noqa: B023
        a.mkdir()
        assert os.listdir(holder) == []
        assert (mounted.of(a) / "proc.events").read_text().startswith("forks 0\n")
    finally:
        os.close(holder)
        os.close(theirs)


def test_a_removed_working_directory(mounted: Mounted, tree: Path) -> None:
    a = tree / "a"
    a.mkdir()
    script = f"cd {mounted.of(a)}; rmdir {a}; ls; cat proc.events; echo $?"
    result = subprocess.run(["sh", "-c", script], text=True, capture_output=True)
    assert result.stdout == "1\n"
    assert "No such file or directory" in result.stderr


def test_a_cgroup_named_like_a_file_goes_before_it(mounted: Mounted, tree: Path) -> None:
    cgroup = tree / "proc.events"
    cgroup.mkdir()
    mirror = mounted.of(cgroup)
    assert mirror.is_dir()
    assert mirror.stat().st_ino == cgroup_id(cgroup)
    assert sorted(os.listdir(mirror.parent)) == ["mm.reclaim", "proc.events", "sched.runqlat"]
    assert (mirror / "proc.events").is_file()
    cgroup.rmdir()
    wait_until(mirror.is_file, "the file to come out again")


def test_listing_while_cgroups_come_and_go(mounted: Mounted, tree: Path, work: Path) -> None:
    """What stays is listed once in every listing, whatever comes and goes meanwhile."""
    stay = {f"stay{number}" for number in range(300)}
    for name in stay:
        (tree / name).mkdir()
    churner = subprocess.Popen([work, "churn", tree, "300", "go"])
    while churner.poll() is None:
        names = [name for name in os.listdir(mounted.of(tree)) if name.startswith("stay")]
        assert len(names) == len(stay)
        assert set(names) == stay
    assert churner.returncode == 0


def changes(path: Path) -> list[tuple[str, object]]:
    """Everything that would change something, as functions."""
    directory, file, new = path, path / "proc.events", path / "new"
    return [
        ("create", lambda: new.open("x")),
        ("write", lambda: file.open("r+")),
        ("truncate", lambda: os.truncate(file, 0)),
        ("mkdir", lambda: new.mkdir()),
        ("rmdir", lambda: (directory / "a").rmdir()),
        ("unlink", lambda: file.unlink()),
        ("rename", lambda: file.rename(new)),
        ("rename directory", lambda: (directory / "a").rename(new)),
        ("link", lambda: os.link(file, new)),
        ("symlink", lambda: new.symlink_to(file)),
        ("mkfifo", lambda: os.mkfifo(new)),
        ("mknod", lambda: os.mknod(new, stat.S_IFREG | 0o644)),
        ("chmod", lambda: file.chmod(0o777)),
        ("chmod directory", lambda: directory.chmod(0o777)),
        ("chown", lambda: os.chown(file, 1, 1)),
        ("utime", lambda: os.utime(file)),
        ("setxattr", lambda: os.setxattr(file, "user.x", b"1")),
        ("removexattr", lambda: os.removexattr(file, "user.x")),
    ]


@pytest.mark.parametrize("remount", [False, True], ids=["ro", "remounted rw"])
def test_everything_that_changes_is_refused(
    mounted: Mounted, tree: Path, remount: bool, alive: None
) -> None:
    (tree / "a").mkdir()
    if remount:
        subprocess.run(["mount", "-i", "-o", "remount,rw", mounted.path], check=True)
    try:
        for what, change in changes(mounted.of(tree)):
            with pytest.raises(OSError) as error:
                change()
            assert error.value.errno == errno.EROFS, what
    finally:
        if remount:
            subprocess.run(["mount", "-i", "-o", "remount,ro", mounted.path], check=True)


def test_mount_options(mounted: Mounted) -> None:
    text = subprocess.run(
        ["findmnt", "-n", "-o", "FSTYPE,SOURCE,OPTIONS", mounted.path],
        text=True, capture_output=True, check=True,
    ).stdout.split()  # fmt: skip
    assert text[:2] == ["fuse.cgstatfs", "cgstatfs"]
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(text[2].split(","))
