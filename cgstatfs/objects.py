# SPDX-License-Identifier: GPL-2.0-only
"""Where the compiled BPF objects are, and what a collector's author needs of bpf/.

All of it is put beside this file by `make build`.
"""

from __future__ import annotations

import errno
from pathlib import Path

__all__ = ("OBJECTS", "include_path", "object_path", "template")

_HERE = Path(__file__).parent
OBJECTS = _HERE / "objects"


def _built(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, "not built; run `make build`", str(path))
    return path


def object_path(name: str) -> Path:
    """The object compiled from ``bpf/NAME.bpf.c``.

    :raises FileNotFoundError: it was not built
    """
    return _built(OBJECTS / f"{name}.bpf.o")


def include_path() -> Path:
    """The directory of ``cgstat.bpf.h`` and the headers that it includes.

    :raises FileNotFoundError: it was not built
    """
    return _built(_HERE / "include" / "cgstat.bpf.h").parent


def template(ending: str) -> str:
    """The starting point of a collector, ``bpf/templates/new`` and *ending*.

    :param ending: ``.bpf.c`` or ``.bcc.c``
    :raises FileNotFoundError: it was not built
    """
    return _built(_HERE / "templates" / f"new{ending}").read_text()
