# SPDX-License-Identifier: GPL-2.0-only
"""Boot machines with a Debian release's own systemd, kernel and packages under QEMU.

    with boot.machine("trixie", files={"/etc/fstab": "..."}, packages=[deb]) as machine:
        machine.check("systemctl start example")
        machine.reboot()
        assert machine.run("findmnt /example").status == 0
        assert machine.shutdown().clean

A machine has a disk that is thrown away, no network, and a console that is only logged. As in the
guests of `guest`, hardware virtualisation is not used.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import images
from .agent import Agent, AgentRefused, AgentSilent
from .guest import PATIENCE, GuestError, kernel_trouble

__all__ = ("Link", "Machine", "MachineError", "PROGRAMS", "Result", "Shutdown", "machine")

# What has to be installed, for tests that skip themselves.
PROGRAMS = ("qemu-system-x86_64", "mmdebstrap", "mke2fs", "setpriv")

# When something hangs; a loaded machine takes its time.
_BOOT_SECONDS = 1800
_RUN_SECONDS = 900
# Until a script that is told to end has, and the agent has said so.
_GRACE_SECONDS = 60
_POLL_SECONDS = 0.5
_TAIL_LINES = 40
_PACKAGES = "/var/cache/packages"

# Runs the script $1 for at most $2 seconds. Its output goes by way of a file, as what it leaves
# running would keep a pipe open, and as it can be read before the script has ended.
_SHELL = (
    'timeout -k 10 "$2" sh -e -c "$1" >"$3" 2>&1 </dev/null; status=$?; cat "$3"; exit $status'
)
_TIMED_OUT = (124, 137)
_OUTPUT = "/run/output"
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}

# The kernel's last words, and what systemd says of a unit or a file system that it could not end.
# That the journal's watchdog is no longer listened to is nobody's failure.
_ENDED = re.compile(r"reboot: (Power down|Restarting system)")
_UNCLEAN = re.compile(
    r"[Tt]imed out|[Ff]ailed(?! to send WATCHDOG)|Sending SIGKILL to PID|not.* unmounted"
    r"|Unable to finalize|still busy|Dependency failed|processes remaining"
)
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1bM|[\r\x1b]")


class MachineError(GuestError):
    """A machine did not do what it was told to; the message says how far it got."""


@dataclass(frozen=True)
class Link:
    """Of the files of a machine, a symbolic link."""

    target: str


@dataclass(frozen=True)
class Result:
    """Of a script that ended: its exit status and all that it printed."""

    status: int
    output: str


@dataclass(frozen=True)
class Shutdown:
    """A machine's end, for good or to boot again.

    :ivar seconds: from the request to the kernel's last words, or QEMU's exit.
    :ivar console: the lines in between.
    :ivar trouble: those of them about what did not end by itself, or failed.
    :ivar clean: whether the kernel ended it, and there was no trouble.
    """

    seconds: float
    console: list[str]
    trouble: list[str]
    clean: bool


class Machine:
    """A machine that is running.

    :ivar release: the Debian release's name.
    :ivar shell_seconds: from QEMU's start, or the request to reboot, to the first answer.
    :ivar boot_seconds: ... to the end of the boot; none if that was not waited for.
    """

    def __init__(self, release: str, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.release = release
        self.shell_seconds: float | None = None
        self.boot_seconds: float | None = None
        self._process = process
        self._log = folder / "console"
        self._begin = time.monotonic()
        self._agent = Agent(folder / "agent", self._look)

    def run(self, script: str, *, timeout: float = _RUN_SECONDS) -> Result:
        """Run a script as root, with `sh -e`, without standard input.

        It runs in the agent's own cgroup; for what is to have one, there is systemd-run.

        :param timeout: seconds, after which it is killed.
        :raises MachineError: if it did not end by itself, or nobody answers.
        """
        command = ["/bin/sh", "-c", _SHELL, "sh", script, f"{timeout:g}", _OUTPUT]
        begin = time.monotonic()
        try:
            status, output = self._agent.run(command, _ENVIRONMENT, timeout + _GRACE_SECONDS)
        except (AgentSilent, AgentRefused) as error:
            raise self._error(f"{error}; it was to run: {script}") from None
        text = output.decode(errors="replace")
        # A script may have a timeout of its own.
        if status in _TIMED_OUT and time.monotonic() - begin >= timeout:
            raise self._error(f"did not end within {timeout:g} s: {script}\nIt had printed:\n{text}")
        return Result(status, text)

    def check(self, script: str, *, timeout: float = _RUN_SECONDS) -> str:
        """Run a script that has to succeed; return what it printed.

        :raises MachineError: as `run` does, and if it failed.
        """
        result = self.run(script, timeout=timeout)
        if result.status != 0:
            raise self._error(f"status {result.status} of: {script}\n{result.output}")
        return result.output

    def wait_for_boot(self, timeout: float = _BOOT_SECONDS) -> str:
        """Wait until systemd has started all there is; return what it calls its state then."""
        try:
            state = self.run("systemctl is-system-running --wait", timeout=timeout).output.strip()
        except MachineError as error:
            jobs = self.run("systemctl list-jobs").output
            raise MachineError(f"{error}\nSystemd's jobs:\n{jobs}") from None
        self.boot_seconds = time.monotonic() - self._begin
        return state

    def failed_units(self) -> list[str]:
        lines = self.check("systemctl list-units --failed --plain --no-legend").splitlines()
        return [line.split()[0] for line in lines if line]

    def console(self) -> list[str]:
        """What was printed on the console since QEMU's start."""
        try:
            text = self._log.read_bytes().decode(errors="replace")
        except FileNotFoundError:
            # QEMU is about to start.
            return []
        return _COLOURS.sub("", text).splitlines()

    def reboot(self, *, wait: bool = True, timeout: float = _BOOT_SECONDS) -> Shutdown:
        """Reboot as an administrator does. What was written to the disk is there afterwards.

        :param wait: until the boot has ended, and not only until scripts can be run.
        :param timeout: seconds for all of it.
        :returns: how it ended before.
        """
        deadline = time.monotonic() + timeout
        before = len(self.console())
        begin = self._begin = time.monotonic()
        self.boot_seconds = None
        self.check("systemctl reboot --no-block")
        # Until then the agent answers that is about to be killed.
        while not (end := self._end(before, begin)):
            if time.monotonic() >= deadline:
                raise self._error(f"did not shut down to reboot within {timeout:g} s")
            self._look()
            time.sleep(_POLL_SECONDS)
        self._wait_for_shell(deadline - time.monotonic())
        if wait:
            self.wait_for_boot(timeout)
        return end

    def shutdown(self, timeout: float = _RUN_SECONDS) -> Shutdown:
        """Power off as an administrator does, and wait for it.

        :raises MachineError: if the machine still runs after that many seconds.
        """
        before = len(self.console())
        begin = time.monotonic()
        self.check("systemctl poweroff --no-block")
        try:
            status = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise self._error(f"did not power off within {timeout:g} s") from None
        end = self._end(before, begin)
        if not end or status:
            raise self._error(f"ended in another way than by powering off, status {status}")
        return end

    def _end(self, before: int, begin: float) -> Shutdown | None:
        """How it ended, if it has.

        :param before: how many lines the console had when it was asked to.
        :param begin: when that was.
        """
        lines = self.console()[before:]
        last = next((at for at, line in enumerate(lines) if _ENDED.search(line)), None)
        if last is None:
            return None
        del lines[last + 1 :]
        trouble = [line for line in lines if _UNCLEAN.search(line)]
        return Shutdown(time.monotonic() - begin, lines, trouble, not trouble)

    def _wait_for_shell(self, timeout: float) -> None:
        try:
            self._agent.synchronise(timeout)
        except AgentSilent:
            raise self._error(f"no script could be run within {timeout:g} s") from None
        self.shell_seconds = time.monotonic() - self._begin

    def _look(self) -> None:
        """Raise if the machine will not answer any more."""
        if self._process.poll() is not None:
            said = self._log.with_name("qemu").read_text(errors="replace").strip()
            raise self._error(f"QEMU ended, with status {self._process.returncode}: {said}")
        if any("Kernel panic" in line for line in self.console()):
            raise self._error("the kernel panicked")

    def _error(self, reason: str) -> MachineError:
        tail = "\n".join(self.console()[-_TAIL_LINES:])
        return MachineError(f"{self.release}: {reason}\n--- last of the console\n{tail}\n---")


@contextmanager
def machine(
    release: str,
    *,
    files: Mapping[str, str | bytes | Path | Link] | None = None,
    packages: Sequence[Path] = (),
    append: str = "",
    wait: bool = True,
    timeout: float = _BOOT_SECONDS,
) -> Iterator[Machine]:
    """Boot a machine, and end it afterwards whatever happened.

    :param release: one of `images.RELEASES`.
    :param files: put in place before init starts, by their paths in the machine: their text or
        bytes, a file of the host's with its mode, or a link. Their owner is root.
    :param packages: .deb files, installed after the boot.
    :param append: more for the kernel's command line.
    :param wait: until the boot has ended, and not only until scripts can be run, which is long
        before that.
    :param timeout: seconds for the boot.
    :raises MachineError: if it does not boot, a package cannot be installed, or, afterwards, if
        the kernel logged a bug or a warning.
    """
    image = images.fetch(release)
    with tempfile.TemporaryDirectory(prefix="machine-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        inside = {f"{_PACKAGES}/{package.name}": package for package in packages}
        _pack({**(files or {}), **inside}, folder / "files")
        process = _start(image, folder, append)
        try:
            booted = Machine(release, process, folder)
            booted._wait_for_shell(timeout)
            if wait or packages:
                booted.wait_for_boot(timeout)
            if packages:
                booted.check(f"dpkg -i {' '.join(inside)}")
            yield booted
            if trouble := kernel_trouble(booted.console()):
                raise MachineError(f"{release}: trouble in the kernel log:\n" + "\n".join(trouble))
        finally:
            process.kill()
            process.wait()


def _pack(files: Mapping[str, str | bytes | Path | Link], archive: Path) -> None:
    """Write the archive that becomes the machine's second disk."""
    with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as tar:
        for path, content in files.items():
            member = tarfile.TarInfo(path.lstrip("/"))
            member.mode, member.mtime = 0o644, int(time.time())
            data = b""
            if isinstance(content, Link):
                member.type, member.linkname = tarfile.SYMTYPE, content.target
            elif isinstance(content, Path):
                member.mode = content.stat().st_mode & 0o7777
                data = content.read_bytes()
            else:
                data = content.encode() if isinstance(content, str) else content
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def _start(image: images.Image, folder: Path, append: str) -> subprocess.Popen[bytes]:
    """Start QEMU, which ends with the thread that called this."""
    kernel = (
        f"root=/dev/vda rw console=ttyS0 mitigations=off systemd.show_status=1 {PATIENCE} {append}"
    )
    command = [
        "setpriv", "--pdeathsig", "KILL", "--",
        "qemu-system-x86_64", "-machine", "q35,accel=tcg", "-smp", "2", "-m", "1G",
        "-nodefaults", "-no-user-config", "-display", "none",
        "-kernel", str(image.vmlinuz), "-initrd", str(image.initrd), "-append", kernel,
        "-drive", f"file={image.disk},format=raw,if=virtio,snapshot=on,discard=unmap",
        "-drive", f"file={folder}/files,format=raw,if=virtio,readonly=on",
        "-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
        "-chardev", f"socket,id=agent,path={folder}/agent,server=on,wait=off",
        "-device", "virtserialport,chardev=agent,name=agent",
        "-chardev", f"file,id=console,path={folder}/console", "-serial", "chardev:console",
    ]  # fmt: skip
    with open(folder / "qemu", "wb") as log:
        return subprocess.Popen(
            command, cwd="/", env=os.environ | {"TMPDIR": str(folder)}, stdin=subprocess.DEVNULL,
            # What the terminal is interrupted with is not for it.
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
