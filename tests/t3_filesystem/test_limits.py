# SPDX-License-Identifier: GPL-2.0-only
"""What one user can take of what all share."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ..conftest import Mounted

ONE_ENGINE = True


@pytest.mark.skipif(
    "CGSTATFS_TEST_GUEST" in os.environ,
    reason="thousands of opens, slow in a guest, and the same on every kernel",
)
def test_one_users_open_files_are_bounded(mounted: Mounted, tree: Path, alive: None) -> None:
    """So nobody can keep others from opening a file."""
    script = (
        "import errno, os, resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "count = 0\n"
        "try:\n"
        "    while True:\n"
        "        os.open(sys.argv[1], os.O_RDONLY); count += 1\n"
        "except OSError as error:\n"
        "    print(count, errno.errorcode[error.errno])\n"
        "sys.stdout.flush(); sys.stdin.read()\n"
    )
    path = mounted.of(tree) / "proc.events"
    user = subprocess.Popen(
        ["/usr/bin/python3", "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        assert user.stdout.readline() == "4096 EMFILE\n"
        assert path.read_bytes().startswith(b"forks ")
    finally:
        user.communicate()
    reader = ["cat", path]
    result = subprocess.run(reader, user=65534, group=65534, extra_groups=[], capture_output=True)
    assert result.stdout.startswith(b"forks ")
