# SPDX-License-Identifier: GPL-2.0-only
"""mount(2) and umount(2) of a FUSE connection that we hold ourselves.

libfuse is handed the descriptor as ``/dev/fd/N``. So the mount's options are ours, and the
descriptor can be made non-blocking (see :mod:`cgstatfs.daemon`).
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from .hierarchy import Mount, mounts

__all__ = (
    "TYPE", "abort", "check_usable", "connection", "ensure_mounted", "mount", "mounted",
    "open_device", "unmount", "unmount_if_ours",
)  # fmt: skip

TYPE = b"fuse.cgstatfs"

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, path: Path) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))


def mounted(path: Path) -> Mount | None:
    """What is mounted on *path*; the last of several."""
    point = os.fsencode(path)
    found = None
    for entry in mounts():
        if entry.point == point:
            found = entry
    return found


def check_usable(path: Path) -> None:
    """Whether we can mount on *path*.

    On an automount point (autofs) we can. It is not listed, as that asks for what we are about
    to do.

    :raises OSError: ``ENOENT``, ``ENOTDIR``, ``EBUSY`` (something is mounted there) or
        ``ENOTEMPTY``
    """
    entry = mounted(path)
    if entry and entry.type == b"autofs":
        return
    if entry:
        kind = entry.type.decode("ascii", "replace")
        raise OSError(errno.EBUSY, f"in use: a {kind} is mounted there", str(path))
    names = os.listdir(path)
    if names:
        raise OSError(
            errno.ENOTEMPTY, f'not empty: it holds "{names[0]}"; choose an empty directory',
            str(path),
        )  # fmt: skip


def open_device() -> int:
    """A new FUSE connection, to be mounted and served. The caller closes it.

    :raises OSError: no ``/dev/fuse``; the module may have to be loaded
    """
    try:
        return os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise OSError(errno.ENODEV, "no FUSE in this kernel; modprobe fuse", "/dev/fuse") from None


def mount(device: int, path: Path) -> None:
    """Mount the connection: read-only, without programs or devices, for all users.

    The kernel checks permissions, against the owners and modes that we report.
    """
    options = (
        f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    )
    flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    _check(
        _libc.mount(
            b"cgstatfs", os.fsencode(path), TYPE, ctypes.c_ulong(flags), options.encode()
        ),
        path,
    )


def ensure_mounted(path: Path, kind: bytes, options: bytes | None = None) -> None:
    """Mount a file system of the kernel's where everybody expects it, unless it is there.

    :raises OSError: it cannot be mounted
    """
    if any(m.point == os.fsencode(path) and m.type == kind for m in mounts()):
        return
    _check(_libc.mount(kind, os.fsencode(path), kind, ctypes.c_ulong(0), options), path)


def connection(path: Path) -> int | None:
    """The number under which fusectl knows what is mounted on *path*."""
    entry = mounted(path)
    return int(entry.device.partition(b":")[2]) if entry and entry.type == TYPE else None


def abort(number: int) -> None:
    """End a connection whose daemon does not answer: who waits for it gets an error.

    Unmounting alone does not: of a killed daemon, the process that tells the kernel what to forget
    may itself wait, in the kernel, for somebody who waits for the daemon, and so keep the
    connection open.

    :param number: from :func:`connection`; one that is gone is ignored
    """
    control = Path("/sys/fs/fuse/connections")
    ensure_mounted(control, b"fusectl")
    try:
        (control / str(number) / "abort").write_text("1")
    except (FileNotFoundError, NotADirectoryError):
        pass


def unmount(path: Path, lazy: bool = False) -> None:
    """Unmount.

    :param lazy: now from the tree, and wholly when nobody uses it any more
    :raises OSError: ``EBUSY``: in use; ``EINVAL``: not a mount point
    """
    _check(_libc.umount2(os.fsencode(path), _MNT_DETACH if lazy else 0), path)


def unmount_if_ours(path: Path) -> None:
    """Take a cgstatfs from the tree, though it may be in use; nothing else.

    :raises OSError: it cannot be done
    """
    entry = mounted(path)
    if entry and entry.type == TYPE:
        unmount(path, lazy=True)
