# SPDX-License-Identifier: GPL-2.0-only
"""cgstatfs new and cgstatfs build."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cgstatfs import authoring
from cgstatfs.collectors import CollectorError
from cgstatfs.valuetype import ValueType

from ..conftest import REPOSITORY, cgstatfs, wait_until
from ..documents import DOCS, sections
from ..t1_pure.test_formats import EXAMPLES
from .test_program import fails, mount, mountpoint  # noqa: F401


def run(directory: Path, *arguments: str) -> str:
    """The command, in a directory; returns what it prints."""
    result = subprocess.run(
        [sys.executable, "-m", "cgstatfs", *arguments], cwd=directory, text=True, capture_output=True
    )
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    return result.stdout


def refused(directory: Path, *arguments: str) -> str:
    """A command that fails: a last line that says why, and nothing is left."""
    before = sorted(directory.iterdir())
    result = subprocess.run(
        [sys.executable, "-m", "cgstatfs", *arguments], cwd=directory, text=True,
        capture_output=True, env=os.environ | {"TMPDIR": str(directory)},
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (1, "")
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("cgstatfs: ")
    assert sorted(directory.iterdir()) == before
    return result.stderr


def fork(cgroup: Path, work: Path, count: int) -> None:
    subprocess.run([work, "fork", cgroup, str(count)], check=True)


def test_new_and_build_untouched_count(
    mountpoint: Path, tmp_path: Path, tree: Path, cgroupfs: Path, work: Path  # noqa: F811
) -> None:
    mount(mountpoint)
    (tree / "a").mkdir()
    run(tmp_path, "new", "mystats")
    built = run(tmp_path, "build", "mystats.bpf.c")
    assert built.splitlines()[:3] == [
        "mystats.bpf.o: built", "  mystats: 50 elements", "    started: sum"
    ]  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mnt", "mystats.bpf.c", "mystats.bpf.o"]
    loaded = cgstatfs("load", "--mount", mountpoint, tmp_path / "mystats.bpf.o")
    assert (loaded.stdout, loaded.stderr) == ("mystats: loaded; mystats\n", "")
    fork(tree / "a", work, 7)

    def shown(cgroup: Path) -> dict[str, list[str]]:
        text = (mountpoint / cgroup.relative_to(cgroupfs) / "mystats").read_text()
        return {key: words for key, *words in map(str.split, text.splitlines())}

    # The one that forked ends in there, too.
    wait_until(lambda: shown(tree)["lifetime_ns"][0] == "count=8", "eight tasks to have ended")
    for cgroup in (tree / "a", tree):
        value = shown(cgroup)
        assert value["started"] == ["7"]
        assert int(value["longest_ns"][0]) > 0


@pytest.mark.parametrize(
    "name", ["int", "cgroup", "task_struct", "on_start", "2fast-x", "mystats-2", "a" * 64]
)
def test_names_that_c_could_trip_over(tmp_path: Path, name: str) -> None:
    path = authoring.write_new(name, tmp_path)
    assert path.read_text().splitlines()[2].startswith(f" * {name}: ")
    built = authoring.build(path)
    assert [about.file for about in built.maps] == [name]


def test_what_new_refuses(tmp_path: Path) -> None:
    for name in ("a.b", "../up", "", "-x", "a" * 65, "käse"):
        assert "collector name" in refused(tmp_path, "new", "--", name)
    assert "begins with cgstat" in refused(tmp_path, "new", "cgstat_mine")
    for options, ending in ((), ".bpf.c"), (("--bcc",), ".bcc.c"):
        path = tmp_path / f"mystats{ending}"
        path.write_text("mine")
        assert f"mystats{ending}: File exists" in refused(tmp_path, "new", *options, "mystats")
        assert path.read_text() == "mine"
    fails("new", code=2)


def test_new_for_bcc(tmp_path: Path) -> None:
    assert "next: cgstatfs load x-y.bcc.c" in run(tmp_path, "new", "--bcc", "x-y")
    text = (tmp_path / "x-y.bcc.c").read_text()
    assert '"x-y"' in text
    assert "cgstat.bcc.h" in text
    assert "mystats" not in text
    assert "x-y.bcc.c" in refused(tmp_path, "build", "x-y.bcc.c")


def test_what_build_refuses(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path, "build", "absent.bpf.c")
    assert "NAME.bpf.c" in refused(tmp_path, "build", "mystats.c")
    run(tmp_path, "new", "mystats")
    assert "NAME.bpf.o" in refused(tmp_path, "build", "-o", "out.o", "mystats.bpf.c")
    assert "collector name" in refused(tmp_path, "build", "-o", "a.b.bpf.o", "mystats.bpf.c")
    assert "No such file" in refused(tmp_path, "build", "-o", "absent/x.bpf.o", "mystats.bpf.c")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("__u64 started;", "__u64 started[;", "expected expression"),
        ("__u64 started;", "__u64 started; int small[2];", 'unsupported field "small" (int[2])'),
        ("__u64 started;", "__u64 started; __u64 many[128];", "1 to 128 unsigned 64-bit elements"),
        ("__u64 started;", '__u64 started CGSTAT_TAG("mode");', 'unknown tag "mode"'),
        ('"mystats");', '"my stats");', "stats map name"),
        ("CGSTAT_MAP(", "// CGSTAT_MAP(", "cgstatfs: mystats.bpf.c: clang cannot compile it"),
        ('#include "cgstat.bpf.h"', '#include "cgstat.bpf.h"\n#include <bpf/bpf_none.h>', "libbpf-dev"),
    ],
)
def test_a_source_that_is_wrong(tmp_path: Path, old: str, new: str, said: str) -> None:
    """An older object stays as it was."""
    run(tmp_path, "new", "mystats")
    run(tmp_path, "build", "mystats.bpf.c")
    before = (tmp_path / "mystats.bpf.o").read_bytes()
    source = tmp_path / "mystats.bpf.c"
    source.write_text(source.read_text().replace(old, new))
    assert said in refused(tmp_path, "build", "mystats.bpf.c")
    assert (tmp_path / "mystats.bpf.o").read_bytes() == before


def test_an_object_that_declares_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.bpf.c").write_text('#include "cgstat.bpf.h"\nchar LICENSE[] SEC("license") = "GPL";\n')
    assert "x.bpf.o: declares no stats map" in refused(tmp_path, "build", "x.bpf.c")


def test_options_for_clang_and_output(tmp_path: Path) -> None:
    run(tmp_path, "new", "mystats")
    assert "'CGSTAT_EBUSY' macro redefined" in refused(
        tmp_path, "build", "mystats.bpf.c", "--", "-DCGSTAT_EBUSY=1"
    )
    said = run(tmp_path, "build", "-o", "other.bpf.o", "mystats.bpf.c", "--", "-DUNUSED=1", "-Wno-error")
    assert said.startswith("other.bpf.o: built\n")
    assert not (tmp_path / "mystats.bpf.o").exists()


def test_a_vmlinux_h_next_to_the_source_is_preferred(tmp_path: Path) -> None:
    run(tmp_path, "new", "mystats")
    (tmp_path / "vmlinux.h").write_text("#error this one\n")
    assert "this one" in refused(tmp_path, "build", "mystats.bpf.c")


@pytest.mark.parametrize(
    ("tool", "package"), [("clang", "clang"), ("llvm-strip", "llvm"), ("bpftool", "bpftool")]
)
def test_a_tool_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str, package: str
) -> None:
    path = authoring.write_new("mystats", tmp_path)
    which = shutil.which
    monkeypatch.setattr(
        authoring.shutil, "which", lambda name, path=None: None if name == tool else which(name, path=path)
    )
    with pytest.raises(FileNotFoundError, match=f"install Debian's package {package}") as failed:
        authoring.build(path)
    assert failed.value.filename == tool
    assert list(tmp_path.iterdir()) == [path]


def test_notes_on_where_programs_are_placed(tmp_path: Path) -> None:
    path = authoring.write_new("mystats", tmp_path)
    text = path.read_text()
    path.write_text(f'{text}\nSEC("tp/sched/sched_stat_wait")\nint on_wait(void *ctx)\n{{\n\treturn 0;\n}}\n')
    assert "may miss events" in "".join(authoring.build(path).notes)
    path.write_text(f'{text}\nSEC("xdp")\nint on_packet(void *ctx)\n{{\n\treturn 0;\n}}\n')
    with pytest.raises(CollectorError, match="cannot be attached"):
        authoring.build(path)


def test_not_root(tmp_path: Path) -> None:
    """Both are for everybody; bpftool need not be where they look for commands."""
    clone = tmp_path / "clone"
    shutil.copytree(REPOSITORY / "cgstatfs", clone / "cgstatfs")
    site = next(p for p in sys.path if p.startswith(sys.prefix) and "site-packages" in p)
    shutil.copytree(site, tmp_path / "packages")
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    for path in (tmp_path, *tmp_path.parents):
        if path != Path("/tmp") and path.is_relative_to("/tmp"):
            path.chmod(0o755)
    for command in ("new", "mine"), ("build", "mine.bpf.c"):
        result = subprocess.run(
            ["/usr/bin/python3", "-m", "cgstatfs", *command], cwd=home, text=True,
            capture_output=True, user=65534, group=65534, extra_groups=[],
            env={"PYTHONPATH": f"{clone}:{tmp_path / 'packages'}", "PATH": "/usr/bin:/bin",
                 "PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
        assert (result.returncode, result.stderr) == (0, "")
    assert sorted(path.name for path in home.iterdir()) == ["mine.bpf.c", "mine.bpf.o"]
    mode = (home / "mine.bpf.o").stat().st_mode & 0o777
    assert not mode & 0o022


def test_the_types_of_formats_md(tmp_path: Path) -> None:
    """The C of its examples has the value types that its texts are made from."""
    for number, (heading, (fields, _)) in enumerate(EXAMPLES.items()):
        section = next(
            s for s in sections(DOCS / "formats.md") if s.heading.partition(":")[0] == heading
        )
        (declaration,) = section.blocks("c")
        source = tmp_path / f"example{number}.bpf.c"
        source.write_text(
            f'#include "cgstat.bpf.h"\nchar LICENSE[] SEC("license") = "GPL";\n{declaration}'
        )
        (about,) = authoring.build(source).maps
        assert about.value_type == ValueType(fields), heading


def test_the_manuals() -> None:
    """They are well-formed, and the commands' has every command and option."""
    for page in (DOCS / "man").iterdir():
        result = subprocess.run(
            ["groff", "-man", "-ww", "-z", "-Tutf8", page], text=True, capture_output=True
        )
        assert (result.returncode, result.stderr) == (0, "")
    manual = (DOCS / "man/cgstatfs.8").read_text().replace("\\-", "-")
    usage = cgstatfs("--help").stdout
    commands = re.findall(r"^    (\w+)  ", usage, re.MULTILINE)
    assert len(commands) >= 10
    for command in commands:
        assert f".B {command}\n" in manual
        for option in re.findall(r"--[a-z]+", cgstatfs(command, "--help").stdout):
            assert option in manual, (command, option)
