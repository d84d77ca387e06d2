# SPDX-License-Identifier: GPL-2.0-only
"""Numbers that the kernel keeps for us are distinct, and say what they stand for."""

from __future__ import annotations

from cgstatfs import nodes

IDS = (1, 2, 3, 44, (1 << 32) - 1, 1 << 32, (1 << 36) - 1)
TAGS = (0, 1, 777, nodes.TAGS - 1)


def test_file_nodes_can_be_split_and_are_no_directories() -> None:
    seen = set()
    for id in (*IDS, (1 << 49) - 1):
        for tag in TAGS:
            node = nodes.file_node(id, tag)
            assert nodes.split_file_node(node) == (id, tag)
            assert nodes.is_file(node) and not nodes.is_file(id)
            assert node < 1 << 64
            seen.add(node)
    assert len(seen) == (len(IDS) + 1) * len(TAGS)


def test_handles_are_distinct() -> None:
    handles = {
        nodes.file_handle(id, tag, serial)
        for id in IDS
        for tag in TAGS
        for serial in (0, 1, nodes.SERIALS - 1)
    }
    assert len(handles) == len(IDS) * len(TAGS) * 3
    assert all(0 <= handle < 1 << 64 for handle in handles)


def test_cookies_are_in_listing_order() -> None:
    cookies = [
        nodes.COOKIE_DOT,
        nodes.COOKIE_DOTDOT,
        *map(nodes.directory_cookie, IDS),
        *map(nodes.file_cookie, TAGS),
    ]
    assert cookies == sorted(set(cookies))
    # off_t
    assert cookies[-1] < 1 << 63


def test_tags_of_the_shipped_files_differ() -> None:
    names = (b"mm.reclaim", b"proc.events", b"sched.runqlat")
    assert len({nodes.tag(name) for name in names}) == len(names)


def test_nodes_in_trees_can_be_split_and_are_nothing_else() -> None:
    seen = set()
    for id in (*IDS, (1 << 46) - 1):
        directory = nodes.tree_node(id)
        assert nodes.is_tree(directory) and not nodes.is_tree_file(directory)
        assert nodes.split_tree_node(directory)[0] == id
        seen.add(directory)
        for tag in TAGS:
            node = nodes.tree_file_node(id, tag)
            assert nodes.is_tree(node) and nodes.is_tree_file(node)
            assert nodes.split_tree_node(node) == (id, tag)
            seen.add(node)
            for other in (nodes.file_node(id, tag), nodes.about_node(tag), nodes.ABOUT, id):
                assert not nodes.is_tree(other)
    assert len(seen) == (len(IDS) + 1) * (1 + len(TAGS))
    for node in seen:
        assert nodes.NO_CGROUP <= node < nodes.ABOUT
        assert not nodes.is_file(node) and not nodes.is_about(node)
