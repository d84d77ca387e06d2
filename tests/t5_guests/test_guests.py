# SPDX-License-Identifier: GPL-2.0-only
"""The BPF and file system tests, in guests that boot other kernels.

Each guest with a kernel of Debian's runs them with every engine that this can run: rstat, which
it has to choose by itself, and standalone. The one with a kernel that is built here runs them with
the engine native, and the tests of the series. A guest that is asked for alone runs all; without,
there are four, two at a time, and not all run all.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from ..conftest import REPOSITORY
from ..vm import build, kernels
from .conftest import selected

TESTS = ("tests/t2_bpf", "tests/t3_filesystem")
# With a kernel of ours, asked for alone; its checks make it slow.
SERIES = ("tests/kernel", *TESTS, "--engine", "native")
# What the series has of its own, exactness under load included.
OF_SERIES = ("tests/kernel", "tests/t2_bpf/test_native.py", "--engine", "native")
RSTAT = ("--engine", "rstat")


def _files(folder: str, *names: str) -> tuple[str, ...]:
    return tuple(f"tests/{folder}/test_{each}.py" for each in names)


# All four, the longest first, as CI has to end. 6.1 has all that is in BPF, being the first whose
# verifier takes it, and of the file system what kernels may differ in; its FUSE is the farthest from
# the host's, which has all of that. The newest, which is near to the host's, has what the host's
# kernel refuses: rstat, and files under its load. 6.12 has what counts, with every engine. Daemons
# come and go under load where requests cannot be resent, as on the host they can.
GUESTS = {
    "6.1": (
        "tests/t2_bpf", *_files("t3_filesystem", "access", "mirror", "reading", "takeover", "tree"),
        *RSTAT,
    ),
    "native": OF_SERIES,
    "newest": (
        *_files("t2_bpf", "collectors", "engines", "exactness", "snapshots", "updates"),
        *_files("t3_filesystem", "meanwhile", "reading", "tree"), *RSTAT,
    ),
    "6.12": (*_files("t2_bpf", "exactness", "updates"), "-k", "not standalone-hashed"),
}  # fmt: skip
# How much of what is repeated on the host is repeated in the guests; 1: all of it.
SCALE = os.environ.get("CGSTATFS_GUEST_SCALE", "0.025")
# And for how long cgroups come and go in the one with the series; make test-kernel: 10 minutes.
CHURN_SECONDS = os.environ.get("CGSTATFS_CHURN_SECONDS", "10")
# When something hangs; a loaded machine takes its time.
SECONDS = 3600


def _wanted(config: pytest.Config) -> dict[str, tuple[str, ...]]:
    """The guests to run, and the tests that each runs."""
    wanted = config.getoption("--kernel")
    # The others that are built are there to be measured.
    known = (*kernels.NAMES, *(name for name in build.NAMES if not name.startswith("unpatched")))
    if wanted not in (None, *known):
        raise pytest.UsageError(f"--kernel {wanted}: there are {', '.join(known)}")
    if wanted is None:
        return GUESTS
    return {wanted: SERIES if wanted in build.NAMES else TESTS}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("kernel", list(_wanted(metafunc.config)))


def _require_qemu() -> None:
    if shutil.which("qemu-system-x86_64"):
        return
    reason = "qemu-system-x86_64 is not installed, so no guest can be booted"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def _command(tests: tuple[str, ...]) -> list[str]:
    # So wide that the summary, which is what is left of a long output, has the reason of a failure.
    return [
        "env", "COLUMNS=250", f"CGSTATFS_TEST_SCALE={SCALE}", "CGSTATFS_TEST_GUEST=1",
        f"CGSTATFS_CHURN_SECONDS={CHURN_SECONDS}",
        "python", "-m", "pytest", "-p", "no:cacheprovider", "--color=no", "-v",
        "--durations=40", "--durations-min=5", *tests,
    ]  # fmt: skip


class Guests:
    """Those that run, and those that are to, as soon as another has ended.

    A guest has two cpus and keeps little more than one busy. Of four on two cpus, those of a guest
    wait for each other; one did not end within its hour.
    """

    AT_ONCE = 2

    def __init__(self, directory: Path, prepare: Callable[[str], None]) -> None:
        self._directory, self._prepare = directory, prepare
        self._pool = ThreadPoolExecutor(self.AT_ONCE)
        self._running: set[subprocess.Popen] = set()
        self._ending, self._lock = False, threading.Lock()
        self._ended: dict[str, Future[int]] = {}

    def start(self, kernel: str, tests: tuple[str, ...]) -> None:
        self._ended[kernel] = self._pool.submit(self._run, kernel, tests)

    def _run(self, kernel: str, tests: tuple[str, ...]) -> int:
        self._prepare(kernel)
        with open(self._output(kernel), "w") as file, self._lock:
            if self._ending:
                raise CancelledError
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.vm", "--kernel", kernel, "--timeout", str(SECONDS),
                 "--", *_command(tests)],
                cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip
            self._running.add(process)
        try:
            return process.wait()
        finally:
            self._running.discard(process)

    def _output(self, kernel: str) -> Path:
        return self._directory / kernel

    def wait(self, kernel: str) -> tuple[int, str]:
        """Wait until it has ended; its exit status, and what it printed."""
        status = self._ended[kernel].result()
        return status, self._output(kernel).read_text(errors="replace")

    def end(self) -> None:
        with self._lock:
            self._ending = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in tuple(self._running):
            # The runner ends its guest.
            process.terminate()
        self._pool.shutdown()


@pytest.fixture(scope="session")
def guests(
    request: pytest.FixtureRequest, work: Path, litmus: Path,
    wait_for_build: Callable[[str], None], tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Guests]:  # fmt: skip
    """The programs in C are compiled before: to the guests the repository is read-only."""
    _require_qemu()

    def prepare(kernel: str) -> None:
        wait_for_build(kernel)
        kernels.fetch(kernel)

    guests = Guests(tmp_path_factory.mktemp("guests"), prepare)
    try:
        for kernel, tests in _wanted(request.config).items():
            if kernel in selected(request.session.items):
                guests.start(kernel, tests)
        yield guests
    finally:
        guests.end()


def _proof(kernel: str, tests: tuple[str, ...]) -> tuple[str, ...]:
    """What tests that have run have in their names."""
    if kernel in build.NAMES:
        return "native", "stats_map-"
    return ("rstat",) if "--engine" in tests else ("rstat", "standalone")


def test_in_a_guest(kernel: str, guests: Guests, request: pytest.FixtureRequest) -> None:
    status, text = guests.wait(kernel)
    print(text)
    assert status == 0, text[-20000:]
    for which in _proof(kernel, _wanted(request.config)[kernel]):
        # test_native.py, all that runs with it without being asked for, has seven.
        least = 5 if which == "native" else 10
        assert len(re.findall(rf"\[{which}.*PASSED", text)) > least, which
