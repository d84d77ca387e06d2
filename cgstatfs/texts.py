# SPDX-License-Identifier: GPL-2.0-only
"""Texts of open files: what a read at offset 0 made, for later offsets to go on with."""

from __future__ import annotations

from typing import Protocol

__all__ = ("Text", "WholeText")


class Text(Protocol):
    """A text that does not change, though it may not have been made yet.

    :ivar length: of all of it; None: not known yet
    """

    @property
    def length(self) -> int | None: ...

    @property
    def memory(self) -> int:
        """Bytes that it takes, about; with time this can change."""

    def read(self, offset: int, size: int) -> bytes:
        """A part of it; empty at its end."""


class WholeText:
    """One that is there."""

    def __init__(self, text: bytes) -> None:
        self._text = text
        self.length = self.memory = len(text)

    def read(self, offset: int, size: int) -> bytes:
        return self._text[offset : offset + size]
