# SPDX-License-Identifier: GPL-2.0-only
"""How this program starts itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ("environment", "python")


def python(module: str) -> list[str]:
    """The beginning of a command that runs one of our modules."""
    return [sys.executable, "-m", module]


def environment() -> dict[str, str]:
    """In which it finds the package that this one is of, wherever it is started."""
    package = str(Path(__file__).parent.parent)
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if package in paths:
        return dict(os.environ)
    return os.environ | {"PYTHONPATH": os.pathsep.join([package, *paths])}
