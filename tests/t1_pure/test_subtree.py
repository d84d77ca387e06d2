# SPDX-License-Identifier: GPL-2.0-only
"""Texts of subtrees, of cgroups made up."""

from __future__ import annotations

import gc
import random
import tracemalloc
from array import array

from cgstatfs.hierarchy import Cgroup
from cgstatfs.subtree import Subtree, SubtreeText
from cgstatfs.valuetype import Element, ValueType

TYPE = ValueType((Element("forks", 0, 0),))


def grow(count: int, seed: int) -> tuple[Cgroup, dict[int, str]]:
    """A subtree, and the paths in it by id."""
    shuffled = random.Random(seed)
    top = Cgroup(1, None, b"")
    cgroups, paths = [top], {1: "/"}
    for id in range(2, count + 2):
        parent = shuffled.choice(cgroups[-50:])
        child = Cgroup(id, parent, b"%x-%d.scope" % (seed, id))
        parent.children[child.name] = child
        cgroups.append(child)
        paths[id] = f"{paths[parent.id].rstrip('/')}/{child.name.decode()}"
    return top, paths


def make(top: Cgroup) -> SubtreeText:
    """What is shown of each is its id."""
    subtree = Subtree(top)
    records = array("Q", [word for id in subtree.ids for word in (id, id)])
    return SubtreeText(subtree, records.tobytes(), TYPE)


def test_paths_go_with_values() -> None:
    top, paths = grow(5000, 0)
    text = make(top)
    whole = b""
    while part := text.read(len(whole), 10_007):
        whole += part
    assert text.length == len(whole) > 3 * 65536
    lines = dict(line.split(" ") for line in whole.decode().splitlines())
    assert lines == {path: f"forks={id}" for id, path in paths.items()}


def test_memory_of_removed_cgroups_is_counted() -> None:
    """A text is all that is left of them, and says what it takes: users are held to that."""
    tracemalloc.start()
    try:
        texts = []
        before = tracemalloc.get_traced_memory()[0]
        for seed in range(20):
            texts.append(make(grow(1000, seed)[0]))
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    counted = sum(text.memory for text in texts)
    assert counted / 1.25 < taken < 1.25 * counted
