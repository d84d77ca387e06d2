# SPDX-License-Identifier: GPL-2.0-only
"""Random operations on cgroups, tasks and a collector, against a model in plain Python.

The model keeps every update of every cgroup, removed ones too, and folds them when it is asked.
Kernel and model have to agree at every lookup, and on everything that is left at the end.
"""

from __future__ import annotations

import errno
import functools
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from cgstatfs import control

from ..conftest import BUILD, Mounted, dying, remove_tree, times, wait_until

# See tests/bpf/stateful.bpf.c.
OBJECT = BUILD / "tests" / "stateful.bpf.o"
NAME = "stateful"
HIERARCHICAL, OWN = ("state.usual", "state.shared"), "state.own"
FILES = (*HIERARCHICAL, OWN)
ADD, RAISE, LOWER, OBSERVE = range(1, 5)
BUCKETS = 8
ALL_ONES = (1 << 64) - 1

EXAMPLES, STEPS = times(60), 100
MAX_CGROUPS, MAX_DEPTH, MAX_OPEN, MAX_LOADS = 12, 5, 8, 2
CPUS = sorted(os.sched_getaffinity(0))

# Joins nothing by itself: it is moved. A line in is an update, and comes back when it is done.
WORKER = """
import ctypes, os, sys
prctl = ctypes.CDLL(None).prctl
for line in sys.stdin:
    cpu, what, n = map(int, line.split())
    os.sched_setaffinity(0, {cpu})
    prctl(0x63677375, ctypes.c_ulong(what), ctypes.c_ulong(n), 0, 0)
    print(line, end="", flush=True)
"""


# The model


@dataclass
class Node:
    """A cgroup, and the updates of its own: what, and by how much."""

    directory: Path
    parent: Node | None
    alive: bool = True
    children: list[Node] = field(default_factory=list)
    updates: list[tuple[int, int]] = field(default_factory=list)

    @property
    def depth(self) -> int:
        return self.parent.depth + 1 if self.parent else 0

    def below(self) -> Iterator[Node]:
        """This one and all below, removed ones too."""
        yield self
        for child in self.children:
            yield from child.below()

    def text(self, file: str) -> str:
        """What a lookup should give."""
        if file == OWN:
            return fold(self.updates)
        return fold([update for node in self.below() for update in node.updates])


def fold(updates: list[tuple[int, int]]) -> str:
    """The text of a value that so was updated."""
    by = {what: [n for w, n in updates if w == what] for what in (ADD, RAISE, LOWER, OBSERVE)}
    buckets = [0] * BUCKETS
    for n in by[OBSERVE]:
        fitting = (i for i in range(BUCKETS - 1) if n <= 1 << i)
        buckets[next(fitting, BUCKETS - 1)] += 1
    lowest = min(by[LOWER], default=ALL_ONES)
    bounds = [*(str(1 << i) for i in range(BUCKETS - 1)), "inf"]
    pairs = " ".join(f"{bound}={count}" for bound, count in zip(bounds, buckets))
    return (
        f"sum {sum(by[ADD]) & ALL_ONES}\n"
        f"highest {max(by[RAISE], default=0)}\n"
        f"lowest {'max' if lowest == ALL_ONES else lowest}\n"
        f"sizes count={sum(buckets)} {pairs}\n"
    )


# The kernel's side


class Worker:
    """A task that updates where it is, on demand."""

    def __init__(self, cgroupfs: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._outstanding = 0
        lines = Path(f"/proc/{self._process.pid}/cgroup").read_text().splitlines()
        self._home = cgroupfs / next(each for each in lines if each.startswith("0::"))[4:]
        self.node: Node | None = None

    def update(self, cpu: int, what: int, n: int) -> None:
        """Begin an update; :meth:`settle` waits for it."""
        self._process.stdin.write(f"{cpu} {what} {n}\n")
        self._outstanding += 1

    def settle(self) -> None:
        while self._outstanding:
            assert self._process.stdout.readline(), "a worker has ended"
            self._outstanding -= 1

    def move(self, node: Node | None) -> None:
        """To a cgroup, or out of the tests' ones."""
        self.settle()
        directory = node.directory if node else self._home
        (directory / "cgroup.procs").write_text(str(self._process.pid))
        self.node = node

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


class World:
    """What all examples share: a mount, and workers.

    :ivar loads: of the collector so far; a file that was opened before one is of no use after
    """

    def __init__(self, mounted: Mounted, tree: Path) -> None:
        self.mounted = mounted
        self.tree = tree
        self.workers: list[Worker] = []
        self.loaded = False
        self.loads = 0
        self.steps = self.lookups = 0
        self.numbers = itertools.count()

    def load(self, *, keep: bool = False) -> None:
        question = {"do": "load", "path": str(OBJECT), "initials": {}, "keep": keep}
        control.ask(self.mounted.runtime.socket, question)
        self.loads += 1
        self.loaded = True

    def unload(self) -> None:
        control.ask(self.mounted.runtime.socket, {"do": "unload", "name": NAME})
        self.loads += 1
        self.loaded = False

    def settle(self) -> None:
        for worker in self.workers:
            worker.settle()


@dataclass
class Held:
    """A file that stays open. :ivar load: number of the load that it is of"""

    descriptor: int
    node: Node
    file: str
    load: int


# Operations

numbers = st.one_of(
    st.integers(0, 20),
    st.sampled_from([63, 64, 65, 1 << 32, 1 << 63, ALL_ONES - 1, ALL_ONES]),
    st.integers(0, ALL_ONES),
)
updates = st.lists(st.tuples(st.sampled_from((ADD, RAISE, LOWER, OBSERVE)), numbers), min_size=1, max_size=8)
# Which one of however many there are.
choices = st.integers(0, 63)
# A load takes as long as hundreds of other steps: there are few to an example, anywhere in it.
luck = st.integers(0, 9)


def step(**strategies: st.SearchStrategy) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A rule whose uses are counted."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def counted(self: Machine, **arguments: object) -> None:
            self.world.steps += 1
            function(self, **arguments)

        return rule(**strategies)(counted)

    return decorate


class Machine(RuleBasedStateMachine):
    """An example: a tree of cgroups of its own, which begins with one."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.held: list[Held] = []
        self.failed = False
        self.loads_left = MAX_LOADS
        if not world.loaded:
            world.load()
        self.top = Node(world.tree / f"example{next(world.numbers)}", None)
        self.top.directory.mkdir()

    # What there is

    @property
    def live(self) -> list[Node]:
        return [node for node in self.top.below() if node.alive]

    def extensible(self) -> list[Node]:
        live = self.live
        return [node for node in live if node.depth < MAX_DEPTH] if len(live) < MAX_CGROUPS else []

    def removable(self) -> list[Node]:
        return [
            node for node in self.live
            if node.parent and not any(child.alive for child in node.children)
        ]  # fmt: skip

    def path(self, node: Node, file: str) -> Path:
        return self.world.mounted.of(node.directory) / file

    def forget(self) -> None:
        """Counting begins anew."""
        for node in self.top.below():
            node.updates.clear()

    def check(self, node: Node, file: str) -> None:
        self.failed = True
        self.world.settle()
        self.world.lookups += 1
        if self.world.loaded:
            assert self.path(node, file).read_text() == node.text(file), f"{file} of {node.directory}"
        else:
            with pytest.raises(FileNotFoundError):
                self.path(node, file).read_text()
        self.failed = False

    # What operations are made of

    def make(self, parent: Node, name: str) -> Node:
        node = Node(parent.directory / name, parent)
        node.directory.mkdir()
        parent.children.append(node)
        return node

    def remove(self, node: Node, *, wait: bool) -> None:
        """Remove a leaf. :param wait: until it is released, which looks at what nobody looked at"""
        for worker in self.world.workers:
            if worker.node is node:
                worker.move(node.parent)
        node.directory.rmdir()
        node.alive = False
        if wait:
            wait_until(lambda: not dying(self.top.directory), "the cgroup to be released")

    def begin(self, worker: Worker, cpu: int, batch: list[tuple[int, int]]) -> None:
        for what, n in batch if worker.node else ():
            worker.update(CPUS[cpu % len(CPUS)], what, n)
            if self.world.loaded:
                worker.node.updates.append((what, n))

    # What can happen

    @precondition(lambda self: self.extensible())
    @step(choice=choices, name=st.sampled_from("abc"))
    def mkdir(self, choice: int, name: str) -> None:
        parents = self.extensible()
        parent = parents[choice % len(parents)]
        # A name may be one of a cgroup that was removed.
        if not any(child.alive and child.directory.name == name for child in parent.children):
            self.make(parent, name)

    @precondition(lambda self: self.removable())
    @step(choice=choices, wait=st.booleans())
    def rmdir(self, choice: int, wait: bool) -> None:
        nodes = self.removable()
        self.remove(nodes[choice % len(nodes)], wait=wait)

    @precondition(lambda self: self.extensible())
    @step(choice=choices, worker=choices, cpu=choices, batch=updates, wait=st.booleans())
    def job(self, choice: int, worker: int, cpu: int, batch: list[tuple[int, int]], wait: bool) -> None:
        """A cgroup that is there for one task, and gone before anybody looked."""
        parents = self.extensible()
        node = self.make(parents[choice % len(parents)], "job")
        one = self.world.workers[worker % len(self.world.workers)]
        one.move(node)
        self.begin(one, cpu, batch)
        self.remove(node, wait=wait)

    @step(choice=choices, worker=choices)
    def move(self, choice: int, worker: int) -> None:
        workers, live = self.world.workers, self.live
        workers[worker % len(workers)].move(live[choice % len(live)])

    @step(worker=choices, cpu=choices, batch=updates)
    def update(self, worker: int, cpu: int, batch: list[tuple[int, int]]) -> None:
        """Not waited for: workers update beside each other, and beside what happens next."""
        self.begin(self.world.workers[worker % len(self.world.workers)], cpu, batch)

    @step(choice=choices, file=st.sampled_from(FILES))
    def lookup(self, choice: int, file: str) -> None:
        live = self.live
        self.check(live[choice % len(live)], file)

    @precondition(lambda self: self.world.loaded and len(self.held) < MAX_OPEN)
    @step(choice=choices, file=st.sampled_from(FILES))
    def hold(self, choice: int, file: str) -> None:
        live = self.live
        node = live[choice % len(live)]
        descriptor = os.open(self.path(node, file), os.O_RDONLY)
        self.held.append(Held(descriptor, node, file, self.world.loads))

    @precondition(lambda self: self.held)
    @step(choice=choices, close=st.booleans())
    def look_up_held(self, choice: int, close: bool) -> None:
        held = self.held[choice % len(self.held)]
        self.failed = True
        self.world.settle()
        self.world.lookups += 1
        if held.node.alive and held.load == self.world.loads:
            assert os.pread(held.descriptor, 4096, 0).decode() == held.node.text(held.file)
        else:
            with pytest.raises(OSError) as error:
                os.pread(held.descriptor, 4096, 0)
            assert error.value.errno == errno.ENODEV
        self.failed = False
        if close:
            self.held.remove(held)
            os.close(held.descriptor)

    @precondition(lambda self: self.loads_left)
    @step(keep=st.booleans(), luck=luck)
    def load(self, keep: bool, luck: int) -> None:
        if luck > (1 if self.world.loaded else 5):
            return
        self.loads_left -= 1
        self.world.settle()
        if not keep:
            self.forget()
        self.world.load(keep=keep)

    @precondition(lambda self: self.world.loaded and self.loads_left)
    @step(luck=luck)
    def unload(self, luck: int) -> None:
        if luck > 1:
            return
        self.loads_left -= 1
        self.world.settle()
        self.world.unload()
        self.forget()

    # The end

    def teardown(self) -> None:
        try:
            # Not where it is known to be wrong: the first error says more.
            for node, file in itertools.product(self.live, FILES) if not self.failed else ():
                self.check(node, file)
        finally:
            for held in self.held:
                os.close(held.descriptor)
            for worker in self.world.workers:
                worker.move(None)
            remove_tree(self.top.directory)


@pytest.fixture
def world(mounted: Mounted, tree: Path) -> Iterator[World]:
    assert OBJECT.exists(), f"{OBJECT} is not built; run make test"
    world = World(mounted, tree)
    try:
        for _ in range(3):
            world.workers.append(Worker(mounted.cgroupfs))
        yield world
    finally:
        for worker in world.workers:
            worker.end()
        if world.loaded:
            world.unload()


@pytest.mark.on_host
def test_kernel_and_model_agree(world: World) -> None:
    run_state_machine_as_test(
        lambda: Machine(world),
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, database=None,
            # What fails can be tried again by what is printed.
            print_blob=True, suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
    print(f"{world.steps} steps, {world.lookups} lookups, {world.loads} loads and unloads")
    assert world.steps >= EXAMPLES * STEPS // 4
