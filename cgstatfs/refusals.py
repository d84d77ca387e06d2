# SPDX-License-Identifier: GPL-2.0-only
"""Why a collector was refused, in a few lines: what libbpf and the kernel said, made short."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable
from pathlib import Path

from . import libbpf
from .collectors import CollectorError
from .libbpf import printable

__all__ = ("attach_refused", "refusals", "show_path")

_LOG_LINES = 10
_LINE = 400

_PROGRAM = re.compile(r"prog '(.*?)': BPF program load failed: ")
_MAP = re.compile(r"map '(.*?)': failed to create: .*")
_NO_TARGET = re.compile(r"prog '(.*?)': failed to find kernel BTF type ID of '(.*?)'")
_NOT_GPL = re.compile(r"(from|by) non-GPL compatible program|must have a GPL compatible license")
_NO_BTF = "BTF is required, but is missing or corrupted"
_NO_BTF_EXT = "missing btf func_info"
# What says only that, not why.
_EMPTY = re.compile(r"\s*$|.*failed to (load( object)?|prepare load attributes)\b|processed \d+ insns|"
                    r"verification time \d+|stack depth ")  # fmt: skip

_REASONS = {
    errno.E2BIG: "it is too large",
    errno.ENOMEM: "there is no memory for it",
    errno.EINVAL: "this kernel does not have its type, or does not take its sizes or flags",
}


def show_path(path: Path) -> str:
    """A path for a message, on one line, whatever its bytes are."""
    return printable(str(path))


def _tail(lines: Iterable[str]) -> str:
    lines = [line.removeprefix("libbpf: ") for line in lines]
    wanted = [line for line in lines if not _EMPTY.match(line)]
    if len(wanted) == 1:
        return f" ({wanted[0]})"
    return "".join(f"\n    {line}" for line in wanted[-_LOG_LINES:])


def _explain_load(error: libbpf.LoadError) -> str:
    """Of what libbpf or the kernel would not load: which part of it, and why."""
    said = "\n".join(error.log)
    if match := _NO_TARGET.search(said):
        return (f'program "{match[1]}" is for "{match[2]}", a tracepoint or function that this '
                "kernel does not have")  # fmt: skip
    if match := _MAP.search(said):
        why = _REASONS.get(error.errno, "")
        return f'map "{match[1]}" cannot be created: {error.strerror}' + (f"; {why}" if why else "")
    if match := _PROGRAM.search(said):
        return _explain_verifier(match[1], error)
    if _NO_BTF in said:
        return "has no BTF, or damaged BTF; compile it with clang -g, and strip it with llvm-strip -g"
    return error.strerror + _tail(error.log)


def _explain_verifier(program: str, error: libbpf.LoadError) -> str:
    said = "\n".join(error.verifier_log)
    if _NOT_GPL.search(said):
        return ('its licence is not compatible with the GPL, which the kernel wants of what reads '
                'its data; declare char LICENSE[] SEC("license") = "GPL"')  # fmt: skip
    if _NO_BTF_EXT in said:
        return "has no .BTF.ext, or a damaged one; compile it with clang -g"
    why = "it is too complex" if error.errno == errno.ENOSPC else error.strerror
    return f'program "{program}" is refused by the verifier: {why}' + _tail(error.verifier_log)


def _explain(error: OSError) -> str:
    if isinstance(error, libbpf.LoadError):
        return _explain_load(error)
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)


def attach_refused(program: libbpf.Program, error: OSError) -> CollectorError:
    """A program was verified, and cannot be attached where its section says."""
    why = error.strerror
    if error.errno == errno.ENOENT:
        why = "this kernel has no such tracepoint or function"
        if not program.section.startswith("raw_tp") and not os.path.exists(
            "/sys/kernel/tracing/events"
        ):
            why += ", or /sys/kernel/tracing is not mounted"
    return CollectorError(f'program "{program.name}" ({program.section}) cannot be attached: {why}')


class refusals:
    """In the ``with`` block every refusal becomes a CollectorError that names the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if isinstance(error, OSError):
            same = error.filename == str(self._path) and not isinstance(error, libbpf.LoadError)
            why = str(error.strerror) if same else _explain(error)
        elif isinstance(error, (CollectorError, ValueError)):
            why = str(error)
        else:
            return
        lines = [line[:_LINE] for line in why.splitlines()]
        raise CollectorError(f"{show_path(self._path)}: " + "\n".join(lines)) from None
