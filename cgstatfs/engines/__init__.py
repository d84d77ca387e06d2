# SPDX-License-Identifier: GPL-2.0-only
"""Engines: what implements update, flush and lookup of stats maps on a kernel.

Each engine is a module with one class; :func:`choose` picks one.
"""

from __future__ import annotations

from .base import Engine, EngineUnavailable, Setting, Usage
from .buffer import BUFFER_FLAGS, BUFFERS
from .native import Native
from .rstat import Rstat
from .standalone import Standalone

__all__ = (
    "AUTO", "BUFFERS", "BUFFER_FLAGS", "ENGINES", "Engine", "EngineUnavailable", "Native", "Rstat",
    "Setting", "Standalone",
    "Usage", "choose",
)  # fmt: skip

# In place of an engine's name: the best there is.
AUTO = "auto"

# Best first.
ENGINES: tuple[type[Engine], ...] = (Native, Rstat, Standalone)


def choose(name: str = AUTO) -> tuple[Engine, str]:
    """The engine to use, probed, and why it is this one.

    :param name: an engine's name, to have that one or fail, or :data:`AUTO`
    :raises EngineUnavailable: the named engine, or every engine, cannot be used here
    """
    reasons = []
    for kind in ENGINES:
        if name not in (AUTO, kind.name):
            continue
        engine = kind()
        try:
            engine.probe()
        except EngineUnavailable as error:
            reasons.append(f"{kind.name}: {error}")
            continue
        if name != AUTO:
            return engine, "asked for"
        return engine, "; ".join(reasons) or f"{kind.name}: the kernel has all it needs"
    raise EngineUnavailable("; ".join(reasons))
