# SPDX-License-Identifier: GPL-2.0-only
"""What others install: the wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from cgstatfs import __version__

from ..conftest import BUILD, REPOSITORY
from .test_program import mountpoint  # noqa: F401

_WHEEL_SOURCE = ("MANIFEST.in", "README.md", "bpf", "cgstatfs", "pyproject.toml", "setup.py")
# pip's way to say: with the setuptools that is installed, and not with PyPI's newest.
_OFFLINE = os.environ | {"PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_INDEX": "1"}


def _run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, text=True, capture_output=True, **options)


def _make(target: str) -> None:
    """Run make, for which the environment that runs the tests is as it should be."""
    environment = Path(sys.prefix)
    done = _run(
        "make", "-s", target, f"VENV={environment}", "-o", environment / "installed",
        cwd=REPOSITORY, env=_OFFLINE,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def _only(pattern: str) -> Path:
    (path,) = BUILD.glob(pattern)
    return path


# The wheel


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The folder of commands of an environment into which the wheel was installed.

    What the wheel depends on is there already, so that nothing has to be downloaded; pip finds
    out whether it is all that is needed. This source's own, editable, is left out.
    """
    _make("wheel")
    wheel = _only("wheel/*.whl")
    assert wheel.name == f"cgstatfs-{__version__}-py3-none-any.whl"
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if "cgstatfs" not in path.name and path.suffix != ".pth":
            (packages / path.name).symlink_to(path)
    python = environment / "bin" / "python"
    done = _run(
        sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check",
        "install", "--root-user-action=ignore", wheel, env=_OFFLINE,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return environment / "bin"


def test_the_wheel_needs_no_compiler(
    installed: Path, mountpoint: Path, tmp_path: Path  # noqa: F811
) -> None:
    # There is no program at all but its own.
    environment = {"PATH": str(installed)}

    def cgstatfs(*arguments: str | Path) -> str:
        done = _run(installed / "cgstatfs", *arguments, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert cgstatfs("--version") == f"cgstatfs {__version__}\n"
    assert "collector proc_events: can be used" in cgstatfs("check")
    assert ": mounted, engine " in cgstatfs("mount", mountpoint)
    assert subprocess.check_output(["cat", mountpoint / "proc.events"]).startswith(b"forks ")
    assert {path.name for path in mountpoint.iterdir() if path.is_file()} == {
        "mm.reclaim", "proc.events", "sched.runqlat",
    }  # fmt: skip
    cgstatfs("umount", mountpoint)
    assert os.listdir(mountpoint) == []
    assert cgstatfs("new", "mystats").startswith("mystats.bpf.c: written")


@pytest.mark.parametrize(
    "missing", ["objects", "objects/proc_events.bpf.o", "include/cgstat.bpf.h", "templates/new.bpf.c"]
)
def test_there_is_no_wheel_without_what_is_compiled(tmp_path: Path, missing: str) -> None:
    for name in _WHEEL_SOURCE:
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copy(REPOSITORY / name, tmp_path / name)
    path = tmp_path / "cgstatfs" / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    done = _run(
        sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path / "out", tmp_path,
        env=_OFFLINE,
    )  # fmt: skip
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert re.search(rf"^ *cgstatfs: .*cgstatfs/{missing}.*: not built.*run `make wheel`", said, re.M)
    assert "Traceback" not in said
    assert not list((tmp_path / "out").glob("*.whl"))
