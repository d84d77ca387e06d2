# SPDX-License-Identifier: GPL-2.0-only
"""Fixtures of all levels.

The levels, lowest first; a failure's level says where to look:

t1_pure         plain Python, no kernel
t2_bpf          engines and collectors on the running kernel, no mount
t3_filesystem   a real mount, driven by system calls and by tools
t4_program      the command line and the daemon's life
t5_guests       t2 and t3 again, in guests that boot other kernels; and there:
kernel          the kernel series, in a guest that boots it
t6_boot         a Debian release's systemd boots with the package; only with --release
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

from cgstatfs import libbpf
from cgstatfs.collectors import Collector
from cgstatfs.engines import ENGINES, Engine, EngineUnavailable, Setting, Usage
from cgstatfs.engines.hashed import HashedEngine
from cgstatfs.hierarchy import find_cgroup2
from cgstatfs.loading import Request, load
from cgstatfs.objects import object_path
from cgstatfs.runtime import Runtime

REPOSITORY = Path(__file__).parent.parent
BUILD = REPOSITORY / "build"

# Emulated guests are slow: what is repeated only to meet a race is repeated less there.
SCALE = float(os.environ.get("CGSTATFS_TEST_SCALE", "1"))


def times(count: int) -> int:
    """How often to repeat something."""
    return max(5, int(count * SCALE))


def skip(reason: str) -> NoReturn:
    """Skip what cannot run here. What the guests are there for has to run in them."""
    if os.environ.get("CGSTATFS_TEST_GUEST"):
        pytest.fail(reason)
    pytest.skip(reason)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--engine", help="run the tests of this engine alone")
    parser.addoption("--kernel", help="boot this guest kernel alone: 6.1, 6.12, newest or native")
    parser.addoption("--release", help="boot this Debian release: bookworm, trixie or all")


def _usable_engines(wanted: str | None) -> Iterator[str]:
    for kind in ENGINES:
        if wanted in (None, kind.name):
            try:
                kind().probe()
            except EngineUnavailable:
                continue
            yield kind.name


# Of an engine's name: with all pairs in the hash, where they are that find their slots taken.
_HASHED = "-hashed"
_WITH_HASHED = ("test_exactness.py", "test_updates.py")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine_name" in metafunc.fixturenames:
        wanted = metafunc.config.getoption("--engine")
        names = list(_usable_engines(wanted))
        # Who asks for an engine has it as it is: guests, of which another one has all.
        if wanted is None and metafunc.definition.path.name in _WITH_HASHED:
            names += [f"{name}{_HASHED}" for name in names if name != "native"]
        # What never gets as far as an engine is tested on the one that is chosen.
        if getattr(metafunc.module, "ONE_ENGINE", False):
            del names[1:]
        metafunc.parametrize("engine_name", names, scope="session")


_OF_AN_ENGINE = ("test_exactness.py", "test_properties.py", "test_updates.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In guests, that are slow, what hardly depends on the kernel is left out.

    The file system is the same with both engines, and standalone is the host's: of that is
    tested there what counts and flushes, as the kernel's BPF is another.
    """
    if not os.environ.get("CGSTATFS_TEST_GUEST") or SCALE >= 1:
        return
    reason = "runs on the host; here with CGSTATFS_GUEST_SCALE=1"
    for item in items:
        engine = getattr(item, "callspec", None) and item.callspec.params.get("engine_name")
        other = engine == "standalone" and item.path.name not in _OF_AN_ENGINE
        if other or item.get_closest_marker("on_host"):
            item.add_marker(pytest.mark.skip(reason=reason))


def wait_until(condition: Callable[[], object], what: str, seconds: float = 600) -> None:
    """Wait for something that will come; the time is only for when it does not."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.01)


def _compiled(name: str) -> Path:
    """A program in C of the tests' own."""
    source, program = Path(__file__).parent / f"{name}.c", BUILD / "tests" / name
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        program.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", program, source, "-lbpf"],
            check=True,
        )
    return program


@pytest.fixture(scope="session")
def work() -> Path:
    """The program of tests/work.c."""
    return _compiled("work")


@pytest.fixture(scope="session")
def litmus() -> Path:
    """The program of tests/litmus.c."""
    return _compiled("litmus")


@pytest.fixture(scope="session")
def cgroupfs() -> Path:
    return find_cgroup2()


_numbers = itertools.count()


def _kill_all(directory: Path) -> None:
    for pid in (directory / "cgroup.procs").read_text().split():
        os.kill(int(pid), signal.SIGKILL)


@pytest.fixture
def tracefs() -> Iterator[Path]:
    """Mounted, as bpftrace, tp and kprobe programs need it; and unmounted again if it was not."""
    path = Path("/sys/kernel/tracing")
    mounted = (path / "events").exists()
    if not mounted:
        subprocess.run(["mount", "-t", "tracefs", "tracefs", path], check=True)
    yield path
    if not mounted:
        subprocess.run(["umount", path], check=True)


def wait_for_bpftrace(tracer: subprocess.Popen[str]) -> None:
    """Wait until a program of bpftrace's, which prints ``up`` every so often, is attached."""
    ups = 0
    while ups < 3:
        line = tracer.stdout.readline()
        assert line, "bpftrace ended before it began"
        ups += line == "up\n"


@pytest.fixture(scope="module")
def bcc_compiler() -> Iterator[None]:
    """bcc, and what it compiles with. CI has both."""
    from .vm import headers, kernels

    def missing(reason: str) -> NoReturn:
        if os.environ.get("CI"):
            pytest.fail(reason)
        skip(reason)

    try:
        import bcc  # noqa: F401
    except ImportError as error:
        missing(f"bcc cannot be imported ({error}); install python3-bpfcc")
    try:
        with headers.provided():
            yield
    except kernels.KernelError as error:
        missing(f"no kernel headers: {error}")


def remove_tree(root: Path) -> None:
    """Remove a cgroup and all below it, and end what runs in there."""
    for path, _, _ in os.walk(root, topdown=False):
        directory = Path(path)

        def gone(directory: Path = directory) -> bool:
            try:
                _kill_all(directory)
                directory.rmdir()
            except ProcessLookupError:
                return False
            except FileNotFoundError:
                return True
            except OSError:
                return False
            return True

        wait_until(gone, f"{directory} to be removed")


@pytest.fixture
def tree(cgroupfs: Path) -> Iterator[Path]:
    """A cgroup of the test's own."""
    root = cgroupfs / f"cgstat-test-{os.getpid()}-{next(_numbers)}"
    root.mkdir()
    yield root
    remove_tree(root)


def cgroup_id(directory: Path) -> int:
    return directory.stat().st_ino


def live_cgroups(directory: Path) -> set[int]:
    """Ids of the cgroups at and below a directory."""
    return {cgroup_id(Path(path)) for path, _, _ in os.walk(directory)}


def dying(directory: Path) -> int:
    """Cgroups below that are removed and not yet released."""
    text = (directory / "cgroup.stat").read_text()
    return int(dict(line.split() for line in text.splitlines())["nr_dying_descendants"])


# Collectors, without a mount


class Loaded:
    """The shipped collectors, loaded for an engine."""

    def __init__(self, engine: Engine, loaded: list[Collector]) -> None:
        self.engine = engine
        self.collectors = loaded
        self._map_of = {m.file: (c, m) for c in loaded for m in c.stats_maps}

    def value(self, file: str, cgroup: int | Path) -> dict[str, tuple[int, ...]]:
        """A flushing lookup, by element name."""
        _, stats_map = self._map_of[file]
        value = stats_map.lookup(cgroup if isinstance(cgroup, int) else cgroup_id(cgroup))
        return {
            field.path: value[field.offset : field.offset + field.elements]
            for field in stats_map.value_type.fields
        }

    def one(self, file: str, cgroup: int | Path, name: str) -> int:
        (number,) = self.value(file, cgroup)[name]
        return number

    def fd(self, file: str, ending: str) -> int:
        """Of one of the BPF maps that a stats map consists of."""
        collector, stats_map = self._map_of[file]
        return collector.maps[f"{stats_map.prefix}_{ending}"]

    def is_native(self, file: str) -> bool:
        """Whether the kernel keeps the entries of a stats map, which can have another engine."""
        return self._map_of[file][0].engine.name == "native"

    def ids(self, file: str, ending: str) -> set[int]:
        """The cgroups that have an element in one of the BPF maps: ``entries`` or ``pairs``.

        native's per-cpu arrays are no elements of a map, but parts of entries.
        """
        if self.is_native(file):
            if ending == "pairs":
                return set()
            ending = "native"
        # A pair's key is the cpu and, in the lower 48 bits, the id: cgstat_pair_key().
        keys = libbpf.map_keys(self.fd(file, ending), 8)
        ids = {int.from_bytes(key, sys.byteorder) & (1 << 48) - 1 for key in keys}
        return ids | self._in_slots(file) if ending == "pairs" else ids

    def _in_slots(self, file: str) -> set[int]:
        """The cgroups that have a per-cpu array in a slot."""
        fd = self.fd(file, "slots")
        size = libbpf.map_info(fd).value_size
        slots = (libbpf.map_lookup(fd, key, size) for key in libbpf.map_keys(fd, 4))
        # struct cgstat_slot begins with the owner.
        return {int.from_bytes(slot[:8], sys.byteorder) for slot in slots if slot} - {0}

    def entries_below(self, file: str, cgroup: Path) -> set[int]:
        """The cgroups at and below one that have an entry, as the entries say themselves.

        native's do not say whose they are. Those that are of no live cgroup are taken for ours.
        """
        if self.is_native(file):
            ids = self.ids(file, "entries")
            return ids - (live_cgroups(find_cgroup2()) - live_cgroups(cgroup))
        fd = self.fd(file, "entries")
        size = libbpf.map_info(fd).value_size
        parents = {}
        for key in libbpf.map_keys(fd, 8):
            # struct cgstat_entry begins with the parent's id.
            entry = libbpf.map_lookup(fd, key, size)
            if entry:
                parents[int.from_bytes(key, sys.byteorder)] = int.from_bytes(entry[:8], sys.byteorder)
        below = {cgroup_id(cgroup)}
        # Ids only grow, so parents come first.
        for id in sorted(parents):
            if parents[id] in below:
                below.add(id)
        return below & parents.keys()

    def usage(self, file: str) -> Usage:
        """What a stats map takes, and what it says of its updates."""
        collector, stats_map = self._map_of[file]
        return collector.usage(stats_map.prefix)

    def reader(self, file: str) -> int:
        """The descriptor that lookups of a stats map take."""
        collector, stats_map = self._map_of[file]
        return collector.reader(stats_map.prefix)

    def misses(self, file: str) -> dict[str, int]:
        collector, _ = self._map_of[file]
        return collector.misses()


def _hashed(kind: type[HashedEngine]) -> type[HashedEngine]:
    """That engine, on a machine whose slots are taken by others, but for the first cpu's first."""

    class Hashed(kind):
        def configure(self, parts: Mapping[str, libbpf.Map], setting: Setting) -> None:
            super().configure(parts, setting)
            parts["slots"].max_entries = 1

    return Hashed


def make_engine(name: str) -> Engine:
    kind = next(kind for kind in ENGINES if kind.name == name.removesuffix(_HASHED))
    engine = (_hashed(kind) if name.endswith(_HASHED) else kind)()
    engine.probe()
    return engine


@pytest.fixture(scope="session")
def loaded(engine_name: str, cgroupfs: Path) -> Iterator[Loaded]:
    engine = make_engine(engine_name)
    names = ("proc_events", "sched_runqlat", "mm_reclaim")
    found = [load(Request(object_path(n), engine, cgroup_id(cgroupfs))) for n in names]
    yield Loaded(engine, found)
    for collector in found:
        collector.close()


# A mount


def wait_for_exits(read: Callable[[], bytes], count: int) -> None:
    """Wait until *proc.events* has so many exits.

    A task that was waited for may still have to be switched away from, which counts.
    """
    wait_until(lambda: b"\nexits %d\n" % count in read(), f"{count} exits")


def cgstatfs(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    return subprocess.run(
        [sys.executable, "-m", "cgstatfs", *map(str, arguments)],
        text=True, capture_output=True, cwd=REPOSITORY, **options,
    )  # fmt: skip


@dataclass
class Mounted:
    """A file system that ``cgstatfs mount`` mounted."""

    path: Path
    cgroupfs: Path
    engine: str

    def __post_init__(self) -> None:
        self.runtime = Runtime(self.path)
        assert self.runtime.is_held()

    @property
    def pid(self) -> int:
        """Of the daemon that serves it."""
        state = self.runtime.read_state()
        assert state is not None
        return state.pid

    def of(self, cgroup: Path) -> Path:
        """A cgroup's directory in the mount."""
        return self.path / cgroup.relative_to(self.cgroupfs)

    def log(self) -> str:
        return self.runtime.log.read_text()

    def held(self, collector: str, prefix: str, cgroup: Path) -> bytes:
        """The text of the total that the map holds, without a flush, past the mount.

        For cgroups in which nothing happens any more and that were read once. native's total
        cannot be had without a flush.
        """
        held = Collector.from_pins(self.runtime.pins / collector)
        try:
            value_type = held.description(prefix).value_type
            if held.engine.name == "native":
                value = libbpf.map_lookup(
                    held.maps[f"{prefix}_native"], cgroup_id(cgroup).to_bytes(8, sys.byteorder),
                    value_type.size,
                )  # fmt: skip
                return value_type.format(value_type.unpack(value))
            fd = held.maps[f"{prefix}_entries"]
            size = libbpf.map_info(fd).value_size
            entry = libbpf.map_lookup(fd, cgroup_id(cgroup).to_bytes(8, sys.byteorder), size)
        finally:
            held.close()
        # struct cgstat_entry, then spill, total and pending
        total = size - 2 * value_type.size
        return value_type.format(value_type.unpack(entry[total : total + value_type.size]))


@contextmanager
def without_daemon(mount_point: Path, settings: Path) -> Iterator[None]:
    """End a mount's daemon, and let no other come meanwhile.

    :param settings: an empty configuration file, with which it was mounted
    """
    settings.write_text('engine = "none of them"\n')
    try:
        state = Runtime(mount_point).read_state()
        assert state
        os.kill(state.pid, signal.SIGKILL)
        wait_until(lambda: not state.lives(), "the daemon to end")
        yield
    finally:
        settings.write_text("")


def let_all_in(path: Path) -> None:
    """Those who are not root have to get to a directory below /tmp."""
    for directory in (path, *path.parents):
        if directory == Path("/tmp"):
            break
        directory.chmod(directory.stat().st_mode | 0o055)


@pytest.fixture(scope="session")
def mounted(
    engine_name: str, cgroupfs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mounted]:
    path = tmp_path_factory.mktemp(f"mnt-{engine_name}")
    let_all_in(path)
    result = cgstatfs("mount", "--engine", engine_name, path)
    assert result.returncode == 0, result.stderr
    mount = Mounted(path, cgroupfs, engine_name)
    yield mount
    result = cgstatfs("umount", path)
    assert result.returncode == 0, result.stderr
    assert not mount.runtime.pins.exists()
    # It stays if something was logged, as tests announce it.
    mount.runtime.log.unlink(missing_ok=True)
