# SPDX-License-Identifier: GPL-2.0-only
"""Ways to damage an object: anywhere in the file, and where it hurts."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from .elf import Section, sections

__all__ = ("Mutator",)

# Numbers that are at the edge of something, of one, two, four and eight bytes.
_EDGES = (0, 1, 2, 3, 7, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF,
          0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)  # fmt: skip
_ELF_HEADER = 64
_SECTION_HEADER = 64
# What libbpf and we read most of; each is as likely as all that is left.
_READ = (".BTF", ".BTF.ext", ".symtab", ".maps", ".strtab", "license")


class Mutator:
    """Makes damaged objects of good ones.

    :param seeds: the good ones
    """

    def __init__(self, seeds: Sequence[bytes]) -> None:
        self._seeds = seeds
        self._sections = [sections(seed) for seed in seeds]

    def make(self, seed: int) -> bytes:
        """The damaged object of a number; the same each time."""
        choose = random.Random(seed)
        number = choose.randrange(len(self._seeds))
        data = bytearray(self._seeds[number])
        # Mostly little: what is damaged much is refused early.
        for _ in range(choose.choice((1, 1, 1, 1, 2, 2, 3, 5, 9))):
            start, size = self._place(choose, number, len(data))
            if size and start < len(data):
                choose.choice(_CHANGES)(choose, data, start, min(size, len(data) - start))
        if choose.random() < 0.04:
            del data[choose.randrange(len(data)) :]
        if choose.random() < 0.04:
            self._splice(choose, data)
        return bytes(data)

    def _place(self, choose: random.Random, number: int, length: int) -> tuple[int, int]:
        """A part of the file to change something in: where it begins, and its size."""
        found = self._sections[number]
        kind = choose.random()
        if kind < 0.05:
            return 0, _ELF_HEADER
        if kind < 0.15:
            return choose.choice(list(found.values())).header, _SECTION_HEADER
        if kind < 0.65:
            section = self._read_section(choose, found)
            return section.offset, section.size
        if kind < 0.9:
            section = choose.choice(list(found.values()))
            return section.offset, section.size
        return 0, length

    @staticmethod
    def _read_section(choose: random.Random, found: dict[str, Section]) -> Section:
        relocations = [name for name in found if name.startswith(".rel")]
        return found[choose.choice((*_READ, ".BTF", choose.choice(relocations)))]

    def _splice(self, choose: random.Random, data: bytearray) -> None:
        """Put a part of another object over a part of this one."""
        other = choose.choice(self._seeds)
        start = choose.randrange(len(other)) & ~3
        piece = other[start : start + choose.choice((16, 256, 4096, len(other)))]
        at = choose.choice((start, choose.randrange(max(1, len(data))) & ~3))
        data[at : at + len(piece)] = piece


# Changes, in a part of the file that begins at *start*.


def _flip(choose: random.Random, data: bytearray, start: int, size: int) -> None:
    data[start + choose.randrange(size)] ^= 1 << choose.randrange(8)


def _byte(choose: random.Random, data: bytearray, start: int, size: int) -> None:
    data[start + choose.randrange(size)] = choose.randrange(256)


def _edge(choose: random.Random, data: bytearray, start: int, size: int) -> None:
    width = choose.choice((1, 2, 4, 4, 4, 8))
    if size >= width:
        at = start + choose.randrange(size - width + 1) // width * width
        value = choose.choice(_EDGES) & (1 << 8 * width) - 1
        data[at : at + width] = value.to_bytes(width, "little")


def _nudge(choose: random.Random, data: bytearray, start: int, size: int) -> None:
    """A number that is a little off: a neighbouring type, symbol, offset."""
    if size >= 4:
        at = start + choose.randrange(size - 3) // 4 * 4
        value = int.from_bytes(data[at : at + 4], "little") + choose.choice((-8, -4, -1, 1, 4, 8, 64))
        data[at : at + 4] = (value & 0xFFFFFFFF).to_bytes(4, "little")


def _copy(choose: random.Random, data: bytearray, start: int, size: int) -> None:
    """One part of a section over another."""
    length = min(size, choose.choice((4, 12, 16, 24, 64)))
    source, target = (start + choose.randrange(size - length + 1) & ~3 for _ in range(2))
    data[target : target + length] = data[source : source + length]


def _fill(choose: random.Random, data: bytearray, start: int, size: int) -> None:
    length = min(size, choose.choice((4, 16, 64, 1024)))
    at = start + choose.randrange(size - length + 1)
    data[at : at + length] = bytes([choose.choice((0, 1, 0x41, 0xFF))]) * length


def _noise(choose: random.Random, data: bytearray, start: int, size: int) -> None:
    length = min(size, choose.choice((2, 8, 32, 256)))
    at = start + choose.randrange(size - length + 1)
    data[at : at + length] = choose.randbytes(length)


_CHANGES: tuple[Callable[[random.Random, bytearray, int, int], None], ...] = (
    _flip, _flip, _byte, _edge, _edge, _edge, _nudge, _nudge, _copy, _fill, _noise,
)  # fmt: skip
