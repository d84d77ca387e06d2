# SPDX-License-Identifier: GPL-2.0-only
"""The type of a bcc collector's stats map, from bcc's words for it to BTF.

bcc's own BTF is none that the kernel takes. What it says of a type in JSON is made into BTF
here, so that entries say what they are, as those of a compiled collector do.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from .bcc_source import Declaration
from .btf_writer import BtfWriter, CType, Member
from .collectors import CollectorError

__all__ = ("write_entry",)

# sizeof struct cgstat_entry / 8
_ENTRY_WORDS = 5

# The member that stands for a tag, see cgstat.bcc.h.
_MARKER = re.compile(r"cgstat_([a-z0-9]+)(?:_([0-9a-zA-Z]+)_([0-9a-zA-Z]+))?__\d+")
# What the types are called that bcc has to tell of: bytes, and whether they have a sign.
_INTEGERS = {
    "_Bool": (1, False), "char": (1, True), "signed char": (1, True), "unsigned char": (1, False),
    "short": (2, True), "unsigned short": (2, False), "int": (4, True), "unsigned int": (4, False),
    "long": (8, True), "unsigned long": (8, False),
    "long long": (8, True), "unsigned long long": (8, False),
    "__int128": (16, True), "unsigned __int128": (16, False),
}  # fmt: skip


def _tag(marker: re.Match[str]) -> str:
    kind, *numbers = marker.groups()
    return f"cgstat:{kind}" + (f":{', '.join(numbers)}" if numbers[0] else "")


def _members(writer: BtfWriter, fields: list[Any]) -> list[Member]:
    """Of a struct; a field without a size is the tag of the one before it."""
    members: list[Member] = []
    for field in fields:
        name, kind, length = field[0], field[1], field[2] if len(field) > 2 else None
        if length == [0] and (marker := _MARKER.fullmatch(name)):
            if members:
                tags = (*members[-1].tags, _tag(marker))
                members[-1] = replace(members[-1], tags=tags)
            continue
        if isinstance(length, int):
            raise CollectorError(f'field "{name}" is a bit-field; use unsigned 64-bit fields')
        if isinstance(length, str):
            # An anonymous member: a type where others have a name and a type.
            kind, length = field, None
        type_ = _written(writer, kind)
        members.append(Member(name, writer.array(type_, length[0]) if isinstance(length, list) else type_))
    return members


def _written(writer: BtfWriter, said: Any) -> CType:
    """The type that bcc describes, as BTF."""
    if isinstance(said, str):
        size, signed = _INTEGERS.get(said, (8, True))
        return writer.integer(said, size, signed=signed)
    name, fields, *kind = said
    return writer.struct(name, _members(writer, fields), union=kind == ["union"])


def write_entry(writer: BtfWriter, declared: Declaration, said: Any) -> tuple[CType, CType]:
    """The types of key and value of a stats map's entries, as CGSTAT_MAP declares them."""
    u64 = writer.integer("unsigned long long", 8)
    value = _written(writer, said)
    head = writer.array(u64, _ENTRY_WORDS)
    members = [Member("entry", head), *(Member(n, value) for n in ("spill", "total", "pending"))]
    entry = writer.struct(f"{declared.prefix}_entry", members)
    writer.tag(entry.id, f"cgstat:map:{declared.file}")
    writer.tag(entry.id, f"cgstat:flags:{declared.flags}")
    return u64, entry
