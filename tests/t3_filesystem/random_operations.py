# SPDX-License-Identifier: GPL-2.0-only
"""Random operations on a directory: ``random_operations.py SEED COUNT DIRECTORY``.

Run as a user without rights. Whatever the operations give is fine, as long as it is an
OSError or a result.
"""

import fcntl
import os
import random
import select
import signal
import socket
import stat
import sys

CALLS_THAT_HANG = 300


def name(rng: random.Random) -> bytes:
    return rng.choice(
        [
            b".", b"..", b"proc.events", b"mm.reclaim", b"sched.runqlat", b".tree", b".cgstatfs",
            b"a", b"a/b", b"a/proc.events", b"x" * 255, b"x" * 256, b"\xff\x01\n", b"a/../a",
            rng.randbytes(8).replace(b"\0", b"0"), b"/".join([b"a"] * 50), b"proc.events/x",
        ]
    )  # fmt: skip


def size(rng: random.Random) -> int:
    return rng.choice([0, 1, 7, 4095, 4096, 4097, 1 << 20, (1 << 31) - 1, (1 << 62), (1 << 63) - 1])


def on_file(rng: random.Random, fd: int) -> None:
    small = min(size(rng), 1 << 20)
    rng.choice(
        [
            lambda: os.read(fd, small),
            lambda: os.pread(fd, small, size(rng)),
            lambda: os.lseek(fd, size(rng), rng.randrange(5)),
            lambda: os.write(fd, b"x"),
            lambda: os.ftruncate(fd, size(rng)),
            lambda: os.fsync(fd),
            lambda: os.fstat(fd),
            lambda: os.fstatvfs(fd),
            lambda: os.listdir(fd),
            lambda: os.fchmod(fd, 0o777),
            lambda: os.fchown(fd, 1, 1),
            lambda: os.posix_fallocate(fd, 0, 10),
            lambda: os.posix_fadvise(fd, 0, 100, rng.randrange(6)),
            lambda: os.listxattr(fd),
            lambda: os.getxattr(fd, b"user.x"),
            lambda: os.setxattr(fd, b"user.x", b"1"),
            lambda: os.copy_file_range(fd, fd, small, 0, 4096),
            lambda: fcntl.ioctl(fd, rng.randrange(1 << 32), b"\0" * 64),
            lambda: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB),
            lambda: fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB),
            lambda: select.select([fd], [fd], [fd], 0),
            lambda: os.close(os.dup(fd)),
            lambda: os.readv(fd, [bytearray(3), bytearray(5)]),
        ]
    )()


def on_path(rng: random.Random, path: bytes) -> None:
    other = os.path.join(os.path.dirname(path), name(rng))
    rng.choice(
        [
            lambda: os.stat(path),
            lambda: os.lstat(path),
            lambda: os.access(path, rng.randrange(8)),
            lambda: os.listdir(path),
            lambda: os.mkdir(path),
            lambda: os.rmdir(path),
            lambda: os.unlink(path),
            lambda: os.rename(path, other),
            lambda: os.link(path, other),
            lambda: os.symlink(path, other),
            lambda: os.readlink(path),
            lambda: os.mknod(path, stat.S_IFIFO | 0o666),
            lambda: os.chmod(path, rng.randrange(0o10000)),
            lambda: os.truncate(path, size(rng)),
            lambda: os.utime(path),
            lambda: os.statvfs(path),
            lambda: os.getxattr(path, b"security.capability"),
            lambda: os.setxattr(path, b"user." + b"x" * 200, b"v" * 1000),
            lambda: os.removexattr(path, b"user.x"),
            lambda: socket.socket(socket.AF_UNIX).bind(path),
            lambda: os.execv(path, [path]),
        ]
    )()


def on_open(rng: random.Random, path: bytes) -> None:
    flags = rng.choice([os.O_RDONLY, os.O_RDWR, os.O_WRONLY, os.O_RDONLY | os.O_DIRECTORY])
    for extra in (os.O_CREAT, os.O_TRUNC, os.O_APPEND, os.O_DIRECT, os.O_NONBLOCK, os.O_PATH,
                  os.O_NOFOLLOW, os.O_EXCL):  # fmt: skip
        if rng.random() < 0.1:
            flags |= extra
    fd = os.open(path, flags)
    try:
        for _ in range(rng.randrange(6)):
            try:
                on_file(rng, fd)
            except (OSError, OverflowError):
                pass
    finally:
        os.close(fd)


def main() -> None:
    seed, count, top = int(sys.argv[1]), int(sys.argv[2]), os.fsencode(sys.argv[3])
    rng = random.Random(seed)
    for number in range(count):
        signal.alarm(CALLS_THAT_HANG)
        try:
            rng.choice([on_path, on_open, on_open])(rng, os.path.join(top, name(rng)))
        except (OSError, OverflowError):
            pass
        if number % 100 == 0:
            os.chdir(top)
    print(count)


main()
