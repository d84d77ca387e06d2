# SPDX-License-Identifier: GPL-2.0-only
"""What the source of a bcc collector, ``NAME.bcc.c``, says before it is compiled.

bcc's compiler tells types and no names of files, and what it says of the mistakes that are most
likely does not help. So the source is searched for both.
"""

from __future__ import annotations

import os
import re
from contextlib import ExitStack
from dataclasses import dataclass

from .collectors import CollectorError, check_file_name
from .engines import Standalone

__all__ = ("ZERO", "Declaration", "Source")

# Besides the parts of a stats map, the map that an update uses: of zeros, to make new arrays from.
ZERO = "zero"
_MAX_SOURCE = 1 << 20

_COMMENT = re.compile(r"""("(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')|//[^\n]*|/\*.*?\*/""", re.S)
_DECLARATION = re.compile(
    r'\bCGSTAT_MAP\s*\(\s*(\w+)\s*,\s*[^,()"]+,\s*"([^"\n]*)"\s*(?:,\s*([^()]*))?\)'
)
_NOT_HERE = re.compile(
    r"\b(CGSTAT_(?:BOUNDS|HLL|AGGREGATED|MAP_AGGREGATED)"
    r"|cgstat_(?:bounds|inc_bounds|distinct|see|lookup))\b"
)
_OTHER_PROBE = re.compile(
    r"\b((?:TRACEPOINT|(?:MODULE_)?K(?:RET)?FUNC|LSM)_PROBE(?=\s*\()"
    r"|(?:k(?:ret)?(?:probe|func)|tracepoint|lsm)__\w+(?=\s*\())"
)


@dataclass(frozen=True)
class Declaration:
    """A ``CGSTAT_MAP`` of the source.

    :ivar prefix: its name in the source
    :ivar flags: as they are written
    :ivar numbers: the descriptors that its BPF maps are to have
    """

    prefix: str
    file: str
    flags: str
    numbers: dict[str, int]

    @property
    def defines(self) -> list[str]:
        """What tells cgstat.bcc.h the numbers, as arguments of a compiler."""
        return [f"-DCGSTAT_FD_{self.prefix}_{part}={n}" for part, n in self.numbers.items()]


class Source:
    """A source that could be a collector's.

    :ivar text: all of it
    :raises CollectorError: it could not be
    """

    def __init__(self, data: bytes) -> None:
        self.text = _decode(data)
        self._code = _COMMENT.sub(lambda match: match[1] or " ", self.text)
        if match := _NOT_HERE.search(self._code):
            raise CollectorError(
                f"uses {match[1]}, which a collector that bcc compiles cannot; write a NAME.bpf.c"
            )
        if match := _OTHER_PROBE.search(self._code):
            raise CollectorError(
                f'"{match[1]}" is not a raw tracepoint\'s; use RAW_TRACEPOINT_PROBE(), as BPF skips '
                "the other kinds of programs while user space uses maps, or write a NAME.bpf.c"
            )

    def declarations(self, stack: ExitStack) -> list[Declaration]:
        """What it declares, in order.

        :param stack: the numbers are reserved until it is left
        :raises CollectorError: nothing, or something twice
        """
        found: dict[str, Declaration] = {}
        for prefix, file, flags in _DECLARATION.findall(self._code):
            check_file_name(file)
            if file in found:
                raise CollectorError(f'two stats maps are named "{file}"; rename one of them')
            numbers = {name: _reserve(stack) for name in (*Standalone.parts, ZERO)}
            found[file] = Declaration(prefix, file, flags, numbers)
        if not found:
            raise CollectorError('declares no stats map; use CGSTAT_MAP(name, type, "file")')
        return list(found.values())


def _decode(data: bytes) -> str:
    if len(data) > _MAX_SOURCE:
        raise CollectorError(f"is larger than {_MAX_SOURCE >> 20} MiB")
    if b"\0" in data:
        raise CollectorError("is no C source")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise CollectorError("is no text in UTF-8") from None


def _reserve(stack: ExitStack) -> int:
    """A number of a descriptor, that is nobody else's."""
    number = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, number)
    return number
