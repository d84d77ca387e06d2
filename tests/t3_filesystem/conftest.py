# SPDX-License-Identifier: GPL-2.0-only
"""Every test on a mount fails if the daemon logs anything that the test did not announce."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..conftest import Mounted



@pytest.fixture(autouse=True)
def clean_log(request: pytest.FixtureRequest) -> Iterator[None]:
    if "mounted" not in request.fixturenames:
        yield
        return
    mounted: Mounted = request.getfixturevalue("mounted")
    start = len(mounted.log())
    yield
    allowed = [marker.args[0] for marker in request.node.iter_markers("log")]
    new = mounted.log()[start:].splitlines()
    assert [line for line in new if not any(text in line for text in allowed)] == []


@pytest.fixture
def alive(mounted: Mounted) -> Iterator[None]:
    """The mount still answers after the test."""
    yield
    assert (mounted.path / "proc.events").read_text().startswith("forks ")
