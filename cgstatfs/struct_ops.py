# SPDX-License-Identifier: GPL-2.0-only
"""Register an aggregator with a kernel that has stats maps itself.

The kernel calls it by ``struct_ops`` (``struct cgroup_stats_ops``, of the patches in kernel/). An
object that declared such a map could not be loaded where the kernel does not have the type: libbpf
1.1 looks it up even of maps that are not to be created. So the object has but the program, which
is not loaded elsewhere, and the map is made here.
"""

from __future__ import annotations

import ctypes
import errno
import os
from ctypes import byref, c_int, c_long, c_size_t, c_uint32, c_void_p
from dataclasses import dataclass
from functools import cache

from . import btf, libbpf
from .libbpf import lib

__all__ = ("SECTION", "register", "replace")

SECTION = "struct_ops/cgroup_stats_ops"
_OPS = "cgroup_stats_ops"
# include/uapi/linux/bpf.h, 6.12: BPF_PROG_TYPE_STRUCT_OPS, BPF_MAP_TYPE_STRUCT_OPS, BPF_STRUCT_OPS,
# BPF_F_LINK
_PROGRAM, _MAP, _ATTACH, _LINK = 27, 26, 44, 1 << 13


class _LoadOpts(ctypes.Structure):
    """The head of ``struct bpf_prog_load_opts`` of libbpf 1.1."""

    _fields_ = [
        ("sz", c_size_t),
        ("attempts", c_int),
        ("expected_attach_type", c_uint32),
        ("prog_btf_fd", c_uint32),
        ("prog_flags", c_uint32),
        ("prog_ifindex", c_uint32),
        ("kern_version", c_uint32),
        ("attach_btf_id", c_uint32),
    ]


_PREPARE_FN = ctypes.CFUNCTYPE(c_int, c_void_p, ctypes.POINTER(_LoadOpts), c_long)


class _HandlerOpts(ctypes.Structure):
    """``struct libbpf_prog_handler_opts`` of libbpf 1.1."""

    _fields_ = [
        ("sz", c_size_t),
        ("cookie", c_long),
        ("setup", c_void_p),
        ("prepare", _PREPARE_FN),
        ("attach", c_void_p),
    ]


@dataclass(frozen=True)
class _Layout:
    """Of what the kernel takes as the map's value, in bytes; and what programs are loaded with."""

    ops: int
    fold_index: int
    value: int
    size: int
    fold: int
    map_fd: int


@cache
def _layout() -> _Layout:
    """:raises OSError: this kernel has no such thing"""
    ops, value = btf.kernel_struct(_OPS), btf.kernel_struct(f"bpf_struct_ops_{_OPS}")
    missing = {"fold", "map_fd"} - ops.offsets.keys()
    if missing:
        raise OSError(errno.EOPNOTSUPP, f"has no {', '.join(sorted(missing))}", f"struct {_OPS}")
    data = value.offsets["data"]
    return _Layout(
        ops.type_id, list(ops.offsets).index("fold"), value.type_id, value.size,
        data + ops.offsets["fold"], data + ops.offsets["map_fd"],
    )  # fmt: skip


def _prepare(_program: int, opts: ctypes.POINTER(_LoadOpts), _cookie: int) -> int:
    """What libbpf would take from the map that the program is in."""
    try:
        layout = _layout()
    except OSError as error:
        return -(error.errno or errno.EIO)
    opts.contents.attach_btf_id = layout.ops
    opts.contents.expected_attach_type = layout.fold_index
    return 0


_prepare_callback = _PREPARE_FN(_prepare)
lib.libbpf_register_prog_handler(
    SECTION.encode(), _PROGRAM, 0, byref(_HandlerOpts(sz=ctypes.sizeof(_HandlerOpts), prepare=_prepare_callback))
)


def _make(program: int, stats_map: int) -> int:
    """The map of a ``struct cgroup_stats_ops``; the caller closes the descriptor."""
    layout = _layout()
    value = ctypes.create_string_buffer(layout.size)
    ctypes.c_uint64.from_buffer(value, layout.fold).value = program
    c_uint32.from_buffer(value, layout.map_fd).value = stats_map
    # The kernel wants one, though the type is its own.
    types = libbpf.program_btf(program)
    try:
        fd = libbpf.create_map(
            _MAP, "aggregator", 4, layout.size, 1, map_flags=_LINK, btf_fd=types,
            btf_vmlinux_value_type_id=layout.value,
        )  # fmt: skip
    finally:
        os.close(types)
    try:
        libbpf.check(lib.bpf_map_update_elem(fd, bytes(4), value, ctypes.c_uint64(0)), "aggregator")
    except OSError:
        os.close(fd)
        raise
    return fd


def register(program: int, stats_map: int) -> int:
    """Have the kernel fold a map with a program.

    :param program: descriptor of one that was loaded from :data:`SECTION`
    :param stats_map: descriptor of the map
    :returns: descriptor of a link, with whose end it is no more
    :raises OSError: the kernel refuses; ``EEXIST``: the map has an aggregator
    """
    fd = _make(program, stats_map)
    try:
        return libbpf.check(lib.bpf_link_create(fd, 0, _ATTACH, None), "aggregator")
    finally:
        os.close(fd)


def replace(link: int, program: int, stats_map: int) -> None:
    """As :func:`register`, in place of what *link* stands for: no flush goes without.

    :raises OSError: the kernel refuses; it is as it was
    """
    fd = _make(program, stats_map)
    try:
        libbpf.check(lib.bpf_link_update(link, fd, None), "aggregator")
    finally:
        os.close(fd)
