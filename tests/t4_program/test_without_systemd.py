# SPDX-License-Identifier: GPL-2.0-only
"""The script and the supervisor's line in docs/operators.md, as they are there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cgstatfs import mountpoint as mounting
from cgstatfs.runtime import Runtime

from ..conftest import REPOSITORY, wait_until
from ..documents import DOCS, sections
from .test_program import check_ended, kill, mountpoint  # noqa: F401


@pytest.fixture
def command(tmp_path: Path) -> dict[str, str]:
    """An environment that has the command."""
    path = tmp_path / "bin" / "cgstatfs"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -m cgstatfs "$@"\n')
    path.chmod(0o755)
    return os.environ | {
        "PATH": f"{path.parent}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY),
    }  # fmt: skip


def documented(language: str, mountpoint: Path, directory: Path) -> Path:  # noqa: F811
    (text,) = (block for section in sections(DOCS / "operators.md") for block in section.blocks(language))
    path = directory / language
    path.write_text(text.replace("/cgstat", str(mountpoint)))
    path.chmod(0o755)
    return path


def answers(mountpoint: Path) -> bool:  # noqa: F811
    return (mountpoint / "proc.events").read_text().startswith("forks ")


def test_the_script(mountpoint: Path, tmp_path: Path, command: dict[str, str]) -> None:  # noqa: F811
    script = documented("sh", mountpoint, tmp_path)

    def run(word: str) -> None:
        subprocess.run([script, word], env=command, check=True, timeout=600)

    run("start")
    first = Runtime(mountpoint).read_state().pid
    run("restart")
    assert answers(mountpoint) and Runtime(mountpoint).read_state().pid != first
    with open(mountpoint / "proc.events"):
        run("stop")
        assert not mounting.mounted(mountpoint)
    # But for the log, which has the restart in it.
    wait_until(lambda: not Runtime(mountpoint).pins.exists(), "the collectors to end")


def test_the_line_of_a_supervisor(
    mountpoint: Path, tmp_path: Path, command: dict[str, str]  # noqa: F811
) -> None:
    """What was killed, with its daemon, is started again, and cleared away."""
    line = documented("run", mountpoint, tmp_path)

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen([line], env=command, stdout=subprocess.PIPE, text=True)
        assert "mounted, engine" in process.stdout.readline()
        return process

    with start() as process:
        assert answers(mountpoint)
        kill(mountpoint)
    assert process.returncode == -signal.SIGKILL
    with start() as process:
        assert answers(mountpoint)
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 0
    check_ended(mountpoint)
