# SPDX-License-Identifier: GPL-2.0-only
"""Maps of tools that know nothing of cgstatfs, shown as a file per cgroup."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cgstatfs import control, libbpf

from ..conftest import BUILD, Mounted, cgroup_id, cgstatfs, wait_for_bpftrace

# What is adopted is not of any engine.
ONE_ENGINE = True

OBJECTS = BUILD / "tests"
CPUS = sorted(os.sched_getaffinity(0))
PER_CPU = (5, 10, 21)
ADOPT = Callable[[str, Path], None]

_prctl = ctypes.CDLL(None).prctl


def bpftool(*arguments: str | Path) -> str:
    return subprocess.run(
        ["bpftool", *map(str, arguments)], check=True, text=True, stdout=subprocess.PIPE
    ).stdout


def in_bytes(number: int, size: int = 8) -> list[str]:
    """As arguments of bpftool."""
    return ["hex", *(f"{each:02x}" for each in number.to_bytes(size, sys.byteorder))]


@pytest.fixture
def pins() -> Iterator[Path]:
    """A directory in bpffs, which goes with all that is pinned there."""
    directory = Path(f"/sys/fs/bpf/cgstat-test-{os.getpid()}")
    directory.mkdir()
    yield directory
    for path, directories, files in os.walk(directory, topdown=False):
        for name in files:
            os.unlink(f"{path}/{name}")
        for name in directories:
            os.rmdir(f"{path}/{name}")
    directory.rmdir()


@pytest.fixture
def adopt(mounted: Mounted) -> Iterator[ADOPT]:
    """A function that asks the daemon as the command does; what is adopted is unloaded."""

    def ask(name: str, path: Path) -> None:
        question = {"do": "adopt", "name": name, "path": str(path)}
        assert control.ask(mounted.runtime.socket, question) == [f"{name}: adopted"]

    yield ask
    for name in mounted.runtime.read_state().adopted:
        control.ask(mounted.runtime.socket, {"do": "unload", "name": name})


class Tree:
    """Cgroups ``a``, ``a/b`` and ``c``, and their files in the mount."""

    def __init__(self, top: Path, mounted: Mounted) -> None:
        self.top = top
        self.a, self.b, self.c = top / "a", top / "a/b", top / "c"
        for directory in (self.a, self.b, self.c):
            directory.mkdir()
        self._mounted = mounted

    def file(self, name: str, cgroup: Path) -> Path:
        return self._mounted.of(cgroup) / name

    def read(self, name: str) -> list[str]:
        """Of the top, a, a/b and c."""
        return [self.file(name, each).read_text() for each in (self.top, self.a, self.b, self.c)]


@pytest.fixture
def cgroups(tree: Path, mounted: Mounted) -> Tree:
    return Tree(tree, mounted)


def create(path: Path, kind: str = "hash", key: int = 8, value: int = 8) -> Path:
    bpftool("map", "create", path, "type", kind, "key", key, "value", value,
            "entries", 100, "name", path.name)  # fmt: skip
    return path


def update(path: Path, cgroup: Path, *numbers: int) -> None:
    value = "".join(f"{each:016x}" for each in reversed(numbers))
    bpftool("map", "update", "pinned", path, "key", *in_bytes(cgroup_id(cgroup)),
            "value", *in_bytes(int(value, 16), 8 * len(numbers)))  # fmt: skip


def contents(path: Path) -> dict[bytes, bytes]:
    """All that a map has, values of all cpus."""
    fd = libbpf.get_pinned(path)
    try:
        info = libbpf.map_info(fd)
        size = info.value_size
        if info.type in PER_CPU:
            size = -(-size // 8) * 8 * libbpf.count_possible_cpus()
        return {key: libbpf.map_lookup(fd, key, size) for key in libbpf.map_keys(fd, info.key_size)}
    finally:
        os.close(fd)


def in_cgroup(directory: Path, act: Callable[[], object]) -> None:
    """Have a task that joins the cgroup do something, and end."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            (directory / "cgroup.procs").write_text(str(os.getpid()))
            act()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


@contextmanager
def running(name: str, pins: Path) -> Iterator[None]:
    """A tool that has loaded an object and pinned its maps; it ends, its pins stay."""
    path = OBJECTS / f"{name}.bpf.o"
    assert path.exists(), f"{path} is not built; run make test"
    tool = libbpf.Object(path)
    links = []
    try:
        tool.load()
        for map_name, each in tool.maps.items():
            libbpf.pin(each.fd, pins / map_name)
        links += [program.attach() for program in tool.programs.values()]
        yield
    finally:
        for link in links:
            link.close()
        tool.close()


def call(number: int, n: int) -> None:
    """See tests/bpf/theirs.bpf.c; on each cpu once."""
    for cpu in CPUS:
        os.sched_setaffinity(0, {cpu})
        _prctl(number, ctypes.c_ulong(n), 0, 0, 0)


# Read right


def test_a_map_that_bpftool_made(pins: Path, adopt: ADOPT, cgroups: Tree) -> None:
    path = create(pins / "theirs")
    for directory, number in ((cgroups.a, 5), (cgroups.b, 30), (cgroups.c, (1 << 64) - 3)):
        update(path, directory, number)
    before = contents(path)
    adopt("their.numbers", path)
    assert cgroups.read("their.numbers") == ["32\n", "35\n", "30\n", f"{(1 << 64) - 3}\n"]
    assert contents(path) == before
    update(path, cgroups.top, 100)
    assert cgroups.read("their.numbers")[:2] == ["132\n", "35\n"]


@pytest.mark.on_host
def test_cgroups_that_come_and_go(pins: Path, adopt: ADOPT, cgroups: Tree) -> None:
    path = create(pins / "theirs")
    adopt("theirs", path)
    assert cgroups.read("theirs") == ["0\n"] * 4
    new = cgroups.b / "new"
    new.mkdir()
    assert cgroups.file("theirs", new).read_text() == "0\n"
    update(path, new, 7)
    update(path, cgroups.b, 1)
    assert cgroups.file("theirs", new).read_text() == "7\n"
    assert cgroups.read("theirs") == ["8\n", "8\n", "8\n", "0\n"]
    file = os.open(cgroups.file("theirs", new), os.O_RDONLY)
    try:
        new.rmdir()
        with pytest.raises(OSError) as error:
            os.pread(file, 100, 0)
        assert error.value.errno == errno.ENODEV
    finally:
        os.close(file)
    # What a flat map has for a cgroup that is gone is nobody's.
    assert cgroups.read("theirs") == ["1\n", "1\n", "1\n", "0\n"]
    assert len(contents(path)) == 2


@pytest.mark.on_host
@pytest.mark.parametrize("kind", ["hash", "lru_hash"])
def test_values_of_several_numbers(kind: str, pins: Path, adopt: ADOPT, cgroups: Tree) -> None:
    path = create(pins / "theirs", kind, value=24)
    update(path, cgroups.a, 1, 2, 3)
    update(path, cgroups.c, 10, 20, 1 << 63)
    before = contents(path)
    adopt("theirs", path)
    last = 1 << 63
    assert cgroups.read("theirs") == [
        f"11 22 {last + 3}\n", "1 2 3\n", "0 0 0\n", f"10 20 {last}\n",
    ]  # fmt: skip
    assert contents(path) == before


@pytest.mark.on_host
@pytest.mark.parametrize("kind", ["percpu_hash", "lru_percpu_hash"])
def test_values_of_each_cpu(kind: str, pins: Path, adopt: ADOPT, cgroups: Tree) -> None:
    """bpftool gives all cpus the same."""
    path = create(pins / "theirs", kind, value=16)
    update(path, cgroups.b, 3, 1000)
    update(path, cgroups.c, 1, 0)
    before = contents(path)
    adopt("theirs", path)
    cpus = libbpf.count_possible_cpus()
    inner = f"{3 * cpus} {1000 * cpus}\n"
    assert cgroups.read("theirs") == [f"{4 * cpus} {1000 * cpus}\n", inner, inner, f"{cpus} 0\n"]
    assert contents(path) == before


@pytest.mark.on_host
def test_a_map_of_bpftrace(
    pins: Path, adopt: ADOPT, cgroups: Tree, mounted: Mounted, work: Path, tracefs: Path
) -> None:
    """Forks, as the collector of this project counts them; bpftrace ends, its map stays."""
    program = (
        "tracepoint:sched:sched_process_fork { @forks[cgroup] = count(); } "
        'interval:ms:200 { printf("up\\n"); }'
    )
    tracer = subprocess.Popen(["bpftrace", "-e", program], stdout=subprocess.PIPE, text=True)
    try:
        wait_for_bpftrace(tracer)
        subprocess.run([work, "fork", cgroups.b, "3"], check=True)
        found = map_of(tracer.pid, "forks")
        bpftool("map", "pin", "id", found, pins / "forks")
        adopt("bpftrace.forks", pins / "forks")
        assert cgroups.read("bpftrace.forks") == ["3\n", "3\n", "3\n", "0\n"]
        subprocess.run([work, "fork", cgroups.c, "4"], check=True)
        expected = ["7\n", "3\n", "3\n", "4\n"]
        assert cgroups.read("bpftrace.forks") == expected
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.communicate()
    assert cgroups.read("bpftrace.forks") == expected
    assert [text.split("\n")[0] for text in cgroups.read("proc.events")] == [
        f"forks {number}" for number in "7334"
    ]


def map_of(pid: int, name: str) -> int:
    """The id of the map of so named of a process's."""
    ids = set()
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        lines = dict(line.split(":\t", 1) for line in path.read_text().splitlines() if ":\t" in line)
        ids.add(int(lines.get("map_id", 0)))
    (found,) = (
        each["id"] for each in json.loads(bpftool("-j", "map"))
        if each["id"] in ids and name in each.get("name", "")
    )  # fmt: skip
    return found


@pytest.mark.on_host
def test_values_with_btf(pins: Path, adopt: ADOPT, cgroups: Tree) -> None:
    """What the tool counts is there at once, on every cpu; fields are named."""
    cpus = len(CPUS)
    with running("theirs", pins):
        for name in ("flat", "percpu", "recent"):
            adopt(name, pins / name)
        assert cgroups.read("flat") == ["reads 0\nwrites 0\n"] * 4
        in_cgroup(cgroups.b, lambda: call(0x74686569, 10))
        in_cgroup(cgroups.c, lambda: call(0x74686569, 1))
        both = f"reads {11 * cpus}\nwrites {2 * cpus}\n"
        inner = f"reads {10 * cpus}\nwrites {cpus}\n"
        outer = f"reads {cpus}\nwrites {cpus}\n"
        assert cgroups.read("flat") == [both, inner, inner, outer]
        in_cgroup(cgroups.b, lambda: call(0x74686569, 10))
    before = {name: contents(pins / name) for name in ("flat", "percpu", "recent")}
    # The tool has ended.
    assert cgroups.read("flat")[1] == f"reads {20 * cpus}\nwrites {2 * cpus}\n"
    assert cgroups.read("percpu") == [
        f"{21 * cpus} 0 {3 * cpus}\n", *[f"{20 * cpus} 0 {2 * cpus}\n"] * 2, f"{cpus} 0 {cpus}\n",
    ]  # fmt: skip
    assert cgroups.read("recent") == [f"{21 * cpus}\n", *[f"{20 * cpus}\n"] * 2, f"{cpus}\n"]
    assert before == {name: contents(pins / name) for name in before}


def make_sockets(datagram: int, stream: int) -> None:
    for kind, count in ((socket.SOCK_DGRAM, datagram), (socket.SOCK_STREAM, stream)):
        for _ in range(count):
            socket.socket(socket.AF_INET, kind).close()


def test_cgroup_storage(pins: Path, adopt: ADOPT, cgroups: Tree) -> None:
    """Filled by programs that are attached to two of the cgroups, by bpftool."""
    bpftool("prog", "loadall", OBJECTS / "cgroup_storage.bpf.o", pins / "programs", "pinmaps", pins / "maps")
    for directory in (cgroups.b, cgroups.c):
        for hook, program in (("create", "on_create"), ("release", "on_release")):
            bpftool("cgroup", "attach", directory, f"cgroup_inet_sock_{hook}",
                    "pinned", pins / "programs" / program, "multi")  # fmt: skip
    names = ("each", "each_cpu", "shared")
    for name in names:
        adopt(name, pins / "maps" / name)
        assert cgroups.read(name) == ["made 0\ndatagram 0\n"] * 4
    in_cgroup(cgroups.b, lambda: make_sockets(3, 2))
    in_cgroup(cgroups.c, lambda: make_sockets(0, 4))
    before = {name: contents(pins / "maps" / name) for name in names}
    inner = "made 5\ndatagram 3\n"
    for name in names:
        assert cgroups.read(name) == ["made 9\ndatagram 3\n", inner, inner, "made 4\ndatagram 0\n"], name
    assert before == {name: contents(pins / "maps" / name) for name in names}


def test_cgroup_local_storage(pins: Path, adopt: ADOPT, cgroups: Tree) -> None:
    release = tuple(int(each) for each in os.uname().release.split(".")[:2])
    if release < (6, 2):
        pytest.skip("the kernel has no cgroup local storage before 6.2")
    cpus = len(CPUS)
    with running("cgrp_storage", pins):
        adopt("local", pins / "local")
        assert cgroups.read("local") == ["reads 0\nwrites 0\n"] * 4
        in_cgroup(cgroups.b, lambda: call(0x74686570, 10))
        in_cgroup(cgroups.c, lambda: call(0x74686570, 1))
    expected = [
        f"reads {11 * cpus}\nwrites {2 * cpus}\n", *[f"reads {10 * cpus}\nwrites {cpus}\n"] * 2,
        f"reads {cpus}\nwrites {cpus}\n",
    ]  # fmt: skip
    assert cgroups.read("local") == expected
    cgroups.b.rmdir()
    (cgroups.a / "new").mkdir()
    assert cgroups.file("local", cgroups.a / "new").read_text() == "reads 0\nwrites 0\n"
    assert cgroups.file("local", cgroups.top).read_text() == expected[3]


# Commands


@pytest.mark.on_host
def test_the_commands(pins: Path, adopt: ADOPT, cgroups: Tree, mounted: Mounted) -> None:
    path = create(pins / "theirs")
    update(path, cgroups.a, 5)
    result = cgstatfs("adopt", "--mount", mounted.path, "their.numbers", path)
    assert (result.returncode, result.stdout) == (0, "their.numbers: adopted\n"), result.stderr
    result = cgstatfs("adopt", "--mount", mounted.path, "their.numbers", path)
    assert result.returncode == 1
    assert result.stderr == f'cgstatfs: {path}: stats map name "their.numbers" is taken, by an adopted map; rename one of them\n'
    assert f'  their.numbers: adopted from {path}: hash "theirs"\n' in cgstatfs("list").stdout
    # A collector is not taken for a map, nor the other way round.
    assert cgstatfs("unload", "--mount", mounted.path, "theirs").returncode == 1
    file = os.open(cgroups.file("their.numbers", cgroups.a), os.O_RDONLY)
    try:
        assert os.pread(file, 100, 0) == b"5\n"
        # Its tool may take the pin away.
        path.unlink()
        assert os.pread(file, 100, 0) == b"5\n"
        assert cgstatfs("unload", "--mount", mounted.path, "their.numbers").returncode == 0
        with pytest.raises(OSError) as error:
            os.pread(file, 100, 0)
        assert error.value.errno == errno.ENODEV
    finally:
        os.close(file)
    assert "their.numbers" not in os.listdir(mounted.of(cgroups.a))
    with pytest.raises(FileNotFoundError):
        cgroups.file("their.numbers", cgroups.a).read_text()
    assert "their.numbers" not in cgstatfs("list").stdout
    # And again, by the same name.
    adopt("their.numbers", create(pins / "others"))
    assert cgroups.read("their.numbers") == ["0\n"] * 4


@pytest.fixture
def refused(mounted: Mounted) -> Callable[..., None]:
    """A function that has a map refused, with a line that says why."""

    def check(name: str, path: Path, *words: str) -> None:
        before = os.listdir(mounted.path)
        with pytest.raises(control.Refused) as error:
            control.ask(mounted.runtime.socket, {"do": "adopt", "name": name, "path": str(path)})
        said = str(error.value)
        assert said.startswith(f"{path}: ") and "\n" not in said
        for word in words:
            assert word in said
        assert os.listdir(mounted.path) == before

    return check


@pytest.mark.on_host
def test_what_is_no_map_is_refused(pins: Path, refused: Callable[..., None], tmp_path: Path) -> None:
    refused("theirs", pins / "absent", "No such file")
    (tmp_path / "file").touch()
    refused("theirs", tmp_path / "file", "nothing of BPF is pinned there")
    refused("theirs", pins, "nothing of BPF is pinned there")
    tool = libbpf.Object(OBJECTS / "theirs.bpf.o")
    try:
        tool.load()
        program = tool.programs["on_call"]
        link = program.attach()
        libbpf.pin(program.fd, pins / "program")
        libbpf.pin(link.fd, pins / "link")
        link.close()
    finally:
        tool.close()
    refused("theirs", pins / "program", "is no map", "prog")
    refused("theirs", pins / "link", "is no map", "link")


@pytest.mark.on_host
@pytest.mark.parametrize(
    ("kind", "key", "value", "words"),
    [
        ("array", 4, 8, ["a map of type 2", "keyed by cgroup"]),
        ("percpu_array", 4, 8, ["a map of type 6", "keyed by cgroup"]),
        ("hash", 4, 8, ["keys of 4 bytes", "a cgroup id has 8"]),
        ("hash", 16, 8, ["keys of 16 bytes", "a cgroup id has 8"]),
        ("hash", 8, 3, ["values have 3 bytes", "unsigned 64-bit integers"]),
        ("hash", 8, 129 * 8, ["values have 1032 bytes", "1 to 128"]),
    ],
)
def test_maps_of_other_sizes_are_refused(
    kind: str, key: int, value: int, words: list[str], pins: Path, refused: Callable[..., None]
) -> None:
    refused("theirs", create(pins / "theirs", kind, key, value), *words)


@pytest.mark.on_host
def test_keys_that_are_no_cgroups_are_refused(
    pins: Path, refused: Callable[..., None], adopt: ADOPT, tree: Path
) -> None:
    path = create(pins / "theirs")
    for number in (1 << 40, 1 << 41):
        bpftool("map", "update", "pinned", path, "key", *in_bytes(number), "value", *in_bytes(1))
    refused("theirs", path, "none of its 2 keys is the id of a cgroup")
    # One that is suffices: the others may be of cgroups that are gone.
    update(path, tree, 5)
    adopt("theirs", path)


@pytest.mark.on_host
def test_names_are_checked(
    pins: Path, refused: Callable[..., None], adopt: ADOPT, mounted: Mounted
) -> None:
    path = create(pins / "theirs")
    refused("its/name", path, "'/'")
    refused(".hidden", path, "starts with a dot")
    refused("proc.events", path, 'stats map name "proc.events" is taken, by collector proc_events')
    adopt("theirs", path)
    refused("theirs", path, "is taken")
    assert (mounted.path / "theirs").read_text() == "0\n"


@pytest.mark.on_host
def test_btf_with_other_fields_is_refused(pins: Path, refused: Callable[..., None]) -> None:
    with running("theirs", pins):
        refused("named", pins / "named", 'unsupported field "comm" (char[16])', "unsigned 64-bit")
        refused("balances", pins / "balances", 'unsupported field "balance"')
