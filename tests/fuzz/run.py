# SPDX-License-Identifier: GPL-2.0-only
"""Open, describe and load damaged objects, many in each of a few forked children.

An object may kill its child: libbpf was not made for damaged files, which is why the product
has a process of its own for them. Whatever is no such death, and no refusal, is a bug of ours.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import resource
import signal
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from cgstatfs import loading
from cgstatfs.collectors import CollectorError
from cgstatfs.engines import Standalone

from ..conftest import BUILD
from .mutations import Mutator

__all__ = ("KEPT", "Found", "fuzz")

# Objects that something was found with.
KEPT = BUILD / "fuzz"
_SEEDS = ("tiny", "kinds")
_CHILDREN = len(os.sched_getaffinity(0))
# To one child: more share the cost of a fork, fewer that of a death.
_BATCH = 250
# Of one object. The verifier takes some on a slow machine; only what hangs takes that long.
_SECONDS = 120
_ADDRESS_SPACE = 8 << 30
_PATH = Path("fuzzed.bpf.o")


@dataclass
class Found:
    """What became of the objects.

    :ivar bugs: what was neither refused nor accepted nor contained
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    bugs: list[str] = field(default_factory=list)


def _try(data: bytes, load: bool) -> str:
    """What a loader would do with it, up to where programs would be attached."""
    request = loading.Request(_PATH, Standalone(), 1)
    step = "opening"
    try:
        with loading.refusals(_PATH):
            if not data:
                raise CollectorError("is empty")
            obj = loading.open_object(_PATH, data)
            try:
                step = "describing"
                stages = loading._describe(obj, request)
                if not load:
                    return "accepted, and not loaded"
                step = "loading"
                loading.into_kernel(obj, request, stages)
                return "accepted by the kernel"
            finally:
                obj.close()
    except CollectorError as error:
        _check_message(str(error))
        return f"refused when {step}"


def _check_message(text: str) -> None:
    lines = text.splitlines()
    assert text.startswith(f"{_PATH}: "), text
    assert len(lines) <= 12 and all(line.isprintable() for line in lines), text


class _Child:
    """Works on the numbers from *first* to before *last*, and says of each what became of it."""

    def __init__(self, mutator: Mutator, first: int, last: int, load_every: int) -> None:
        self.next, self.last = first, last
        self._begun = time.monotonic()
        self._rest = b""
        self._pipe, writer = os.pipe()
        os.set_blocking(self._pipe, False)
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._pipe)
            _work(mutator, range(first, last), load_every, writer)
        os.close(writer)

    def read(self) -> list[list[str]]:
        """What it has said since: outcome, and details of a bug."""
        try:
            while more := os.read(self._pipe, 1 << 16):
                self._rest += more
        except BlockingIOError:
            pass
        *lines, self._rest = self._rest.split(b"\n")
        if lines:
            self._begun = time.monotonic()
        return [json.loads(line) for line in lines]

    def end(self) -> int | None:
        """Its wait status, if it has ended; one that hangs is ended."""
        if time.monotonic() - self._begun > _SECONDS:
            os.kill(self.pid, signal.SIGKILL)
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return status if pid else None

    def close(self) -> None:
        os.close(self._pipe)


def _work(mutator: Mutator, numbers: range, load_every: int, writer: int) -> None:
    """In the child; does not return."""
    status = 1
    try:
        # That libbpf crashes in here is one of the outcomes.
        faulthandler.disable()
        _limit()
        for number in numbers:
            load = bool(load_every) and number % load_every == 0
            try:
                said = [_try(mutator.make(number), load), ""]
            except BaseException:
                said = ["BUG", traceback.format_exc()]
            os.write(writer, json.dumps(said).encode() + b"\n")
        status = 0
    finally:
        os._exit(status)


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Ends with who started it.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)


class _Run:
    def __init__(self, count: int, seed: int, load_every: int) -> None:
        seeds = [(BUILD / "tests" / "hostile" / f"{name}.bpf.o").read_bytes() for name in _SEEDS]
        self._mutator = Mutator(seeds)
        self._load_every = load_every
        # Far enough apart for no two seeds to share an object.
        self._next = seed << 32
        self._end = self._next + count
        self._children: list[_Child] = []
        self.found = Found()

    def _keep(self, number: int, what: str) -> Path:
        KEPT.mkdir(parents=True, exist_ok=True)
        path = KEPT / f"{what}-{number}.bpf.o"
        path.write_bytes(self._mutator.make(number))
        return path

    def _start(self, first: int, last: int) -> None:
        self._children.append(_Child(self._mutator, first, last, self._load_every))

    def _take(self, child: _Child) -> None:
        for outcome, details in child.read():
            self.found.outcomes[outcome] += 1
            if details:
                self.found.bugs.append(f"{self._keep(child.next, 'bug')}: {details}")
            child.next += 1

    def _reap(self, child: _Child) -> None:
        status = child.end()
        if status is None:
            return
        self._take(child)
        self._children.remove(child)
        child.close()
        if child.next == child.last:
            return
        # It died of the one that it had not said anything of; the others go on without it.
        if os.WIFSIGNALED(status):
            name = signal.Signals(os.WTERMSIG(status)).name
            self.found.outcomes[f"killed the loader ({name})"] += 1
            path = self._keep(child.next, name.lower())
            if name == "SIGKILL":
                self.found.bugs.append(f"{path}: took more than {_SECONDS} s")
        else:
            self.found.outcomes["BUG"] += 1
            self.found.bugs.append(f"{self._keep(child.next, 'exit')}: ended the loader with {status}")
        if child.next + 1 < child.last:
            self._start(child.next + 1, child.last)

    def run(self) -> Found:
        try:
            while self._children or self._next < self._end:
                while len(self._children) < _CHILDREN and self._next < self._end:
                    last = min(self._next + _BATCH, self._end)
                    self._start(self._next, last)
                    self._next = last
                time.sleep(0.005)
                for child in list(self._children):
                    self._take(child)
                    self._reap(child)
        finally:
            for child in self._children:
                os.kill(child.pid, signal.SIGKILL)
                os.waitpid(child.pid, 0)
                child.close()
        return self.found


def fuzz(count: int, seed: int, load_every: int) -> Found:
    """Try *count* damaged objects.

    :param seed: which ones
    :param load_every: have the kernel load one in so many; 0: none
    """
    return _Run(count, seed, load_every).run()
