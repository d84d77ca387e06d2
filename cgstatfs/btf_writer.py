# SPDX-License-Identifier: GPL-2.0-only
"""Write BTF: the type of a stats map's entries, where no compiler has left it.

What is written says of a type what clang's BTF of it would, and is judged by :mod:`cgstatfs.btf`
like that, so a type that cannot be a stats map's is written, too.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from ctypes import c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass

from .libbpf import lib

__all__ = ("BtfWriter", "CType", "Member")

lib.btf__new_empty.restype = c_void_p
lib.btf__add_int.argtypes = [c_void_p, c_char_p, c_size_t, c_int]
lib.btf__add_array.argtypes = [c_void_p, c_int, c_int, c_uint32]
lib.btf__add_struct.argtypes = lib.btf__add_union.argtypes = [c_void_p, c_char_p, c_uint32]
lib.btf__add_field.argtypes = [c_void_p, c_char_p, c_int, c_uint32, c_uint32]
lib.btf__add_decl_tag.argtypes = [c_void_p, c_char_p, c_int, c_int]
lib.btf__load_into_kernel.argtypes = lib.btf__fd.argtypes = [c_void_p]


class _BtfInfo(ctypes.Structure):
    """The head of ``struct bpf_btf_info`` (include/uapi/linux/bpf.h)."""

    _fields_ = [("btf", c_uint64), ("btf_size", c_uint32), ("id", c_uint32)]


@dataclass(frozen=True)
class CType:
    """A type that was written. :ivar size: bytes"""

    id: int
    size: int


@dataclass(frozen=True)
class Member:
    """Of a struct. :ivar tags: its ``btf_decl_tag`` attributes"""

    name: str
    type: CType
    tags: tuple[str, ...] = ()


def _check(result: int) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result), "BTF")
    return result


class BtfWriter:
    """BTF that is written, loaded into the kernel, and there for as long as something uses it.

    Every method raises :class:`OSError` where libbpf or the kernel refuses.
    """

    def __init__(self) -> None:
        self._btf = c_void_p(lib.btf__new_empty())
        if not self._btf:
            raise MemoryError

    def __enter__(self) -> BtfWriter:
        return self

    def __exit__(self, *_: object) -> None:
        lib.btf__free(self._btf)
        self._btf = c_void_p(None)

    def integer(self, name: str, size: int, *, signed: bool = False) -> CType:
        """An integer of *size* bytes."""
        return CType(_check(lib.btf__add_int(self._btf, name.encode(), size, int(signed))), size)

    def array(self, element: CType, length: int) -> CType:
        # The type of the index, which nobody reads, is to be an integer.
        index = self.integer("__ARRAY_SIZE_TYPE__", 4)
        added = _check(lib.btf__add_array(self._btf, index.id, element.id, length))
        return CType(added, element.size * length)

    def struct(self, name: str, members: Iterable[Member], *, union: bool = False) -> CType:
        """A struct without padding, or a union.

        :param name: may be empty
        """
        members = tuple(members)
        sizes = [member.type.size for member in members]
        size = max(sizes, default=0) if union else sum(sizes)
        add = lib.btf__add_union if union else lib.btf__add_struct
        added = _check(add(self._btf, name.encode(), size))
        offset = 0
        for member in members:
            field = member.name.encode(), member.type.id, 8 * offset, 0
            _check(lib.btf__add_field(self._btf, *field))
            offset += 0 if union else member.type.size
        for index, member in enumerate(members):
            for text in member.tags:
                self.tag(added, text, index)
        return CType(added, size)

    def tag(self, type_id: int, text: str, member: int = -1) -> None:
        """Give a type, or a member of it by its index, a ``btf_decl_tag``."""
        _check(lib.btf__add_decl_tag(self._btf, text.encode(), type_id, member))

    def load(self) -> None:
        """Load it into the kernel."""
        _check(lib.btf__load_into_kernel(self._btf))

    @property
    def fd(self) -> int:
        """Once it is loaded; closed at the end of the ``with`` block."""
        return _check(lib.btf__fd(self._btf))

    @property
    def id(self) -> int:
        """As ``bpf_map_info.btf_id``; once it is loaded."""
        info = _BtfInfo()
        size = c_uint32(ctypes.sizeof(info))
        _check(lib.bpf_obj_get_info_by_fd(self.fd, ctypes.byref(info), ctypes.byref(size)))
        return info.id
