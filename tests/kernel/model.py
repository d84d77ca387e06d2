# SPDX-License-Identifier: GPL-2.0-only
"""A model of cgroup_rstat_updated_nolock() against flushes, checked exhaustively.

One cpu updates a statistic, and can be interrupted at each instruction, once by an interrupt and
once by an NMI (or by a trap, which is the same here), which update it as well. A second cpu
flushes twice, a third one flushes another subtree, which only moves what is listed to the updated
tree. The machine has store buffers, as x86 has: a store is seen by other cpus later, in order, or
when its cpu executes a barrier or an atomic instruction.

The property: a flush counts all updates that were complete when it began. It covers x86's memory
model only; that of the kernel, of which this is an instance, allows more. In each of the variants
something is left out, and an update can be missed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

__all__ = ("VARIANTS", "missed")

# What can be left out.
VARIANTS = ("barrier of updates", "barrier of flushes", "interrupts off", "count of levels")

_TASK, _IRQ, _NMI = 0, 1, 2
_UPDATER, _FLUSHER, _OTHER = 0, 1, 2


def _update(context: int, without: str) -> list[tuple]:
    masks, counts = without != "interrupts off", without != "count of levels"
    return [
        ("store", f"value{context}", 1),
        *([("barrier",)] if without != "barrier of updates" else []),
        ("level",),
        ("done if listed",),
        *([("mask",)] if masks else []),
        *([("listing", 1)] if counts else []),
        ("skip if listed", 2),
        ("mark",),
        ("push",),
        *([("listing", 0)] if counts else []),
        ("unmask and done",),
    ]


def _flush(without: str, reads: bool) -> list[tuple]:
    barrier = ("barrier",) if without != "barrier of flushes" else ("nothing",)
    take = [("begin",), ("lock",), ("take",), ("unlist", 0), ("unlist", 1), barrier, ("insert",)]
    read = [("leave tree",), ("read", 0), ("read", 1), ("read", 2)] if reads else []
    return [*take, *read, ("store", "lock", 0), ("check" if reads else "nothing",)]


class _State(NamedTuple):
    memory: tuple[tuple[str, int], ...]
    buffers: tuple[tuple[tuple[str, int], ...], ...]  # of each cpu
    stack: tuple[tuple[int, int], ...]  # of contexts on the updating cpu, with where they are
    listing: int  # how many listings are under way; its own cpu alone reads it
    levels: tuple[int, int, int]  # of each context: how many there were
    to_come: frozenset[int]  # contexts that have not begun
    masked: bool
    done: frozenset[int]
    at: tuple[int, int]  # where the two flushing cpus are
    taken: tuple[frozenset[int], frozenset[int]]
    before: frozenset[int]  # updates that were complete when the flush began
    found: bool  # the cgroup was on the updated tree
    total: frozenset[int]


_VARIABLES = (
    "value0", "value1", "value2", "listed0", "listed1", "head0", "head1", "tree", "lock"
)  # fmt: skip
_START = _State(
    memory=tuple((name, 0) for name in _VARIABLES),
    buffers=((), (), ()),
    stack=((_TASK, 0),),
    listing=0,
    levels=(0, 0, 0),
    to_come=frozenset({_IRQ, _NMI}),
    masked=False,
    done=frozenset(),
    at=(0, 0),
    taken=(frozenset(), frozenset()),
    before=frozenset(),
    found=False,
    total=frozenset(),
)


def _load(state: _State, cpu: int, name: str) -> int:
    for stored, value in reversed(state.buffers[cpu]):
        if stored == name:
            return value
    return dict(state.memory)[name]


def _write(state: _State, **values: int) -> _State:
    return state._replace(memory=tuple((n, values.get(n, v)) for n, v in state.memory))


def _buffer(state: _State, cpu: int, *stores: tuple[str, int]) -> _State:
    buffers = list(state.buffers)
    buffers[cpu] = (*buffers[cpu], *stores)
    return state._replace(buffers=tuple(buffers))


def _drained(state: _State) -> Iterator[_State]:
    """A store buffer's oldest store reaches memory."""
    for cpu, buffer in enumerate(state.buffers):
        if buffer:
            (name, value), *rest = buffer
            buffers = list(state.buffers)
            buffers[cpu] = tuple(rest)
            yield _write(state._replace(buffers=tuple(buffers)), **{name: value})


def _interrupted(state: _State) -> Iterator[_State]:
    if not state.stack:
        return
    running = state.stack[-1][0]
    for context in state.to_come:
        # An NMI is not interrupted, and an interrupt only by an NMI.
        if context > running and not (context == _IRQ and state.masked):
            yield state._replace(
                stack=(*state.stack, (context, 0)), to_come=state.to_come - {context}
            )


def _updated(state: _State, programs: dict[int, list[tuple]]) -> Iterator[_State]:
    if not state.stack:
        return
    *below, (context, position) = state.stack
    operation, *operands = programs[context][position]
    ended = state._replace(stack=tuple(below), done=state.done | {context})
    after = state._replace(stack=(*below, (context, position + 1)))
    drained, level = not state.buffers[_UPDATER], state.levels[context]
    if operation == "store":
        yield _buffer(after, _UPDATER, (operands[0], operands[1]))
    elif operation == "barrier":
        if drained:
            yield after
    elif operation == "level":
        levels = (*state.levels[:context], state.listing, *state.levels[context + 1 :])
        # There is no node for it.
        yield ended if state.listing > 1 else after._replace(levels=levels)
    elif operation == "done if listed":
        yield ended if _load(state, _UPDATER, f"listed{level}") else after
    elif operation == "skip if listed":
        skip = operands[0] if _load(state, _UPDATER, f"listed{level}") else 0
        yield after._replace(stack=(*below, (context, position + 1 + skip)))
    elif operation == "listing":
        yield after._replace(listing=level + operands[0])
    elif operation == "mark":
        yield _buffer(after, _UPDATER, (f"listed{level}", 1))
    elif operation == "mask":
        yield after._replace(masked=True)
    elif operation == "unmask and done":
        # An interrupt or NMI leaves alone what it has interrupted.
        yield ended._replace(masked=state.masked and context != _TASK)
    elif operation == "push":
        if drained:
            yield _write(after, **{f"head{level}": 1})


def _flushed(state: _State, cpu: int, program: list[tuple], rounds: int) -> Iterator[_State]:
    which = cpu - 1
    if state.at[which] == rounds * len(program):
        return
    operation, *operands = program[state.at[which] % len(program)]
    at = list(state.at)
    at[which] += 1
    after = state._replace(at=tuple(at))
    drained = not state.buffers[cpu]
    taken = list(state.taken)
    if operation == "store":
        yield _buffer(after, cpu, (operands[0], operands[1]))
    elif operation == "barrier":
        if drained:
            yield after
    elif operation == "begin":
        yield after._replace(before=state.done) if cpu == _FLUSHER else after
    elif operation == "lock":
        if drained and not _load(state, cpu, "lock"):
            yield _write(after, lock=1)
    elif operation == "take":
        if drained:
            taken[which] = frozenset(n for n in (0, 1) if _load(state, cpu, f"head{n}"))
            yield _write(after._replace(taken=tuple(taken)), head0=0, head1=0)
    elif operation == "unlist":
        listed = operands[0] in state.taken[which]
        yield _buffer(after, cpu, (f"listed{operands[0]}", 0)) if listed else after
    elif operation == "insert":
        yield _buffer(after, cpu, ("tree", 1)) if state.taken[which] else after
    elif operation == "leave tree":
        found = bool(_load(state, cpu, "tree"))
        yield _buffer(after, cpu, ("tree", 0))._replace(found=found)
    elif operation == "read":
        counts = state.found and _load(state, cpu, f"value{operands[0]}")
        yield after._replace(total=state.total | {operands[0]}) if counts else after
    else:
        yield after


def missed(without: str = "") -> tuple[bool, int]:
    """Whether a flush can miss an update, and how many states there are.

    :param without: one of the variants, or nothing is left out.
    """
    updates = {context: _update(context, without) for context in (_TASK, _IRQ, _NMI)}
    flush, other = _flush(without, reads=True), _flush(without, reads=False)
    seen, todo = {_START}, [_START]
    while todo:
        state = todo.pop()
        checks = flush[state.at[0] % len(flush)][0] == "check"
        if checks and not state.before <= state.total:
            return True, len(seen)
        for following in (
            *_drained(state),
            *_interrupted(state),
            *_updated(state, updates),
            *_flushed(state, _FLUSHER, flush, 2),
            *_flushed(state, _OTHER, other, 1),
        ):
            if following not in seen:
                seen.add(following)
                todo.append(following)
    return False, len(seen)


if __name__ == "__main__":
    for variant in ("", *VARIANTS):
        can_miss, states = missed(variant)
        print(
            f"without {variant or 'anything'}: {'missed' if can_miss else 'none missed'},"
            f" {states} states"
        )
