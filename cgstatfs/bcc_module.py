# SPDX-License-Identifier: GPL-2.0-only
"""bcc, the BPF Compiler Collection, as far as collectors need it.

Its compiler and its loader write what went wrong to descriptor 2, and raise bare exceptions.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from . import libbpf
from .collectors import CollectorError
from .objects import include_path

__all__ = ("Module", "PROGRAM")

# What the names of programs begin with, before the tracepoint's.
PROGRAM = "raw_tracepoint__"
_LINES = 10
# include/uapi/linux/bpf.h: BPF_PROG_TYPE_RAW_TRACEPOINT
_RAW_TRACEPOINT = 17
# What says only that there is something, not what.
_EMPTY = re.compile(r"\s*$|processed \d+ insns|bpf: Failed to load program|\d+ (error|warning)s?\b.*generated")


def _import_bcc() -> ModuleType:
    try:
        import bcc
    except (ImportError, OSError, AttributeError):
        bcc = None
    # There is another package of that name.
    if not hasattr(bcc, "BPF"):
        raise CollectorError("bcc is not installed, which compiles it; install python3-bpfcc")
    return bcc


def _check_headers() -> None:
    """Whether there is what bcc compiles with; it would try to make do without."""
    release = os.uname().release
    modules = Path("/lib/modules") / release
    places = (modules / "build/include", Path("/sys/kernel/kheaders.tar.xz"))
    if os.environ.get("BCC_KERNEL_SOURCE") or any(place.exists() for place in places):
        return
    if any((modules / "kernel/kernel").glob("kheaders.ko*")):
        return
    raise CollectorError(
        "the kernel's headers are missing, which bcc compiles it with; "
        f"install linux-headers-{release}"
    )


@contextmanager
def _captured_stderr(lines: list[str]) -> Iterator[None]:
    """What anybody, libraries included, writes to descriptor 2 goes to *lines*."""
    sys.stderr.flush()
    saved = os.dup(2)
    # In no directory: systemd's sandbox has none to write to.
    with open(os.memfd_create("stderr"), "w+b") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            text = file.read().decode("utf-8", "replace")
            lines.extend(libbpf.printable(line.expandtabs()) for line in text.splitlines())


def _indented(lines: list[str]) -> str:
    return "".join(f"\n    {line}" for line in lines if not _EMPTY.match(line))


def _first_errors(lines: list[str], path: Path) -> str:
    """Of what the compiler said, the first error, and some of what follows."""
    for number, line in enumerate(lines):
        if " error: " in line:
            lines = lines[number:]
            break
    return _indented([line.replace("/virtual/main.c", path.name) for line in lines[:_LINES]])


class Module:
    """A compiled source. Nothing of it is loaded until :meth:`load`.

    :param path: what to call it
    :param defines: further arguments of the compiler
    :raises CollectorError: it does not compile, or there is nothing to compile it with
    """

    def __init__(self, path: Path, text: str, defines: list[str]) -> None:
        bcc = _import_bcc()
        _check_headers()

        class Compiled(bcc.BPF):
            def _trace_autoload(self) -> None:
                """Later, and not for every kind."""

        lines: list[str] = []
        try:
            with _captured_stderr(lines):
                self._bpf = Compiled(text=text.encode(), cflags=[f"-I{include_path()}", *defines])
        except Exception:  # Which is what bcc raises.
            raise CollectorError(f"does not compile:{_first_errors(lines, path)}") from None
        self._lib = bcc.libbcc.lib

    def end(self) -> None:
        atexit.unregister(self._bpf.cleanup)
        self._bpf.cleanup()

    @property
    def programs(self) -> list[str]:
        """Names of the functions that are not static.

        :raises CollectorError: one is no raw tracepoint's
        """
        module = self._bpf.module
        count = self._lib.bpf_num_functions(module)
        names = [self._lib.bpf_function_name(module, i).decode() for i in range(count)]
        for name in names:
            if not name.startswith(PROGRAM):
                raise CollectorError(
                    f'function "{name}" is no program for a tracepoint; use RAW_TRACEPOINT_PROBE(), '
                    "or, for a function that programs call, declare it static inline"
                )
        if not names:
            raise CollectorError("has no program; use RAW_TRACEPOINT_PROBE()")
        return names

    def type_of(self, prefix: str) -> tuple[Any, libbpf.MapInfo] | None:
        """What bcc says of a stats map's value, and the map that it made for it; None: nothing."""
        name = f"{prefix}_type".encode()
        fd = self._lib.bpf_table_fd(self._bpf.module, name)
        if fd < 0:
            return None
        said = self._lib.bpf_table_leaf_desc(self._bpf.module, name)
        return json.loads(said), libbpf.map_info(fd)

    def load(self, name: str) -> int:
        """Load a program; the caller closes the descriptor."""
        lines: list[str] = []
        try:
            with _captured_stderr(lines):
                return os.dup(self._bpf.load_func(name.encode(), _RAW_TRACEPOINT).fd)
        except Exception as error:
            why = str(error).rpartition(": ")[2]
            lines = [line for line in lines if not _EMPTY.match(line)]
            raise CollectorError(
                f'program "{name}" is refused by the verifier: {why}{_indented(lines[-_LINES:])}'
            ) from None
