# SPDX-License-Identifier: GPL-2.0-only
"""Names of stats maps, and of what a mount leaves outside its process."""

from __future__ import annotations

from pathlib import Path

import pytest

from cgstatfs.collectors import check_file_name
from cgstatfs.runtime import Runtime


@pytest.mark.parametrize("name", ["mystats", "proc.events", "a-b_c+d", "x" * 64])
def test_good_names(name: str) -> None:
    check_file_name(name)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("", "0 characters"), ("x" * 65, "65 characters"), (".hidden", "dot"), ("..", "dot"),
        ("a/b", "'/'"), ("a b", "' '"), ("a\nb", r"'\n'"), ("é", "'é'"), ("a\0", r"'\x00'"),
    ],
)  # fmt: skip
def test_bad_names(name: str, word: str) -> None:
    with pytest.raises(ValueError) as error:
        check_file_name(name)
    assert word in str(error.value)


def test_mount_points_have_names_of_their_own() -> None:
    paths = ["/", "/cgstat", "/a/b", "/a-b", "/a.b", "/a b", "/a_b", "/é"]
    names = [Runtime(Path(path)).name for path in paths]
    assert len(set(names)) == len(paths)
    for name in names:
        # bpffs refuses dots.
        assert "." not in name and "/" not in name
