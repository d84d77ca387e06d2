# SPDX-License-Identifier: GPL-2.0-only
"""A kernel that is built here is, if it is not yet, while the tests of the host run.

It takes what they leave of two cpus, more than half; before or after them it would be alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable

import pytest

from ..conftest import REPOSITORY
from ..vm import build

_LOG = REPOSITORY / "build/kernel.log"
_BUILDS = pytest.StashKey[dict[str, subprocess.Popen]]()


def selected(items: list[pytest.Item]) -> set[str]:
    """The kernels of the guests among those that pytest is going to run."""
    parameters = [item.callspec.params for item in items if hasattr(item, "callspec")]
    return {each["kernel"] for each in parameters if "kernel" in each}


def pytest_collection_finish(session: pytest.Session) -> None:
    builds = session.stash.setdefault(_BUILDS, {})
    if session.config.option.collectonly:
        return
    _LOG.parent.mkdir(exist_ok=True)
    for variant in selected(session.items) & set(build.NAMES):
        with open(_LOG, "w") as log:
            builds[variant] = subprocess.Popen(
                ["nice", "-n", "19", "make", "-s", "kernel-tests", f"VARIANT={variant}"],
                cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip


def pytest_sessionfinish(session: pytest.Session) -> None:
    for process in session.stash.get(_BUILDS, {}).values():
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


@pytest.fixture(scope="session")
def wait_for_build(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Waits until a kernel is there, and fails with what its build said."""
    builds = request.session.stash[_BUILDS]

    def wait(kernel: str) -> None:
        if kernel in builds and builds[kernel].wait():
            pytest.fail(f"no kernel {kernel}: " + _LOG.read_text(errors="replace")[-5000:])

    return wait
