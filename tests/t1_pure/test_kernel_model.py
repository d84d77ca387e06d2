# SPDX-License-Identifier: GPL-2.0-only
"""The update and the flush of the series on a machine with store buffers: see ../kernel/model.py."""

from __future__ import annotations

import pytest

from ..kernel.model import VARIANTS, missed


def test_no_update_is_missed() -> None:
    assert not missed()[0]


@pytest.mark.parametrize("without", VARIANTS)
def test_nothing_can_be_left_out(without: str) -> None:
    assert missed(without)[0]
