# SPDX-License-Identifier: GPL-2.0-only
"""BTF, as far as cgstatfs reads it: the value type of a stats map, and what a kernel has.

A value is a struct whose fields are unsigned 64-bit integers or arrays of them, one such
integer, or one such array. Nested structs, bit-fields and other widths are refused.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from ctypes import POINTER, c_char_p, c_uint32, c_void_p
from functools import cache

from .libbpf import lib
from .valuetype import Element, ValueType

__all__ = ("BtfError", "describe", "kernel_functions")

_KIND_INT, _KIND_ARRAY, _KIND_STRUCT, _KIND_TYPEDEF = 1, 3, 4, 8
_KIND_VOLATILE, _KIND_CONST, _KIND_FUNC, _KIND_DECL_TAG, _KIND_TYPE_TAG = 9, 10, 12, 17, 18
_KIND_NAMES = {
    2: "pointer", 4: "struct", 5: "union", 6: "enum", 7: "struct", 16: "float", 19: "enum64",
}  # fmt: skip
_INT_SIGNED = 1

_TAG_MAP = "cgstat:map:"
_TAG_LOG2 = "cgstat:log2"

for _name in ("btf__load_vmlinux_btf", "btf__load_from_kernel_by_id"):
    getattr(lib, _name).restype = c_void_p
lib.btf__name_by_offset.restype = c_char_p


class BtfError(ValueError):
    """A type that is not that of a stats map; the message names the field and the way out."""


class _Type(ctypes.Structure):
    """``struct btf_type`` (include/uapi/linux/btf.h)."""

    _fields_ = [("name_off", c_uint32), ("info", c_uint32), ("size_or_type", c_uint32)]


class _Member(ctypes.Structure):
    _fields_ = [("name_off", c_uint32), ("type", c_uint32), ("offset", c_uint32)]


class _Array(ctypes.Structure):
    _fields_ = [("type", c_uint32), ("index_type", c_uint32), ("nelems", c_uint32)]


lib.btf__type_by_id.restype = POINTER(_Type)


class _Btf:
    """A BTF object of the kernel's. Close it."""

    def __init__(self, btf_id: int) -> None:
        handle = lib.btf__load_from_kernel_by_id(c_uint32(btf_id))
        if not handle:
            number = ctypes.get_errno() or errno.ENOENT
            raise OSError(number, os.strerror(number), f"BTF {btf_id}")
        self._handle = c_void_p(handle)

    def close(self) -> None:
        lib.btf__free(self._handle)

    def type(self, type_id: int) -> _Type:
        pointer = lib.btf__type_by_id(self._handle, c_uint32(type_id))
        if not pointer:
            raise BtfError(f"BTF has no type {type_id}; it is damaged")
        return pointer.contents

    def kind(self, type_: _Type) -> int:
        return type_.info >> 24 & 0x1F

    def name(self, offset: int) -> str:
        return (lib.btf__name_by_offset(self._handle, c_uint32(offset)) or b"").decode(
            "utf-8", "replace"
        )

    def members(self, type_: _Type) -> list[_Member]:
        count = type_.info & 0xFFFF
        start = ctypes.addressof(type_) + ctypes.sizeof(_Type)
        return list((_Member * count).from_address(start))

    def array(self, type_: _Type) -> _Array:
        return _Array.from_address(ctypes.addressof(type_) + ctypes.sizeof(_Type))

    def int_encoding(self, type_: _Type) -> int:
        return c_uint32.from_address(ctypes.addressof(type_) + ctypes.sizeof(_Type)).value

    def strip(self, type_id: int) -> int:
        """The type behind typedefs and qualifiers."""
        for _ in range(32):
            type_ = self.type(type_id)
            if self.kind(type_) not in (
                _KIND_TYPEDEF, _KIND_CONST, _KIND_VOLATILE, _KIND_TYPE_TAG,
            ):  # fmt: skip
                return type_id
            type_id = type_.size_or_type
        raise BtfError(f"BTF type {type_id} is a chain of typedefs without an end")

    def tags(self, type_id: int) -> Iterator[tuple[str, int]]:
        """``btf_decl_tag`` attributes of a type: text, and member index or -1."""
        for other in range(1, lib.btf__type_cnt(self._handle)):
            type_ = self.type(other)
            if self.kind(type_) == _KIND_DECL_TAG and type_.size_or_type == type_id:
                index = ctypes.c_int32.from_address(
                    ctypes.addressof(type_) + ctypes.sizeof(_Type)
                ).value
                yield self.name(type_.name_off), index

    def spell(self, type_id: int) -> str:
        """How a C programmer would recognise a type."""
        type_ = self.type(self.strip(type_id))
        kind = self.kind(type_)
        if kind == _KIND_ARRAY:
            array = self.array(type_)
            return f"{self.spell(array.type)}[{array.nelems}]"
        name = self.name(type_.name_off)
        if kind == _KIND_INT:
            return name
        return f"{_KIND_NAMES.get(kind, 'type')} {name}".rstrip()


def _is_u64(btf: _Btf, type_id: int) -> bool:
    type_ = btf.type(btf.strip(type_id))
    return (
        btf.kind(type_) == _KIND_INT
        and type_.size_or_type == 8
        and not btf.int_encoding(type_) >> 24 & _INT_SIGNED
    )


def _length(btf: _Btf, type_id: int) -> int | None:
    """Elements of a u64 (0: no array) or of an array of u64; None for other types."""
    if _is_u64(btf, type_id):
        return 0
    type_ = btf.type(btf.strip(type_id))
    if btf.kind(type_) == _KIND_ARRAY and _is_u64(btf, btf.array(type_).type):
        return btf.array(type_).nelems or None
    return None


def _fields(btf: _Btf, type_id: int, type_: _Type, name: str) -> Iterator[Element]:
    log2 = {index for tag, index in btf.tags(type_id) if tag == _TAG_LOG2}
    for index, member in enumerate(btf.members(type_)):
        field = btf.name(member.name_off)
        length = _length(btf, member.type)
        # With kind_flag set the upper eight bits are a bit-field's width.
        if length is None or not field or (type_.info >> 31 and member.offset >> 24):
            raise BtfError(
                f'value of stats map "{name}" has an unsupported field "{field}" '
                f"({btf.spell(member.type)}); use unsigned 64-bit fields and arrays of them"
            )
        if index in log2 and not length:
            raise BtfError(
                f'value of stats map "{name}": field "{field}" is tagged as a histogram '
                "and is no array; give it a length"
            )
        yield Element(field, member.offset // 64, length, index in log2)


def _value_type(btf: _Btf, type_id: int, name: str) -> ValueType:
    type_id = btf.strip(type_id)
    type_ = btf.type(type_id)
    if btf.kind(type_) == _KIND_STRUCT:
        return ValueType(tuple(_fields(btf, type_id, type_, name)))
    length = _length(btf, type_id)
    if length is None:
        raise BtfError(
            f'value of stats map "{name}" is a {btf.spell(type_id)}; '
            "use a struct of unsigned 64-bit fields"
        )
    return ValueType((Element("", 0, length, False),))


def describe(btf_id: int, type_id: int) -> tuple[str, ValueType] | None:
    """File name and value type of a stats map, by the BTF of its entries.

    :param btf_id: ``bpf_map_info.btf_id``
    :param type_id: ``bpf_map_info.btf_value_type_id``
    :returns: None if the type is not that of a stats map's entries
    :raises BtfError: it is, and its value has a field that is not supported
    """
    btf = _Btf(btf_id)
    try:
        type_ = btf.type(type_id)
        names = [t.removeprefix(_TAG_MAP) for t, i in btf.tags(type_id) if t.startswith(_TAG_MAP)]
        if btf.kind(type_) != _KIND_STRUCT or not names:
            return None
        for member in btf.members(type_):
            if btf.name(member.name_off) == "total":
                return names[0], _value_type(btf, member.type, names[0])
        return None
    finally:
        btf.close()


# All that cgstatfs asks of a kernel. The kernel's BTF is megabytes, and is not kept.
_FUNCTIONS = (
    "bpf_cgroup_acquire",
    "bpf_iter_cgroup",
    "bpf_rstat_flush",
    "css_rstat_updated",
)


@cache
def kernel_functions() -> frozenset[str]:
    """Which of the functions that make a difference the running kernel has.

    :raises OSError: ``ENOENT``: the kernel has no BTF
    """
    handle = c_void_p(lib.btf__load_vmlinux_btf())
    if not handle:
        raise OSError(
            errno.ENOENT,
            "the kernel has no BTF; it needs CONFIG_DEBUG_INFO_BTF",
            "/sys/kernel/btf/vmlinux",
        )
    try:
        return frozenset(
            name
            for name in _FUNCTIONS
            if lib.btf__find_by_name_kind(handle, name.encode(), _KIND_FUNC) > 0
        )
    finally:
        lib.btf__free(handle)
