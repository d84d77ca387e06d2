# SPDX-License-Identifier: GPL-2.0-only
"""A thin binding of libbpf 1.x: objects, maps, programs, links, iterators, ring buffers.

It covers what cgstatfs uses and nothing more. BTF is in :mod:`cgstatfs.btf`.

Every failure is an :class:`OSError` whose ``errno`` is the kernel's or libbpf's and whose
``filename`` names the object, map, program or path, but where a function says that it returns the
errno. Where libbpf or the verifier logged something, :class:`LoadError` carries it.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import logging
import mmap
import os
import re
import time
from collections.abc import Callable, Iterator
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import TypeVar

__all__ = (
    "CONSUMER",
    "PRODUCER",
    "Link",
    "LinkFd",
    "LoadError",
    "Map",
    "MapInfo",
    "Object",
    "Program",
    "RingBuffer",
    "TestRun",
    "check",
    "count_possible_cpus",
    "create_iter",
    "create_cgroup_iter_link",
    "create_map",
    "get_pinned",
    "lib",
    "link_exists",
    "link_info",
    "map_info",
    "map_memory",
    "pin",
    "possible_cpus",
    "printable",
    "program_btf",
    "program_exists",
    "recursion_misses",
    "run_while_busy",
    "test_run",
)

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_POSSIBLE_CPUS = Path("/sys/devices/system/cpu/possible")

BPF_TRACE_ITER = 28
CGROUP_ITER_SELF_ONLY = 1
CGROUP_ITER_DESCENDANTS_PRE = 2
CGROUP_ITER_ANCESTORS_UP = 4


def _load_library() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError:
        raise OSError(
            errno.ENOENT, "libbpf 1.x is not installed; install Debian's libbpf1", "libbpf.so.1"
        ) from None


lib = _load_library()
_libc = ctypes.CDLL(None, use_errno=True)

# A pointer that is returned must be declared, or it is cut to an int.
for _name in (
    "bpf_object__open_mem",
    "bpf_object__next_map",
    "bpf_object__next_program",
    "bpf_program__attach",
    "bpf_map__initial_value",
    "bpf_map__inner_map",
    "ring_buffer__new",
):
    getattr(lib, _name).restype = c_void_p
lib.bpf_program__autoload.restype = ctypes.c_bool
for _name in (
    "bpf_map__max_entries", "bpf_map__key_size", "bpf_map__value_size", "bpf_map__map_flags",
):  # fmt: skip
    getattr(lib, _name).restype = c_uint32
for _name in (
    "bpf_map__name",
    "bpf_map__pin_path",
    "bpf_program__name",
    "bpf_program__section_name",
):
    getattr(lib, _name).restype = c_char_p
lib.bpf_object__next_map.argtypes = [c_void_p, c_void_p]
lib.bpf_object__next_program.argtypes = [c_void_p, c_void_p]


def printable(text: str | bytes | None) -> str:
    """What an object says, on one line that does nothing to a terminal."""
    if not isinstance(text, str):
        text = (text or b"").decode("utf-8", "replace")
    return text if text.isprintable() else ascii(text)[1:-1]


def _lines(text: str) -> list[str]:
    return [printable(line.expandtabs()) for line in text.splitlines()]


class LoadError(OSError):
    """An object was refused.

    :ivar log: what libbpf said of it
    :ivar verifier_log: the end of what the kernel said
    """

    def __init__(
        self, number: int, reason: str, filename: str, log: list[str], verifier_log: list[str] | None = None
    ) -> None:
        super().__init__(number, reason, filename)
        self.log = log
        self.verifier_log = verifier_log or []


_PRINT_FN = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)
_LIBBPF_DEBUG = 2
_captured: list[str] | None = None


def _print(level: int, fmt: bytes, args: int) -> int:
    if level >= _LIBBPF_DEBUG:
        return 0
    message = c_char_p()
    if _libc.vasprintf(byref(message), fmt, c_void_p(args)) < 0:
        return 0
    text = (message.value or b"").decode("utf-8", "replace").rstrip("\n")
    _libc.free(message)
    if _captured is not None:
        _captured.extend(_lines(text))
    else:
        log.debug("%s", text)
    return 0


_print_callback = _PRINT_FN(_print)
lib.libbpf_set_print(_print_callback)


class _captured_log:
    """What libbpf says in the ``with`` block goes to the list it gives."""

    def __enter__(self) -> list[str]:
        global _captured
        _captured = []
        return _captured

    def __exit__(self, *_: object) -> None:
        global _captured
        _captured = None


def check(result: int, what: str) -> int:
    """What a function of libbpf returned, if that is no error.

    :raises OSError: it is
    """
    if result < 0:
        raise OSError(-result, os.strerror(-result), what)
    return result


def possible_cpus() -> int:
    """One more than the highest number that a cpu of this machine can have.

    Numbers can have gaps, so ``libbpf_num_possible_cpus()``, which counts them, can be less.
    """
    return int(re.split("[-,]", _POSSIBLE_CPUS.read_text().strip())[-1]) + 1


def count_possible_cpus() -> int:
    """For how many cpus a per-cpu map has values.

    :raises OSError: it cannot be found out
    """
    return check(lib.libbpf_num_possible_cpus(), "possible cpus")


def _nul(text: str | os.PathLike[str]) -> bytes:
    return os.fsencode(text)


def pin(fd: int, path: Path) -> None:
    """Pin a map, program or link in bpffs.

    :raises OSError: ``EEXIST``, ``EPERM`` (a dot in the name), ``EINVAL`` (not bpffs)
    """
    check(lib.bpf_obj_pin(fd, _nul(path)), str(path))


def get_pinned(path: Path) -> int:
    """Open what is pinned at *path*; the caller closes the descriptor."""
    return check(lib.bpf_obj_get(_nul(path)), str(path))


class MapInfo(ctypes.Structure):
    """The head of ``struct bpf_map_info`` (include/uapi/linux/bpf.h, 6.1)."""

    _fields_ = [
        ("type", c_uint32),
        ("id", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
        ("map_flags", c_uint32),
        ("name", ctypes.c_char * 16),
        ("ifindex", c_uint32),
        ("btf_vmlinux_value_type_id", c_uint32),
        ("netns_dev", c_uint64),
        ("netns_ino", c_uint64),
        ("btf_id", c_uint32),
        ("btf_key_type_id", c_uint32),
        ("btf_value_type_id", c_uint32),
        ("_pad", c_uint32),
        ("map_extra", c_uint64),
    ]


class ProgInfo(ctypes.Structure):
    """``struct bpf_prog_info`` (include/uapi/linux/bpf.h, 6.1) up to ``recursion_misses``."""

    _fields_ = [
        ("type", c_uint32),
        ("id", c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("_lengths", c_uint32 * 2),
        ("_insns", c_uint64 * 2),
        ("load_time", c_uint64),
        ("created_by_uid", c_uint32),
        ("nr_map_ids", c_uint32),
        ("map_ids", c_uint64),
        ("name", ctypes.c_char * 16),
        ("_ifindex_gpl", c_uint32 * 2),
        ("_netns", c_uint64 * 2),
        ("_nr_jited", c_uint32 * 2),
        ("_jited", c_uint64 * 2),
        ("btf_id", c_uint32),
        ("_func_info_rec_size", c_uint32),
        ("_func_info", c_uint64),
        ("_nr_info", c_uint32 * 2),
        ("_line_info", c_uint64 * 2),
        ("_line_info_sizes", c_uint32 * 4),
        ("_prog_tags", c_uint64),
        ("run_time_ns", c_uint64),
        ("run_cnt", c_uint64),
        ("recursion_misses", c_uint64),
    ]


def _read_info(fd: int, info: ctypes.Structure) -> None:
    size = c_uint32(ctypes.sizeof(info))
    check(lib.bpf_obj_get_info_by_fd(fd, byref(info), byref(size)), f"descriptor {fd}")


def map_info(fd: int) -> MapInfo:
    """Type, sizes and BTF ids of a map."""
    info = MapInfo()
    _read_info(fd, info)
    return info


def recursion_misses(fd: int) -> int:
    """Runs of a program that BPF skipped because it was running on that cpu already."""
    info = ProgInfo()
    _read_info(fd, info)
    return info.recursion_misses


def program_btf(fd: int) -> int:
    """Open the BTF that a program was loaded with; the caller closes the descriptor."""
    info = ProgInfo()
    _read_info(fd, info)
    return check(lib.bpf_btf_get_fd_by_id(info.btf_id), f"BTF {info.btf_id}")


class LinkInfo(ctypes.Structure):
    """The head of ``struct bpf_link_info`` (include/uapi/linux/bpf.h, 6.1)."""

    _fields_ = [("type", c_uint32), ("id", c_uint32), ("prog_id", c_uint32), ("_pad", c_uint32)]


def link_info(fd: int) -> LinkInfo:
    """Ids of a link and of its program."""
    info = LinkInfo()
    _read_info(fd, info)
    return info


def link_exists(id: int) -> bool:
    """Whether anybody holds a link."""
    return _exists(lib.bpf_link_get_fd_by_id(id))


def program_exists(id: int) -> bool:
    """Whether anybody holds a program; a link does until it has detached it."""
    return _exists(lib.bpf_prog_get_fd_by_id(id))


def _exists(fd: int) -> bool:
    """:raises OSError: the kernel does not say"""
    if fd == -errno.ENOENT:
        return False
    os.close(check(fd, "an object by its id"))
    return True


class Map:
    """A map of an :class:`Object`."""

    def __init__(self, handle: int) -> None:
        self._handle = c_void_p(handle)
        self.name = printable(lib.bpf_map__name(self._handle))

    @property
    def fd(self) -> int:
        return check(lib.bpf_map__fd(self._handle), self.name)

    @property
    def max_entries(self) -> int:
        """How many elements the map can hold; to be set before load."""
        return lib.bpf_map__max_entries(self._handle)

    @max_entries.setter
    def max_entries(self, count: int) -> None:
        check(lib.bpf_map__set_max_entries(self._handle, c_uint32(count)), self.name)

    @property
    def key_size(self) -> int:
        """Bytes."""
        return lib.bpf_map__key_size(self._handle)

    @property
    def value_size(self) -> int:
        """Bytes, of one cpu; to be set before load."""
        return lib.bpf_map__value_size(self._handle)

    @value_size.setter
    def value_size(self, size: int) -> None:
        check(lib.bpf_map__set_value_size(self._handle, c_uint32(size)), self.name)

    @property
    def type(self) -> int:
        """``enum bpf_map_type``; to be set before load."""
        return lib.bpf_map__type(self._handle)

    @type.setter
    def type(self, number: int) -> None:
        check(lib.bpf_map__set_type(self._handle, number), self.name)

    @property
    def inner(self) -> Map | None:
        """What the elements of a map of maps are to be like; None: it is none."""
        handle = lib.bpf_map__inner_map(self._handle)
        return Map(handle) if handle else None

    @property
    def flags(self) -> int:
        """``map_flags``."""
        return lib.bpf_map__map_flags(self._handle)

    def set_flags(self, flags: int) -> None:
        """Before load: ``map_flags``."""
        check(lib.bpf_map__set_map_flags(self._handle, c_uint32(flags)), self.name)

    def set_extra(self, extra: int) -> None:
        """Before load: ``map_extra``, whose meaning is the type's."""
        check(lib.bpf_map__set_map_extra(self._handle, c_uint64(extra)), self.name)

    def set_autocreate(self, create: bool) -> None:
        """Before load: whether the map is made with its object.

        A program that uses one that is not is refused, unless the verifier finds that it never
        comes to that.
        """
        check(lib.bpf_map__set_autocreate(self._handle, ctypes.c_bool(create)), self.name)

    @property
    def is_pinned_by_libbpf(self) -> bool:
        """Whether load pins the map, as its declaration asks for."""
        return bool(lib.bpf_map__pin_path(self._handle))

    def reuse(self, fd: int) -> None:
        """Before load: take this map, that exists, in place of a new one."""
        check(lib.bpf_map__reuse_fd(self._handle, fd), self.name)

    def set_initial_value(self, value: bytes) -> None:
        """Before load: contents of a map of global variables."""
        check(
            lib.bpf_map__set_initial_value(self._handle, value, c_size_t(len(value))), self.name
        )

    def freeze(self) -> None:
        """From now on user space cannot write to the map; programs can."""
        check(lib.bpf_map_freeze(self.fd), self.name)


class _CreateOpts(ctypes.Structure):
    """The head of ``struct bpf_map_create_opts`` of libbpf 1.1."""

    _fields_ = [
        ("sz", c_size_t),
        ("btf_fd", c_uint32),
        ("btf_key_type_id", c_uint32),
        ("btf_value_type_id", c_uint32),
        ("btf_vmlinux_value_type_id", c_uint32),
        ("inner_map_fd", c_uint32),
        ("map_flags", c_uint32),
        ("map_extra", c_uint64),
    ]


def create_map(
    type: int, name: str, key_size: int, value_size: int, max_entries: int, *, map_flags: int = 0,
    btf_fd: int = 0, btf_key_type_id: int = 0, btf_value_type_id: int = 0,
    btf_vmlinux_value_type_id: int = 0, map_extra: int = 0,
) -> int:  # fmt: skip
    """A map that is no object's; the caller closes the descriptor.

    :raises OSError: the kernel refuses
    """
    opts = _CreateOpts(
        sz=ctypes.sizeof(_CreateOpts), btf_fd=btf_fd, btf_key_type_id=btf_key_type_id,
        btf_value_type_id=btf_value_type_id,
        btf_vmlinux_value_type_id=btf_vmlinux_value_type_id, map_flags=map_flags,
        map_extra=map_extra,
    )  # fmt: skip
    fd = lib.bpf_map_create(
        type, name.encode()[:15], c_uint32(key_size), c_uint32(value_size), c_uint32(max_entries),
        byref(opts),
    )  # fmt: skip
    return check(fd, f'map "{name}"')


def map_memory(fd: int) -> int:
    """Bytes that the kernel says a map takes."""
    text = Path(f"/proc/self/fdinfo/{fd}").read_text()
    return int(dict(line.split(":", 1) for line in text.splitlines())["memlock"])


def map_lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    """The value at *key*, or None. *value_size* is per map, not per cpu."""
    value = ctypes.create_string_buffer(value_size)
    result = lib.bpf_map_lookup_elem(fd, key, value)
    if result == -errno.ENOENT:
        return None
    check(result, f"map {fd}")
    return value.raw


def map_update(fd: int, key: bytes, value: bytes) -> None:
    """Set the element at *key*; of a map of maps, to the map of the descriptor in *value*.

    :raises OSError: the kernel refuses
    """
    check(lib.bpf_map_update_elem(fd, key, value, c_uint64(0)), f"map {fd}")


def map_keys(fd: int, key_size: int) -> Iterator[bytes]:
    """The keys of a map, which may change while it is walked."""
    key = ctypes.create_string_buffer(key_size)
    previous: bytes | None = None
    while True:
        result = lib.bpf_map_get_next_key(fd, previous, key)
        if result == -errno.ENOENT:
            return
        check(result, f"map {fd}")
        previous = key.raw
        yield previous


class Link:
    """An attached program; detached by :meth:`close` unless it is pinned."""

    def __init__(self, handle: int, what: str) -> None:
        self._handle = c_void_p(handle)
        self._what = what

    @property
    def fd(self) -> int:
        return check(lib.bpf_link__fd(self._handle), self._what)

    def close(self) -> None:
        lib.bpf_link__destroy(self._handle)
        self._handle = c_void_p(None)


class LinkFd:
    """As :class:`Link`, of a link that is no program's."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        os.close(self.fd)


class TestRun(ctypes.Structure):
    """``struct bpf_test_run_opts`` of libbpf 1.1."""

    _fields_ = [
        ("sz", c_size_t),
        ("data_in", c_void_p),
        ("data_out", c_void_p),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("ctx_in", c_void_p),
        ("ctx_out", c_void_p),
        ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32),
        ("retval", c_uint32),
        ("repeat", c_int),
        ("duration", c_uint32),
        ("flags", c_uint32),
        ("cpu", c_uint32),
        ("batch_size", c_uint32),
    ]


class Program:
    """A program of an :class:`Object`."""

    def __init__(self, handle: int) -> None:
        self._handle = c_void_p(handle)
        self.name = printable(lib.bpf_program__name(self._handle))
        self.section = printable(lib.bpf_program__section_name(self._handle))

    @property
    def fd(self) -> int:
        return check(lib.bpf_program__fd(self._handle), self.name)

    @property
    def is_autoloaded(self) -> bool:
        """Before load: whether the program will be loaded with its object."""
        return bool(lib.bpf_program__autoload(self._handle))

    def set_autoload(self, load: bool) -> None:
        """Before load: whether the program is loaded with its object."""
        check(lib.bpf_program__set_autoload(self._handle, ctypes.c_bool(load)), self.name)

    def attach(self) -> Link:
        """Attach where the program's section says."""
        handle = lib.bpf_program__attach(self._handle)
        if not handle:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), f"{self.name} ({self.section})")
        return Link(handle, self.name)


def test_run(fd: int, context: ctypes.Structure) -> Callable[[], int]:
    """A function that runs a ``syscall`` program on *context*, changed in place.

    It returns 0, or a negative errno: then the kernel has not run it.
    """
    opts = TestRun(
        sz=ctypes.sizeof(TestRun),
        ctx_in=ctypes.addressof(context),
        ctx_size_in=ctypes.sizeof(context),
    )
    opts.context = context  # To stay as long.
    return functools.partial(lib.bpf_prog_test_run_opts, fd, ctypes.pointer(opts))


_BUSY_TRIES = 1000


def run_while_busy(fd: int, context: ctypes.Structure) -> Callable[[], int]:
    """A function that runs a ``syscall`` program on *context* until its ``ret`` is not ``EBUSY``.

    It returns that ``ret``, or a negative errno if the kernel has not run it. ``EBUSY`` is what
    it returns if what somebody else does, does not end.
    """
    run_once = test_run(fd, context)

    def run() -> int:
        attempt = 0
        while (result := run_once() or context.ret) == -errno.EBUSY and attempt < _BUSY_TRIES:
            # A release takes microseconds, another reader more.
            time.sleep(0 if attempt < 100 else 0.001)
            attempt += 1
        return result

    return run


class _OpenOpts(ctypes.Structure):
    """The head of ``struct bpf_object_open_opts`` of libbpf 1.1."""

    _fields_ = [
        ("sz", c_size_t),
        ("object_name", c_char_p),
        ("relaxed_maps", ctypes.c_bool),
        ("pin_root_path", c_char_p),
        ("_unused", c_uint32),
        ("kconfig", c_char_p),
        ("btf_custom_path", c_char_p),
        ("kernel_log_buf", c_void_p),
        ("kernel_log_size", c_size_t),
        ("kernel_log_level", c_uint32),
        ("_pad", c_uint32),
    ]


# What the verifier says of a million instructions fits; memory is only what it writes. Without
# a buffer libbpf verifies a program over and over, each time with twice the room for its log.
_LOG_BYTES = 64 << 20
_LOG_TAIL = 16 << 10


class Object:
    """A BPF object file: opened, adjusted, loaded.

    :param path: where it is from
    :param data: its contents, if they have been read
    :raises LoadError: it is not an object file that libbpf can read
    """

    def __init__(self, path: Path, data: bytes | None = None) -> None:
        self.path = path
        # Which libbpf does not copy.
        self._data = path.read_bytes() if data is None else data
        name = path.name.partition(".")[0].encode()
        self._log = mmap.mmap(-1, _LOG_BYTES)
        opts = _OpenOpts(
            sz=ctypes.sizeof(_OpenOpts), object_name=name,
            kernel_log_buf=ctypes.addressof(ctypes.c_char.from_buffer(self._log)),
            kernel_log_size=_LOG_BYTES,
        )  # fmt: skip
        with _captured_log() as lines:
            handle = lib.bpf_object__open_mem(
                self._data, c_size_t(len(self._data)), byref(opts)
            )
        if not handle:
            number = ctypes.get_errno() or errno.EINVAL
            raise LoadError(number, "cannot be read as a BPF object; build it again", str(path), lines)
        self._handle = c_void_p(handle)
        self.handle = self._handle
        self.maps = self._by_name(lib.bpf_object__next_map, Map)
        self.programs = self._by_name(lib.bpf_object__next_program, Program)

    def _by_name(self, following: Callable[..., int], kind: type[_T]) -> dict[str, _T]:
        found: dict[str, _T] = {}
        for each in self._each(following, kind):
            if each.name in found:
                self.close()
                raise LoadError(errno.EEXIST, f'has "{each.name}" twice', str(self.path), [])
            found[each.name] = each
        return found

    def _each(self, following: Callable[..., int], kind: type[_T]) -> Iterator[_T]:
        handle = following(self._handle, None)
        while handle:
            yield kind(handle)
            handle = following(self._handle, handle)

    def load(self) -> None:
        """Create the maps, verify and load the programs.

        :raises LoadError: the kernel refused a map or the verifier a program
        """
        with _captured_log() as lines:
            result = lib.bpf_object__load(self._handle)
        if result < 0:
            end = max(0, self._log.find(b"\0"))
            said = _lines(self._log[max(0, end - _LOG_TAIL) : end].decode("utf-8", "replace"))
            raise LoadError(-result, os.strerror(-result), str(self.path), lines, said)

    def close(self) -> None:
        """Close every descriptor; what is neither pinned nor attached goes."""
        lib.bpf_object__close(self._handle)
        self._handle = c_void_p(None)
        del self._log
        self.maps, self.programs = {}, {}


class _CgroupIterInfo(ctypes.Structure):
    """``union bpf_iter_link_info``, its ``cgroup`` member (6.1)."""

    _fields_ = [("order", c_uint32), ("cgroup_fd", c_uint32), ("cgroup_id", c_uint64)]


class _LinkCreateOpts(ctypes.Structure):
    """``struct bpf_link_create_opts`` of libbpf 1.1, as far as iterators need it."""

    _fields_ = [
        ("sz", c_size_t),
        ("flags", c_uint32),
        ("iter_info", c_void_p),
        ("iter_info_len", c_uint32),
        ("target_btf_id", c_uint32),
    ]


def create_cgroup_iter_link(prog_fd: int, order: int, cgroup_id: int) -> int:
    """Attach a cgroup iterator; the caller closes the descriptor that is returned.

    :raises OSError: ``ENOENT`` if the cgroup is gone
    """
    info = _CgroupIterInfo(order=order, cgroup_id=cgroup_id)
    opts = _LinkCreateOpts(
        sz=ctypes.sizeof(_LinkCreateOpts),
        iter_info=ctypes.addressof(info),
        iter_info_len=ctypes.sizeof(info),
    )
    result = lib.bpf_link_create(prog_fd, 0, BPF_TRACE_ITER, byref(opts))
    return check(result, f"cgroup {cgroup_id}")


def create_iter(link_fd: int) -> int:
    """Start one walk of an attached iterator; what it writes is read from the descriptor."""
    return check(lib.bpf_iter_create(link_fd), "iterator")


_SAMPLE_FN = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t)


# Of a ring buffer's first two pages, in words: see struct bpf_ringbuf in kernel/bpf/ringbuf.c, 6.12
CONSUMER, PRODUCER = 0, mmap.PAGESIZE // 8


class RingBuffer:
    """Consumes a ``BPF_MAP_TYPE_RINGBUF``.

    :ivar fd: polls readable when there is something
    :ivar positions: memory that the kernel writes to: what is at :data:`CONSUMER` is what is at
        :data:`PRODUCER` when every record that was reserved has been consumed
    """

    def __init__(self, map_fd: int, receive: Callable[[bytes], None]) -> None:
        def sample(_: int, data: int, size: int) -> int:
            receive(ctypes.string_at(data, size))
            return 0

        self._callback = _SAMPLE_FN(sample)
        handle = lib.ring_buffer__new(map_fd, self._callback, None, None)
        if not handle:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), "ring buffer")
        self._handle = c_void_p(handle)
        self.fd: int = check(lib.ring_buffer__epoll_fd(self._handle), "ring buffer")
        self._pages = mmap.mmap(map_fd, 2 * mmap.PAGESIZE, prot=mmap.PROT_READ)
        self.positions = memoryview(self._pages).cast("Q")

    def consume(self) -> None:
        """Hand every record that was submitted to the receiver."""
        check(lib.ring_buffer__consume(self._handle), "ring buffer")

    def close(self) -> None:
        self.positions.release()
        self._pages.close()
        lib.ring_buffer__free(self._handle)
        self._handle = c_void_p(None)
