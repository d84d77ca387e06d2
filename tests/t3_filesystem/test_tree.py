# SPDX-License-Identifier: GPL-2.0-only
"""``.tree``: one read for a whole subtree, of one moment."""

from __future__ import annotations

import errno
import itertools
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ..conftest import Mounted, cgroup_id, let_all_in, times, wait_until
from ..t2_bpf.test_exactness import FORKS, check_all_ended, fork_in
from .test_adopt import Tree, adopt, bpftool, in_bytes, pins  # noqa: F401
from .test_reading import fork_and_settle
from .test_takeover import daemon, mounted_anew, served, wait_for_next

MAPS = ("proc.events", "sched.runqlat", "mm.reclaim")

Values = dict[str, dict[str, int]]


def parse(text: bytes) -> Values:
    """By path, not unescaped, and key."""
    found = {}
    for line in text.decode("latin-1").splitlines():
        path, *pairs = line.split(" ")
        assert path not in found
        found[path] = {key: int(value) for key, value in (pair.split("=") for pair in pairs)}
    return found


def flattened(text: str) -> dict[str, int]:
    """What the line of a cgroup has, from the text of its own file."""
    found = {}
    for line in text.splitlines():
        key, *values = line.split(" ")
        for value in values:
            sub, _, number = value.rpartition("=")
            found[f"{key}.{sub}" if sub else key] = int(number)
    return found


def below(root: Path) -> list[Path]:
    return [Path(path) for path, _, _ in os.walk(root)]


def shown_as(root: Path, cgroup: Path) -> str:
    """The path of a cgroup in the text, escaped as proc(5) has it of mounts."""
    path = os.fsencode(f"/{cgroup.relative_to(root)}" if cgroup != root else "/")
    return re.sub(rb"[ \t\n\\#]", lambda m: b"\\%03o" % ord(m[0]), path).decode("latin-1")


def check_sums(values: Values, complete: bool = True) -> None:
    """Each has the sum of its children, as nothing is ever updated in those that have any.

    :param complete: no cgroup was removed; else there may be more
    """
    children: dict[str, list[str]] = {}
    for path in values.keys() - {"/"}:
        children.setdefault(path.rpartition("/")[0] or "/", []).append(path)
    assert children
    for path, paths in children.items():
        for key, value in values[path].items():
            total = sum(values[each][key] for each in paths)
            assert total == value if complete else total <= value, (path, key, value, total)


# What is shown


@pytest.mark.parametrize("name", MAPS)
def test_has_what_the_files_have(mounted: Mounted, tree: Path, work: Path, name: str) -> None:
    for directory in ("a/b/c", "a/d", "e"):
        (tree / directory).mkdir(parents=True)
    fork_and_settle(mounted, work, tree / "a/b", 7)
    fork_and_settle(mounted, work, tree / "e", 3)
    for top in (tree, tree / "a", tree / "e"):
        values = parse((mounted.of(top) / ".tree" / name).read_bytes())
        assert values == {
            shown_as(top, each): flattened((mounted.of(each) / name).read_text())
            for each in below(top)
        }
        paths = list(values)
        assert paths[0] == "/"
        for path in paths[1:]:
            assert paths.index(path.rpartition("/")[0] or "/") < paths.index(path)
    assert parse((mounted.path / ".tree" / name).read_bytes()).keys() >= {
        shown_as(mounted.cgroupfs, each) for each in below(tree)
    }


@pytest.mark.on_host
def test_paths_are_escaped(mounted: Mounted, tree: Path) -> None:
    names = (b" ", b"a b", b"a\tb", b"\\040", b"#", b"=", b"\xff\xfe", "ä".encode(), b"a=b c=d")
    for name in names:
        os.makedirs(os.path.join(os.fsencode(tree), name, b"below"))
    values = parse((mounted.of(tree) / ".tree/proc.events").read_bytes())
    assert values.keys() == {shown_as(tree, each) for each in below(tree)}
    assert "/a\\040b/below" in values and "/\\134040" in values and "/a\\011b" in values


def test_is_in_no_listing(mounted: Mounted, tree: Path) -> None:
    (tree / "a").mkdir()
    directory = mounted.of(tree)
    for command in (["ls", "-a", directory], ["find", directory], ["grep", "-rc", ".", directory]):
        output = subprocess.run(command, check=True, text=True, capture_output=True).stdout
        assert "proc.events" in output and ".tree" not in output
    # But it is there, in each, and says what it has.
    for each in (directory, directory / "a", mounted.path):
        assert sorted(os.listdir(each / ".tree")) == sorted(MAPS)
    output = subprocess.run(
        ["sh", "-c", "cd .tree && cat mm.reclaim && cd .. && pwd"], cwd=directory, check=True, text=True,
        capture_output=True,
    ).stdout  # fmt: skip
    assert output.startswith("/ ") and output.endswith(f"{directory}\n")


def test_what_it_is(mounted: Mounted, tree: Path) -> None:
    os.chown(tree, 12, 34)
    tree.chmod(0o711)
    directory = mounted.of(tree) / ".tree"
    assert directory.is_dir()
    wait_until(lambda: directory.stat().st_uid == 12, "the owner")
    status = directory.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (12, 34, 0o711)
    status = (directory / "proc.events").stat()
    assert (status.st_uid, status.st_gid, status.st_mode) == (12, 34, 0o100444)
    assert status.st_size == 0
    inodes = {
        path.stat().st_ino
        for path in (mounted.of(tree), directory, *(d / m for m in MAPS for d in (directory, mounted.of(tree))))
    }
    assert len(inodes) == 2 + 2 * len(MAPS)


@pytest.mark.on_host
def test_what_is_not_there(mounted: Mounted, tree: Path) -> None:
    directory = mounted.of(tree) / ".tree"
    (tree / "a").mkdir()
    for path in (".tree", "a", "no.such", ".cgstatfs", "proc.events/x"):
        with pytest.raises((FileNotFoundError, NotADirectoryError)):
            os.stat(directory / path)
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_CREAT):
        for name in ("proc.events", "new"):
            with pytest.raises(OSError) as error:
                os.open(directory / name, flags)
            expected = (errno.EROFS, errno.ENOENT) if name == "new" else (errno.EROFS,)
            assert error.value.errno in expected
    with pytest.raises(OSError) as error:
        (directory / "b").mkdir()
    assert error.value.errno == errno.EROFS
    with pytest.raises(FileNotFoundError):
        (mounted.path / ".cgstatfs/.tree").stat()


@pytest.mark.on_host
def test_a_cgroup_of_that_name_goes_before(mounted: Mounted, tree: Path) -> None:
    hidden = mounted.of(tree) / ".tree"
    assert sorted(os.listdir(hidden)) == sorted(MAPS)
    (tree / ".tree").mkdir()
    assert hidden.stat().st_ino == cgroup_id(tree / ".tree")
    assert ".tree" in os.listdir(mounted.of(tree))
    assert list(parse((hidden / ".tree/proc.events").read_bytes())) == ["/"]
    inode = hidden.stat().st_ino
    (tree / ".tree").rmdir()
    # The kernel still has it for milliseconds.
    wait_until(lambda: hidden.stat().st_ino != inode, "it to go")
    assert list(parse((hidden / "proc.events").read_bytes())) == ["/"]


@pytest.mark.on_host
def test_adopted(mounted: Mounted, tree: Path, pins: Path, adopt: Callable) -> None:  # noqa: F811
    cgroups = Tree(tree, mounted)
    pin = pins / "theirs"
    bpftool("map", "create", pin, "type", "hash", "key", 8, "value", 16, "entries", 64, "name", "theirs")
    for cgroup, first, second in ((tree, 1, 2), (cgroups.a, 10, 20), (cgroups.b, 100, (1 << 64) - 1)):
        bpftool(
            "map", "update", "pinned", pin, "key", *in_bytes(cgroup_id(cgroup)),
            "value", *in_bytes(first), *in_bytes(second)[1:],
        )  # fmt: skip
    adopt("theirs", pin)
    expected = {"/": "111 21", "/a": "110 19", "/a/b": f"100 {(1 << 64) - 1}", "/c": "0 0"}
    lines = (mounted.of(tree) / ".tree/theirs").read_text().splitlines()
    assert {line.partition(" ")[0]: line for line in lines} == {
        path: "{} 0={} 1={}".format(path, *numbers.split()) for path, numbers in expected.items()
    }
    # What who reads may not see is in the sums still.
    cgroups.a.chmod(0o700)
    wait_until(lambda: mounted.of(cgroups.a).stat().st_mode & 0o777 == 0o700, "the mode")
    result = subprocess.run(
        ["cat", mounted.of(tree) / ".tree/theirs"], user=65534, group=65534, extra_groups=[],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert sorted(result.stdout.splitlines()) == ["/ 0=111 1=21", "/c 0=0 1=0"]


# Of one moment


@contextmanager
def flushing(directories: list[Path]) -> Iterator[None]:
    """Flushes of parts of a tree, all the time, by others."""
    end = threading.Event()

    def flush(directory: Path) -> None:
        for path in itertools.cycle((directory / "cpu.stat", directory / "cgroup.stat")):
            path.read_bytes()
            if end.is_set():
                return

    threads = [threading.Thread(target=flush, args=(each,)) for each in directories]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        end.set()
        for thread in threads:
            thread.join()


def not_of_one_moment(mounted: Mounted) -> None:
    if mounted.engine == "native":
        pytest.skip("what the kernel copies at once is of one moment, and that is not all")


def test_sums_are_exact_in_every_read(mounted: Mounted, tree: Path, work: Path) -> None:
    """Of all elements of all maps, while all of them change, and others flush parts of it."""
    not_of_one_moment(mounted)
    leaves = [tree / path for path in ("a/b/c", "a/b/d", "a/e", "f")]
    for leaf in leaves:
        leaf.mkdir(parents=True)
    # So that a snapshot takes long enough to meet something.
    for number in range(times(100)):
        (tree / f"a/b/more{number}").mkdir()
    directory, rounds, seen = mounted.of(tree) / ".tree", 0, set()
    with flushing([tree / "a/b/c", tree / "a/b", tree / "a"]):
        while len(seen) < times(20):
            assert rounds < 100, "it met no updates"
            workers = fork_in(work, leaves)
            rounds += 1
            while any(worker.poll() is None for worker in workers):
                texts = {name: (directory / name).read_bytes() for name in MAPS}
                # A file that is read later is not behind.
                later = flattened((mounted.of(tree / "a/b") / "proc.events").read_text())
                for text in texts.values():
                    check_sums(parse(text))
                events = parse(texts["proc.events"])
                assert later["forks"] >= events["/a/b"]["forks"]
                seen.add(events["/"]["forks"])
            check_all_ended(workers)
    values = parse((directory / "proc.events").read_bytes())
    each = 2 * FORKS * rounds
    counts = {"/": 4, "/a": 3, "/a/b": 2, "/a/b/c": 1, "/a/b/d": 1, "/a/e": 1, "/f": 1}
    assert {path: values[path]["forks"] for path in counts} == {
        path: count * each for path, count in counts.items()
    }


def test_every_update_is_in_the_next_read(mounted: Mounted, tree: Path, work: Path) -> None:
    (tree / "a/b").mkdir(parents=True)
    file = mounted.of(tree) / ".tree/proc.events"
    for number in range(1, times(100) + 1):
        subprocess.run([work, "fork", tree / "a/b", "1"], check=True)
        values = parse(file.read_bytes())
        assert [values[path]["forks"] for path in ("/", "/a", "/a/b")] == 3 * [number]


def test_cgroups_that_come_and_go(mounted: Mounted, tree: Path, work: Path) -> None:
    not_of_one_moment(mounted)
    (tree / "a").mkdir()
    (tree / "b").mkdir()
    count = times(150)
    churns = [
        subprocess.Popen([work, "churn", tree / name, str(count), "x"]) for name in ("a", "b")
    ]
    last = 0
    while any(churn.poll() is None for churn in churns):
        values = parse((mounted.of(tree) / ".tree/proc.events").read_bytes())
        if len(values) > 1:
            check_sums(values, complete=False)
        assert values["/"]["forks"] >= last
        last = values["/"]["forks"]
    assert [churn.wait() for churn in churns] == [0, 0]
    values = parse((mounted.of(tree) / ".tree/proc.events").read_bytes())
    assert values.keys() == {"/", "/a", "/b"}
    one = {name: flattened((mounted.of(tree / name) / "proc.events").read_text()) for name in "ab"}
    assert values["/"]["forks"] == one["a"]["forks"] + one["b"]["forks"] > 0


# Who may see what

_SEES = """
import os, sys
top, name = sys.argv[1:]
lines = open(f"{top}/.tree/{name}").read().splitlines()
for line in lines:
    print("shown", line.partition(" ")[0])
found = [top]
for directory, below, _ in os.walk(top):
    found += (directory + "/" + each for each in below)
for directory in found:
    try:
        open(directory + "/" + name).close()
    except PermissionError:
        continue
    print("walked", directory[len(top):] or "/")
"""
# How the program is started, and whether it has to be shown all that it can walk to.
_READERS = {
    "nobody": (["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"], True),
    "owner": (["setpriv", "--reuid=1001", "--regid=65534", "--clear-groups"], True),
    "group": (["setpriv", "--reuid=65534", "--regid=2002", "--clear-groups"], True),
    "supplementary": (["setpriv", "--reuid=65534", "--regid=65534", "--groups=2002,3003"], True),
    "root": ([], True),
    "root without capabilities": (
        ["setpriv", "--clear-groups", "--bounding-set=-dac_override,-dac_read_search"], True,
    ),
    "user with the capability": (
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
         "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"], True,
    ),
    "root of a user namespace": (["unshare", "-U", "-r"], False),
    "root of a user namespace of a user": (
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "unshare", "-U", "-r"], False,
    ),
    "in a pid namespace": (
        ["setpriv", "--reuid=65534", "--regid=65534", "--groups=2002", "unshare", "-U", "-r", "-p", "-f"],
        False,
    ),
}  # fmt: skip


@pytest.mark.on_host
@pytest.mark.parametrize("reader", _READERS)
def test_only_what_can_be_walked_to(mounted: Mounted, tree: Path, reader: str) -> None:
    modes = (0o755, 0o700, 0o711, 0o750, 0o705, 0o710, 0o070, 0o077, 0o000, 0o744)
    owners = ((0, 0), (1001, 0), (0, 2002), (1001, 2002))
    for (number, mode), (uid, gid) in itertools.product(enumerate(modes), owners):
        directory = tree / f"d{number}-{uid}-{gid}"
        (directory / "below").mkdir(parents=True)
        os.chown(directory, uid, gid)
        directory.chmod(mode)
    command, all_shown = _READERS[reader]
    result = subprocess.run(
        [*command, "/usr/bin/python3", "-c", _SEES, mounted.of(tree), "proc.events"],
        text=True, capture_output=True, check=True,
    )  # fmt: skip
    lines = [line.split(" ") for line in result.stdout.splitlines()]
    shown = {path for what, path in lines if what == "shown"}
    walked = {path for what, path in lines if what == "walked"}
    assert "/" in shown and shown <= walked
    assert shown == walked or not all_shown
    assert (len(walked) == len(below(tree))) == (reader in ("root", "user with the capability"))


@pytest.mark.on_host
def test_who_opened_it_counts(mounted: Mounted, tree: Path) -> None:
    """As with the kernel's files, and not who reads."""
    (tree / "private").mkdir()
    (tree / "private").chmod(0o700)
    file = mounted.of(tree) / ".tree/proc.events"
    wait_until(lambda: mounted.of(tree / "private").stat().st_mode & 0o777 == 0o700, "the mode")
    with open(file) as opened:
        text = subprocess.run(
            ["cat"], stdin=opened, user=65534, group=65534, extra_groups=[], text=True,
            capture_output=True, check=True,
        ).stdout  # fmt: skip
    assert {line.split(" ")[0] for line in text.splitlines()} == {"/", "/private"}


# A text in pieces


def test_pieces_of_one_snapshot(mounted: Mounted, tree: Path, work: Path) -> None:
    for number in range(300):
        (tree / f"c{number}").mkdir()
    path = mounted.of(tree) / ".tree/sched.runqlat"
    fork_and_settle(mounted, work, tree / "c7", 3)
    whole = path.read_bytes()
    with open(path, "rb", buffering=0) as file:
        first = file.read(1000)
        subprocess.run([work, "fork", tree / "c8", "3"], check=True)
        (tree / "c9").rmdir()
        pieces = [first, *iter(lambda: file.read(777), b"")]
        assert b"".join(pieces) == whole
        # Anywhere in it, and in any order.
        for offset in (len(whole) - 10, 200_000 % len(whole), 1, len(whole) // 2, len(whole)):
            assert os.pread(file.fileno(), 100, offset) == whole[offset : offset + 100]
        file.seek(0)
        assert "/c9" not in parse(file.read())
    new = parse(path.read_bytes())
    assert new["/c8"]["wait_ns.count"] > 0


def test_the_top_is_removed_while_it_is_read(mounted: Mounted, tree: Path) -> None:
    top = tree / "top"
    for number in range(50):
        (top / f"c{number}").mkdir(parents=True)
    path = mounted.of(top) / ".tree/sched.runqlat"
    whole = path.read_bytes()
    with open(path, "rb", buffering=0) as file:
        read = file.read(100)
        for each in reversed(below(top)):
            each.rmdir()
        while len(read) < len(whole):
            read += file.read(10_000)
        assert read == whole
        with pytest.raises(OSError) as error:
            file.read(1)
        assert error.value.errno == errno.ENODEV
        with pytest.raises(OSError) as error:
            os.pread(file.fileno(), 10, 0)
        assert error.value.errno == errno.ENODEV
    with pytest.raises(FileNotFoundError):
        open(path)


def test_several_readers_at_once(mounted: Mounted, tree: Path, work: Path) -> None:
    not_of_one_moment(mounted)
    for number in range(100):
        (tree / f"c{number}").mkdir()
    path = mounted.of(tree) / ".tree/sched.runqlat"
    failures: list[BaseException] = []

    def read(size: int) -> None:
        try:
            for _ in range(times(20)):
                with open(path, "rb", buffering=0) as file:
                    check_sums(parse(b"".join(iter(lambda: file.read(size), b""))))
        except BaseException as failure:
            failures.append(failure)

    readers = [threading.Thread(target=read, args=(size,)) for size in (1000, 4096, 9999, 1 << 20)]
    workers = fork_in(work, [tree / "c1", tree / "c2"])
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    check_all_ended(workers)
    assert not failures, failures[0]


# Many, and long


def _memory(pid: int, name: str) -> int:
    """In bytes: VmRSS, or VmHWM, the most that it was."""
    found = re.search(rf"{name}:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) << 10


@pytest.mark.on_host
def test_thousands_of_cgroups(mounted: Mounted, tree: Path) -> None:
    """The daemon has the values in memory, but never the text."""
    per_directory = 100
    for number in range(times(3000) // per_directory):
        for other in range(per_directory - 1):
            (tree / f"d{number}/c{other}").mkdir(parents=True)
    path = mounted.of(tree) / ".tree/sched.runqlat"
    # The first makes the buffer.
    assert len(path.read_bytes().splitlines()) == len(below(tree))
    before = _memory(mounted.pid, "VmRSS")
    reset = Path(f"/proc/{mounted.pid}/clear_refs")
    if reset.exists():
        reset.write_text("5")
    # As nothing happens, a second text is the same.
    with open(path, "rb", buffering=0) as one, open(path, "rb", buffering=0) as other:
        length = same = 0
        while piece := one.read(1 << 16):
            length += len(piece)
            same += piece == other.read(1 << 16)
        assert same == -(-length // (1 << 16))
    if not reset.exists():
        pytest.skip("what memory it takes: no CONFIG_PROC_PAGE_MONITOR, so VmHWM is not reset")
    if length > 1 << 20:
        assert _memory(mounted.pid, "VmHWM") - before < 1.5 * length


# The mount outlives its daemon


# Opens the file, reads it, waits; then reads it again, and opens it again.
_HOLDS = """
import errno, os, sys
os.setgroups([2002]); os.setgid(65534); os.setuid(65534)
file = os.open(sys.argv[1], os.O_RDONLY)
assert os.pread(file, 1 << 20, 0)
print("read", flush=True)
sys.stdin.readline()
try:
    os.pread(file, 1 << 20, 0)
except OSError as error:
    print(errno.errorcode[error.errno])
file = os.open(sys.argv[1], os.O_RDONLY)
print(len(os.pread(file, 1 << 20, 0).splitlines()))
"""


@pytest.mark.on_host
def test_the_daemon_ends_while_it_is_read(
    engine_name: str, cgroupfs: Path, tree: Path, tmp_path: Path
) -> None:
    """The next one does not know any more what users may see, and says so."""
    for number in range(50):
        (tree / f"c{number}").mkdir()
    with mounted_anew(engine_name, cgroupfs, tmp_path / "mnt") as mount:
        let_all_in(tmp_path)
        path = mount.of(tree) / ".tree/sched.runqlat"
        whole = path.read_bytes()
        user = subprocess.Popen(
            ["/usr/bin/python3", "-c", _HOLDS, path], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert user.stdout.readline() == "read\n"
        with open(path, "rb", buffering=0) as partly, open(path, "rb", buffering=0) as wholly:
            assert partly.read(100) == whole[:100]
            assert b"".join(iter(lambda: wholly.read(5000), b"")) == whole
            before = served(mount)
            os.kill(daemon(mount), signal.SIGKILL)
            wait_for_next(mount, before)
            with pytest.raises(OSError) as error:
                partly.read(100)
            assert error.value.errno == errno.ESTALE
            assert wholly.read(100) == b""
            for file in (partly, wholly):
                file.seek(0)
                assert b"".join(iter(lambda: file.read(1 << 20), b"")) == whole
        assert path.read_bytes() == whole
        output, _ = user.communicate("\n")
        assert output.split() == ["ESTALE", "51"]
