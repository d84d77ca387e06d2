# SPDX-License-Identifier: GPL-2.0-only
"""What the file system says of itself: the files of ``.cgstatfs``, and ``cgstatfs status``.

======================  ====================================================================
file                    text
======================  ====================================================================
``version``             of the daemon that serves
``engine``              by name
``health``              flat keyed, of all maps and daemons of the mount together
named as a stats map    flat keyed, of that map
======================  ====================================================================
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from . import __version__
from .registry import Registry
from .runtime import State

__all__ = ("About",)

# Counting a map's entries takes a walk over them; who asks all the time gets what it was.
_FRESH_SECONDS = 1.0


class _Errors(logging.Handler):
    """Counts what the log says went wrong."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.count = 0
        self.last = "none"

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1
        self.last = record.getMessage().partition("\n")[0]


class About:
    """The texts.

    :param limits_hit: how often a bound was reached since this daemon began
    """

    def __init__(self, registry: Registry, state: State, limits_hit: Callable[[], int]) -> None:
        self._registry = registry
        self._state = state
        self._limits_hit = limits_hit
        self._errors = _Errors()
        logging.getLogger().addHandler(self._errors)
        self._maps: dict[str, dict[str, int]] = {}
        self._asked = -_FRESH_SECONDS

    def files(self) -> dict[bytes, Callable[[], bytes]]:
        """The files there are now, and what makes their texts."""
        files = {
            name.encode(): lambda name=name: _flat(self._usage()[name])
            for name in self._registry.files()
        }
        return files | {
            b"version": lambda: f"{__version__}\n".encode(),
            b"engine": lambda: f"{self._state.engine}\n".encode(),
            b"health": lambda: _flat(self._health()),
        }

    def _usage(self) -> dict[str, dict[str, int]]:
        now = time.monotonic()
        if now - self._asked >= _FRESH_SECONDS or self._maps.keys() != set(self._registry.files()):
            self._maps = self._registry.usage()
            self._asked = time.monotonic()
        return self._maps

    def _health(self) -> dict[str, int | str]:
        maps = self._usage().values()
        health: dict[str, int | str] = {
            key: sum(each.get(key, 0) for each in maps)
            for key in (
                "updates_lost", "updates_displaced", "runs_skipped", "entries", "memory", "lookups",
            )
        }  # fmt: skip
        return health | {
            "maps": len(maps),
            "failed_collectors": len(self._state.failed),
            "restarts": self._state.served - 1,
            "limits_hit": self._limits_hit(),
            "errors": self._errors.count,
            "last_error": self._errors.last,
        }

    def lines(self) -> list[str]:
        """All of it, for ``cgstatfs status`` and the log."""
        lines = [
            f"version {__version__}", f"engine {self._state.engine}",
            *(f"{key} {value}" for key, value in self._health().items()),
        ]  # fmt: skip
        for name, usage in self._usage().items():
            lines += [f"{name}.{key} {value}" for key, value in usage.items()]
        return lines


def _flat(values: dict[str, int] | dict[str, int | str]) -> bytes:
    return "".join(f"{key} {value}\n" for key, value in values.items()).encode("utf-8", "replace")
