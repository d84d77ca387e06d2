# SPDX-License-Identifier: GPL-2.0-only
"""What the kernel is taken to know, by daemons that follow each other; there is no mount."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from cgstatfs import nodes, wire
from cgstatfs.attributes import Attributes
from cgstatfs.filesystem import FileSystem
from cgstatfs.hierarchy import Hierarchy
from cgstatfs.invalidation import Invalidator
from cgstatfs.known import Known
from cgstatfs.openfiles import OpenFiles

from ..conftest import cgroup_id


class Daemon:
    """As much of one as answers requests. :ivar gone: what was removed before it began"""

    def __init__(self, known: Known, open_files: OpenFiles, hierarchy: Hierarchy) -> None:
        hierarchy.scan()
        self._attributes = Attributes(hierarchy, lambda _: None)
        # In the place of the process that would tell the kernel.
        ours, self._teller = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._invalidator = Invalidator(hierarchy, SimpleNamespace(socket=ours))
        self._file_system = FileSystem(
            hierarchy, self._attributes, hierarchy.scan, self._invalidator, known, open_files,
            open_files_per_user=1, snapshot_memory=1,
        )  # fmt: skip
        self.gone = self._file_system.recover()

    def look_up(self, name: str) -> int:
        return trio.run(self._file_system.lookup, nodes.ROOT, name.encode(), None).st_ino

    def forget(self, node: int, count: int) -> None:
        trio.run(self._file_system.forget, [(node, count)])

    def told(self) -> list[bytes]:
        """What the kernel is told of what has happened since."""

        async def tell() -> None:
            await self._file_system.statfs(None)
            with trio.move_on_after(0.1):
                await self._invalidator.tell_names()

        trio.run(tell)
        self._teller.setblocking(False)
        found = []
        with suppress(BlockingIOError):
            while True:
                found.append(self._teller.recv(wire.MIN_BUFFER))
        return found

    def close(self) -> None:
        self._attributes.close()
        self._teller.close()


@contextmanager
def daemon(tree: Path, files: Path) -> Iterator[Daemon]:
    hierarchy = Hierarchy(tree)
    known, open_files = Known(files / "known", hierarchy), OpenFiles(files / "open")
    found = Daemon(known, open_files, hierarchy)
    try:
        yield found
    finally:
        for each in (found, known, open_files):
            each.close()


@pytest.mark.on_host
@pytest.mark.parametrize("removed", ["while it serves", "later"])
def test_a_cgroup_that_is_looked_up_while_it_is_forgotten(
    tree: Path, tmp_path: Path, removed: str
) -> None:
    """What an earlier daemon told is forgotten, and what the next one answers is not: it is read
    before, and counts for the kernel after.
    """
    (tree / "a").mkdir()
    node = cgroup_id(tree / "a")
    with daemon(tree, tmp_path) as first:
        for _ in range(3):
            assert first.look_up("a") == node
    with daemon(tree, tmp_path) as second:
        second.look_up("a")
        second.forget(node, 3)
        if removed == "while it serves":
            (tree / "a").rmdir()
            assert wire.inval_entry(nodes.ROOT, b"a") in second.told()
            second.forget(node, 1)
    if removed == "later":
        (tree / "a").rmdir()
    with daemon(tree, tmp_path) as third:
        assert [each.id for each in third.gone] == ([node] if removed == "later" else [])


@pytest.mark.on_host
def test_a_cgroup_that_is_forgotten(tree: Path, tmp_path: Path) -> None:
    """Where one daemon told all that the kernel knows, it knows when that is nothing."""
    (tree / "a").mkdir()
    node = cgroup_id(tree / "a")
    with daemon(tree, tmp_path) as first:
        for _ in range(3):
            first.look_up("a")
        first.forget(node, 3)
        (tree / "a").rmdir()
        assert wire.inval_entry(nodes.ROOT, b"a") not in first.told()
    with daemon(tree, tmp_path) as second:
        assert second.gone == []
