# SPDX-License-Identifier: GPL-2.0-only
"""Maps that some other BPF tool fills and pinned, shown as a file per cgroup.

Such a map is flat: its elements are keyed by cgroup id, and know nothing of a hierarchy. So a
read sums over the cgroups of the subtree that exist; what the map has for cgroups that are gone
is not counted. The map is only read. Its tool need not know, and may end: the map stays while it
is adopted.
"""

from __future__ import annotations

import errno
import itertools
import os
import sys
from array import array
from collections.abc import Callable
from pathlib import Path

from . import btf, libbpf
from .collectors import CollectorError, check_file_name
from .hierarchy import Cgroup, Hierarchy
from .subtree import Subtree
from .valuetype import Element, ValueType

__all__ = ("AdoptedMap",)

# include/uapi/linux/bpf.h: enum bpf_map_type
_HASH, _PERCPU_HASH, _LRU_HASH, _LRU_PERCPU_HASH = 1, 5, 9, 10
_CGROUP_STORAGE, _PERCPU_CGROUP_STORAGE, _CGRP_STORAGE = 19, 21, 32
_NAMES = {
    _HASH: "hash", _PERCPU_HASH: "per-cpu hash", _LRU_HASH: "LRU hash",
    _LRU_PERCPU_HASH: "LRU per-cpu hash", _CGROUP_STORAGE: "cgroup storage",
    _PERCPU_CGROUP_STORAGE: "per-cpu cgroup storage", _CGRP_STORAGE: "cgroup local storage",
}  # fmt: skip
_PERCPU = (_PERCPU_HASH, _LRU_PERCPU_HASH, _PERCPU_CGROUP_STORAGE)
# struct bpf_cgroup_storage_key: cgroup_inode_id, attach_type, padding
_STORAGE_KEY = 16

_MASK = (1 << 64) - 1
# Of those in search of one that is a cgroup's.
_MAX_KEYS = 1 << 16

# From a cgroup to the bytes of its elements: none, one, or one a cpu.
_Get = Callable[[Cgroup], list[bytes]]


def _value_type(info: libbpf.MapInfo) -> ValueType:
    """By the map's BTF; without, an array."""
    if info.btf_id:
        found = btf.describe_value(info.name.decode("ascii", "replace"), info.btf_id, info.btf_value_type_id)
        if found.size != info.value_size:
            raise CollectorError("its BTF does not fit the size of its values")
        return found
    if info.value_size % 8 or not 0 < info.value_size <= 8 * btf.MAX_ELEMENTS:
        raise CollectorError(
            f"its values have {info.value_size} bytes and no BTF; they have to be 1 to "
            f"{btf.MAX_ELEMENTS} unsigned 64-bit integers"
        )
    return ValueType((Element("", 0, info.value_size // 8 if info.value_size > 8 else 0),))


class AdoptedMap:
    """A map of somebody else's.

    :param name: of the file
    :param path: where the map is pinned
    :ivar description: in words
    :ivar value_type: of what is shown
    :raises CollectorError: it cannot be shown, and why
    """

    def __init__(self, name: str, path: Path, hierarchy: Hierarchy) -> None:
        self._hierarchy = hierarchy
        try:
            check_file_name(name)
            self._fd = _open(path)
        except (ValueError, OSError) as error:
            raise CollectorError(f"{path}: {_reason(error)}") from None
        try:
            self._info = info = libbpf.map_info(self._fd)
            self._get = self._getter()
            self.value_type = _value_type(info)
            self._check_keys()
        except (CollectorError, ValueError, OSError) as error:
            os.close(self._fd)
            raise CollectorError(f"{path}: {_reason(error)}") from None
        self.description = f'{_NAMES[info.type]} "{info.name.decode("ascii", "replace")}"'

    def _getter(self) -> _Get:
        info = self._info
        if info.type not in _NAMES:
            raise CollectorError(
                f"is a map of type {info.type}; what can be adopted is keyed by cgroup: a hash, "
                "a per-cpu hash, or cgroup storage"
            )
        if info.type == _CGRP_STORAGE:
            return self._get_local_storage
        if info.key_size == 8:
            return self._get_by_id
        if info.key_size == _STORAGE_KEY and info.type in (_CGROUP_STORAGE, _PERCPU_CGROUP_STORAGE):
            return self._get_by_storage_key
        raise CollectorError(f"has keys of {info.key_size} bytes; a cgroup id has 8")

    def _check_keys(self) -> None:
        """That keys are cgroup ids can only be seen from those that are there."""
        if self._info.type == _CGRP_STORAGE:
            return
        # A walk begins again where the key that it had come to is deleted meanwhile.
        keys = itertools.islice(libbpf.map_keys(self._fd, self._info.key_size), _MAX_KEYS)
        number = 0
        for number, key in enumerate(keys, 1):
            if self._id(key) in self._hierarchy.by_id:
                return
        if number:
            raise CollectorError(f"none of its {number} keys is the id of a cgroup that is shown here")

    @staticmethod
    def _id(key: bytes) -> int:
        return int.from_bytes(key[:8], sys.byteorder)

    # Elements

    def _elements(self, key: bytes) -> list[bytes]:
        size = self._info.value_size
        if self._info.type not in _PERCPU:
            value = libbpf.map_lookup(self._fd, key, size)
            return [] if value is None else [value]
        stride = -(-size // 8) * 8
        value = libbpf.map_lookup(self._fd, key, stride * libbpf.count_possible_cpus())
        if value is None:
            return []
        return [value[start : start + size] for start in range(0, len(value), stride)]

    def _get_by_id(self, cgroup: Cgroup) -> list[bytes]:
        return self._elements(cgroup.id.to_bytes(8, sys.byteorder))

    def _get_by_storage_key(self, cgroup: Cgroup) -> list[bytes]:
        """One element for each type of attachment; few, as each has to be attached there."""
        return [
            element
            for key in libbpf.map_keys(self._fd, _STORAGE_KEY)
            if self._id(key) == cgroup.id
            for element in self._elements(key)
        ]

    def _get_local_storage(self, cgroup: Cgroup) -> list[bytes]:
        """Keyed by a descriptor of the cgroup's directory."""
        try:
            directory = os.open(self._hierarchy.directory(cgroup), os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            # Removed just now, or so deep that no path leads there.
            if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENAMETOOLONG):
                return []
            raise
        try:
            return self._elements(directory.to_bytes(4, sys.byteorder))
        finally:
            os.close(directory)

    def _own(self, cgroup: Cgroup) -> list[int]:
        """What the map has for a cgroup itself, all elements together."""
        total = [0] * self.value_type.elements
        for element in self._get(cgroup):
            total = [a + b for a, b in zip(total, self.value_type.unpack(element))]
        return total

    def read(self, cgroup_id: int) -> bytes:
        """The text of the file: the sum over the subtree.

        :raises OSError: ``ENOENT``: the cgroup is gone
        """
        top = self._hierarchy.by_id.get(cgroup_id)
        if top is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), f"cgroup {cgroup_id}")
        total = [0] * self.value_type.elements
        for cgroup in Subtree(top).cgroups:
            total = [a + b for a, b in zip(total, self._own(cgroup))]
        return self.value_type.format(tuple(each & _MASK for each in total))

    def snapshot(self, ids: array, parents: array) -> bytes:
        """Sums over the subtrees of cgroups, as of one walk; see :data:`engines.base.Snapshot`.

        Each element is read once, so that all sums that it is a part of agree.
        """
        top = self._hierarchy.by_id.get(ids[0])
        size = 1 + self.value_type.elements
        records = array("Q", bytes(8 * size * len(ids)))
        if top is None:
            return records.tobytes()
        wanted = {id: place for place, id in enumerate(ids)}
        # Of all there are, whether or not they are asked for.
        subtree = Subtree(top)
        sums = [self._own(cgroup) for cgroup in subtree.cgroups]
        for place in range(len(sums) - 1, -1, -1):
            total, id = sums.pop(), subtree.cgroups[place].id
            if place:
                above = sums[subtree.parents[place]]
                above[:] = [a + b for a, b in zip(above, total)]
            if id in wanted:
                at = wanted[id] * size
                records[at : at + size] = array("Q", [id, *(each & _MASK for each in total)])
        return records.tobytes()

    def close(self) -> None:
        os.close(self._fd)


def _reason(error: Exception) -> str:
    return str(error.strerror if isinstance(error, OSError) else error)


def _open(path: Path) -> int:
    """The map that is pinned there.

    :raises OSError: nothing is, or no map
    """
    try:
        fd = libbpf.get_pinned(path)
    except PermissionError as error:
        # What the kernel says of all that is not pinned: files, directories, other file systems.
        if error.errno == errno.EACCES:
            error.strerror = "nothing of BPF is pinned there"
        raise
    target = os.readlink(f"/proc/self/fd/{fd}")
    if "bpf-map" not in target:
        os.close(fd)
        raise OSError(errno.EINVAL, f"is no map but {target.removeprefix('anon_inode:')}", str(path))
    return fd
