# SPDX-License-Identifier: GPL-2.0-only
"""What goes into a kernel that is built here, and what is said where it does not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ..vm import build
from ..vm.debian import KernelError

SOURCE = Path("/cache/linux-source-6.12_6.12.1-1/usr/src/linux-source-6.12.tar.xz")
PATCH = """\
From: A <a@example.org>
Subject: [PATCH 1/1] file: change the third line

---
 file | 2 +-

diff --git a/file b/file
--- a/file
+++ b/file
@@ -1,5 +1,5 @@
 1
 2
-3
+three
 4
 5
--\x20
2.39.5
"""


@pytest.fixture
def series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kernel/ of the test's own, with nothing in it but the configuration."""
    monkeypatch.setattr(build, "_REPOSITORY", tmp_path)
    shutil.copytree(build._KERNEL, tmp_path / "kernel", ignore=shutil.ignore_patterns("patches"))
    monkeypatch.setattr(build, "_KERNEL", tmp_path / "kernel")
    patches = tmp_path / "kernel" / "patches"
    patches.mkdir()
    return patches


def digest(name: str) -> str:
    return build._digest(SOURCE, build._RECIPES[name])


def test_digest(series: Path) -> None:
    """A kernel is built again if anything has changed, and only then."""
    empty = digest("native")
    assert digest("unpatched") == empty != digest("unpatched-fast")
    (series / "0000-cover-letter.patch").write_text("What it is about.\n")
    assert digest("native") == empty
    patch = series / "0001-file.patch"
    patch.write_text(PATCH)
    patched = digest("native")
    assert digest("unpatched") == empty != patched
    patch.rename(series / "0002-file.patch")
    assert digest("native") not in (empty, patched)
    config = series.parent / "config"
    config.write_text(f"# A comment changes nothing.\n{config.read_text()}")
    assert digest("unpatched") == empty
    config.write_text(f"{config.read_text()}CONFIG_MODULES=y\n")
    assert digest("unpatched") != empty


def test_the_last_value_counts(series: Path) -> None:
    (series.parent / "debug.config").write_text("# CONFIG_SMP is not set\nCONFIG_NR_CPUS=1\n")
    options = build._RECIPES["native"].options()
    assert (options["CONFIG_SMP"], options["CONFIG_NR_CPUS"]) == ("n", "1")


def test_options_that_are_dropped() -> None:
    got = {"CONFIG_A": "y", "CONFIG_B": "m"}
    build._check({"CONFIG_A": "y", "CONFIG_C": "n"}, got)
    with pytest.raises(KernelError, match="with CONFIG_B=y, CONFIG_C=y; see what they depend"):
        build._check({"CONFIG_A": "y", "CONFIG_B": "y", "CONFIG_C": "y"}, got)


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("1\n2\n3\n4\n5\n", None),
        ("0\n1\n2\n3\n4\n5\n", None),
        ("1\n2\n3\n4\nfive\n", "Hunk #1 FAILED at 1"),
        ("1\n2\nthree\n4\n5\n", "1 hunk ignored"),
    ],
    ids=["exact", "offset", "fuzz", "applied"],
)
def test_patches(series: Path, tmp_path: Path, text: str, refused: str | None) -> None:
    """What git am would not apply is not applied here."""
    patch = series / "0001-file.patch"
    patch.write_text(PATCH)
    (tmp_path / "file").write_text(text)
    steps = build._Steps(tmp_path / "log")
    if refused is None:
        build._apply(steps, tmp_path, patch, SOURCE)
        assert (tmp_path / "file").read_text() == text.replace("3", "three")
        return
    with pytest.raises(KernelError, match=refused) as error:
        build._apply(steps, tmp_path, patch, SOURCE)
    assert str(error.value).startswith(
        "kernel/patches/0001-file.patch: does not apply to linux-source-6.12_6.12.1-1; "
        f"the series is for {build._SOURCE_VERSION}: "
    )
    assert "\n" not in str(error.value)
