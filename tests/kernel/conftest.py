# SPDX-License-Identifier: GPL-2.0-only
"""The tests of the kernel series run in a guest that boots it: make test-kernel."""

from __future__ import annotations

import os

if "CGSTATFS_TEST_GUEST" not in os.environ:
    collect_ignore_glob = ["test_*.py"]
