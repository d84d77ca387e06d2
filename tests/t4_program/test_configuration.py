# SPDX-License-Identifier: GPL-2.0-only
"""Settings from a file, as the command takes them, shows them and obeys them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from cgstatfs.runtime import Runtime

from ..conftest import BUILD, cgstatfs
from .test_program import fails, in_a_mount_namespace, mount, mountpoint  # noqa: F401

CALLS = BUILD / "tests/calls.bpf.o"


def configured(directory: Path, text: str) -> Path:
    path = directory / "cgstatfs.toml"
    path.write_text(text)
    path.chmod(0o644)
    return path


def started(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A mount that its file or the command line has the mount point of."""
    result = cgstatfs("mount", *arguments)
    assert result.returncode == 0, result.stderr
    return result


def test_the_file_has_the_mount_point(mountpoint: Path, tmp_path: Path) -> None:  # noqa: F811
    file = configured(tmp_path, f'mount-point = "{mountpoint}"\nengine = "standalone"\n')
    assert f"{mountpoint}: mounted, engine standalone (asked for)" in started("--config", file).stdout
    assert (mountpoint / "proc.events").read_text().startswith("forks ")


def test_the_command_line_goes_before(mountpoint: Path, tmp_path: Path) -> None:  # noqa: F811
    file = configured(tmp_path, 'mount-point = "/no/such"\nengine = "native"\nroot = "/no/such"\n')
    assert "/no/such: No such file" in fails("mount", "--config", file)
    assert f"no such cgroup; see root ({file}:3)" in fails("mount", "--config", file, mountpoint)
    mount("--config", file, "-o", "engine=standalone", "--root", "/", mountpoint)
    assert (mountpoint / "proc.events").read_text().startswith("forks ")


def test_engines_can_be_left_to_choose(mountpoint: Path, tmp_path: Path) -> None:  # noqa: F811
    file = configured(tmp_path, 'engine = "standalone"\n')
    mount("--config", file, "--engine", "auto", mountpoint)
    assert "asked for" not in Runtime(mountpoint).read_state().reason


def test_collectors_that_are_off(mountpoint: Path, tmp_path: Path) -> None:  # noqa: F811
    directory = tmp_path / "collectors.d"
    directory.mkdir()
    shutil.copy(CALLS, directory / "mine.bpf.o")
    file = configured(tmp_path, "[collectors]\nmm_reclaim = false\nmine = false\nabsent = true\n")
    result = started("--config", file, "--collectors", directory, mountpoint)
    # It is said, and the others are mounted.
    assert f"{file}:4: collectors.absent: there is no such collector" in result.stderr
    assert not {"mm.reclaim", "test.calls"} & set(os.listdir(mountpoint))
    assert (mountpoint / "proc.events").exists()
    # By hand it can be loaded, until the directories are looked at anew.
    for command in (["reload"], ["load", directory / "mine.bpf.o"], ["reload"]):
        result = cgstatfs(command[0], "--mount", mountpoint, *command[1:])
        assert result.returncode == 0, result.stderr
        assert (mountpoint / "test.calls").exists() == (command[0] == "load")
    assert not (mountpoint / "mm.reclaim").exists()


def test_all_collectors_are_off(mountpoint: Path, tmp_path: Path) -> None:  # noqa: F811
    names = ("mm_reclaim", "proc_events", "sched_runqlat")
    file = configured(tmp_path, "[collectors]\n" + "".join(f"{n} = false\n" for n in names))
    assert "all are turned off; leave one on" in fails("mount", "--config", file, mountpoint)
    assert "collector mm_reclaim: is turned off\n" in cgstatfs("check", "--config", file).stdout
    Runtime(mountpoint).log.unlink()


def test_check_says_what_is_in_force(tmp_path: Path) -> None:
    file = configured(
        tmp_path,
        'root = "/"\n[collectors]\nmm_reclaim = false\nabsent = false\n'
        '[limits]\nsnapshot-memory = "1M"\n',
    )
    result = cgstatfs("check", "--config", file, "--engine", "standalone", "/mnt")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    for line in (
        'mount-point = "/mnt"    (command line)', 'engine = "standalone"    (command line)',
        f'root = "/"    ({file}:1)', "limits.open-files-per-user = 4096    (default)",
        f"limits.snapshot-memory = 1048576    ({file}:6)",
        f"collectors.mm_reclaim = false    ({file}:3)", "collectors.proc_events = true    (default)",
        "engine standalone: can be used, and is chosen", "collector mm_reclaim: is turned off",
        f"{file}:4: collectors.absent: there is no such collector; it is ignored; correct the "
        "name, or remove the line",
    ):  # fmt: skip
        assert line in lines, result.stdout
    assert result.stdout.count("is chosen") == 1
    configured(tmp_path, 'root = "/no/such"')
    assert f"no such cgroup; see root ({file}:1)" in fails("check", "--config", file)


def test_the_file_in_its_place(tmp_path: Path) -> None:
    """With an /etc of its own, as there may be one with settings on the machine."""
    result = in_a_mount_namespace(
        f"cp -a /etc {tmp_path}/etc; mount --bind {tmp_path}/etc /etc; rm -rf /etc/cgstatfs; "
        "mkdir -m 755 /etc/cgstatfs; umask 022; echo 'engine = \"standalone\"' >/etc/cgstatfs/cgstatfs.toml; "
        f"{sys.executable} -m cgstatfs check; chmod o+w /etc/cgstatfs; "
        f"exec {sys.executable} -m cgstatfs check"
    )
    assert 'engine = "standalone"    (/etc/cgstatfs/cgstatfs.toml:1)\n' in result.stdout
    assert result.returncode == 1
    assert result.stderr == (
        "cgstatfs: /etc/cgstatfs/cgstatfs.toml: is in /etc/cgstatfs, to which others than root can "
        "write; chmod go-w /etc/cgstatfs\n"
    )


def test_what_is_wrong_with_a_file(mountpoint: Path, tmp_path: Path) -> None:  # noqa: F811
    file = configured(tmp_path, 'engine = "steam"\n[limits]\nunserved-seconds = 0\nfrob = 1\n')
    for command in ("mount", "check"):
        result = cgstatfs(command, "--config", file, mountpoint)
        assert result.returncode == 1
        places = [line.partition("; ")[0] for line in result.stderr.splitlines()]
        assert places == [
            f'cgstatfs: {file}:1: engine: there is no engine "steam"',
            f"cgstatfs: {file}:3: limits.unserved-seconds: 0 is no number from 1 to 3600",
            f"cgstatfs: {file}:4: limits.frob: unknown",
        ]
    configured(tmp_path, "engine\n")
    assert f"{file}:1: is not TOML: " in fails("mount", "--config", file, mountpoint)
    file.chmod(0o664)
    assert f"{file}: others than root can write to it" in fails("mount", "--config", file, mountpoint)
    absent = tmp_path / "absent"
    assert f"{absent}: No such file" in fails("mount", "--config", absent, mountpoint)
    assert not os.listdir(mountpoint)
