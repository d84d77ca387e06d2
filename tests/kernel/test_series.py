# SPDX-License-Identifier: GPL-2.0-only
"""The programs in C beside this file, one test for each of their cases.

A program prints its cases for ``--list``, a name and perhaps more words on a line. It is run as
``PROGRAM CASE CGROUP``, with a cgroup of its own to work below, finds the BPF objects in its own
folder, and exits with 0, or with another status and the reason on standard error.
``CGSTATFS_CHURN_SECONDS`` is how long a case that only repeats goes on.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..conftest import BUILD

SOURCES = Path(__file__).parent
CHURN_SECONDS = int(os.environ.get("CGSTATFS_CHURN_SECONDS", "600"))
# When a case hangs; a guest is slow.
SECONDS = 900 + 2 * CHURN_SECONDS


def _program(source: Path) -> Path:
    program = BUILD / "tests" / "kernel" / source.stem
    assert program.exists(), f"{program} is not built; run make test-kernel"
    return program


def _cases() -> Iterator[object]:
    for source in sorted(SOURCES.glob("*.c")):
        if source.name.endswith(".bpf.c"):
            continue
        program = _program(source)
        listed = subprocess.run(
            [program, "--list"], text=True, stdout=subprocess.PIPE, check=True
        )
        assert listed.stdout, f"{program} has no cases"
        for line in listed.stdout.splitlines():
            case = line.split()[0]
            yield pytest.param(program, case, id=f"{program.name}-{case}")


@pytest.mark.parametrize(("program", "case"), _cases())
def test_series(program: Path, case: str, tree: Path) -> None:
    done = subprocess.run(
        [program, case, tree],
        env=os.environ | {"CGSTATFS_CHURN_SECONDS": str(CHURN_SECONDS)},
        stdin=subprocess.DEVNULL,
        text=True,
        capture_output=True,
        timeout=SECONDS,
    )
    print(done.stdout, done.stderr, sep="")
    assert done.returncode == 0, done.stderr or f"exit status {done.returncode}"
