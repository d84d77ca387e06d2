# SPDX-License-Identifier: GPL-2.0-only
"""The least that a file system in Python can be with pyfuse3: constant.c, with its handlers in Python.

    python -m bench.peers.constant MOUNTPOINT

It waits for requests as the daemon does, and gets the same five for a read, but does nothing for
them: what a read takes here no change to our handlers can save.
"""

from __future__ import annotations

import errno
import os
import stat
import sys

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext

from cgstatfs.requests import poll_first

_NODE = 2
_TEXT = b"forks 12345\nexecs 12345\nexits 12345\noom_kills 0\nattaches 1\n"


class _Constant(pyfuse3.Operations):
    async def getattr(self, inode: int, ctx: RequestContext | None = None) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = stat.S_IFREG | 0o444 if inode == _NODE else stat.S_IFDIR | 0o555
        entry.st_size = len(_TEXT) if inode == _NODE else 0
        entry.attr_timeout = 3600
        # The name is asked for anew each time, as with ours.
        entry.entry_timeout = 0
        return entry

    async def lookup(
        self, parent_inode: int, name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        if name != b"file":
            raise FUSEError(errno.ENOENT)
        return await self.getattr(_NODE)

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        return FileInfo(fh=inode, direct_io=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return _TEXT[off : off + size]


def _connection() -> int:
    """The descriptor that pyfuse3 has opened, and does not tell."""
    with os.scandir("/proc/self/fd") as entries:
        return next(int(each.name) for each in entries if os.readlink(each) == "/dev/fuse")


def main() -> None:
    """Run from the command line."""
    pyfuse3.init(_Constant(), sys.argv[1], {"fsname=constant", "default_permissions"})
    poll_first(_connection())
    try:
        trio.run(pyfuse3.main, 1, 1)
    finally:
        pyfuse3.close()


if __name__ == "__main__":
    main()
