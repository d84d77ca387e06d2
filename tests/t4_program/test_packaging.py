# SPDX-License-Identifier: GPL-2.0-only
"""What others install: the wheel, and the Debian package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from cgstatfs import __version__

from ..conftest import BUILD, REPOSITORY, skip
from .test_program import mountpoint  # noqa: F401

_WHEEL_SOURCE = ("MANIFEST.in", "README.md", "bpf", "cgstatfs", "pyproject.toml", "setup.py")
# pip's way to say: with the setuptools that is installed, and not with PyPI's newest.
OFFLINE = os.environ | {"PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_INDEX": "1"}


def _run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, text=True, capture_output=True, **options)


def _make(target: str) -> None:
    """Run make, for which the environment that runs the tests is as it should be."""
    environment = Path(sys.prefix)
    done = _run(
        "make", "-s", target, f"VENV={environment}", "-o", environment / "installed",
        cwd=REPOSITORY, env=OFFLINE,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def _only(pattern: str) -> Path:
    (path,) = BUILD.glob(pattern)
    return path


# The wheel


def make_wheel() -> Path:
    _make("wheel")
    return _only("wheel/*.whl")


def make_environment(path: Path) -> Path:
    """An environment with all that the wheel depends on.

    So that nothing has to be downloaded; pip finds out whether it is all that is needed. This
    source's own package, editable, is left out.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", path], check=True)
    (packages,) = path.glob("lib/python*/site-packages")
    for each in Path(sysconfig.get_path("purelib")).iterdir():
        if "cgstatfs" not in each.name and each.suffix != ".pth":
            (packages / each.name).symlink_to(each)
    return path


def install_command(environment: Path, wheel: Path) -> list[str | Path]:
    return [
        sys.executable, "-m", "pip", "--python", environment / "bin/python",
        "--disable-pip-version-check", "install", "--root-user-action=ignore", wheel,
    ]  # fmt: skip


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The folder of commands of an environment into which the wheel was installed."""
    wheel = make_wheel()
    assert wheel.name == f"cgstatfs-{__version__}-py3-none-any.whl"
    environment = make_environment(tmp_path / "environment")
    done = _run(*install_command(environment, wheel), env=OFFLINE)
    assert done.returncode == 0, done.stdout + done.stderr
    return environment / "bin"


def test_the_wheel_needs_no_compiler(
    installed: Path, mountpoint: Path, tmp_path: Path  # noqa: F811
) -> None:
    # There is no program at all but its own.
    environment = {"PATH": str(installed)}

    def cgstatfs(*arguments: str | Path) -> str:
        done = _run(installed / "cgstatfs", *arguments, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert cgstatfs("--version") == f"cgstatfs {__version__}\n"
    assert "collector proc_events: can be used" in cgstatfs("check")
    assert ": mounted, engine " in cgstatfs("mount", mountpoint)
    assert subprocess.check_output(["cat", mountpoint / "proc.events"]).startswith(b"forks ")
    assert {path.name for path in mountpoint.iterdir() if path.is_file()} == {
        "mm.reclaim", "proc.events", "sched.runqlat",
    }  # fmt: skip
    cgstatfs("umount", mountpoint)
    assert os.listdir(mountpoint) == []
    assert cgstatfs("new", "mystats").startswith("mystats.bpf.c: written")


@pytest.mark.parametrize(
    "missing", ["objects", "objects/proc_events.bpf.o", "include/cgstat.bpf.h", "templates/new.bpf.c"]
)
def test_there_is_no_wheel_without_what_is_compiled(tmp_path: Path, missing: str) -> None:
    for name in _WHEEL_SOURCE:
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copy(REPOSITORY / name, tmp_path / name)
    path = tmp_path / "cgstatfs" / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    done = _run(
        sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path / "out", tmp_path,
        env=OFFLINE,
    )  # fmt: skip
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert re.search(rf"^ *cgstatfs: .*cgstatfs/{missing}.*: not built.*run `make wheel`", said, re.M)
    assert "Traceback" not in said
    assert not list((tmp_path / "out").glob("*.whl"))


# The Debian package


@pytest.fixture(scope="module")
def package() -> Path:
    """The package, which is built anew."""
    for tool in ("dpkg-buildpackage", "dh", "pybuild", "lintian"):
        if not shutil.which(tool):
            skip(f"{tool} is not installed, so no Debian package can be built; run make deb-packages")
    _make("deb")
    return _only("deb/*.deb")


@pytest.fixture
def unpacked(package: Path, tmp_path: Path) -> Path:
    subprocess.run(["dpkg-deb", "-R", package, tmp_path], check=True)
    return tmp_path


def test_lintian_has_nothing_to_say(package: Path) -> None:
    done = _run("lintian", "--fail-on", "error,warning", package.with_suffix(".changes"))
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def _names(directory: Path, pattern: str) -> set[str]:
    return {path.name for path in directory.glob(pattern)}


def test_what_is_in_the_package(unpacked: Path) -> None:
    source = REPOSITORY
    module = unpacked / "usr/lib/python3/dist-packages/cgstatfs"
    assert (unpacked / "usr/bin/cgstatfs").stat().st_mode & 0o777 == 0o755
    for pattern in ("*.py", "engines/*.py"):
        assert _names(module, pattern) == _names(source / "cgstatfs", pattern)
    assert _names(module, "objects/*.o") == {
        name.replace(".c", ".o") for name in _names(source, "bpf/*.bpf.c")
    }
    assert _names(module, "templates/*") == _names(source, "bpf/templates/*")
    assert _names(unpacked, "usr/include/cgstatfs/*.h") == _names(source, "bpf/*.h")
    assert _names(unpacked, "usr/share/man/man*/*") == {
        f"{name}.gz" for name in _names(source, "docs/man/*")
    }
    assert (unpacked / "etc/cgstatfs/collectors.d").is_dir()
    assert (unpacked / "usr/share/doc/cgstatfs/copyright").exists()


def test_what_is_for_systemd_is_in_the_package(unpacked: Path) -> None:
    places = {
        ".automount": "usr/lib/systemd/system", ".mount": "usr/lib/systemd/system",
        ".service": "usr/lib/systemd/system", ".conf": "usr/lib/systemd/system",
        ".cgstatfs": "usr/sbin", ".toml": "etc/cgstatfs",
    }  # fmt: skip
    systemd = REPOSITORY / "systemd"
    for path in systemd.rglob("*"):
        if path.is_file():
            there = unpacked / places[path.suffix] / path.relative_to(systemd)
            assert there.read_bytes() == path.read_bytes()
            assert os.access(there, os.X_OK) == (places[path.suffix] == "usr/sbin")
    # Nothing is enabled, but for what was when an earlier version was there.
    assert not (unpacked / "etc/systemd").exists()
    assert not list(unpacked.glob("**/*.wants"))
    postinst = (unpacked / "DEBIAN/postinst").read_text()
    helper = "deb-systemd-helper "
    assert postinst.count(f"{helper}enable") == postinst.count(f"{helper}debian-installed")


def test_configuration_is_the_administrators(unpacked: Path) -> None:
    files = {f"/{path.relative_to(unpacked)}" for path in (unpacked / "etc").rglob("*") if path.is_file()}
    listed = unpacked / "DEBIAN/conffiles"
    assert files == set(listed.read_text().split() if listed.exists() else ())


def test_versions_agree() -> None:
    first = (REPOSITORY / "debian/changelog").read_text().splitlines()[0]
    assert first.startswith(f"cgstatfs ({__version__}) ")
