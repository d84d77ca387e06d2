# SPDX-License-Identifier: GPL-2.0-only
"""docs/authors.md: what it has one type is typed, in order, and prints what it says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cgstatfs.authoring import build
from cgstatfs.loading import Request, load

from ..conftest import cgroup_id, make_engine, remove_tree
from ..documents import DOCS, Section, sections
from .test_program import mount, mountpoint  # noqa: F401

_SECTIONS = sections(DOCS / "authors.md")
_BCC = "With bcc"
_MARK = "--- next ---"


def normal(pattern: str) -> str:
    """What a text of the document matches: large numbers and … may be anything."""
    text = re.escape(pattern)
    text = re.sub(r"\d{4,}", r"\\d+", text)
    return text.replace("…", ".*")


class Shell:
    """Types what is in the document. :ivar cgroup: that it makes"""

    def __init__(self, directory: Path, mountpoint: Path, cgroupfs: Path) -> None:
        self.cgroup = cgroupfs / f"cgstat-test-{os.getpid()}-doc"
        self._directory = directory
        self.drop_ins = directory / "collectors.d"
        self._bin = directory / "bin"
        self._work = directory / "work"
        for each in (self.drop_ins, self._bin, self._work):
            each.mkdir()
        self._variables = {
            "M": str(mountpoint), "D": str(self.drop_ins), "C": str(cgroupfs),
            "G": self.cgroup.name,
        }  # fmt: skip
        # Other mounts may be there: those who write the document have but one.
        command = self._bin / "cgstatfs"
        command.write_text(
            "#!/bin/sh\ncase $1 in load|unload|reload) "
            f'command=$1; shift; set -- "$command" --mount {shlex.quote(str(mountpoint))} "$@";; esac\n'
            f'exec {sys.executable} -m cgstatfs "$@"\n'
        )
        command.chmod(0o755)

    def type(self, section: Section) -> None:
        """Run a section's commands; what is printed is what the text behind them says."""
        scripts = [block.text for block in section.all if block.language == "sh"]
        script = f"\necho '{_MARK}'\n".join(scripts)
        for name, value in self._variables.items():
            script = re.sub(rf"^{name}=.*", f"{name}={shlex.quote(value)}", script, flags=re.M)
        done = subprocess.run(
            ["sh", "-euc", script], cwd=self._work, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=os.environ | self._variables | {"PATH": f"{self._bin}:{os.environ['PATH']}"},
        )  # fmt: skip
        assert not done.returncode, done.stdout
        self._compare(section, done.stdout.split(f"{_MARK}\n"))

    @staticmethod
    def _compare(section: Section, outputs: list[str]) -> None:
        remaining = iter(outputs)
        shown = ""
        for block in section.all:
            if block.language == "sh":
                assert shown == "", f"not in the document: {shown}"
                shown = next(remaining)
            elif block.language == "text":
                assert re.fullmatch(normal(block.text), shown, re.DOTALL), shown
                shown = ""
        assert shown == "", f"not in the document: {shown}"


@pytest.fixture
def shell(tmp_path: Path, mountpoint: Path, cgroupfs: Path) -> Iterator[Shell]:  # noqa: F811
    shell = Shell(tmp_path, mountpoint, cgroupfs)
    mount("--collectors", shell.drop_ins, mountpoint)
    yield shell
    if shell.cgroup.exists():
        remove_tree(shell.cgroup)


def test_from_nothing_to_a_file(shell: Shell) -> None:
    typed = [s for s in _SECTIONS if s.blocks("sh") and s.heading != _BCC]
    assert len(typed) == 6
    for section in typed:
        shell.type(section)
    assert not shell.cgroup.exists()


def test_the_same_with_bcc(shell: Shell, bcc_compiler: None) -> None:
    (section,) = (s for s in _SECTIONS if s.heading == _BCC)
    shell.type(section)
    assert not shell.cgroup.exists()


def test_the_header_is_as_described(tmp_path: Path, engine_name: str, cgroupfs: Path) -> None:
    """The pieces of C are one collector, which can be loaded."""
    source = tmp_path / "pieces.bpf.c"
    source.write_text("\n".join(piece for s in _SECTIONS for piece in s.blocks("c")))
    built = build(source)
    assert [about.file for about in built.maps] == [
        "my.requests", "my.reloads", "my.requests.own", "my.seen",
    ]  # fmt: skip
    load(Request(built.path, make_engine(engine_name), cgroup_id(cgroupfs))).close()
