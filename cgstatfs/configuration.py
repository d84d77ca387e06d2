# SPDX-License-Identifier: GPL-2.0-only
"""The settings of a mount, and where each is from: the command line, else a file, else a default.

The file is TOML, described in cgstatfs.toml(5) and read when a mount starts. All that is wrong
in it is said at once, by line and key.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .engines import AUTO, ENGINES
from .files import FileRefused, read_regular
from .nodes import SERIALS

__all__ = ("COMMAND_LINE", "FILE", "ConfigurationError", "Settings", "key_lines", "read_settings")

FILE = Path("/etc/cgstatfs/cgstatfs.toml")
COMMAND_LINE = "command line"
_DEFAULT = "default"
_MAX_FILE = 64 << 10

_COLLECTORS, _TABLES = "collectors", ("collectors", "limits")

# The text of any value fits: 128 elements, each a name and twenty digits.
_MIN_SNAPSHOTS = 64 << 10
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30}


class ConfigurationError(Exception):
    """The settings cannot be used; a line for each that is wrong, with place, reason and way out."""


# What values may be: each check takes what tomllib made of one, and returns the setting.


def _shown(value: object) -> str:
    kinds = {dict: "a table", list: "an array"}
    return kinds.get(type(value)) or json.dumps(value, default=str)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{_shown(value)} is no string; put it in quotes")
    if not value or "\0" in value:
        raise ValueError(f"{_shown(value)} is no path; give one, or leave the setting out")
    return value


def _absolute(value: object) -> Path:
    text = _text(value)
    if not text.startswith("/"):
        raise ValueError(f"{_shown(text)} is not absolute; begin it with /")
    return Path(text)


def _engine(value: object) -> str:
    names = [AUTO, *(kind.name for kind in ENGINES)]
    if value not in names:
        raise ValueError(f"there is no engine {_shown(value)}; choose one of {', '.join(names)}")
    return str(value)


def _integer(low: int, high: int) -> Callable[[object], int]:
    def check(value: object) -> int:
        # To Python true is an integer as well.
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"{_shown(value)} is no number from {low} to {high}; give one")
        return value

    return check


def _size(value: object) -> int:
    found = re.fullmatch(r"([0-9]{1,18})([KMG]?)", value) if isinstance(value, str) else None
    size = int(found[1]) << _UNITS[found[2]] if found else value
    if type(size) is not int or size < _MIN_SNAPSHOTS:
        raise ValueError(
            f'{_shown(value)} is no size of {_MIN_SNAPSHOTS >> 10} KiB or more; give a number of '
            'bytes, or a string with K, M or G at its end, as "64M"'
        )
    return size


def _setting(key: str, default: object, check: Callable[[object], object]) -> Any:
    return field(default=default, metadata={"key": key, "check": check})


@dataclass(frozen=True)
class Settings:
    """What a mount is started with.

    :ivar root: the cgroup to show, as a path from the root of the hierarchy
    :ivar engine: an engine's name, or ``auto``
    :ivar open_files_per_user: how many files a user other than root can have open
    :ivar snapshot_memory: bytes that the texts of all open files may take together
    :ivar unserved_seconds: how long a mount without a daemon is kept
    :ivar watchdog_seconds: after which a daemon that hangs is killed
    :ivar collectors: which are loaded, by name; those that are not in it are
    :ivar directories: for drop-ins, besides ``collectors.d``; by the command line alone
    :ivar origins: where each setting is from that is no default, by key
    """

    mount_point: Path = _setting("mount-point", Path("/cgstat"), _absolute)
    engine: str = _setting("engine", AUTO, _engine)
    root: str = _setting("root", "/", _text)
    # Fewer than there are handles for one file.
    open_files_per_user: int = _setting(
        "limits.open-files-per-user", 4096, _integer(1, SERIALS - 1)
    )
    snapshot_memory: int = _setting("limits.snapshot-memory", 64 << 20, _size)
    unserved_seconds: int = _setting("limits.unserved-seconds", 60, _integer(1, 3600))
    watchdog_seconds: int = _setting("limits.watchdog-seconds", 30, _integer(1, 3600))
    collectors: Mapping[str, bool] = field(default_factory=dict)
    directories: tuple[Path, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)

    @property
    def off(self) -> frozenset[str]:
        """The collectors that are not to be loaded."""
        return frozenset(name for name, on in self.collectors.items() if not on)

    def origin(self, *key: str) -> str:
        """Where a setting is from: ``default``, ``FILE:LINE`` or ``command line``."""
        return self.origins.get(_dotted(key), _DEFAULT)

    def describe(self, collectors: Iterable[str]) -> Iterator[str]:
        """Each setting in force and where it is from, a line each.

        :param collectors: the names of those that there are
        """
        for key, each in _FIELDS.items():
            value = getattr(self, each.name)
            text = _shown(str(value) if isinstance(value, Path) else value)
            yield f"{key} = {text}    ({self.origins.get(key, _DEFAULT)})"
        for name in sorted({*collectors, *self.collectors}):
            value = _shown(name not in self.off)
            key = _COLLECTORS, name
            yield f"{_dotted(key)} = {value}    ({self.origin(*key)})"

    def unknown_collectors(self, known: Iterable[str]) -> Iterator[str]:
        """What to say of each entry for a collector that there is not, in a line.

        It is no error: a drop-in that is gone should not keep the others from being mounted.
        """
        for name in sorted(self.collectors.keys() - set(known)):
            key = _COLLECTORS, name
            yield (
                f"{self.origin(*key)}: {_dotted(key)}: there is no such collector; it is ignored; "
                "correct the name, or remove the line"
            )


_FIELDS = {each.metadata["key"]: each for each in fields(Settings) if each.metadata}


# The file


def _dotted(path: tuple[str, ...]) -> str:
    """A key as TOML has it, on a line and unambiguous."""
    return ".".join(
        each if re.fullmatch(r"[A-Za-z0-9_-]+", each) else json.dumps(each) for each in path
    )


def _paths(table: Mapping[str, object]) -> Iterator[tuple[str, ...]]:
    for key, value in table.items():
        yield (key,)
        if isinstance(value, dict):
            yield from ((key, *rest) for rest in _paths(value))


def key_lines(document: str) -> dict[tuple[str, ...], int]:
    """The line on which each key and table of a document is first given, from 1 on.

    tomllib does not say. But a statement ends with the first line up to which it can be parsed,
    and of its own it has, behind the header of its table, the keys that it has in the document.

    :param document: TOML that can be parsed
    """
    found: dict[tuple[str, ...], int] = {}
    header, statement, first = "", "", 1
    for number, line in enumerate(document.split("\n"), 1):
        first = first if statement else number
        statement += line + "\n"
        try:
            parsed = tomllib.loads(header + statement)
        except tomllib.TOMLDecodeError:
            continue
        if statement.lstrip().startswith("["):
            header = statement
        for path in _paths(parsed):
            found.setdefault(path, first)
        statement = ""
    return found


def _read(file: Path) -> str:
    """The text of a file that root alone can write to, and so in directories that are such.

    :raises ConfigurationError: it is no such file, or no text
    :raises OSError: it cannot be read
    """
    try:
        data = read_regular(file, _MAX_FILE, trusted=True)
    except FileRefused as refused:
        raise ConfigurationError(f"{file}: {refused}") from None
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"{file}:{line}: is not UTF-8; write it in that") from None


def _parse(file: Path, document: str) -> dict[str, object]:
    """:raises ConfigurationError: it is not TOML"""
    try:
        return tomllib.loads(document)
    except (ValueError, RecursionError) as error:
        # Not all of what it raises has a place: a number can have too many digits for Python.
        reason, _, place = str(error).partition(" (at ")
        line = re.match(r"line (\d+)", place)
        number = line[1] if line else document.rstrip("\n").count("\n") + 1
        raise ConfigurationError(
            f"{file}:{number}: is not TOML: {reason}; see cgstatfs.toml(5)"
        ) from None


def _entries(table: Mapping[str, object]) -> Iterator[tuple[tuple[str, ...], object]]:
    """Keys, whole, and values, of our tables and beside them."""
    for key, value in table.items():
        if key in _TABLES and isinstance(value, dict):
            yield from (((key, inner), each) for inner, each in value.items())
        else:
            yield (key,), value


def _checked(path: tuple[str, ...], value: object) -> object:
    """:raises ValueError: with the reason, and the way out"""
    key = _dotted(path)
    if key in _FIELDS:
        return _FIELDS[key].metadata["check"](value)
    if key in _TABLES:
        raise ValueError(f"{_shown(value)} is no table; write [{key}], and its keys below")
    if path[0] != _COLLECTORS:
        raise ValueError(f"unknown; there are {', '.join(_FIELDS)}, and {_COLLECTORS}.NAME")
    if not isinstance(value, bool):
        raise ValueError(f"{_shown(value)} is neither true nor false; write one of them")
    return value


def _given_in(file: Path) -> Iterator[tuple[tuple[str, ...], object, str]]:
    """Key, value and origin of what a file has, in its order."""
    document = _read(file)
    table = _parse(file, document)
    lines = key_lines(document)
    for path, value in sorted(_entries(table), key=lambda entry: lines[entry[0]]):
        yield path, value, f"{file}:{lines[path]}"


def _given(
    file: Path | None, command_line: Mapping[str, object]
) -> Iterator[tuple[tuple[str, ...], object, str]]:
    """Key, value and origin of all that is given; what comes later goes before."""
    try:
        yield from _given_in(file or FILE)
    except FileNotFoundError:
        if file:
            raise
    for key, value in command_line.items():
        yield tuple(key.split(".")), value, COMMAND_LINE


def read_settings(file: Path | None, command_line: Mapping[str, object]) -> Settings:
    """The settings that are in force.

    :param file: to read; None: :data:`FILE`, which need not be there
    :param command_line: what is given there, by key
    :raises ConfigurationError: something in there is wrong, or others could have written it
    :raises OSError: the file cannot be read
    """
    values: dict[str, object] = {}
    collectors: dict[str, bool] = {}
    origins: dict[str, str] = {}
    errors = []
    for path, value, origin in _given(file, command_line):
        key = _dotted(path)
        try:
            checked = _checked(path, value)
        except ValueError as error:
            errors.append(f"{origin}: {key}: {error}")
            continue
        origins[key] = origin
        if key in _FIELDS:
            values[_FIELDS[key].name] = checked
        else:
            collectors[path[1]] = bool(checked)
    if errors:
        raise ConfigurationError("\n".join(errors))
    return Settings(**values, collectors=collectors, origins=origins)
