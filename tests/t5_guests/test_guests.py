# SPDX-License-Identifier: GPL-2.0-only
"""The BPF and file system tests, in guests that boot other kernels.

Each guest runs them with every engine that its kernel can run: rstat, which it has to choose
by itself, and standalone.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import REPOSITORY

KERNELS = ("6.1", "6.12", "newest")
TESTS = ("tests/t2_bpf", "tests/t3_filesystem")
SECONDS = 1500


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    wanted = metafunc.config.getoption("--kernel")
    if wanted not in (None, *KERNELS):
        raise pytest.UsageError(f"--kernel {wanted}: there are {', '.join(KERNELS)}")
    metafunc.parametrize("kernel", [k for k in KERNELS if wanted in (None, k)])


def require_qemu() -> None:
    if shutil.which("qemu-system-x86_64"):
        return
    reason = "qemu-system-x86_64 is not installed, so no guest can be booted"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def test_in_a_guest(kernel: str, work: Path) -> None:
    require_qemu()
    command = [
        "env", "CGSTATFS_TEST_SCALE=0.05", "CGSTATFS_TEST_GUEST=1",
        "python", "-m", "pytest", "-p", "no:cacheprovider", "--color=no", "-v", "--durations=15", *TESTS,
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.vm", "--kernel", kernel, "--timeout", str(SECONDS),
         "--", *command],
        cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    output = []
    for line in process.stdout:
        output.append(line)
        print(line, end="", flush=True)
    assert process.wait() == 0, "".join(output[-100:])
    text = "".join(output)
    for engine in ("rstat", "standalone"):
        assert len(re.findall(rf"\[{engine}.*PASSED", text)) > 50, engine
