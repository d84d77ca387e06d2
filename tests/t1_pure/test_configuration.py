# SPDX-License-Identifier: GPL-2.0-only
"""Each setting takes what is good and says what is wrong, where, and what to do."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from cgstatfs import configuration
from cgstatfs.available import SHIPPED
from cgstatfs.configuration import ConfigurationError, Settings, key_lines, read_settings

from ..conftest import REPOSITORY
from ..documents import DOCS

EXAMPLE = REPOSITORY / "systemd/cgstatfs.toml"

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a configuration file."""
    path = tmp_path / "cgstatfs.toml"

    def write(text: str) -> Path:
        path.write_text(text)
        path.chmod(0o644)
        return path

    return write


def wrong(file: Path, **command_line: str) -> list[str]:
    """The errors that it is refused with, without the file's path."""
    with pytest.raises(ConfigurationError) as raised:
        read_settings(file, command_line)
    return [line.removeprefix(f"{file}:") for line in str(raised.value).splitlines()]


# By key: what the file has, what the setting then is, and what is no good for which reason.
GOOD = {
    "mount-point": [('"/mnt/a b"', Path("/mnt/a b"))],
    "engine": [(f'"{name}"', name) for name in ("auto", "native", "rstat", "standalone")],
    "root": [('"/system.slice"', "/system.slice"), ("'''/a'''", "/a")],
    "limits.open-files-per-user": [("1", 1), ("16_383", 16383)],
    "limits.snapshot-memory": [
        ("65536", 65536), ('"65536"', 65536), ('"64K"', 65536), ('"3M"', 3 << 20), ('"2G"', 2 << 30),
    ],
    "limits.unserved-seconds": [("1", 1), ("3600", 3600)],
    "limits.watchdog-seconds": [("1", 1), ("3600", 3600)],
    "collectors.mm_reclaim": [("true", True), ("false", False)],
}  # fmt: skip
BAD = {
    "mount-point": [
        ('"cgstat"', '"cgstat" is not absolute; begin it with /'),
        ('""', '"" is no path; give one, or leave the setting out'),
        ('"/a\\u0000"', '"/a\\u0000" is no path; give one, or leave the setting out'),
        ("7", "7 is no string; put it in quotes"),
    ],
    "engine": [
        (value, f"there is no engine {shown}; choose one of auto, native, rstat, standalone")
        for value, shown in (('"steam"', '"steam"'), ("true", "true"), ("[]", "an array"))
    ],
    "root": [
        ('""', '"" is no path; give one, or leave the setting out'),
        ("{ a = 1 }", "a table is no string; put it in quotes"),
    ],
    "limits.open-files-per-user": [
        (value, f"{shown} is no number from 1 to 16383; give one")
        for value, shown in (("0", "0"), ("16384", "16384"), ("-1", "-1"), ("1.5", "1.5"),
                             ("true", "true"), ('"9"', '"9"'), ("1979-05-27", '"1979-05-27"'))
    ],
    "limits.snapshot-memory": [
        (value, f"{shown} is no size of 64 KiB or more; give a number of bytes, or a string with "
                'K, M or G at its end, as "64M"')
        for value, shown in (("65535", "65535"), ('"63K"', '"63K"'), ('"64X"', '"64X"'),
                             ('"64m"', '"64m"'), ('"-64M"', '"-64M"'), ('""', '""'),
                             ("true", "true"), ("inf", "Infinity"))
    ],
    "limits.unserved-seconds": [
        (value, f"{value} is no number from 1 to 3600; give one")
        for value in ("0", "3601", '"60"', "60.0", "false")
    ],
    "limits.watchdog-seconds": [
        (value, f"{value} is no number from 1 to 3600; give one")
        for value in ("0", "3601", '"30"', "30.0", "true")
    ],
    "collectors.mm_reclaim": [
        (value, f"{value} is neither true nor false; write one of them")
        for value in ('"no"', "0", "1")
    ],
}  # fmt: skip


def each(cases: dict[str, list[tuple[str, object]]]) -> list[tuple[str, str, object]]:
    return [(key, *case) for key, several in cases.items() for case in several]


def written(key: str, value: str) -> str:
    """A document with one setting; that is on its third line."""
    table, _, name = key.rpartition(".")
    return f"# A comment\n{f'[{table}]' if table else ''}\n{name} = {value}\n"


def test_every_setting_is_tested() -> None:
    keys = {field.metadata["key"] for field in fields(Settings) if field.metadata}
    assert GOOD.keys() == BAD.keys() == keys | {"collectors.mm_reclaim"}


@pytest.mark.parametrize(("key", "text", "value"), each(GOOD))
def test_good_values(write: Write, key: str, text: str, value: object) -> None:
    file = write(written(key, text))
    settings = read_settings(file, {})
    table, _, name = key.rpartition(".")
    if table == "collectors":
        assert settings.collectors == {name: value}
        assert settings.off == (frozenset() if value else {name})
    else:
        assert getattr(settings, name.replace("-", "_")) == value
    assert settings.origins == {key: f"{file}:3"}
    assert any(
        line.startswith(f"{key} = ") and line.endswith(f"    ({file}:3)")
        for line in settings.describe(SHIPPED)
    )


@pytest.mark.parametrize(("key", "text", "reason"), each(BAD))
def test_bad_values(write: Write, key: str, text: str, reason: str) -> None:
    assert wrong(write(written(key, text))) == [f"3: {key}: {reason}"]


def test_all_errors_are_said_at_once(write: Write) -> None:
    file = write(
        'engine = "steam"\nlimits.unserved-seconds = 0\n\n[collectors]\nmine = 1\n'
        "[limit]\na = 1\nb = 2\n[limits.snapshot-memory]\n"
    )
    errors = wrong(file)
    assert [error.rpartition(": ")[0] for error in errors] == [
        "1: engine", "2: limits.unserved-seconds", "5: collectors.mine", "6: limit",
        "9: limits.snapshot-memory",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("frob = 1", "frob"), ("[limits]\nengine = 'auto'", "limits.engine"), ("[frob]", "frob"),
        ("mount_point = '/'", "mount_point"), ("[[engine.x]]", "engine"),
        # What looks like a key of ours in a table.
        ("'limits.unserved-seconds' = 9", '"limits.unserved-seconds"'),
        ('"a\\u001b\\n" = 9', r'"a\u001b\n"'),
    ],
)  # fmt: skip
def test_unknown_keys(write: Write, text: str, key: str) -> None:
    (error,) = wrong(write(text))
    assert error.startswith(f"{1 + text.count(chr(10))}: {key}: ")
    if key != "engine":
        assert "unknown; there are mount-point, engine, root, " in error


@pytest.mark.parametrize("table", ["limits", "collectors"])
def test_what_should_be_a_table(write: Write, table: str) -> None:
    said = f"is no table; write [{table}], and its keys below"
    assert wrong(write(f"{table} = true")) == [f"1: {table}: true {said}"]
    assert wrong(write(f"\n[[{table}]]")) == [f"2: {table}: an array {said}"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("engine = 'auto'\nengine = 'auto'\n", 2), ("\n\nengine\n", 3), ("a = [\n\n", 1),
        ("a = '''\nb\nc", 3), ("[limits", 1), ("a = 1\nb = " + 5000 * "9", 2),
        ("\ufeffa = 1", 1), ("a = " + 5000 * "[", 1),
    ],
)  # fmt: skip
def test_what_is_no_toml(write: Write, text: str, line: int) -> None:
    (error,) = wrong(write(text))
    assert error.startswith(f"{line}: is not TOML: ") and error.endswith("; see cgstatfs.toml(5)")


def test_what_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "cgstatfs.toml"
    file.write_bytes(b"a = 1\n# \xff\n")
    assert wrong(file) == ["2: is not UTF-8; write it in that"]


def test_lines_of_keys() -> None:
    document = r"""# a = 1
a = '''
b = 1
[c]
''' # d = 1

"e f".g = [ # of two
  1, # h = 1

  2,
]
e.i = { j = 1, k.l = 2 }
[ m . "n" ] # o
p = "\"[x]\" # q = 1"
r = @@@
[s]
t = 1\
@@@
[m]
u = ']'
[[v]]
w = 1
[[v]]
w = 2
""".replace("@@@", '"""')
    expected = {
        ("a",): 2, ("e f",): 7, ("e f", "g"): 7, ("e",): 12, ("e", "i"): 12, ("e", "i", "j"): 12,
        ("e", "i", "k"): 12, ("e", "i", "k", "l"): 12, ("m",): 13, ("m", "n"): 13,
        ("m", "n", "p"): 14, ("m", "n", "r"): 15, ("m", "u"): 20, ("v",): 21,
    }  # fmt: skip
    tomllib.loads(document)
    assert key_lines(document) == expected
    assert key_lines(document.replace("\n", "\r\n")) == expected
    assert key_lines(document.rstrip()) == expected
    assert key_lines("") == {}


def test_the_command_line_goes_before(write: Write) -> None:
    file = write('engine = "rstat"\nmount-point = "/a"\nroot = "/b"\n')
    settings = read_settings(file, {"engine": "auto", "mount-point": "/c"})
    assert (settings.engine, settings.mount_point, settings.root) == ("auto", Path("/c"), "/b")
    lines = list(settings.describe([]))
    assert 'mount-point = "/c"    (command line)' in lines
    assert 'engine = "auto"    (command line)' in lines
    assert f'root = "/b"    ({file}:3)' in lines
    assert "limits.unserved-seconds = 60    (default)" in lines


def test_the_command_line_is_checked(write: Write) -> None:
    errors = wrong(write("root = 7"), engine="steam")
    assert [error.partition(";")[0] for error in errors] == [
        "1: root: 7 is no string", 'command line: engine: there is no engine "steam"',
    ]  # fmt: skip


def test_no_file_is_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = tmp_path / "etc/cgstatfs.toml"
    monkeypatch.setattr(configuration, "FILE", absent)
    assert read_settings(None, {}) == Settings()
    with pytest.raises(FileNotFoundError):
        read_settings(absent, {})
    absent.parent.mkdir()
    absent.parent.chmod(0o777)
    assert read_settings(None, {}) == Settings()
    absent.write_text("")
    with pytest.raises(ConfigurationError):
        read_settings(None, {})


def test_collectors_in_force(write: Write) -> None:
    file = write("[collectors]\nmm_reclaim = false\nmine = true\n'an.other' = false\n")
    settings = read_settings(file, {})
    found = [*SHIPPED, "mine"]
    assert [line for line in settings.describe(found) if line.startswith("collectors")] == [
        f'collectors."an.other" = false    ({file}:4)',
        f"collectors.mine = true    ({file}:3)",
        f"collectors.mm_reclaim = false    ({file}:2)",
        "collectors.proc_events = true    (default)",
        "collectors.sched_runqlat = true    (default)",
    ]
    said = "there is no such collector; it is ignored; correct the name, or remove the line"
    assert list(settings.unknown_collectors(found)) == [
        f'{file}:4: collectors."an.other": {said}'
    ]
    assert list(settings.unknown_collectors([*found, "an.other"])) == []


# Whose the file is


@pytest.mark.parametrize(
    ("mode", "owner", "reason", "place"),
    [
        (0o664, 0, "others than root can write to it; chmod go-w",
         "to which others than root can write; chmod go-w"),
        (0o646, 0, "others than root can write to it; chmod go-w",
         "to which others than root can write; chmod go-w"),
        (0o644, 65534, "is owned by user 65534, and not by root; chown root",
         "which is owned by user 65534, and not by root; move it to a directory of root's"),
    ],
)  # fmt: skip
def test_others_files_are_refused(
    write: Write, tmp_path: Path, mode: int, owner: int, reason: str, place: str
) -> None:
    file = write("")
    assert read_settings(file, {}) == Settings()
    file.chmod(mode)
    os.chown(file, owner, 0)
    assert wrong(file) == [f" {reason}"]
    file = write("")
    os.chown(file, 0, 0)
    # Its directory, too, where a mode needs to let others in.
    tmp_path.chmod(mode | 0o111)
    os.chown(tmp_path, owner, 0)
    (error,) = wrong(file)
    assert error.startswith(f" is in {tmp_path}, {place}")


def test_where_a_link_leads_is_looked_at(write: Write, tmp_path: Path) -> None:
    file = write("")
    directory = tmp_path / "etc"
    directory.mkdir()
    link = directory / "link.toml"
    link.symlink_to(file)
    assert read_settings(link, {}) == Settings()
    file.chmod(0o666)
    assert wrong(link) == [" others than root can write to it; chmod go-w"]
    file.chmod(0o644)
    for each in (directory, tmp_path):
        each.chmod(0o777)
        assert wrong(link) == [
            f" is in {each}, to which others than root can write; chmod go-w {each}"
        ]
        # As /tmp: nobody can put another there.
        each.chmod(0o1777)
        assert read_settings(link, {}) == Settings()
        each.chmod(0o755)


def test_what_is_no_file(tmp_path: Path) -> None:
    assert wrong(tmp_path) == [" is not a regular file"]
    os.mkfifo(tmp_path / "fifo")
    assert wrong(tmp_path / "fifo") == [" is not a regular file"]
    (tmp_path / "large").write_text("#" + "x" * (64 << 10))
    assert wrong(tmp_path / "large") == [" is larger than 64 KiB"]


# The example


def test_the_example_has_every_setting_and_its_default(write: Write) -> None:
    text = EXAMPLE.read_text()
    assert tomllib.loads(text) == {}
    settings = read_settings(write(re.sub(r"^#(?=\S)", "", text, flags=re.MULTILINE)), {})

    def values(settings: Settings) -> list[str]:
        return [line.partition("    (")[0] for line in settings.describe(SHIPPED)]

    assert values(settings) == values(Settings())
    assert len(settings.origins) == len(values(settings))


def test_the_manual_has_every_setting() -> None:
    manual = (DOCS / "man/cgstatfs.toml.5").read_text().replace("\\-", "-")
    for key in GOOD.keys() - {"collectors.mm_reclaim"}:
        table, _, name = key.rpartition(".")
        assert f'"{name} = "' in manual
        assert not table or f".SS [{table}]\n" in manual
