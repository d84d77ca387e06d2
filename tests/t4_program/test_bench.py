# SPDX-License-Identifier: GPL-2.0-only
"""`make bench-quick`: nothing got so much worse that noise cannot be why."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import REPOSITORY


@pytest.mark.on_host
def test_no_ratio_is_above_its_alarm(cgroupfs: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--quick"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert not list(cgroupfs.glob("cgstat-bench-*-*")), "cgroups were left"
