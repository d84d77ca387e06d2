# SPDX-License-Identifier: GPL-2.0-only
"""Another version is installed while a mount is in use, and then serves it."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from cgstatfs import __version__

from ..conftest import BUILD, SCALE, Mounted, cgstatfs
from ..t3_filesystem.test_takeover import hammered, mounted_anew, served, wait_for_next
from .test_packaging import OFFLINE, install_command, make_environment, make_wheel

UPGRADES = 2 if SCALE <= 1 else int(5 * SCALE)
LATER = "9.8.7"
REPLACE = "its file has changed since it was loaded; cgstatfs reload --keep replaces it"
COLLECTOR = "cgstatfs/objects/proc_events.bpf.o"


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{path}: {old}"
    path.write_text(text.replace(old, new))


def make_later(wheel_source: Path, top: Path) -> None:
    """Make the wheel of a later version: with a collector that is another, and more to remember."""
    source = shutil.copytree(wheel_source, top / "source")
    edit(source / "cgstatfs/__init__.py", f'"{__version__}"', f'"{LATER}"')
    edit(source / "cgstatfs/runtime.py", "    served: int = 1\n", "    served: int = 1\n    later: int = 1\n")
    edit(source / "bpf/proc_events.bpf.c", "__uint(max_entries, 1024);", "__uint(max_entries, 2048);")
    done = cgstatfs("build", "-o", source / COLLECTOR, source / "bpf/proc_events.bpf.c")
    assert done.returncode == 0, done.stderr
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", top, source],
        env=OFFLINE, check=True, cwd=top,
    )  # fmt: skip


@pytest.fixture(scope="module")
def wheels() -> dict[str, Path]:
    """Of this version, and of a later one.

    They stay in build/: to a guest the repository is read-only, so there those are installed that
    this test has made on the host.
    """
    made = BUILD / "tests/upgrade"
    if not os.environ.get("CGSTATFS_TEST_GUEST"):
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        shutil.copy(make_wheel(), made)
        make_later(BUILD / "wheel/source", made)
    found = {each.name.split("-")[1]: each for each in made.glob("*.whl")}
    if not found:
        pytest.skip("a guest has no wheels to install until this has run on the host")
    return found


def digest(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        return hashlib.sha256(archive.read(COLLECTOR)).hexdigest()


def install(environment: Path, wheel: Path, mount: Mounted | None = None) -> None:
    """:param mount: whose daemons are killed meanwhile, so that one begins with half a package"""
    command = [*install_command(environment, wheel), "--no-deps", "--no-compile"]
    with subprocess.Popen(command, env=OFFLINE, stdout=subprocess.DEVNULL) as pip:
        while pip.poll() is None:
            time.sleep(random.random() / 2)
            if mount:
                kill(mount)
    assert pip.returncode == 0


def installed_command(environment: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """As root does somewhere: not where this source would be found."""
        return subprocess.run(
            [environment / "bin/cgstatfs", *arguments], text=True, capture_output=True, cwd="/"
        )

    return command


def kill(mount: Mounted) -> None:
    """Who serves, or is about to; one that was killed before may end meanwhile."""
    state = mount.runtime.read_state()
    if state.lives():
        with suppress(ProcessLookupError):
            os.kill(state.pid, signal.SIGKILL)


@pytest.mark.on_host
def test_upgraded_under_load(
    engine_name: str, cgroupfs: Path, tree: Path, tmp_path: Path, wheels: dict[str, Path]
) -> None:
    """There and back. Every other time daemons are killed while it is installed, and after."""
    environment = make_environment(tmp_path / "environment")
    install(environment, wheels[__version__])

    command = installed_command(environment)
    with (
        mounted_anew(engine_name, cgroupfs, tmp_path / "mnt", command=command) as mount,
        hammered(mount, tree, tmp_path) as check,
    ):
        holder = mount.runtime.read_state().holder
        for number in range(UPGRADES):
            version = (LATER, __version__)[number % 2]
            rough = number % 2 == 1 or number % 4 == 2
            install(environment, wheels[version], mount if rough else None)
            for _ in range(3 if rough else 0):
                kill(mount)
                time.sleep(random.random())
            if rough:
                wait_for_next(mount, served(mount) - 1)
            done = command("restart", "--mount", mount.path)
            assert done.returncode == 0, done.stderr
            assert (mount.path / ".cgstatfs/version").read_text() == f"{version}\n"
            state = mount.runtime.read_state()
            # What counts has not stopped for it.
            assert state.loaded["proc_events"]["digest"] == digest(wheels[__version__])
            listed = command("list").stdout
            assert (REPLACE in listed) == (version == LATER), listed
            assert state.holder == holder and not state.failed
            check()
