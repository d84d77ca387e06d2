# SPDX-License-Identifier: GPL-2.0-only
"""Which engine is chosen, and what is said of those that cannot be."""

from __future__ import annotations

import os

import pytest

from cgstatfs.engines import ENGINES, EngineUnavailable, choose


def test_the_best_that_works_is_chosen() -> None:
    engine, reason = choose()
    for kind in ENGINES:
        if kind.name == engine.name:
            break
        with pytest.raises(EngineUnavailable) as error:
            kind().probe()
        assert kind.name in reason and str(error.value) in reason


def test_a_stock_kernel_chooses_rstat() -> None:
    if not os.environ.get("CGSTATFS_TEST_GUEST"):
        pytest.skip("not in a guest with a stock kernel, so rstat may not be possible")
    assert choose()[0].name == "rstat"


def test_an_engine_asked_for_is_used_or_refused() -> None:
    for kind in ENGINES:
        try:
            engine, reason = choose(kind.name)
        except EngineUnavailable as error:
            assert str(error).startswith(f"{kind.name}: ")
        else:
            assert (engine.name, reason) == (kind.name, "asked for")
