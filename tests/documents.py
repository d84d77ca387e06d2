# SPDX-License-Identifier: GPL-2.0-only
"""The documents, taken apart, so that tests can run what they say."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


@dataclass(frozen=True)
class Block:
    """A fenced block. :ivar language: the word behind the fence"""

    language: str
    text: str


@dataclass(frozen=True)
class Section:
    """What is below a heading of the second level; the first has what comes before any."""

    heading: str
    all: tuple[Block, ...]

    def blocks(self, language: str) -> list[str]:
        """The texts of the blocks of one language."""
        return [block.text for block in self.all if block.language == language]


def _blocks(text: str) -> tuple[Block, ...]:
    fenced = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return tuple(Block(language, inner) for language, inner in fenced)


def sections(path: Path) -> list[Section]:
    """The sections of a document in Markdown, in order."""
    parts = re.split(r"^## (.*)\n", path.read_text(), flags=re.MULTILINE)
    return [Section("", _blocks(parts[0]))] + [
        Section(heading, _blocks(text)) for heading, text in zip(parts[1::2], parts[2::2])
    ]
