# SPDX-License-Identifier: GPL-2.0-only
"""Let go of what serving does not need, for good.

Of the capabilities (capabilities(7)) a daemon keeps

``CAP_BPF``, ``CAP_PERFMON``
    to load and attach collectors, for as long as it serves;
``CAP_DAC_READ_SEARCH``
    to see cgroups whose directories are private to their users, and read attributes of theirs;
``CAP_SYS_ADMIN``
    as kernels ask for it when types are found by their id (``bpf_btf_get_fd_by_id()`` in
    kernel/bpf/syscall.c, 6.12), which libbpf does for collectors that may call kfuncs.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable

__all__ = ("SERVING", "keep_only")

# include/uapi/linux/capability.h, 6.12
CAP_DAC_READ_SEARCH, CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF = 2, 21, 38, 39
SERVING = (CAP_DAC_READ_SEARCH, CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF)
_LAST = 63
_VERSION_3 = 0x20080522
# include/uapi/linux/prctl.h
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 24, 38, 47, 4

_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32),
    )  # fmt: skip


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _permitted() -> int:
    data = (_Data * 2)()
    _check(_libc.capget(ctypes.byref(_Header(_VERSION_3, 0)), data))
    return data[0].permitted | data[1].permitted << 32


def keep_only(capabilities: Iterable[int]) -> None:
    """Drop all other capabilities, here and in what is started from here, and gain none any more.

    To be called while there is one thread. What we have not got anyway is no error.

    :raises OSError: the kernel refuses, which it does not
    """
    wanted = sum(1 << each for each in capabilities)
    for each in range(_LAST):
        if not wanted >> each & 1:
            # EINVAL: the kernel has no such capability. EPERM: we may not, and have it not.
            _libc.prctl(_PR_CAPBSET_DROP, each, 0, 0, 0)
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    kept = wanted & _permitted()
    data = (_Data * 2)(
        (kept & 0xFFFFFFFF, kept & 0xFFFFFFFF, 0), (kept >> 32, kept >> 32, 0),
    )  # fmt: skip
    _check(_libc.capset(ctypes.byref(_Header(_VERSION_3, 0)), data))
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
