# SPDX-License-Identifier: GPL-2.0-only
"""What the value of a stats map consists of, and how it is written as text.

Knows nothing of where values come from. The text follows the kernel's rules for cgroup v2
files (Documentation/admin-guide/cgroup-v2.rst, "Format", 6.12); docs/formats.md has them all.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from . import hyperloglog

__all__ = ("AGGREGATED", "MAX", "MIN", "SUM", "Element", "ValueType", "linear_bounds", "log2_bounds")

SUM, MAX, MIN, AGGREGATED = "sum", "max", "min", "aggregated"

_ALL_ONES = (1 << 64) - 1


def log2_bounds(buckets: int) -> tuple[int, ...]:
    """Upper bounds of a log2 histogram's buckets, inclusive; the last one has none."""
    return tuple(1 << i for i in range(buckets - 1))


def linear_bounds(buckets: int, start: int, step: int) -> tuple[int, ...]:
    """Upper bounds of a linear histogram's buckets, inclusive; the last one has none."""
    return tuple(start + i * step for i in range(buckets - 1))


@dataclass(frozen=True)
class Element:
    """A field of a value: an unsigned 64-bit integer, or an array of them.

    :param name: what its line begins with; fields of nested structs have dots in it. Empty if
        the value is not a struct
    :param offset: of its first element, in elements of eight bytes
    :param length: elements of an array; 0: no array
    :param sub: its sub-key, where it shares a line with others: one of a nested struct's
    :param operation: how values become part of the parent's
    :param bounds: the array is a histogram, and these are its buckets' upper bounds but the last
    :param histogram: of which kind, in words
    :param distinct: the array is a HyperLogLog
    """

    name: str
    offset: int
    length: int = 0
    sub: str = ""
    operation: str = SUM
    bounds: tuple[int, ...] | None = None
    histogram: str = ""
    distinct: bool = False

    @property
    def unit(self) -> str:
        """Base unit, by the ending of the name; empty for a plain count."""
        name = self.sub or self.name
        _, _, ending = name.rpartition("_")
        return ending if ending in ("ns", "bytes") and ending != name else ""

    @property
    def path(self) -> str:
        """As a C programmer would write it."""
        return f"{self.name}.{self.sub}" if self.sub else self.name

    @property
    def elements(self) -> int:
        return self.length or 1

    @property
    def derived(self) -> bool:
        """Whether the text shows something else than the elements as they are."""
        return self.bounds is not None or self.distinct or self.operation == MIN

    def shown(self, value: Sequence[int]) -> Sequence[int | str]:
        """What the text shows of *value*, for the places that :attr:`keys` has.

        A histogram's count goes before its buckets. A minimum is kept as its complement; never
        updated it is ``max``, the word of cgroup v2 for what has no bound.
        """
        own = value[self.offset : self.offset + self.elements]
        if self.distinct:
            return (hyperloglog.estimate(own),)
        if self.operation == MIN:
            return tuple(_ALL_ONES - each if each else "max" for each in own)
        return (sum(own), *own) if self.bounds is not None else own

    @property
    def keys(self) -> list[str]:
        """Sub-keys of what is shown; one that is empty is a single value without."""
        if not self.length or self.distinct:
            return [self.sub]
        if self.bounds is not None:
            return ["count", *map(str, self.bounds), "inf"]
        return [str(i) if self.name else "" for i in range(self.length)]

    @property
    def template(self) -> str:
        """What comes after the line's name."""
        place = "%s" if self.operation == MIN else "%d"
        return "".join(f" {key}={place}" if key else f" {place}" for key in self.keys)


    @property
    def line_template(self) -> str:
        """What it is in the line of a whole value."""
        keys = [".".join(filter(None, (self.name, key))) for key in self.keys]
        if len(keys) > 1 and not any(keys):
            keys = list(map(str, range(len(keys))))
        # Of numbers, too, it is quicker than %d.
        return "".join(f" {key}=%s" if key else " %s" for key in keys)


@dataclass(frozen=True)
class ValueType:
    """The value of a stats map: its elements, in order."""

    fields: tuple[Element, ...]

    @property
    def elements(self) -> int:
        """Unsigned 64-bit elements in all."""
        return sum(field.elements for field in self.fields)

    @property
    def size(self) -> int:
        """Bytes."""
        return 8 * self.elements

    @property
    def operations(self) -> Iterator[str]:
        """Of each element, in order."""
        for field in self.fields:
            yield from itertools.repeat(field.operation, field.elements)

    @cached_property
    def unpack(self) -> Callable[[bytes], tuple[int, ...]]:
        """From the bytes of a value to its elements."""
        return struct.Struct(f"={self.elements}Q").unpack

    @cached_property
    def _lines(self) -> dict[str, list[Element]]:
        """The fields of each line: a nested struct's are on one, but arrays."""
        lines: dict[str, list[Element]] = {}
        for field in self.fields:
            lines.setdefault(field.name, []).append(field)
        return lines

    @cached_property
    def _template(self) -> str:
        lines = (
            name + "".join(field.template for field in fields)
            for name, fields in self._lines.items()
        )
        return "".join(f"{text.lstrip()}\n" for text in lines)

    @cached_property
    def _shown(self) -> tuple[Element, ...] | None:
        """The fields as they are shown; None if that is element by element."""
        fields = tuple(itertools.chain.from_iterable(self._lines.values()))
        derived = any(field.derived for field in fields)
        return fields if derived or fields != self.fields else None

    @cached_property
    def format(self) -> Callable[[tuple[int, ...]], bytes]:
        """From all elements, in order, to the text of the file."""
        if not self._shown:
            return self._template.encode().__mod__
        return lambda value: (self._template % self._show(value)).encode()

    def _show(self, value: tuple[int, ...]) -> tuple[int | str, ...]:
        if not self._shown:
            return value
        return tuple(shown for field in self._shown for shown in field.shown(value))

    @cached_property
    def line_template(self) -> str:
        """Of a line that begins with a path and has all elements."""
        fields = itertools.chain.from_iterable(self._lines.values())
        return f"%s{''.join(field.line_template for field in fields)}\n"

    def format_lines(self, paths: list[str], words: tuple[int, ...]) -> str:
        """The values of several cgroups, a line each.

        :param words: for each a word that is passed over, and all elements, in order
        """
        size = 1 + self.elements
        if self._shown:
            values = (self._show(words[at : at + size - 1]) for at in range(1, len(words), size))
            return "".join(
                self.line_template % (path, *value) for path, value in zip(paths, values)
            )
        shown: list[int | str] = list(words)
        shown[::size] = paths
        # One of many lines is quicker than many of one.
        return self.line_template * len(paths) % tuple(shown)
