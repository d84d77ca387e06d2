# SPDX-License-Identifier: GPL-2.0-only
"""Boot a kernel under QEMU with this machine's files, and run a command in it.

The guest sees the host's root file system; what it changes there is lost. It
has cgroup v2, bpffs, tracefs and FUSE ready, and a HOME that can be written to.
Hardware virtualisation is not used, so that a guest behaves the same wherever
it runs; everything in it is 5 to 20 times slower than on the host.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .kernels import Kernel, busybox

__all__ = ("BootError", "EmulatorError", "GuestError", "is_stray_trap", "kernel_trouble", "run")

_INIT = Path(__file__).with_name("guest-init.sh")
_REPOSITORY = Path(__file__).resolve().parents[2]
_SHARED = "/run/shared"
_CACHED = "/run/cached"
_POLL_SECONDS = 0.1
# From the command's end to the guest's: its power-off, or else its death.
_SHUTDOWN_SECONDS = 30
_LOG_TAIL_LINES = 40

# What the kernel says when something in it went wrong. "blocked for more than"
# is how it reports a hung task. Most of what lockdep, KASAN and the checks for
# sleeping where that is not allowed have to say comes as a BUG or a WARNING; SLUB
# names the cache between "BUG" and the colon. After the first report lockdep and
# kmemleak turn themselves off, and what follows is not watched any more.
_KERNEL_TROUBLE = re.compile(
    r"\bBUG:|\bBUG \S+ \(|\bkernel BUG at|\bWARNING:|\bOops\b|\bKernel panic\b"
    r"|general protection fault|rcu: INFO|INFO: rcu|blocked for more than|hung.task"
    r"|\bUBSAN:|\bKASAN:|\bODEBUG:|refcount_t:|\blist_(add|del) corruption"
    r"|suspicious RCU usage|inconsistent lock state|possible \w+ locking"
    r"|sleeping function called|INFO: trying to register non-static key"
    r"|turning off the locking correctness validator|INFO: lockdep is turned off"
    r"|kmemleak: .*(suspected memory leaks|disabled)|unreferenced object 0x"
)
_TRACE_LINES = 30

# On a kernel's command line. An emulated cpu stands still while others have the host's, and that is
# no stall; 300 seconds are the most it takes.
PATIENCE = "rcupdate.rcu_cpu_stall_timeout=300"

# The kernel rewrites its own code behind a breakpoint. QEMU on several threads can run one that
# has been taken away again, and the kernel knows of none there.
_STRAY_TRAP = re.compile(r"\bint3: 0000 \[#")

_PROGRAMS = {
    "vng": f"`{sys.executable} -m pip install virtme-ng`",
    "qemu-system-x86_64": "on Debian `apt install qemu-system-x86`",
    "file": "vng reads a kernel's release with it; on Debian `apt install file`",
}


class GuestError(Exception):
    """A guest failed by itself, whatever its command did."""


class BootError(GuestError):
    """A guest ended before it ran its command."""


class EmulatorError(GuestError):
    """A guest panicked by what QEMU made of its code."""


def run(
    kernel: Kernel,
    command: list[str],
    *,
    cpus: int = 2,
    memory: str = "2G",
    timeout: float = 600,
    counting: bool = False,
) -> int:
    """Run a command in a guest, with its output on stdout; return its status.

    The command starts in the repository's folder, without standard input, with
    this Python's programs first on its PATH.

    :param timeout: seconds for all of it, from start to power-off.
    :param counting: have the guest's clocks advance by a nanosecond with each
        instruction and when it is idle, so that they count what is executed.
    """
    with tempfile.TemporaryDirectory(
        prefix="guest-", ignore_cleanup_errors=True
    ) as folder:
        shared = Path(folder, "shared")
        shared.mkdir()
        shutil.copyfile(_INIT, shared / "init")
        (shared / "command").write_text(_script(command), encoding="utf-8")
        vng = _vng(kernel, shared, cpus, memory, timeout)
        if counting:
            vng.append("--qemu-opts=-icount shift=0,sleep=off")
        with _started(vng, folder) as (process, console):
            try:
                status = _follow(process, shared, timeout)
            except GuestError as error:
                _print_lines("last of the guest's console", console[-_LOG_TAIL_LINES:])
                kind = EmulatorError if is_stray_trap(console) else type(error)
                raise kind(f"{kernel.release}: {error}") from None
        found = (shared / "trouble").read_text(errors="replace").splitlines()
    trouble = kernel_trouble(console) + kernel_trouble(found)
    if trouble:
        _print_lines(f"{kernel.release}: trouble in the kernel log", trouble)
        raise GuestError(
            f"{kernel.release}: the kernel logged a bug or a warning, see above "
            f"(the command's exit status was {status})"
        )
    return status


def _script(command: list[str]) -> str:
    path = f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"
    return (
        f"PATH={shlex.quote(path)}\nexport PATH\n"
        f"cd {shlex.quote(str(_REPOSITORY))} || exit\n"
        f"exec {shlex.join(command)}\n"
    )


def _vng(
    kernel: Kernel, shared: Path, cpus: int, memory: str, timeout: float
) -> list[str]:
    """Return the vng command line.

    The command itself is not on it: the kernel's command line, which would
    carry it, holds 2,048 characters.
    """
    return [
        "vng",
        f"--run={kernel.vmlinuz_path}",
        "--disable-kvm",
        # Spares the 3 seconds it takes to find out that the other way, QEMU's
        # own virtiofsd, does not work.
        "--force-9p",
        f"--busybox={busybox()}",
        f"--cpus={cpus}",
        f"--memory={memory}",
        "--user=root",
        f"--rwdir={_SHARED}={shared}",
        # The root again, which guest-init.sh mounts with a cache.
        f"--rodir={_CACHED}=/",
        # The kernel's console on standard error, with warnings and worse.
        "--verbose",
        f"--append=loglevel=5 {PATIENCE}",
        f"--exec=sh {_SHARED}/init {_SHARED} {timeout:g} {_CACHED} {_REPOSITORY}",
    ]


@contextmanager
def _started(
    command: list[str], temporary: str
) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Start vng; yield it and the console's lines, which keep arriving.

    Afterwards nothing of it is running: vng, its shell and QEMU are one process
    group, and that is killed. Its temporary files stay in `temporary`.
    """
    process = subprocess.Popen(
        command,
        cwd="/",
        env=os.environ | {"PATH": _host_path(), "TMPDIR": temporary},
        stdin=subprocess.DEVNULL,
        # A pipe: QEMU truncates what it writes to if that is a file.
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    console: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(
        target=_collect, args=(process.stdout, console), daemon=True
    )
    reader.start()
    try:
        yield process, console
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reader.join(_SHUTDOWN_SECONDS)


def _host_path() -> str:
    """Return a PATH with the programs that vng is and needs."""
    tools = str(Path(sys.executable).parent)
    path = f"{tools}:{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    for program, remedy in _PROGRAMS.items():
        if shutil.which(program, path=path) is None:
            raise GuestError(f"{program} is not installed; {remedy}")
    return path


def _collect(stream: Iterator[str], lines: list[str]) -> None:
    lines.extend(line.rstrip() for line in stream)


def _follow(process: subprocess.Popen[str], shared: Path, timeout: float) -> int:
    """Copy the command's output to stdout until the guest ends; return its status."""
    deadline = time.monotonic() + timeout
    status_file = shared / "status"
    position = 0
    while True:
        # Look at the process first: what it wrote last must still be copied.
        ended = process.poll() is not None
        position = _copy_output(shared / "output", position)
        if ended:
            break
        now = time.monotonic()
        if status_file.exists():
            deadline = min(deadline, now + _SHUTDOWN_SECONDS)
            if now >= deadline:
                break
        elif now >= deadline:
            raise GuestError(_timed_out(shared, timeout))
        time.sleep(_POLL_SECONDS)
    try:
        return int(status_file.read_text(encoding="ascii"))
    except FileNotFoundError:
        raise _died(process, shared) from None


def _copy_output(output: Path, position: int) -> int:
    """Copy to stdout what follows `position`; return where that ends."""
    try:
        with open(output, "rb") as file:
            file.seek(position)
            shutil.copyfileobj(file, sys.stdout.buffer)
            position = file.tell()
    except FileNotFoundError:
        pass
    sys.stdout.flush()
    return position


def _timed_out(shared: Path, timeout: float) -> str:
    if (shared / "started").exists():
        return (
            f"the command did not end within {timeout:g} s; see where it hangs, or "
            "raise the timeout"
        )
    return (
        f"the guest did not boot within {timeout:g} s; if the machine is busy, raise "
        "the timeout"
    )


def _died(process: subprocess.Popen[str], shared: Path) -> GuestError:
    if (shared / "started").exists():
        return GuestError("the guest died while it ran the command; the console above says why")
    return BootError(
        "the guest did not boot; the console above says why "
        f"(vng's exit status was {process.returncode})"
    )


def kernel_trouble(console: list[str]) -> list[str]:
    """Return the lines that report trouble, each with the trace that follows."""
    found: list[str] = []
    left = 0
    for line in console:
        if _KERNEL_TROUBLE.search(line):
            left = _TRACE_LINES
        if left > 0:
            found.append(line)
            left -= 1
        if "---[ end trace" in line:
            left = 0
    return found


def is_stray_trap(console: list[str]) -> bool:
    """Whether the first oops is a breakpoint that nobody had set."""
    oops = next((line for line in console if re.search(r"\[#1\]", line)), "")
    return bool(_STRAY_TRAP.search(oops))


def _print_lines(title: str, lines: list[str]) -> None:
    print(f"--- {title}", *lines, "---", sep="\n", flush=True)
