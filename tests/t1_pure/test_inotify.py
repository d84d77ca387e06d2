# SPDX-License-Identifier: GPL-2.0-only
"""What is used of inotify, against plain directories."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cgstatfs.inotify import ATTRIB, DONT_FOLLOW, ONLYDIR, Event, Inotify

MASK = ATTRIB | ONLYDIR | DONT_FOLLOW


@pytest.fixture
def notifier() -> Iterator[Inotify]:
    notifier = Inotify()
    yield notifier
    notifier.close()


def test_events_say_where_and_what(notifier: Inotify, tmp_path: Path) -> None:
    name = b"caf\xe9"
    os.mkdir(os.fsencode(tmp_path) + b"/" + name)
    watch = notifier.add_watch(tmp_path, MASK)
    assert notifier.read() == []
    os.chmod(os.fsencode(tmp_path) + b"/" + name, 0o700)
    tmp_path.chmod(0o711)
    inside, itself = notifier.read()
    assert (inside.watch, inside.name) == (watch, name)
    assert (itself.watch, itself.name) == (watch, b"")
    assert inside.mask & itself.mask & ATTRIB
    assert notifier.read() == []


def test_names_of_all_lengths(notifier: Inotify, tmp_path: Path) -> None:
    names = [b"n" * length for length in range(1, 256)]
    watch = notifier.add_watch(tmp_path, MASK)
    for name in names:
        path = os.fsencode(tmp_path) + b"/" + name
        os.close(os.open(path, os.O_CREAT))
        os.chmod(path, 0o600)
    seen: list[Event] = []
    while events := notifier.read():
        seen += events
    assert seen == [Event(watch, ATTRIB, name) for name in names]


def test_a_watch_ends(notifier: Inotify, tmp_path: Path) -> None:
    notifier.rm_watch(notifier.add_watch(tmp_path, MASK))
    notifier.read()
    tmp_path.chmod(0o711)
    assert notifier.read() == []


def test_errors_name_the_path(notifier: Inotify, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as missing:
        notifier.add_watch(tmp_path / "none", MASK)
    assert missing.value.filename == str(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        notifier.add_watch(tmp_path / "file", MASK)
    with pytest.raises(OSError) as unknown:
        notifier.rm_watch(12345)
    assert unknown.value.errno == errno.EINVAL
