# SPDX-License-Identifier: GPL-2.0-only
"""Where the compiled BPF objects are."""

from __future__ import annotations

import errno
from pathlib import Path

__all__ = ("OBJECTS", "object_path")

OBJECTS = Path(__file__).parent / "objects"


def object_path(name: str) -> Path:
    """The object compiled from ``bpf/NAME.bpf.c``.

    :raises FileNotFoundError: it was not built
    """
    path = OBJECTS / f"{name}.bpf.o"
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, "not built; run `make build`", str(path))
    return path
