# SPDX-License-Identifier: GPL-2.0-only
"""Somebody who asks a file system: a program of its own, which the standard library is enough for.

Its argument is a list of steps in JSON, by which it becomes who it is to be; their functions are in
``STEPS``. Then each line that comes in is a question, ``[what, path]`` with ``what`` of
``QUESTIONS``, and a line goes out: what was found, or the name of the error.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import stat
import sys

_libc = ctypes.CDLL(None, use_errno=True)
# From <linux/sched.h>, <linux/mount.h> and <sys/syscall.h>
_NEWNS, _NEWCGROUP, _NEWUSER = 0x20000, 0x2000000, 0x10000000
_MS_BIND, _MS_REC, _MS_SLAVE = 0x1000, 0x4000, 0x80000
_AT_FDCWD, _HANDLE_BYTES = -100, 128
_PR_SET_DUMPABLE = 4


def _check(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


# Who to be


def _ids(uid: int, gid: int, groups: list[int]) -> None:
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    # As after an exec: else what is ours in /proc would be root's.
    _check(_libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0))


def _file_system_ids(uid: int, gid: int) -> None:
    """As servers of files do: everything but files remains root's."""
    os.setgroups([])
    _libc.setfsgid(gid)
    _libc.setfsuid(uid)
    assert (_libc.setfsuid(-1), _libc.setfsgid(-1)) == (uid, gid)


def _user_namespace(maps: list[str], uid: int | None) -> None:
    """:param maps: lines of uid_map, and of gid_map; written by who we were before
    :param uid: to be in there; None: to stay unmapped
    """
    ready, written = os.pipe(), os.pipe()
    me = os.getpid()
    if not os.fork():
        os.read(ready[0], 1)
        for name in ("uid_map", "gid_map") if maps else ():
            with open(f"/proc/{me}/{name}", "w") as file:
                file.write("\n".join(maps))
        os.write(written[1], b".")
        os._exit(0)
    _check(_libc.unshare(_NEWUSER))
    os.write(ready[1], b".")
    os.close(written[1])
    assert os.read(written[0], 1) == b".", "the maps could not be written"
    os.wait()
    # From root in there, who alone loses the capabilities.
    for each in [] if uid is None else [0, uid]:
        os.setresgid(each, each, each)
        os.setresuid(each, each, each)


def _own_user_namespace() -> None:
    """As anybody may: root in there, and outside who we were."""
    uid, gid = os.getuid(), os.getgid()
    _check(_libc.unshare(_NEWUSER))
    for name, text in (
        ("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1"),
    ):  # fmt: skip
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _mount(source: str, target: str, kind: str | None, flags: int) -> None:
    _check(
        _libc.mount(
            source.encode(), target.encode(), kind and kind.encode(), ctypes.c_ulong(flags), None
        )
    )


def _mount_namespace() -> None:
    """What is unmounted outside is so in here, too: else a test of others' would wait for us."""
    _check(_libc.unshare(_NEWNS))
    _mount("none", "/", None, _MS_REC | _MS_SLAVE)


def _cgroup_namespace(cgroup: str) -> None:
    with open(f"{cgroup}/cgroup.procs", "w") as file:
        file.write("0")
    _check(_libc.unshare(_NEWCGROUP))


STEPS = {
    "ids": _ids,
    "file system ids": _file_system_ids,
    "user namespace": _user_namespace,
    "own user namespace": _own_user_namespace,
    "mount namespace": _mount_namespace,
    "cgroup namespace": _cgroup_namespace,
    "bind": lambda source, target: _mount(source, target, None, _MS_BIND),
    "cgroup2": lambda target: _mount("none", target, "cgroup2", 0),
    "chroot": lambda path: (os.chroot(path), os.chdir("/")),
    "chdir": os.chdir,
}


# What to ask

_held: dict[str, int] = {}


def _close(descriptor: int) -> str:
    os.close(descriptor)
    return "ok"


def _directories(path: str | int) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(each.name for each in entries if each.is_dir(follow_symlinks=False))


def _read(path: str, directory: int | None = None) -> str:
    descriptor = os.open(path, os.O_RDONLY, dir_fd=directory)
    try:
        return "text" if os.read(descriptor, 1 << 16) else "nothing"
    finally:
        os.close(descriptor)


def _type(status: os.stat_result) -> str:
    return oct(stat.S_IFMT(status.st_mode))


def _may(path: str, mode: int) -> str:
    """access(2), as who asks for files; its errno, which os.access() swallows."""
    _check(_libc.faccessat(_AT_FDCWD, path.encode(), mode, 0x200))
    return "ok"


def _statfs(path: str) -> list[int]:
    """What a file system says of itself, but for its number; and of the mount, nothing."""
    found = os.statvfs(path)
    return [found.f_bsize, found.f_frsize, found.f_blocks, found.f_bfree, found.f_bavail,
            found.f_files, found.f_ffree, found.f_favail, found.f_namemax]  # fmt: skip


class _Handle(ctypes.Structure):
    _fields_ = (
        ("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("handle", ctypes.c_ubyte * _HANDLE_BYTES),
    )  # fmt: skip


def _handle(path: str) -> list[int | str]:
    """name_to_handle_at(2)"""
    handle, mount = _Handle(_HANDLE_BYTES), ctypes.c_int()
    _check(
        _libc.name_to_handle_at(
            _AT_FDCWD, path.encode(), ctypes.byref(handle), ctypes.byref(mount), 0
        )
    )
    return [handle.type, bytes(handle.handle[: handle.bytes]).hex()]


def _open_handle(path: str, kind: int, text: str) -> str:
    """open_by_handle_at(2), of something on the mount that *path* is on."""
    data = bytes.fromhex(text)
    handle = _Handle(len(data), kind, (ctypes.c_ubyte * _HANDLE_BYTES)(*data))
    mount = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return _close(_check(_libc.open_by_handle_at(mount, ctypes.byref(handle), os.O_RDONLY)))
    finally:
        os.close(mount)


def _hold(path: str) -> str:
    _held[path] = os.open(path, os.O_RDONLY)
    return "ok"


QUESTIONS = {
    "stat": lambda path: _type(os.stat(path)),
    "inode": lambda path: os.stat(path).st_ino,
    "mode": lambda path: [os.stat(path).st_mode, os.stat(path).st_uid, os.stat(path).st_gid],
    "list": _directories,
    "open directory": lambda path: _close(os.open(path, os.O_RDONLY | os.O_DIRECTORY)),
    "open": lambda path: _close(os.open(path, os.O_RDONLY)),
    "open the path": lambda path: _close(os.open(path, os.O_PATH)),
    "read": _read,
    "go there": lambda path: (os.chdir(path), "ok")[1],
    "may read": lambda path: _may(path, os.R_OK),
    "may search or run": lambda path: _may(path, os.X_OK),
    "readlink": os.readlink,
    "getxattr": lambda path: os.getxattr(path, "user.x").hex(),
    "listxattr": os.listxattr,
    "statfs": _statfs,
    "handle": _handle,
    "open handle": _open_handle,
    # What is held open
    "hold": _hold,
    "held: read": lambda path: "text" if os.pread(_held[path], 1 << 16, 0) else "nothing",
    "held: stat": lambda path: _type(os.fstat(_held[path])),
    "held: list": lambda path: _directories(_held[path]),
    "held: read in it": lambda path, name: _read(name, _held[path]),
    "held: stat in it": lambda path, name: _type(os.stat(name, dir_fd=_held[path])),
    "held: go there": lambda path: (os.fchdir(_held[path]), "ok")[1],
    # What changes something, in cgroupfs
    "make": lambda path, mode: (os.mkdir(path), os.chmod(path, mode), "ok")[2],
    # What would
    "write": lambda path: _close(os.open(path, os.O_WRONLY)),
    "read and write": lambda path: _close(os.open(path, os.O_RDWR)),
    "append": lambda path: _close(os.open(path, os.O_WRONLY | os.O_APPEND)),
    "may write": lambda path: _may(path, os.W_OK),
    "truncate": lambda path: os.truncate(path, 0),
    "create": lambda path: _close(os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT, 0o644)),
    "mkdir": lambda path: os.mkdir(f"{path}.new"),
    "symlink": lambda path: os.symlink("x", f"{path}.new"),
    "mkfifo": lambda path: os.mkfifo(f"{path}.new"),
    "unlink": os.unlink,
    "rename": lambda path: os.rename(path, f"{path}.new"),
    "link": lambda path: os.link(path, f"{path}.new"),
    "chmod": lambda path: os.chmod(path, 0o777),
    "chown": lambda path: os.chown(path, os.geteuid(), -1),
    "utime": os.utime,
    "setxattr": lambda path: os.setxattr(path, "user.x", b"1"),
}


def _answer(question: list) -> object:
    what, *arguments = question
    try:
        return QUESTIONS[what](*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]


def main() -> None:
    for what, *arguments in json.loads(sys.argv[1]):
        try:
            STEPS[what](*arguments)
        except OSError as error:
            print(json.dumps(f"{what} {arguments}: {error}"), flush=True)
            return
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
