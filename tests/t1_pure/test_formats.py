# SPDX-License-Identifier: GPL-2.0-only
"""docs/formats.md: each example is what is shown, and is parsed as it says."""

from __future__ import annotations

import doctest
import re
import subprocess
from pathlib import Path

import pytest

from cgstatfs.valuetype import AGGREGATED, MAX, MIN, Element, ValueType, linear_bounds, log2_bounds

from ..documents import DOCS, Section, sections

_ALL_ONES = (1 << 64) - 1


def histogram(name: str, offset: int, bounds: tuple[int, ...], kind: str) -> Element:
    return Element(name, offset, len(bounds) + 1, bounds=bounds, histogram=kind)


# Three registers of the first element that something fell to.
_HLL = (0x010101, *[0] * 63)

# The value type and a value, by what the example's heading begins with.
EXAMPLES: dict[str, tuple[tuple[Element, ...], tuple[int, ...]]] = {
    "One number": ((Element("", 0),), (7,)),
    "An array": ((Element("", 0, 3),), (7, 0, 12)),
    "A struct": (
        (Element("begun", 0), Element("ended", 1), Element("busy_ns", 2)), (7, 5, 40217611),
    ),
    "An array in a struct": (
        (Element("begun", 0), Element("by_class", 1, 3)), (19, 7, 0, 12),
    ),
    "A struct in a struct": (
        (
            Element("read", 0, sub="requests"), Element("read", 1, sub="sent_bytes"),
            Element("write", 2, sub="requests"), Element("write", 3, sub="sent_bytes"),
            Element("ended", 4),
        ),
        (4, 16384, 1, 512, 5),
    ),
    "An array of structs": (
        (
            Element("queue.0", 0, sub="requests"), Element("queue.0", 1, sub="sent_bytes"),
            Element("queue.1", 2, sub="requests"), Element("queue.1", 3, sub="sent_bytes"),
        ),
        (4, 16384, 0, 0),
    ),
    "An array in a struct in a struct": (
        (
            Element("disk", 0, sub="total_ns"), Element("disk.by_class", 1, 3),
            Element("disk", 4, sub="waits"),
        ),
        (30071, 7, 0, 2, 9),
    ),
    "A histogram": (
        (
            histogram("wait_ns", 0, log2_bounds(5), "log2"),
            histogram("depth", 5, linear_bounds(4, 0, 10), "linear"),
            histogram("size_bytes", 9, (512, 4096), "bounds"),
        ),
        (0, 3, 5, 1, 1, 1, 2, 0, 1, 4, 0, 2),
    ),
    "Highest and lowest": (
        (
            Element("longest_ns", 0, operation=MAX), Element("shortest_ns", 1, operation=MIN),
            Element("least_bytes", 2, operation=MIN),
        ),
        (80412, _ALL_ONES - 312, 0),
    ),
    "Distinct keys": (
        (Element("begun", 0), Element("users", 1, 64, operation=AGGREGATED, distinct=True)),
        (19, *_HLL),
    ),
}  # fmt: skip

_SECTIONS = sections(DOCS / "formats.md")


def of(heading: str) -> Section:
    return next(s for s in _SECTIONS if s.heading.partition(":")[0] == heading)


def test_every_example_is_tested() -> None:
    assert [s.heading.partition(":")[0] for s in _SECTIONS if s.blocks("text")] == list(EXAMPLES)


@pytest.mark.parametrize("heading", EXAMPLES)
def test_the_text_is_what_is_shown(heading: str) -> None:
    fields, value = EXAMPLES[heading]
    (text,) = of(heading).blocks("text")
    assert ValueType(fields).format(value).decode() == text


@pytest.mark.parametrize("heading", EXAMPLES)
def test_shell_and_awk(heading: str, tmp_path: Path) -> None:
    (text,), (script,) = of(heading).blocks("text"), of(heading).blocks("sh")
    (tmp_path / "file").write_text(text)
    (awk,) = _SECTIONS[0].blocks("awk")
    (tmp_path / "sub-key.awk").write_text(awk)
    for line in script.splitlines():
        command, expected = re.fullmatch(r"(.*\S)\s+# (.*)", line).groups()
        done = subprocess.run(
            ["sh", "-ec", command], cwd=tmp_path, env={"F": "file", "PATH": "/usr/bin:/bin"},
            text=True, capture_output=True,
        )  # fmt: skip
        assert (done.stdout, done.stderr) == (f"{expected}\n", ""), command


@pytest.mark.parametrize("heading", EXAMPLES)
def test_python(heading: str) -> None:
    (text,), (session,) = of(heading).blocks("text"), of(heading).blocks("pycon")
    (function,) = _SECTIONS[0].blocks("python")
    names: dict[str, object] = {"text": text}
    exec(function, names)
    names["parse"](text)
    test = doctest.DocTestParser().get_doctest(session, names, heading, "formats.md", 0)
    assert test.examples
    said: list[str] = []
    doctest.DocTestRunner(verbose=False).run(test, out=said.append, clear_globs=False)
    assert not said, "".join(said)


@pytest.mark.parametrize("heading", EXAMPLES)
def test_lines_of_a_subtree_have_the_same(heading: str) -> None:
    """Flattened: a key and a sub-key with a dot between; an index where there is no name."""
    fields, value = EXAMPLES[heading]
    value_type = ValueType(fields)
    expected = []
    for line in value_type.format(value).decode().splitlines():
        key, *words = line.split(" ") if fields[0].name else ("", *line.split(" "))
        for index, word in enumerate(words):
            sub, _, number = word.rpartition("=")
            if not fields[0].name and len(words) > 1:
                sub = str(index)
            name = ".".join(filter(None, (key, sub)))
            expected.append(f"{name}={number}" if name else number)
    words = (1, *value)
    text = value_type.format_lines(["/a", "/b"], words + words)
    assert text == "".join(f"{path} {' '.join(expected)}\n" for path in ("/a", "/b"))
