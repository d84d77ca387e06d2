# SPDX-License-Identifier: GPL-2.0-only
"""Which engine is chosen, and what is said of those that cannot be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cgstatfs.engines import ENGINES, EngineUnavailable, choose, native


def test_the_best_that_works_is_chosen() -> None:
    engine, reason = choose()
    for kind in ENGINES:
        if kind.name == engine.name:
            break
        with pytest.raises(EngineUnavailable) as error:
            kind().probe()
        assert kind.name in reason and str(error.value) in reason


def test_the_kernels_of_guests() -> None:
    """The one with the patches chooses native; those without rstat."""
    if not os.environ.get("CGSTATFS_TEST_GUEST"):
        pytest.skip("not in a guest, so rstat may not be possible")
    patched = " bpf_cgroup_stats_begin\n" in Path("/proc/kallsyms").read_text()
    assert choose()[0].name == ("native" if patched else "rstat")


def test_an_engine_asked_for_is_used_or_refused() -> None:
    for kind in ENGINES:
        try:
            engine, reason = choose(kind.name)
        except EngineUnavailable as error:
            assert str(error).startswith(f"{kind.name}: ")
        else:
            assert (engine.name, reason) == (kind.name, "asked for")


def test_native_goes_by_the_name_of_its_map_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other kernels have another type for the number, and one that has it may refuse it."""
    monkeypatch.setattr(native, "kernel_map_types", lambda: {"BPF_MAP_TYPE_INSN_ARRAY": 34})
    with pytest.raises(EngineUnavailable, match="no BPF_MAP_TYPE_CGROUP_STATS; it needs the patches"):
        native.Native().probe()
    monkeypatch.setattr(native, "kernel_map_types", lambda: {"BPF_MAP_TYPE_CGROUP_STATS": 9999})
    with pytest.raises(EngineUnavailable, match=r"refuses to make one \(EINVAL\)"):
        native.Native().probe()
