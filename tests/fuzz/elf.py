# SPDX-License-Identifier: GPL-2.0-only
"""Where things are in a compiled collector: sections, and types in its BTF.

For little-endian 64-bit ELF that a compiler made, to be damaged afterwards.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ("KIND_STRUCT", "KIND_VAR", "Section", "btf_type", "patched", "sections")

KIND_STRUCT, KIND_VAR = 4, 14

_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
# struct btf_header
_BTF_HEADER = struct.Struct("<HBBIIIII")
_NOBITS = 8


class Section(NamedTuple):
    """:ivar header: where its header is in the file"""

    name: str
    header: int
    offset: int
    size: int


def _headers(data: bytes) -> Iterator[tuple[int, tuple[int, ...]]]:
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    for number in range(count):
        yield table + number * size, _SECTION_HEADER.unpack_from(data, table + number * size)


def sections(data: bytes) -> dict[str, Section]:
    """The sections of an object, by name."""
    headers = list(_headers(data))
    (names_index,) = struct.unpack_from("<H", data, 62)
    names = headers[names_index][1][4]
    found = {}
    for where, (name, kind, _, _, offset, size, *_) in headers:
        text = data[names + name : data.index(b"\0", names + name)].decode()
        found[text] = Section(text, where, offset, 0 if kind == _NOBITS else size)
    return found


def btf_type(data: bytes, name: str, kind: int) -> int:
    """Where the ``struct btf_type`` of a type is in the file; the members of a struct follow it."""
    start = sections(data)[".BTF"].offset
    _, _, _, length, types, types_size, strings, _ = _BTF_HEADER.unpack_from(data, start)
    text = data.index(b"\0" + name.encode() + b"\0", start + length + strings) + 1
    wanted = struct.pack("<I", text - (start + length + strings))
    begin = start + length + types
    # Types are of 12 bytes and more, in units of 4.
    for at in range(begin, begin + types_size, 4):
        if data[at : at + 4] == wanted and data[at + 7] & 0x1F == kind:
            return at
    raise KeyError(name)


def patched(data: bytes, at: int, new: bytes) -> bytes:
    """With other bytes in one place."""
    return data[:at] + new + data[at + len(new) :]
