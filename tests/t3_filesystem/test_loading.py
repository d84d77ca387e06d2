# SPDX-License-Identifier: GPL-2.0-only
"""Collectors are loaded, replaced and unloaded while the mount serves."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cgstatfs import collectors, control, libbpf

from ..conftest import BUILD, Mounted, cgroup_id, cgstatfs, times, wait_until

OBJECT = BUILD / "tests" / "properties.bpf.o"
FILES = ("test.kinds", "test.shared", "test.own")
KINDS, SHARED, OWN = 1, 2, 3
UPDATES = times(20_000)


def load(mounted: Mounted, path: Path, *, keep: bool = False, **initials: str) -> list[str]:
    initial = {"": initials["initial"]} if initials else {}
    question = {"do": "load", "path": str(path), "initials": initial, "keep": keep}
    return control.ask(mounted.runtime.socket, question)


def unload(mounted: Mounted, name: str) -> list[str]:
    return control.ask(mounted.runtime.socket, {"do": "unload", "name": name})


@pytest.fixture
def properties(mounted: Mounted) -> Iterator[None]:
    """tests/bpf/properties.bpf.c, loaded."""
    load(mounted, OBJECT)
    yield
    try:
        unload(mounted, "properties")
    except control.Refused:
        pass  # The test did.
    assert not (mounted.runtime.pins / "properties").exists()


def update(work: Path, cgroup: Path, which: int, count: int, first: int = 1) -> None:
    subprocess.run([work, "update", cgroup, str(which), str(count), str(first)], check=True)


def calls(file: Path) -> int:
    """How often a value was updated; see struct kinds."""
    line = file.read_text().splitlines()[6]
    assert line.startswith("nested calls="), line
    return int(line.split()[1].removeprefix("calls="))


def refused(function: Callable[[], object]) -> str | None:
    try:
        function()
    except OSError as error:
        return errno.errorcode[error.errno]
    return None


def test_files_appear_and_disappear_everywhere_at_once(
    mounted: Mounted, tree: Path, work: Path
) -> None:
    directories = [tree / name for name in ("a", "a/b", "c")]
    for directory in directories:
        directory.mkdir()
    everywhere = [mounted.path, *map(mounted.of, (tree, *directories))]
    for directory in everywhere:
        assert "test.kinds" not in os.listdir(directory)
        assert refused((directory / "test.kinds").stat) == "ENOENT"
    load(mounted, OBJECT)
    try:
        for directory in everywhere:
            assert {*FILES} <= {*os.listdir(directory)}
            assert calls(directory / "test.kinds") == 0
        update(work, directories[1], KINDS, 10)
        assert [calls(d / "test.kinds") for d in everywhere] == [10, 10, 10, 10, 0]
        (tree / "new").mkdir()
        assert calls(mounted.of(tree / "new") / "test.kinds") == 0
        with open(everywhere[2] / "test.kinds", "rb", buffering=0) as opened, open(
            everywhere[2] / "proc.events", "rb", buffering=0
        ) as other:
            half, whole = opened.read(10), other.read(6)
            unload(mounted, "properties")
            for directory in everywhere:
                assert not {*FILES} & {*os.listdir(directory)}
                assert refused((directory / "test.kinds").read_text) == "ENOENT"
            # What was partly read goes on to its end; a new lookup there cannot be.
            assert half == b"sum 55\nmax"
            assert opened.read(10) == b" 10\nmin 1\n"
            opened.seek(0)
            assert refused(lambda: opened.read(10)) == "ENODEV"
            # It can be asked about, as cat does first, like a file that was removed. Attributes
            # from when it was opened may answer for another 10 ms.
            wait_until(lambda: os.fstat(opened.fileno()).st_nlink == 0, "the attributes to go")
            assert os.fstat(opened.fileno()).st_size == 0
            # Others are undisturbed.
            assert whole + other.read(2) == b"forks 0\n"
    finally:
        if (mounted.runtime.pins / "properties").exists():
            unload(mounted, "properties")


def test_looked_up_before_and_opened_after(
    mounted: Mounted, properties: None, tree: Path, work: Path
) -> None:
    """What is opened is what is there by then, though nobody asks for its name again."""
    (tree / "a").mkdir()
    update(work, tree / "a", KINDS, 10)

    @contextmanager
    def looked_up(name: str) -> Iterator[Path]:
        opened = os.open(mounted.of(tree) / name, os.O_PATH)
        try:
            yield Path(f"/proc/self/fd/{opened}")
        finally:
            os.close(opened)

    with looked_up("a/test.kinds") as file:
        assert calls(file) == 10
    with looked_up("a/test.kinds") as file:
        load(mounted, OBJECT)
        assert calls(file) == 0
    with looked_up("a/proc.events") as file:
        (tree / "a").rmdir()
        assert refused(file.read_bytes) == "ENOENT"
        (tree / "a").mkdir()
        assert refused(file.read_bytes) == "ESTALE"
    with looked_up("a/test.kinds") as file, looked_up("a/test.shared") as other:
        unload(mounted, "properties")
        assert refused(other.read_bytes) == "ESTALE"
        assert refused(file.read_bytes) == "ESTALE"


@pytest.mark.on_host
def test_replaced_it_begins_anew(
    mounted: Mounted, properties: None, tree: Path, work: Path
) -> None:
    file = mounted.of(tree) / "test.kinds"
    update(work, tree, KINDS, 10)
    with open(file, "rb", buffering=0) as opened:
        assert opened.read(7) == b"sum 55\n"
        load(mounted, OBJECT)
        opened.seek(0)
        assert refused(lambda: opened.read(7)) == "ENODEV"
    assert calls(file) == 0
    update(work, tree, KINDS, 3)
    assert calls(file) == 3


@pytest.mark.on_host
def test_kept_it_goes_on(mounted: Mounted, properties: None, tree: Path, work: Path) -> None:
    """With all it had, also of cgroups that are gone, and of those that come and go meanwhile."""
    gone, stays = tree / "gone", tree / "stays"
    gone.mkdir()
    stays.mkdir()
    for cgroup in (gone, stays):
        update(work, cgroup, KINDS, 10)
        update(work, cgroup, SHARED, 10)
    gone.rmdir()
    before = (mounted.of(tree) / "test.kinds").read_text()
    for _ in range(1 + times(10) // 5):
        assert load(mounted, OBJECT, keep=True) == [f"properties: loaded; {', '.join(sorted(FILES))}"]
    assert (mounted.of(tree) / "test.kinds").read_text() == before
    for file in ("test.kinds", "test.shared"):
        assert calls(mounted.of(tree) / file) == 20
        assert calls(mounted.of(stays) / file) == 10
    update(work, stays, KINDS, 5)
    (tree / "new").mkdir()
    update(work, tree / "new", KINDS, 5)
    (tree / "new").rmdir()
    assert calls(mounted.of(tree) / "test.kinds") == 30
    assert calls(mounted.of(stays) / "test.kinds") == 15


@pytest.mark.on_host
def test_kept_while_it_counts(mounted: Mounted, properties: None, tree: Path, work: Path) -> None:
    """Nothing is counted twice; nor lost, but for the moment between the two."""
    file = mounted.of(tree) / "test.kinds"
    count = 20 * UPDATES
    worker = subprocess.Popen([work, "update", tree, str(KINDS), str(count), "1"])
    seen = 0
    for number in range(3):
        directory = tree / f"short{number}"
        directory.mkdir()
        load(mounted, OBJECT, keep=True)
        directory.rmdir()
        now = calls(file)
        assert seen <= now <= count
        seen = now
    assert worker.wait() == 0
    total = calls(file)
    assert seen <= total <= count
    update(work, tree, KINDS, 100)
    assert calls(file) == total + 100


@pytest.mark.on_host
def test_what_was_detached_runs_no_more(
    mounted: Mounted, properties: None, tree: Path, work: Path
) -> None:
    """At once: the kernel detaches some time after a link lost its pin."""
    pins = mounted.runtime.pins / "properties"
    # Past the mount, which takes long enough to hide it.
    served = collectors.Collector.from_pins(pins, to_serve=True)
    look_up = next(m.lookup for m in served.stats_maps if m.file == "test.kinds")
    with subprocess.Popen([work, "update", tree, str(KINDS), "1000000000", "1"]) as worker:
        try:
            wait_until(lambda: any(look_up(cgroup_id(tree))), "the worker to begin")
            collectors.detach(pins, {"on_call"})
            before = look_up(cgroup_id(tree))
            time.sleep(0.2)
            assert look_up(cgroup_id(tree)) == before
        finally:
            worker.kill()
            served.close()


@pytest.mark.on_host
@pytest.mark.log("still attached")
@pytest.mark.log("counts no more")
def test_what_somebody_else_keeps_attached_is_not_kept(
    mounted: Mounted, properties: None, tree: Path, work: Path
) -> None:
    """Two programs that add to one map would count twice. It says what has become of the first."""
    update(work, tree, KINDS, 10)
    links = mounted.runtime.pins / "properties/links"
    held = [libbpf.get_pinned(path) for path in links.iterdir()]
    try:
        with pytest.raises(control.Refused, match="still attached, as somebody else holds link") as said:
            load(mounted, OBJECT, keep=True)
    finally:
        for fd in held:
            os.close(fd)
    assert "The one that it was to replace counts no more" in str(said.value)
    failed = mounted.runtime.read_state().failed
    assert "counts no more" in failed["properties"]
    # Its counts are there still.
    assert calls(mounted.of(tree) / "test.kinds") == 10
    load(mounted, OBJECT, keep=True)
    update(work, tree, KINDS, 10)
    assert calls(mounted.of(tree) / "test.kinds") == 20
    assert not mounted.runtime.read_state().failed


@pytest.mark.on_host
def test_what_cannot_be_attached_replaces_nothing(
    mounted: Mounted, properties: None, tree: Path, work: Path, tmp_path: Path
) -> None:
    """What is loaded goes on, though it would have had to end before."""
    update(work, tree, KINDS, 10)
    other = shutil.copy(BUILD / "tests" / "unattachable.bpf.o", tmp_path / OBJECT.name)
    with pytest.raises(control.Refused, match='"nowhere".*no such tracepoint') as said:
        load(mounted, other, keep=True)
    assert "counts no more" not in str(said.value)
    update(work, tree, KINDS, 10)
    assert calls(mounted.of(tree) / "test.kinds") == 20


@pytest.mark.on_host
@pytest.mark.log("counting began anew")
def test_kept_it_begins_anew_if_its_type_changed(
    mounted: Mounted, properties: None, tree: Path, work: Path, tmp_path: Path
) -> None:
    update(work, tree, KINDS, 10)
    # The same name, of another collector.
    other = tmp_path / "properties.bpf.o"
    shutil.copy(BUILD / "tests" / "calls.bpf.o", other)
    done = load(mounted, other, keep=True)
    assert any("counting began anew: the type of" in line for line in done)
    names = os.listdir(mounted.of(tree))
    assert "test.calls" in names and "test.kinds" not in names


@pytest.mark.on_host
@pytest.mark.log("counting began anew")
def test_what_another_version_laid_out(
    mounted: Mounted, properties: None, tree: Path, work: Path
) -> None:
    """It is shown as what it is, and another can be loaded in its place."""
    maps = mounted.runtime.pins / OBJECT.name.removesuffix(".bpf.o") / "maps"
    pins = list(maps.glob("*_slots"))
    assert pins
    for pin in pins:
        pin.unlink()
    listed = cgstatfs("list")
    assert listed.returncode == 0 and "test.kinds: engine standalone" in listed.stdout, listed
    done = load(mounted, OBJECT, keep=True)
    assert any("another version of cgstatfs laid the maps out" in line for line in done)
    update(work, tree, KINDS, 10)
    assert calls(mounted.of(tree) / "test.kinds") == 10


def numbers(text: str) -> list[str]:
    """In their order, without keys."""
    return re.findall(r"(?:(?<=[ =])|^)\d+(?=\s|$)", text, re.MULTILINE)


@pytest.mark.on_host
@pytest.mark.log("its initial cgroup was removed")
def test_an_initial_cgroup(mounted: Mounted, cgroupfs: Path, tree: Path, work: Path) -> None:
    """Files in it and below it; and none when it is removed, at once, and no memory."""
    inside, below = tree / "inside", tree / "inside/below"
    below.mkdir(parents=True)
    load(mounted, OBJECT, initial=f"/{inside.relative_to(cgroupfs)}")
    try:
        for cgroup in (inside, below, tree):
            update(work, cgroup, KINDS, 10)
        for cgroup, expected in ((inside, 20), (below, 10)):
            assert {*FILES} <= {*os.listdir(mounted.of(cgroup))}
            assert calls(mounted.of(cgroup) / "test.kinds") == expected
        for directory in (mounted.path, mounted.of(tree)):
            assert not {*FILES} & {*os.listdir(directory)}
            assert refused((directory / "test.kinds").read_text) == "ENOENT"
        for top in (mounted.path, mounted.of(tree), mounted.of(inside)):
            for name in FILES:
                shown = ["/", "/below"] if top == mounted.of(inside) else [
                    f"/{each.relative_to(cgroupfs if top == mounted.path else tree)}"
                    for each in (inside, below)
                ]  # fmt: skip
                lines = (top / ".tree" / name).read_text().splitlines()
                assert [line.partition(" ")[0] for line in lines] == shown
                for line, cgroup in zip(lines, (inside, below)):
                    assert numbers(line) == numbers((mounted.of(cgroup) / name).read_text())
        with open(mounted.of(inside) / "test.kinds", "rb", buffering=0) as opened:
            assert opened.read(4) == b"sum "
            below.rmdir()
            inside.rmdir()
            opened.seek(0)
            assert refused(lambda: opened.read(4)) == "ENODEV"
        pins = mounted.runtime.pins / "properties"
        wait_until(lambda: not pins.exists(), "the collector to end")
        with pytest.raises(control.Refused, match='no collector "properties" is loaded'):
            unload(mounted, "properties")
    finally:
        if (mounted.runtime.pins / "properties").exists():
            unload(mounted, "properties")


def test_no_such_initial_cgroup(mounted: Mounted) -> None:
    for path in ("/no/such", "/../../../tmp", "/cgroup.procs"):
        with pytest.raises(control.Refused, match="no such cgroup"):
            load(mounted, OBJECT, initial=path)
    assert not (mounted.runtime.pins / "properties").exists()
