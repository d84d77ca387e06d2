# SPDX-License-Identifier: GPL-2.0-only
"""While requests come without a pause, the daemon does what else it has to."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from ..conftest import Mounted, wait_until


@pytest.mark.log("updates_lost 0")
def test_others_get_their_turn_while_requests_come(mounted: Mounted, tree: Path) -> None:
    """Readers who never pause, and a signal is heard."""
    path, readers = mounted.of(tree), []
    try:
        for _ in range(3):
            if not (pid := os.fork()):
                while True:
                    os.statvfs(path)
            readers.append(pid)
        before = len(mounted.log())
        os.kill(mounted.pid, signal.SIGUSR1)
        wait_until(lambda: "version" in mounted.log()[before:], "the daemon to say how it is")
    finally:
        for pid in readers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
