# SPDX-License-Identifier: GPL-2.0-only
"""Requests that a path takes: stat of a file five levels down, warm."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from ..frame import Figure, Missing, Table, Target
from ..setting import Setting

TITLE = "requests to the daemon, by what is done"
QUICK = True
GUESTS = False

# include/uapi/linux/fuse.h: enum fuse_opcode
_OPCODES = {
    1: "LOOKUP", 2: "FORGET", 3: "GETATTR", 14: "OPEN", 15: "READ", 18: "RELEASE", 25: "FLUSH",
    27: "OPENDIR", 28: "READDIR", 29: "RELEASEDIR", 34: "ACCESS", 36: "INTERRUPT", 39: "IOCTL",
    42: "BATCH_FORGET", 44: "READDIRPLUS",
}  # fmt: skip
_TIMES = 20
# A request as read from the device: its length, then its opcode.
_REQUEST = re.compile(r'"((?:\\x[0-9a-f]{2}){8})"\.*, .*= (\d+)$')


def _requests(trace: str) -> Counter[str]:
    """By name, of what strace wrote."""
    found: Counter[str] = Counter()
    for line in trace.splitlines():
        match = _REQUEST.search(line)
        if match:
            data = bytes.fromhex(match[1].replace("\\x", ""))
            length, opcode = (int.from_bytes(data[at : at + 4], "little") for at in (0, 4))
            if length == int(match[2]):
                found[_OPCODES.get(opcode, str(opcode))] += 1
    return found


class _Counted:
    """Counts the requests that a daemon reads."""

    def __init__(self, pid: int, log: Path) -> None:
        self._pid = pid
        self._log = log

    def __call__(self, action: Callable[[], object]) -> Counter[str]:
        """Of one of many: what comes by itself, or the first time, is not."""
        command = ["strace", "-f", "-xx", "-s", "8", "-e", "trace=read,readv,splice",
                   "-o", str(self._log), "-p", str(self._pid)]  # fmt: skip
        action()
        try:
            tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        except FileNotFoundError:
            raise Missing("strace is not installed") from None
        try:
            line = tracer.stderr.readline()
            if "attached" not in line:
                raise Missing(f"strace: {line.strip()}")
            for _ in range(_TIMES):
                action()
                # So that what the kernel keeps for milliseconds has gone.
                time.sleep(0.02)
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.communicate()
        total = _requests(self._log.read_text())
        return Counter({name: round(count / _TIMES) for name, count in total.items() if count >= _TIMES / 2})


def run(setting: Setting) -> Iterator[Table]:
    """By counting what the daemon reads from /dev/fuse."""
    cgroup = setting.cgroup()
    for level in range(4):
        cgroup = cgroup / f"level{level}"
        cgroup.mkdir()
    mount = setting.mount()
    directory = mount.of(cgroup)
    counted = _Counted(mount.pid, setting.folder() / "trace")

    def read() -> None:
        (directory / "proc.events").read_bytes()

    def read_plainly() -> None:
        fd = os.open(directory / "proc.events", os.O_RDONLY)
        while os.read(fd, 4096):
            pass
        os.close(fd)

    actions: dict[str, Callable[[], object]] = {
        "stat of a directory five levels down": lambda: os.stat(directory),
        "stat of a file in it": lambda: os.stat(directory / "proc.events"),
        "open, read, read, close of it": read_plainly,
        "open, fstat, read, read, close of it": read,
    }
    table = Table("requests for a path five levels down, warm", "requests")
    found = {name: counted(action) for name, action in actions.items()}
    for name, requests in found.items():
        table.figures[f"cgstatfs, {name}"] = Figure((float(requests.total()),))
        table.notes.append(f"{name}: {' '.join(requests.elements()) or 'none'}")
    table.notes.append("cgroupfs, which the kernel serves: none, whatever is done")
    directories, file, *_ = table.figures.values()
    table.targets = [
        Target("requests for the directories", directories, 0, 0),
        Target("requests for the file", file, 1, 1),
    ]
    yield table
