# SPDX-License-Identifier: GPL-2.0-only
"""Damaged collectors, by the thousand: each is refused, or works, or ends the loader alone.

The whole of it, in this test or for other damage than last time:

    CGSTATFS_FUZZ=50000 .venv/bin/python -m pytest tests/t2_bpf/test_fuzz.py
    .venv/bin/python -m tests.fuzz --count 50000 --seed 2
"""

from __future__ import annotations

import os

import pytest

from ..conftest import times
from ..fuzz.run import fuzz

COUNT = int(os.environ.get("CGSTATFS_FUZZ") or times(5000))
# How many to one that the kernel is asked to load, too.
LOAD_EVERY = 20


@pytest.mark.on_host
def test_damaged_objects_are_refused() -> None:
    found = fuzz(COUNT, 0, LOAD_EVERY)
    print(*(f"{number} {outcome}" for outcome, number in found.outcomes.most_common()), sep="\n")
    assert not found.bugs, "\n".join(found.bugs)
    assert found.outcomes.total() == COUNT
    # Or it would be the mutations that are at fault.
    assert found.outcomes["refused when opening"] > COUNT // 10
    assert found.outcomes["accepted, and not loaded"] > COUNT // 10
