# SPDX-License-Identifier: GPL-2.0-only
"""Node ids, file handles and directory cookies: numbers that the kernel keeps for us.

All are pure functions of a cgroup id and a stats map's file name (a file handle also of which
of several opens it is), so that they mean the same to whichever daemon serves the mount.

====================  ======================================================================
node of a directory   the cgroup's id; 1 for the root of the mount, as FUSE wants it
node of a file        1 in bit 63, the map's tag in 14 bits, the cgroup's id in 49 bits
node in ``.cgstatfs``  1 in bit 62, a tag in 14 bits; the directory itself has none
node of a ``.tree``   1 in bit 61, the cgroup's id in 46 bits
node in a ``.tree``   1 in bits 61 and 60, the map's tag in 14 bits, the cgroup's id in 46 bits
file handle           which open in 14 bits, the map's tag in 14 bits, the id's low 36 bits
                      (0 of a file in ``.cgstatfs``)
cookie of a directory  2 more than the id: 1 and 2 are ``.`` and ``..``
cookie of a file      1 in bit 62, the map's tag
====================  ======================================================================

The low 32 bits of the ids of live cgroups are unique (they index an IDR, see
``__kernfs_new_node()`` in fs/kernfs/dir.c, 6.12); the bits above count how often those were
used up. So 36 bits name a live cgroup, and 46 bits last longer than any machine runs.
"""

from __future__ import annotations

import zlib

__all__ = (
    "COOKIE_DOT",
    "COOKIE_DOTDOT",
    "ABOUT",
    "FILE_ID",
    "NO_CGROUP",
    "ROOT",
    "TAGS",
    "about_node",
    "about_tag",
    "directory_cookie",
    "file_cookie",
    "file_handle",
    "file_node",
    "is_about",
    "is_file",
    "is_tree",
    "is_tree_file",
    "split_file_node",
    "split_tree_node",
    "tag",
    "tree_file_node",
    "tree_node",
    "SERIALS",
)

ROOT = 1
TAGS = 1 << 14
SERIALS = 1 << 14
COOKIE_DOT, COOKIE_DOTDOT = 1, 2

ABOUT = 1 << 62
# From here on nodes of directories are of something else.
NO_CGROUP = 1 << 61
_FILE = 1 << 63
_TREE = 1 << 61
_TREE_FILE = 1 << 60
_TREE_TAG_SHIFT = 46
_TREE_ID_MASK = (1 << _TREE_TAG_SHIFT) - 1
_TAG_SHIFT = 49
# Of a file's node, the bits of the cgroup's id.
FILE_ID = (1 << _TAG_SHIFT) - 1
_HANDLE_SERIAL_SHIFT = 50
_HANDLE_TAG_SHIFT = 36
_HANDLE_ID_MASK = (1 << _HANDLE_TAG_SHIFT) - 1
_FILE_COOKIE = 1 << 62


def tag(name: bytes) -> int:
    """14 bits that stand for a stats map."""
    return zlib.crc32(name) % TAGS


def is_file(node: int) -> bool:
    return bool(node & _FILE)


def is_about(node: int) -> bool:
    """Whether it is ``.cgstatfs``, or in it."""
    return node & (_FILE | ABOUT) == ABOUT


def about_node(tag: int) -> int:
    """Of a file in ``.cgstatfs``."""
    return ABOUT | (tag + 1) << 16


def about_tag(node: int) -> int:
    return ((node & (ABOUT - 1)) >> 16) - 1


def is_tree(node: int) -> bool:
    """Whether it is a ``.tree``, or in one."""
    return node & (_FILE | ABOUT | _TREE) == _TREE


def is_tree_file(node: int) -> bool:
    return is_tree(node) and bool(node & _TREE_FILE)


def tree_node(cgroup_id: int) -> int:
    """Of a cgroup's ``.tree``."""
    return _TREE | cgroup_id & _TREE_ID_MASK


def tree_file_node(cgroup_id: int, map_tag: int) -> int:
    return _TREE | _TREE_FILE | map_tag << _TREE_TAG_SHIFT | cgroup_id & _TREE_ID_MASK


def split_tree_node(node: int) -> tuple[int, int]:
    """Cgroup id, and tag of a file."""
    return node & _TREE_ID_MASK, node >> _TREE_TAG_SHIFT & TAGS - 1


def file_node(cgroup_id: int, map_tag: int) -> int:
    return _FILE | map_tag << _TAG_SHIFT | cgroup_id & FILE_ID


def split_file_node(node: int) -> tuple[int, int]:
    """Cgroup id and tag."""
    return node & FILE_ID, node >> _TAG_SHIFT & TAGS - 1


def file_handle(cgroup_id: int, map_tag: int, serial: int) -> int:
    return (
        serial % SERIALS << _HANDLE_SERIAL_SHIFT
        | map_tag << _HANDLE_TAG_SHIFT
        | cgroup_id & _HANDLE_ID_MASK
    )


def directory_cookie(cgroup_id: int) -> int:
    return cgroup_id + COOKIE_DOTDOT


def file_cookie(map_tag: int) -> int:
    return _FILE_COOKIE | map_tag
