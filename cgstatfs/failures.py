# SPDX-License-Identifier: GPL-2.0-only
"""What ends a command or a daemon, and is explained in a line rather than by a traceback."""

from __future__ import annotations

from .collectors import CollectorError
from .configuration import ConfigurationError
from .engines import EngineUnavailable
from .wire import Incompatible

__all__ = ("EXPECTED", "say")

EXPECTED = (OSError, EngineUnavailable, CollectorError, ConfigurationError, Incompatible)


def say(error: Exception) -> str:
    """Why something could not be done, in a line.

    :param error: one of :data:`EXPECTED`
    """
    if isinstance(error, EngineUnavailable):
        return f"no engine can be used: {error}"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
    return str(error)
