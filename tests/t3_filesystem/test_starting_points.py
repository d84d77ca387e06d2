# SPDX-License-Identifier: GPL-2.0-only
"""What ``cgstatfs new`` writes, untouched, builds, loads and counts, on this kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cgstatfs import control

from ..conftest import REPOSITORY, Mounted

FORKS = 20


@pytest.fixture
def unloaded(mounted: Mounted) -> Iterator[None]:
    yield
    try:
        control.ask(mounted.runtime.socket, {"do": "unload", "name": "mystats"})
    except control.Refused:
        pass  # It was not loaded.


def run_in(directory: Path, *arguments: str | Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "cgstatfs", *arguments], cwd=directory, text=True,
        capture_output=True, env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


def started(mounted: Mounted, tree: Path, work: Path, name: str) -> int:
    """What the collector counts of tasks that start in a cgroup."""
    subprocess.run([work, "fork", tree, str(FORKS)], check=True)
    lines = (mounted.of(tree) / "mystats").read_text().splitlines()
    return int(dict(line.split()[:2] for line in lines)[name])


@pytest.mark.on_host
def test_compiled_in_advance(
    mounted: Mounted, unloaded: None, tree: Path, work: Path, tmp_path: Path
) -> None:
    source = tmp_path / "mystats.bpf.c"
    run_in(tmp_path, "new", "mystats")
    run_in(tmp_path, "build", source)
    run_in(tmp_path, "load", "--mount", mounted.path, tmp_path / "mystats.bpf.o")
    assert started(mounted, tree, work, "started") == FORKS


@pytest.mark.on_host
@pytest.mark.log("engine standalone: what bcc compiles cannot call")
def test_compiled_by_bcc(
    mounted: Mounted, unloaded: None, bcc_compiler: None, tree: Path, work: Path, tmp_path: Path
) -> None:
    run_in(tmp_path, "new", "--bcc", "mystats")
    run_in(tmp_path, "load", "--mount", mounted.path, tmp_path / "mystats.bcc.c")
    assert started(mounted, tree, work, "forks") == FORKS
