# SPDX-License-Identifier: GPL-2.0-only
"""What the value of a stats map consists of, and how it is written as text.

Knows nothing of where values come from. The text follows the kernel's rules for cgroup v2
files (Documentation/admin-guide/cgroup-v2.rst, "Format", 6.12).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

__all__ = ("Element", "ValueType", "log2_bounds")


def log2_bounds(buckets: int) -> list[str]:
    """Upper bounds of a log2 histogram's buckets, inclusive; the last one has none."""
    return [str(1 << i) for i in range(buckets - 1)] + ["inf"]


@dataclass(frozen=True)
class Element:
    """A field of a value.

    :param name: the field's name, empty if the value is not a struct
    :param offset: of its first element, in elements of eight bytes
    :param length: elements of an array; 0: no array
    :param log2: the array is a log2 histogram
    """

    name: str
    offset: int
    length: int
    log2: bool

    @property
    def operation(self) -> str:
        """How children's values become part of their parent's."""
        return "sum"

    @property
    def unit(self) -> str:
        """Base unit, by the ending of the name; empty for a plain count."""
        _, _, ending = self.name.rpartition("_")
        return ending if ending in ("ns", "bytes") and ending != self.name else ""

    @property
    def elements(self) -> int:
        return self.length or 1

    def values(self, value: Sequence[int]) -> Sequence[int]:
        """What the text shows of *value*: a histogram's count goes before its buckets."""
        own = value[self.offset : self.offset + self.elements]
        return (sum(own), *own) if self.log2 else own

    @property
    def template(self) -> str:
        if not self.length:
            return f"{self.name} %d\n".lstrip()
        if not self.name:
            return " ".join(["%d"] * self.length) + "\n"
        if self.log2:
            keys = ["count", *log2_bounds(self.length)]
        else:
            keys = [str(i) for i in range(self.length)]
        return self.name + "".join(f" {key}=%d" for key in keys) + "\n"


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

    @cached_property
    def unpack(self) -> Callable[[bytes], tuple[int, ...]]:
        """From the bytes of a value to its elements."""
        return struct.Struct(f"={self.elements}Q").unpack

    @cached_property
    def _template(self) -> bytes:
        return "".join(field.template for field in self.fields).encode()

    @cached_property
    def _derived(self) -> bool:
        return any(field.log2 for field in self.fields)

    def format(self, value: tuple[int, ...]) -> bytes:
        """The text of the file.

        :param value: all elements, in order
        """
        if self._derived:
            value = tuple(number for field in self.fields for number in field.values(value))
        return self._template % value
