# SPDX-License-Identifier: GPL-2.0-only
"""What a collector's author needs: a source to start from, and how it is compiled.

Nothing here needs root: the kernel's BTF is for everybody to read, and what is built is not
loaded.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import btf, loading
from .collectors import CollectorError, check_collector_name
from .objects import include_path, template

__all__ = ("Built", "build", "write_new")

_KERNEL_BTF = Path("/sys/kernel/btf/vmlinux")
_SOURCE, _OBJECT = ".bpf.c", ".bpf.o"

# Tools, and the Debian packages that have them.
_PACKAGES = {"clang": "clang", "llvm-strip": "llvm", "bpftool": "bpftool"}
# bpftool is in /usr/sbin, where those who are not root do not look.
_SBIN = "/usr/sbin:/sbin"

# By uname's machine: what bpf_tracing.h calls it.
_ARCHITECTURES = {
    "x86_64": "x86", "aarch64": "arm64", "s390x": "s390", "ppc64le": "powerpc",
    "riscv64": "riscv", "loongarch64": "loongarch",
}  # fmt: skip


@dataclass(frozen=True)
class Built:
    """A compiled collector.

    :param path: where it is
    :param maps: its stats maps
    :param notes: what its user should know
    """

    path: Path
    maps: list[btf.Description]
    notes: list[str]


# new


def _identifier(name: str) -> str:
    """A collector's name as C can have it.

    :raises CollectorError: what would come of it is taken by the header
    """
    identifier = re.sub(r"\W", "_", name, flags=re.ASCII)
    if identifier[0].isdigit():
        identifier = f"_{identifier}"
    if identifier.startswith("cgstat"):
        raise CollectorError(f'collector name "{name}": what begins with cgstat in C is the header\'s')
    return identifier


def write_new(name: str, directory: Path, *, bcc: bool = False) -> Path:
    """Write the source of a new collector, which counts something as it is.

    :param bcc: one that bcc compiles when it is loaded
    :returns: the file that was written
    :raises CollectorError: a collector cannot have that name
    :raises OSError: the file is there already, or cannot be written
    """
    check_collector_name(name)
    ending = ".bcc.c" if bcc else _SOURCE
    identifier = _identifier(name)
    # Strings, as the name of its file, and the head have the name as it is.
    text = re.sub(r'(?<=")mystats(?=")|(?<=^ \* )mystats(?=:)|(mystats)',
                  lambda match: identifier if match[1] else name, template(ending), flags=re.M)  # fmt: skip
    path = directory / f"{name}{ending}"
    with open(path, "x") as file:
        file.write(text)
    return path


# build


def _tool(name: str) -> str:
    """Where a tool is.

    :raises FileNotFoundError: it is not installed
    """
    found = shutil.which(name) or shutil.which(name, path=_SBIN)
    if not found:
        raise FileNotFoundError(
            errno.ENOENT, f"not installed; install Debian's package {_PACKAGES[name]}", name
        )
    return found


def _run(command: Sequence[str | Path], what: str) -> str:
    """Run a tool; returns its output.

    :param what: the tool is to do, for the error
    :raises CollectorError: it failed; what it says of that has been shown
    """
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, errors="replace")  # fmt: skip
    sys.stderr.write(done.stderr)
    if not done.returncode:
        return done.stdout
    if "'bpf/bpf_" in done.stderr and "file not found" in done.stderr:
        raise CollectorError("libbpf's headers are not installed; install Debian's package libbpf-dev")
    raise CollectorError(what)


def _kernel_types(source: Path, directory: Path) -> Path:
    """The directory of vmlinux.h: the source's, or *directory*, where it is made.

    :raises OSError: the kernel has no BTF, or there is no bpftool
    """
    if (source.parent / "vmlinux.h").exists():
        return source.parent
    if not _KERNEL_BTF.exists():
        raise FileNotFoundError(
            errno.ENOENT, "the kernel has no BTF (CONFIG_DEBUG_INFO_BTF); put a vmlinux.h of one "
            "that has next to the source", str(_KERNEL_BTF),
        )  # fmt: skip
    text = _run([_tool("bpftool"), "btf", "dump", "file", _KERNEL_BTF, "format", "c"],
                "bpftool could not read the kernel's BTF")  # fmt: skip
    (directory / "vmlinux.h").write_text(text)
    return directory


def _compile(source: Path, types: Path, output: Path, options: Sequence[str]) -> None:
    """As the Makefile compiles the collectors that come with the package."""
    machine = platform.machine()
    color = ["-fcolor-diagnostics"] if sys.stderr.isatty() else []
    _run(
        [
            _tool("clang"), "-O2", "-g", "-target", "bpf", "-mcpu=v3",
            f"-D__TARGET_ARCH_{_ARCHITECTURES.get(machine, machine)}", "-Wall", "-Werror",
            # 7.x embeds named structs without naming the member.
            "-fms-extensions", "-Wno-microsoft-anon-tag",
            f"-I{types}", f"-I{include_path()}", *color, *options, "-c", source, "-o", output,
        ],
        f"{source}: clang cannot compile it",
    )  # fmt: skip
    # Debug information of the compiler's is not for the kernel; BTF stays.
    _run([_tool("llvm-strip"), "-g", output], f"{source}: llvm-strip cannot strip it")


def _check_output(path: Path) -> None:
    """Before the compiler takes its time.

    :raises CollectorError: a collector cannot have that name
    :raises FileNotFoundError: there is no such directory
    """
    if not path.name.endswith(_OBJECT):
        raise CollectorError(f"{path}: collectors are named NAME{_OBJECT}")
    check_collector_name(path.name.removesuffix(_OBJECT))
    os.stat(path.parent)


def _write(path: Path, data: bytes) -> None:
    """All of it or nothing."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "xb") as file:
            file.write(data)
        partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def build(source: Path, output: Path | None = None, options: Sequence[str] = ()) -> Built:
    """Compile a collector and check what it declares.

    :param source: NAME.bpf.c, which includes ``cgstat.bpf.h``
    :param output: what to make; without it NAME.bpf.o next to the source
    :param options: for clang, besides those that are needed
    :raises CollectorError: it cannot be compiled, or could not be loaded; what the compiler
        says has been shown, and nothing is left
    :raises OSError: a tool or file is missing, or the output cannot be written
    """
    if not source.name.endswith(_SOURCE):
        hint = "; what bcc compiles needs no build" if source.name.endswith(".bcc.c") else ""
        raise CollectorError(f"{source}: the source of a collector is named NAME{_SOURCE}{hint}")
    output = output or source.with_name(source.name.removesuffix(_SOURCE) + _OBJECT)
    _check_output(output)
    source.open("rb").close()
    with tempfile.TemporaryDirectory(prefix="cgstatfs-") as name:
        partial = Path(name) / output.name
        _compile(source, _kernel_types(source, Path(name)), partial, options)
        data = partial.read_bytes()
    maps, notes = loading.describe(output, data)
    _write(output, data)
    return Built(output, maps, notes)
