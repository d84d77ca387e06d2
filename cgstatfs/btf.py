# SPDX-License-Identifier: GPL-2.0-only
"""BTF, as far as cgstatfs reads it: the value type of a stats map, and what a kernel has.

A value is made of unsigned 64-bit integers: one, or structs and arrays of them, nested. Other
widths, bit-fields, unions and pointers are refused. What is read may be damaged, or hostile:
nothing here relies on more than what libbpf checks when it parses BTF (that each type is whole).
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, c_char_p, c_int32, c_uint32, c_void_p
from dataclasses import dataclass
from functools import cache

from .libbpf import Object, lib, printable
from .valuetype import AGGREGATED, MAX, MIN, SUM, Element, ValueType, linear_bounds, log2_bounds

__all__ = ("FLAGS", "MAX_ELEMENTS", "BtfError", "Description", "describe", "describe_object", "describe_value",
           "KernelStruct", "kernel_functions", "kernel_map_types", "kernel_struct")  # fmt: skip

# CGSTAT_MAX_ELEMS of bpf/cgstat_update.h
MAX_ELEMENTS = 128

_KIND_INT, _KIND_ARRAY, _KIND_STRUCT, _KIND_ENUM, _KIND_TYPEDEF = 1, 3, 4, 6, 8
_KIND_VOLATILE, _KIND_CONST, _KIND_FUNC, _KIND_DECL_TAG, _KIND_TYPE_TAG = 9, 10, 12, 17, 18
_KIND_NAMES = {
    0: "void", 2: "pointer", 4: "struct", 5: "union", 6: "enum", 7: "struct", 13: "function",
    16: "float", 19: "enum64",
}  # fmt: skip
_INT_SIGNED = 1

_TAG_MAP = "cgstat:map:"
_TAG_FLAGS = "cgstat:flags:"
_TAG_FIELD = "cgstat:"
# Flags of a stats map, in words.
FLAGS = {"CGSTAT_NO_PERCPU": "no per-cpu arrays", "CGSTAT_NO_HIERARCHY": "no hierarchy"}
_FLAG_AGGREGATED = "CGSTAT_AGGREGATED_MAP"
# By the text of a field's tag.
_OPERATIONS = {"max": MAX, "min": MIN, "aggregated": AGGREGATED, "hll": AGGREGATED}
_MAX_NESTING = 8

for _name in ("btf__load_vmlinux_btf", "btf__load_from_kernel_by_id", "bpf_object__btf"):
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


class _Enumerator(ctypes.Structure):
    """``struct btf_enum``."""

    _fields_ = [("name_off", c_uint32), ("value", c_int32)]


lib.btf__type_by_id.restype = POINTER(_Type)


@dataclass(frozen=True)
class Description:
    """What its type says of a stats map.

    :param file: the name of its file
    :param flags: of ``enum cgstat_flags``, by name
    """

    file: str
    value_type: ValueType
    flags: frozenset[str]


class _Btf:
    """BTF of the kernel's or of an object."""

    def __init__(self, handle: int | None, what: str) -> None:
        if not handle:
            number = ctypes.get_errno() or errno.ENOENT
            raise OSError(number, os.strerror(number), what)
        self._handle = c_void_p(handle)
        self._tags: dict[int, list[tuple[str, int]]] | None = None

    def close(self) -> None:
        lib.btf__free(self._handle)

    def find(self, name: str, kind: int) -> int | None:
        found = lib.btf__find_by_name_kind(self._handle, name.encode(), kind)
        return found if found > 0 else None

    def type(self, type_id: int) -> _Type:
        pointer = lib.btf__type_by_id(self._handle, c_uint32(type_id))
        if not pointer:
            raise BtfError(f"BTF has no type {type_id}; it is damaged")
        return pointer.contents

    def kind(self, type_: _Type) -> int:
        return type_.info >> 24 & 0x1F

    def name(self, offset: int) -> str:
        return printable(lib.btf__name_by_offset(self._handle, c_uint32(offset)))

    def members(self, type_: _Type) -> list[_Member]:
        count = type_.info & 0xFFFF
        start = ctypes.addressof(type_) + ctypes.sizeof(_Type)
        return list((_Member * count).from_address(start))

    def enumerators(self, type_: _Type) -> dict[str, int]:
        start = ctypes.addressof(type_) + ctypes.sizeof(_Type)
        found = (_Enumerator * (type_.info & 0xFFFF)).from_address(start)
        return {self.name(each.name_off): each.value for each in found}

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

    def tags(self, type_id: int) -> list[tuple[str, int]]:
        """``btf_decl_tag`` attributes of a type: text, and member index or -1."""
        if self._tags is None:
            self._tags = defaultdict(list)
            for other in range(1, lib.btf__type_cnt(self._handle)):
                type_ = self.type(other)
                if self.kind(type_) == _KIND_DECL_TAG:
                    index = ctypes.c_int32.from_address(
                        ctypes.addressof(type_) + ctypes.sizeof(_Type)
                    ).value
                    tag = self.name(type_.name_off), index
                    self._tags[type_.size_or_type].append(tag)
        return self._tags.get(type_id, [])

    def spell(self, type_id: int, depth: int = 0) -> str:
        """How a C programmer would recognise a type."""
        type_ = self.type(self.strip(type_id))
        kind = self.kind(type_)
        if kind == _KIND_ARRAY and depth < _MAX_NESTING:
            array = self.array(type_)
            return f"{self.spell(array.type, depth + 1)}[{array.nelems}]"
        name = self.name(type_.name_off)[:64]
        if kind == _KIND_INT:
            return name
        return f"{_KIND_NAMES.get(kind, 'type')} {name}".rstrip()

    def is_u64(self, type_id: int) -> bool:
        type_ = self.type(self.strip(type_id))
        return (
            self.kind(type_) == _KIND_INT
            and type_.size_or_type == 8
            and not self.int_encoding(type_) >> 24 & _INT_SIGNED
        )


# Fields


def _numbers(text: str) -> list[int] | None:
    """The integers of a tag, as C writes them."""
    numbers = []
    for each in text.split(","):
        match = re.fullmatch(r"\s*\(?\s*(0[xX][0-9a-fA-F]+|\d+)[uUlL]*\s*\)?\s*", each)
        if not match or len(each) > 40:
            return None
        # C's octal numbers are nobody's bounds.
        numbers.append(int(match[1], 16 if match[1][:2] in ("0x", "0X") else 10))
    return numbers if all(n < 1 << 64 for n in numbers) else None


def _bounds(tag: str, length: int) -> tuple[int, ...] | str:
    """The bounds that a histogram's tag stands for, or what is wrong with it."""
    kind, _, text = tag.partition(":")
    if kind == "log2":
        return log2_bounds(length) if length <= 65 else "has more than 65 buckets"
    numbers = _numbers(text)
    if numbers is None:
        return f'has the bounds "{text[:80]}", which are not plain numbers'
    if kind == "linear":
        if len(numbers) != 2 or not numbers[1]:
            return "is linear and takes START, STEP, with a STEP of 1 or more"
        return linear_bounds(length, *numbers)
    if len(numbers) != length - 1:
        return f"has {length} buckets and {len(numbers)} bounds; it takes {length - 1}"
    if sorted(set(numbers)) != numbers:
        return "has bounds that do not increase"
    return tuple(numbers)


_HISTOGRAMS = ("log2", "linear", "bounds")


class _Fields:
    """Walks a value type; *found* are its elements."""

    def __init__(self, btf: _Btf, map_name: str) -> None:
        self._btf = btf
        self._map = map_name
        self._elements = 0
        self.found: list[Element] = []

    def _refuse(self, path: str, why: str) -> BtfError:
        return BtfError(f'value of stats map "{self._map}": field "{path}" {why}')

    def _unsupported(self, path: str, type_id: int, width: int = 0) -> BtfError:
        spelled = self._btf.spell(type_id) + (f", a bit-field of {width}" if width else "")
        if not path:
            return BtfError(f'value of stats map "{self._map}" is a {spelled}; '
                            "use a struct of unsigned 64-bit fields")  # fmt: skip
        return BtfError(f'value of stats map "{self._map}" has an unsupported field "{path}" '
                        f"({spelled}); use unsigned 64-bit fields")  # fmt: skip

    def walk(self, type_id: int, path: str = "", depth: int = 0, tags: tuple[str, ...] = ()) -> None:
        """A field that is not a lone integer: a struct, an array, or the value itself."""
        btf = self._btf
        stripped = btf.strip(type_id)
        type_ = btf.type(stripped)
        if depth > _MAX_NESTING:
            raise self._refuse(path, f"is nested more than {_MAX_NESTING} deep")
        if btf.is_u64(stripped):
            self._add(path, 0, tags)
        elif btf.kind(type_) == _KIND_STRUCT:
            self._struct(stripped, type_, path, depth, tags)
        elif btf.kind(type_) == _KIND_ARRAY:
            self._array(stripped, type_, path, depth, tags)
        else:
            raise self._unsupported(path, type_id)

    def _array(self, type_id: int, type_: _Type, path: str, depth: int, tags: tuple[str, ...]) -> None:
        array = self._btf.array(type_)
        if not array.nelems:
            raise self._unsupported(path, type_id)
        if array.nelems > MAX_ELEMENTS:
            raise self._too_large()
        if self._btf.is_u64(array.type):
            self._add(path, array.nelems, tags)
            return
        element = self._btf.type(self._btf.strip(array.type))
        if self._btf.kind(element) not in (_KIND_ARRAY, _KIND_STRUCT):
            raise self._unsupported(path, type_id)
        for index in range(array.nelems):
            name = f"{path}.{index}" if path else str(index)
            self.walk(array.type, name, depth + 1, tags)

    def _struct(self, type_id: int, type_: _Type, path: str, depth: int, tags: tuple[str, ...]) -> None:
        btf, start = self._btf, self._elements
        members = btf.members(type_)
        own: dict[int, list[str]] = defaultdict(list)
        for text, index in btf.tags(type_id):
            if text.startswith(_TAG_FIELD):
                own[index].append(text.removeprefix(_TAG_FIELD))
        for index, member in enumerate(members):
            field = btf.name(member.name_off)
            name = f"{path}.{field}" if path else field
            if not field:
                raise self._refuse(f"{path}.{index}" if path else str(index),
                                   f"({btf.spell(member.type)}) has no name; give it one")  # fmt: skip
            # With kind_flag set the upper eight bits are a bit-field's width.
            width = member.offset >> 24 if type_.info >> 31 else 0
            if width or not (field.isidentifier() and field.isascii()):
                raise self._unsupported(name, member.type, width)
            if member.offset != 64 * (self._elements - start):
                raise self._refuse(name, "is not where the one before it ends")
            inherited = tuple(own[index]) or tags
            if path and btf.is_u64(member.type):
                self._add(path, 0, inherited, sub=field)
            else:
                self.walk(member.type, name, depth + 1, inherited)
        if type_.size_or_type != 8 * (self._elements - start) or not members:
            raise self._refuse(path, "is empty, or larger than its fields") if path else BtfError(
                f'value of stats map "{self._map}" is empty, or larger than its fields'
            )

    def _too_large(self) -> BtfError:
        return BtfError(f'value of stats map "{self._map}" has more than {MAX_ELEMENTS} elements')

    def _add(self, name: str, length: int, tags: tuple[str, ...], sub: str = "") -> None:
        path = f"{name}.{sub}" if sub else name
        offset, self._elements = self._elements, self._elements + (length or 1)
        if self._elements > MAX_ELEMENTS:
            raise self._too_large()
        operation, bounds, histogram, distinct = SUM, None, "", False
        for tag in tags:
            kind = tag.partition(":")[0]
            if kind in _HISTOGRAMS:
                if not length:
                    raise self._refuse(
                        path, "is tagged as a histogram and is no array; give it a length")
                histogram, bounds = kind, _bounds(tag, length)
                if isinstance(bounds, str):
                    raise self._refuse(path, bounds)
            elif tag in _OPERATIONS:
                operation, distinct = _OPERATIONS[tag], tag == "hll"
            else:
                raise self._refuse(path, f'has the unknown tag "{tag[:80]}"')
        if histogram and operation != SUM:
            raise self._refuse(path, f"is a histogram, and cannot be {operation} as well")
        if distinct and length & (length - 1) or distinct and not length:
            raise self._refuse(path, "is a HyperLogLog; its length is a power of two")
        self.found.append(
            Element(name, offset, length, sub, operation, bounds, histogram, distinct)
        )  # fmt: skip


def _description(btf: _Btf, type_id: int) -> Description | None:
    """Of a stats map, by the type of its entries; None if it is not one."""
    type_ = btf.type(type_id)
    tags = [text for text, index in btf.tags(type_id) if index == -1]
    files = [text.removeprefix(_TAG_MAP) for text in tags if text.startswith(_TAG_MAP)]
    if btf.kind(type_) != _KIND_STRUCT or not files:
        return None
    words = {word for text in tags if text.startswith(_TAG_FLAGS)
             for word in re.findall(r"\w+", text.removeprefix(_TAG_FLAGS))}  # fmt: skip
    unknown = words - FLAGS.keys() - {_FLAG_AGGREGATED, "0"}
    if unknown:
        raise BtfError(f'stats map "{files[0]}" has the unknown flag "{min(unknown)[:80]}"; '
                       f"there are {', '.join(FLAGS)}")  # fmt: skip
    for member in btf.members(type_):
        if btf.name(member.name_off) == "total":
            fields = _Fields(btf, files[0])
            fields.walk(member.type)
            value_type = ValueType(tuple(fields.found))
            break
    else:
        return None
    if _FLAG_AGGREGATED not in words and AGGREGATED in value_type.operations:
        name = next(f.path for f in value_type.fields if f.operation == AGGREGATED)
        raise BtfError(f'stats map "{files[0]}": field "{name}" is aggregated, and there is no '
                       "aggregator; declare the map with CGSTAT_MAP_AGGREGATED")  # fmt: skip
    return Description(files[0], value_type, frozenset(words & FLAGS.keys()))


def describe(btf_id: int, type_id: int) -> Description | None:
    """A stats map, by the BTF of its entries that the kernel has.

    :param btf_id: ``bpf_map_info.btf_id``
    :param type_id: ``bpf_map_info.btf_value_type_id``
    :returns: None if the type is not that of a stats map's entries
    :raises BtfError: it is, and its value has a field that is not supported
    """
    btf = _Btf(lib.btf__load_from_kernel_by_id(c_uint32(btf_id)), f"BTF {btf_id}")
    try:
        return _description(btf, type_id)
    finally:
        btf.close()


def describe_value(name: str, btf_id: int, type_id: int) -> ValueType:
    """The value type of a map that is not a stats map, by the BTF that the kernel has.

    :param name: what to call it in errors

    :raises BtfError: it has a field that is not supported
    """
    btf = _Btf(lib.btf__load_from_kernel_by_id(c_uint32(btf_id)), f"BTF {btf_id}")
    try:
        fields = _Fields(btf, name)
        fields.walk(type_id)
        return ValueType(tuple(fields.found))
    finally:
        btf.close()


def describe_object(obj: Object, struct_name: str) -> Description | None:
    """A stats map, by the BTF of an object that need not be loaded.

    :param struct_name: of the type of its entries
    :raises BtfError: as :func:`describe`
    """
    handle = lib.bpf_object__btf(obj.handle)
    if not handle:
        return None
    btf = _Btf(handle, str(obj.path))
    type_id = btf.find(struct_name, _KIND_STRUCT)
    return _description(btf, type_id) if type_id else None


# All that cgstatfs asks of a kernel. The kernel's BTF is megabytes, and is not kept.
_FUNCTIONS = (
    "bpf_cgroup_acquire",
    "bpf_iter_cgroup",
    "bpf_rstat_flush",
    "css_rstat_updated",
)


@contextmanager
def _kernel_btf() -> Iterator[_Btf]:
    """:raises OSError: ``ENOENT``: there is none"""
    handle = lib.btf__load_vmlinux_btf()
    if not handle:
        raise OSError(
            errno.ENOENT,
            "the kernel has no BTF; it needs CONFIG_DEBUG_INFO_BTF",
            "/sys/kernel/btf/vmlinux",
        )
    btf = _Btf(handle, "/sys/kernel/btf/vmlinux")
    try:
        yield btf
    finally:
        btf.close()


@cache
def _kernel() -> tuple[frozenset[str], dict[str, int]]:
    """Of what its BTF has, all that we ask of every kernel: functions, and map types."""
    with _kernel_btf() as btf:
        functions = frozenset(name for name in _FUNCTIONS if btf.find(name, _KIND_FUNC))
        map_types = btf.find("bpf_map_type", _KIND_ENUM)
        return functions, btf.enumerators(btf.type(map_types)) if map_types else {}


@dataclass(frozen=True)
class KernelStruct:
    """A type of the running kernel.

    :param type_id: in its BTF
    :param size: bytes
    :param offsets: of its members, in their order; bytes
    """

    type_id: int
    size: int
    offsets: dict[str, int]


def kernel_struct(name: str) -> KernelStruct:
    """A struct of the running kernel, without bit fields.

    :raises OSError: ``ENOENT``: it has none of that name, or no BTF
    """
    with _kernel_btf() as btf:
        type_id = btf.find(name, _KIND_STRUCT)
        if type_id is None:
            raise OSError(errno.ENOENT, "the kernel has no such struct", name)
        type_ = btf.type(type_id)
        offsets = {btf.name(each.name_off): each.offset // 8 for each in btf.members(type_)}
        return KernelStruct(type_id, type_.size_or_type, offsets)


def kernel_functions() -> frozenset[str]:
    """Which of the functions that make a difference the running kernel has.

    :raises OSError: ``ENOENT``: the kernel has no BTF
    """
    return _kernel()[0]


def kernel_map_types() -> dict[str, int]:
    """The running kernel's ``enum bpf_map_type``.

    :raises OSError: ``ENOENT``: the kernel has no BTF
    """
    return _kernel()[1]
