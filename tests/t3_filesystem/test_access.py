# SPDX-License-Identifier: GPL-2.0-only
"""Who may read what: the same as in cgroupfs, which is asked the same.

The table of docs/security.md has a row for each case here.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ..conftest import Mounted, let_all_in, times, wait_until
from ..documents import DOCS
from . import somebody
from .test_takeover import mounted_anew

ONE_ENGINE = True

OWNER, OTHER, GROUP = 1000, 65534, 2000
# Users of a container that root makes are these outside.
INSIDE = 100000
# What is asked of cgroupfs, and of us.
THEIRS, OURS = "cpu.stat", "proc.events"

READING = [
    "stat", "inode", "list", "open directory", "open", "open the path", "read", "may read",
    "may search or run", "readlink", "statfs", "handle",
]  # fmt: skip
# Of which the answers are numbers or texts that cannot be the same.
DIFFERENT = {"handle": list}
WRITING = [
    "write", "read and write", "append", "may write", "truncate", "create", "mkdir", "symlink",
    "mkfifo", "unlink", "rename", "link", "chmod", "chown", "utime", "setxattr",
]  # fmt: skip
# The kernel says so before it looks at anything else.
_NOT_OF_DIRECTORIES = ["write", "read and write", "append", "truncate"]


class Somebody:
    """A process that asks, as somebody else. Ends with the block.

    :param steps: by which it becomes who it is, see :mod:`.somebody`
    :param prefix: a command that runs it
    """

    def __init__(self, *steps: list, prefix: list[str] | None = None) -> None:
        program = Path(somebody.__file__).read_text()
        self._process = subprocess.Popen(
            [*(prefix or []), "/usr/bin/python3", "-c", program, json.dumps(steps)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/",
        )  # fmt: skip
        self.begun = self._answer()

    def _answer(self) -> object:
        line = self._process.stdout.readline()
        assert line, "it ended"
        return json.loads(line)

    def ask(self, what: str, path: str | Path, *more: object) -> object:
        """The answer, or the name of the error."""
        self._process.stdin.write(json.dumps([what, str(path), *more]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def __enter__(self) -> Somebody:
        assert self.begun == "ready", self.begun
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def user(uid: int, *groups: int, gid: int = OTHER) -> list:
    return ["ids", uid, gid, list(groups)]


def with_capability(name: str) -> list[str]:
    return [
        "setpriv", f"--reuid={OTHER}", f"--regid={OTHER}", "--clear-groups",
        f"--inh-caps=+{name}", f"--ambient-caps=+{name}",
    ]  # fmt: skip


CONTAINER = ["user namespace", [f"0 {INSIDE} 65536"], 0]


@dataclass
class Case:
    """Somebody, and a cgroup.

    :ivar who: as in the table
    :ivar owner: of the cgroup, user and group
    :ivar mode: of the cgroup
    :ivar may: what is done with success: list it, and read files in it
    :ivar delegated: it is made by its owner, in one that was given to them
    """

    who: str
    owner: tuple[int, int]
    mode: int
    may: tuple[bool, bool]
    steps: list = field(default_factory=list)
    prefix: list[str] | None = None
    delegated: bool = False

    @property
    def row(self) -> tuple[str, ...]:
        """As the table has it."""
        cgroup = f"{self.owner[0]}:{self.owner[1]} {self.mode:04o}"
        cgroup += ", delegated" * self.delegated
        return self.who, cgroup, *("yes" if each else "no" for each in self.may)


YES, NO, LISTS, READS = (True, True), (False, False), (True, False), (False, True)
ROOTS, OWNERS, THEIR_GROUPS = (0, 0), (OWNER, OWNER), (0, GROUP)
CASES = [
    Case("root", OWNERS, 0o700, YES),
    Case("root without capabilities", OWNERS, 0o700, NO,
         prefix=["setpriv", "--bounding-set=-all", "--inh-caps=-all"]),
    Case("the owner", OWNERS, 0o700, YES, [user(OWNER)]),
    Case("the owner, whom the mode leaves out", OWNERS, 0o055, NO, [user(OWNER, OWNER)]),
    Case("another user", ROOTS, 0o755, YES, [user(OTHER)]),
    Case("another user", OWNERS, 0o700, NO, [user(OTHER)]),
    Case("another user", OWNERS, 0o711, READS, [user(OTHER)]),
    Case("another user", OWNERS, 0o744, LISTS, [user(OTHER)]),
    Case("the owner", OWNERS, 0o700, YES, [user(OWNER)], delegated=True),
    Case("the owner", OWNERS, 0o755, YES, [user(OWNER)], delegated=True),
    Case("another user", OWNERS, 0o700, NO, [user(OTHER)], delegated=True),
    Case("another user", OWNERS, 0o755, YES, [user(OTHER)], delegated=True),
    Case("a user whose first group it is", THEIR_GROUPS, 0o750, YES, [user(OTHER, gid=GROUP)]),
    Case("a user with that supplementary group", THEIR_GROUPS, 0o750, YES, [user(OTHER, 1, GROUP)]),
    Case("a user with other groups", THEIR_GROUPS, 0o750, NO, [user(OTHER, 1, GROUP + 1)]),
    Case("a member of the group, whom the mode leaves out", THEIR_GROUPS, 0o705, NO, [user(OTHER, GROUP)]),
    Case("a user with `CAP_DAC_READ_SEARCH`", OWNERS, 0o700, YES, prefix=with_capability("dac_read_search")),
    Case("a user with `CAP_DAC_OVERRIDE`", OWNERS, 0o700, YES, prefix=with_capability("dac_override")),
    Case("root, with the owner's fsuid", OWNERS, 0o700, YES, [["file system ids", OWNER, OTHER]]),
    Case("root, with another fsuid", OWNERS, 0o700, NO, [["file system ids", OTHER, OTHER]]),
    Case("the owner, as root of a user namespace of theirs", OWNERS, 0o700, YES,
         [user(OWNER), ["own user namespace"]]),
    Case("another user, as root of a user namespace of theirs", OWNERS, 0o700, NO,
         [user(OTHER), ["own user namespace"]]),
    Case("another user, as root of a user namespace of theirs", ROOTS, 0o755, YES,
         [user(OTHER), ["own user namespace"]]),
    Case("a user without a mapping in their user namespace", OWNERS, 0o700, YES,
         [user(OWNER), ["user namespace", [], None]]),
    Case("root of a container, with users of its own", (INSIDE + 7, INSIDE + 7), 0o700, YES, [CONTAINER]),
    Case("root of a container, with users of its own", OWNERS, 0o700, NO, [CONTAINER]),
    Case("root of a container, with users of its own", ROOTS, 0o700, NO, [CONTAINER]),
    Case("another user of that container", (INSIDE + 7, INSIDE + 7), 0o700, NO,
         [[*CONTAINER[:2], 8]]),
]  # fmt: skip


def table() -> list[tuple[str, ...]]:
    """The rows of the one in docs/security.md, without what is behind the answers."""
    text = (DOCS / "security.md").read_text().partition("### Who may read what\n")[2]
    rows = re.findall(r"^\| (.*) \|$", text.partition("\n#")[0], re.MULTILINE)
    return [tuple(row.split(" | "))[:4] for row in rows if not row.startswith("who |")]


def test_the_table_has_what_is_tested() -> None:
    assert table() == [case.row for case in CASES]


@pytest.fixture
def cgroup(tree: Path) -> Path:
    """A cgroup with another in it."""
    path = tree / "a"
    (path / "b").mkdir(parents=True)
    return path


def give(mounted: Mounted, cgroup: Path, owner: tuple[int, int], mode: int) -> None:
    """Set owner and mode, and wait until stat shows them, which may lag."""
    os.chown(cgroup, *owner)
    cgroup.chmod(mode)

    def seen(path: Path) -> tuple[int, ...]:
        status = path.stat()
        return status.st_mode, status.st_uid, status.st_gid

    wait_until(lambda: seen(mounted.of(cgroup)) == seen(cgroup), "owner and mode to be seen")


def make_in_it(cgroup: Path, owner: tuple[int, int], mode: int) -> Path:
    """Give a cgroup to somebody, as ``systemd --user`` is, who then makes one in it."""
    for path in (cgroup, cgroup / "cgroup.procs", cgroup / "cgroup.subtree_control"):
        os.chown(path, *owner)
    with Somebody(user(owner[0], gid=owner[1])) as who:
        for path, each in ((cgroup / "made", mode), (cgroup / "made/b", 0o755)):
            assert who.ask("make", path, each) == "ok"
    return cgroup / "made"


def compare(who: Somebody, theirs: Path, ours: Path, cgroup: str) -> dict[str, object]:
    """Ask cgroupfs and us the same about a cgroup, what is in it and what is in that.

    :returns: what cgroupfs answered
    """
    found = {}
    for name, other in (
        (f"{cgroup}/{THEIRS}", f"{cgroup}/{OURS}"), (f"{cgroup}/b/{THEIRS}", f"{cgroup}/b/{OURS}"),
        (cgroup, cgroup), (f"{cgroup}/b", f"{cgroup}/b"), (f"{cgroup}/x", f"{cgroup}/x"),
        (f"{cgroup}/b/..", f"{cgroup}/b/.."), (f"{cgroup}/x/{THEIRS}", f"{cgroup}/x/{OURS}"),
    ):  # fmt: skip
        for what in READING:
            if what == "inode" and name != other:
                continue
            answers = [who.ask(what, theirs / name), who.ask(what, ours / other)]
            found[f"{what} {name.removeprefix(cgroup)}"] = answers[0]
            kind = DIFFERENT.get(what)
            assert answers[0] == answers[1] or kind and all(isinstance(a, kind) for a in answers), (
                f"{what} {name}: cgroupfs: {answers[0]}, here: {answers[1]}"
            )
    return found


def refused(who: Somebody, theirs: Path, ours: Path, cgroup: str) -> None:
    """Nothing can be written; and where cgroupfs lets nobody in, that is the answer here, too."""
    for name, other in ((cgroup, cgroup), (f"{cgroup}/{THEIRS}", f"{cgroup}/{OURS}")):
        there = who.ask("stat", theirs / name)
        expected = there if there == "EACCES" else "EROFS"
        for what in WRITING:
            answer = who.ask(what, ours / other)
            if expected == "EROFS" and other == cgroup and what in _NOT_OF_DIRECTORIES:
                assert answer == "EISDIR"
            else:
                assert answer == expected, f"{what} {other}"


@pytest.mark.on_host
@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(case.row[:2]))
def test_who_may_read_what(mounted: Mounted, cgroup: Path, case: Case, alive: None) -> None:
    if case.delegated:
        cgroup = make_in_it(cgroup, case.owner, case.mode)
    else:
        give(mounted, cgroup, case.owner, case.mode)
    name = str(cgroup.relative_to(mounted.cgroupfs))
    with Somebody(*case.steps, prefix=case.prefix) as who:
        answers = compare(who, mounted.cgroupfs, mounted.path, name)
        # What the table says is so.
        lists, reads = answers["list "] == ["b"], answers[f"read /{THEIRS}"] == "text"
        assert (lists, reads) == case.may
        assert (answers["list /b"] == [], answers[f"read /b/{THEIRS}"] == "text") == (reads, reads)
        for each in (name, f"{name}/b"):
            refused(who, mounted.cgroupfs, mounted.path, each)


# In containers


@pytest.fixture
def container(mounted: Mounted, cgroup: Path, tmp_path: Path) -> Callable[..., list]:
    """The steps into one that sees a cgroup of cgroupfs as /theirs, and ours as /ours."""
    root = tmp_path / "root"
    for name in ("theirs", "ours"):
        (root / name).mkdir(parents=True)
    let_all_in(root)

    def steps(*before: list, after: list | None = None, mount: list | None = None) -> list:
        return [
            *before, ["mount namespace"],
            mount or ["bind", str(cgroup), f"{root}/theirs"],
            ["bind", str(mounted.of(cgroup)), f"{root}/ours"],
            *(after or []), ["chroot", str(root)],
        ]  # fmt: skip

    steps.root = root
    return steps


KINDS = ["by root", "by root, with a cgroup namespace", "by a user", "privileged"]


@pytest.mark.on_host
@pytest.mark.parametrize("kind", KINDS)
def test_a_container(
    mounted: Mounted, cgroup: Path, container: Callable[..., list], kind: str, alive: None
) -> None:
    """It sees its subtree, by a bind mount, and no way leads out of it."""
    owner = OWNER if kind == "by a user" else INSIDE
    give(mounted, cgroup, (owner, owner), 0o700)
    steps = {
        "by root": lambda: container(after=[CONTAINER]),
        "by root, with a cgroup namespace": lambda: container(
            ["cgroup namespace", str(cgroup)], after=[CONTAINER],
            mount=["cgroup2", f"{container.root}/theirs"],
        ),
        "by a user": lambda: container(user(OWNER), ["own user namespace"]),
        "privileged": container,
    }[kind]()
    with Somebody(*steps) as who, Somebody() as root:
        handles = {
            where: [root.ask("handle", path) for path in (theirs, mounted.of(theirs))]
            for where, theirs in (("outside", cgroup.parent), ("inside", cgroup / "b"))
        }
        answers = compare(who, Path("/theirs"), Path("/ours"), ".")
        assert (answers["list "], answers[f"read /b/{THEIRS}"]) == (["b"], "text")
        refused(who, Path("/theirs"), Path("/ours"), "b")
        for path in ("..", "../..", "b/../..", "b/../../b"):
            there, here = who.ask("inode", f"/theirs/{path}"), who.ask("inode", f"/ours/{path}")
            assert there == here and here in (who.ask("inode", "/"), "ENOENT"), path
        opened = []
        for theirs, ours in handles.values():
            there, here = (
                who.ask("open handle", path, *handle)
                for path, handle in (("/theirs", theirs), ("/ours", ours))
            )
            assert there == here
            opened.append(here)
        # As who may do that may open anything on that file system by its number.
        assert opened == (["ok"] * 2 if kind == "privileged" else ["EPERM"] * 2)
        assert who.ask("stat", "/ours/.cgstatfs") == "ENOENT"


# As things change


def test_what_is_open_stays_open(mounted: Mounted, cgroup: Path) -> None:
    """Owner and mode are looked at when something is opened, or passed."""
    give(mounted, cgroup, ROOTS, 0o755)
    with Somebody(user(OTHER)) as who:
        for directory, file in ((cgroup, THEIRS), (mounted.of(cgroup), OURS)):
            for path in (directory, directory / file):
                assert who.ask("hold", path) == "ok"
        give(mounted, cgroup, ROOTS, 0o700)

        def answers(directory: Path, file: str) -> dict[str, object]:
            path = directory / file
            asked = {what: who.ask(what, path) for what in ("held: read", "held: stat", "read", "stat")}
            for what in ("held: list", "list", "held: go there"):
                asked[what] = who.ask(what, directory)
            for what in ("held: read in it", "held: stat in it"):
                asked[what] = who.ask(what, directory, file)
            return asked

        here = answers(mounted.of(cgroup), OURS)
        assert here == answers(cgroup, THEIRS)
        assert (here["held: read"], here["read"], here["held: read in it"]) == ("text", "EACCES", "EACCES")


@pytest.mark.parametrize("which", ["the cgroup", "one above it"])
def test_changes_count_at_once(mounted: Mounted, cgroup: Path, which: str, alive: None) -> None:
    """What is opened goes by what is so in cgroupfs now, whatever the kernel has cached."""
    changed = cgroup if which == "the cgroup" else cgroup.parent
    give(mounted, changed, ROOTS, 0o755)
    changes = [
        lambda: changed.chmod(0o700), lambda: changed.chmod(0o755),
        lambda: (os.chown(changed, OTHER, OTHER), changed.chmod(0o700)),
        lambda: os.chown(changed, *ROOTS), lambda: changed.chmod(0o711),
    ]  # fmt: skip
    with Somebody(user(OTHER)) as who, Somebody(user(OTHER)) as inside:
        for directory in (cgroup, mounted.of(cgroup)):
            assert inside.ask("hold", directory) == "ok"

        def answers(directory: Path, file: str) -> list[object]:
            return [
                who.ask("open", directory.parents[1] / file), who.ask("open", directory / file), who.ask("list", directory),
                who.ask("read", directory / "b" / file), who.ask("list", directory / "b"),
                inside.ask("held: read in it", directory, file),
            ]  # fmt: skip

        seen = set()
        for number in range(times(100)):
            changes[number % len(changes)]()
            expected = answers(cgroup, THEIRS)
            assert answers(mounted.of(cgroup), OURS) == expected, f"after change {number}"
            seen.add(str(expected))
        # What was answered also has one that lets in and lists nothing.
        assert len(seen) == (3 if changed is cgroup else 2)


@pytest.mark.on_host
def test_changes_while_nobody_serves(
    engine_name: str, cgroupfs: Path, cgroup: Path, tmp_path: Path
) -> None:
    """The next daemon knows, before it answers anybody."""
    path = tmp_path / "mnt"
    path.mkdir()
    let_all_in(path)
    with mounted_anew(engine_name, cgroupfs, path) as mount, Somebody(user(OTHER)) as who:
        for mode, answer in ((0o700, "EACCES"), (0o755, "text"), (0o700, "EACCES")):
            before = mount.pid
            os.kill(before, signal.SIGKILL)
            cgroup.chmod(mode)
            assert who.ask("read", cgroup / THEIRS) == answer
            assert who.ask("read", mount.of(cgroup) / OURS) == answer
            assert who.ask("list", mount.of(cgroup) / "b") == ([] if answer == "text" else answer)
            assert mount.pid != before


# What the design says otherwise


def test_what_differs(mounted: Mounted, cgroup: Path) -> None:
    """And is said below the table."""
    give(mounted, cgroup, ROOTS, 0o755)
    with Somebody(user(OTHER)) as who:
        for path in (mounted.of(cgroup), mounted.of(cgroup) / OURS):
            assert [who.ask(what, path) for what in ("getxattr", "listxattr")] == ["ENOTSUP"] * 2
        # A file's mode is its own there.
        (cgroup / THEIRS).chmod(0o400)
        assert who.ask("read", cgroup / THEIRS) == "EACCES"
        assert who.ask("read", mounted.of(cgroup) / OURS) == "text"
