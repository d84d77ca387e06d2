# SPDX-License-Identifier: GPL-2.0-only
"""The tree: events in any order that the kernel can give, scans, paths.

Plain directories serve as cgroupfs: all that the tree asks of it is names and inode numbers.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from cgstatfs.hierarchy import Cgroup, Hierarchy, Mount


@pytest.fixture
def hierarchy(tmp_path: Path) -> Hierarchy:
    return Hierarchy(tmp_path)


def names(cgroup: Cgroup) -> dict:
    return {name: names(child) for name, child in cgroup.children.items()}


def test_events_make_a_tree(hierarchy: Hierarchy) -> None:
    root = hierarchy.root.id
    hierarchy.create(-1, root, b"a")
    hierarchy.create(-2, -1, b"b")
    hierarchy.create(-3, root, b"c")
    assert names(hierarchy.root) == {b"a": {b"b": {}}, b"c": {}}
    assert hierarchy.directory(hierarchy.by_id[-2]) == hierarchy.path + b"/a/b"
    assert hierarchy.resolve([b"a", b"b"]).id == -2
    assert hierarchy.resolve([b"a", b"x", b"y"]) is None


def test_events_twice_and_of_others_are_ignored(hierarchy: Hierarchy) -> None:
    hierarchy.create(-1, hierarchy.root.id, b"a")
    hierarchy.create(-1, hierarchy.root.id, b"a")
    hierarchy.create(-9, -8, b"outside the view")
    hierarchy.remove(-9)
    hierarchy.remove(hierarchy.root.id)
    assert names(hierarchy.root) == {b"a": {}}


def test_a_chain_deeper_than_the_stack_is_removed(hierarchy: Hierarchy) -> None:
    """Users can make one in a cgroup that is delegated to them."""
    parent = hierarchy.root.id
    for id in range(-1, -3001, -1):
        hierarchy.create(id, parent, b"d")
        parent = id
    changed: list[int] = []
    hierarchy.on_change(lambda cgroup: changed.append(cgroup.id))
    hierarchy.scan()
    assert changed == list(range(-3000, 0))
    assert names(hierarchy.root) == {}


def test_removal_keeps_the_path(hierarchy: Hierarchy) -> None:
    hierarchy.create(-1, hierarchy.root.id, b"a")
    hierarchy.create(-2, -1, b"b")
    b = hierarchy.by_id[-2]
    changed: list[int] = []
    hierarchy.on_change(lambda cgroup: changed.append(cgroup.id))
    hierarchy.remove(-1)
    assert changed == [-2, -1]
    assert not b.alive
    assert b.names == [b"a", b"b"]
    assert set(hierarchy.by_id) == {hierarchy.root.id}
    hierarchy.create(-3, hierarchy.root.id, b"a")
    hierarchy.create(-4, -3, b"b")
    assert hierarchy.resolve(b.names).id == -4


def test_a_name_made_anew_before_its_removal_was_heard_of(hierarchy: Hierarchy) -> None:
    root = hierarchy.root.id
    hierarchy.create(1 << 50, root, b"a")
    hierarchy.create((1 << 50) + 1, root, b"a")
    assert hierarchy.root.children[b"a"].id == (1 << 50) + 1
    hierarchy.remove(1 << 50)
    assert hierarchy.root.children[b"a"].id == (1 << 50) + 1


def test_an_event_that_a_scan_is_ahead_of(hierarchy: Hierarchy, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    hierarchy.scan()
    a = hierarchy.root.children[b"a"]
    hierarchy.create(a.id - 1, hierarchy.root.id, b"a")
    hierarchy.remove(a.id - 1)
    assert hierarchy.root.children[b"a"] is a and a.alive


def test_a_scan_finds_what_is_there(hierarchy: Hierarchy, tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "c").mkdir()
    (tmp_path / "file").touch()
    os.symlink("a", tmp_path / "link")
    hierarchy.scan()
    assert names(hierarchy.root) == {b"a": {b"b": {}}, b"c": {}}
    assert hierarchy.resolve([b"a", b"b"]).id == (tmp_path / "a/b").stat().st_ino


def test_a_later_scan_mends_what_was_missed(hierarchy: Hierarchy, tmp_path: Path) -> None:
    for name in ("a/b", "c", "d"):
        (tmp_path / name).mkdir(parents=True)
    hierarchy.scan()
    d = hierarchy.root.children[b"d"]
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "c").rename(tmp_path / "moved")
    (tmp_path / "c").mkdir()
    hierarchy.scan()
    assert names(hierarchy.root) == {b"c": {}, b"d": {}, b"moved": {}}
    assert hierarchy.root.children[b"c"].id == (tmp_path / "c").stat().st_ino
    assert hierarchy.root.children[b"d"] is d


def test_children_are_ordered_by_id(hierarchy: Hierarchy) -> None:
    for id in (-3, -1, -2):
        hierarchy.create(id, hierarchy.root.id, b"%d" % id)
    assert [child.id for child in hierarchy.root.ordered] == [-3, -2, -1]
    hierarchy.remove(-2)
    assert [child.id for child in hierarchy.root.ordered] == [-3, -1]


def test_mount_table_lines() -> None:
    mount = Mount(rb"36 35 98:0 /root\040x /mnt\134y rw,noatime master:1 - ext3 /dev/root rw")
    assert (mount.root, mount.point) == (b"/root x", b"/mnt\\y")
    assert (mount.type, mount.device) == (b"ext3", b"98:0")
