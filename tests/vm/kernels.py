# SPDX-License-Identifier: GPL-2.0-only
"""Fetch Debian kernels for the guests and keep them unpacked in a cache.

Covers x86-64 kernels from the Debian mirror that this machine's apt is set up
with. Packages are downloaded and unpacked, never installed: an installation
would build an initramfs and change the machine. apt works on lists of its own
in the cache, so neither root nor a previous `apt-get update` is needed.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ("NAMES", "Kernel", "KernelError", "busybox", "fetch")

_BACKPORTS = "trixie-backports"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

# Releases by the name they are asked for. The cloud flavour lacks 9p, without
# which a guest has no root file system; the rt flavour is not what users run.
_RELEASES = {
    "6.1": re.compile(r"6\.1\.0-\d+-amd64"),
    "6.12": re.compile(r"6\.12\.\d+\+deb12-amd64"),
    "newest": re.compile(r"\d+\.\d+\.\d+(\+deb\d+)?-amd64"),
}
NAMES = tuple(_RELEASES)
_PACKAGE = re.compile(r"linux-(image|modules)-(?P<release>\d.*?)(-unsigned)?")


class KernelError(Exception):
    """A kernel cannot be fetched; the message is for the user."""


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel.

    `modules_path` is the release's folder below some `lib/modules`, with
    `modules.dep` in it, and with `build` and `source`, links to the headers.
    """

    name: str
    release: str
    vmlinuz_path: Path
    modules_path: Path


def fetch(name: str, *, refresh: bool = False) -> Kernel:
    """Return the kernel of that name, downloading it if the cache has none.

    :param name: one of `NAMES`.
    :param refresh: ask the mirror for a newer build although one is cached.
    """
    if name not in _RELEASES:
        raise KernelError(f'no kernel "{name}"; use one of {", ".join(NAMES)}')
    cache = _cache()
    with _locked(cache):
        link = cache / name
        # A cache that was filled before there were headers in it is completed.
        if refresh or not link.exists() or not _has_headers(link.resolve()):
            _select(cache, name)
        return _describe(name, link.resolve())


def busybox() -> Path:
    """Return a static busybox, for the initramfs that mounts the guest's root.

    The `busybox` most machines have is linked dynamically, and the static one
    cannot be installed beside it.
    """
    cache = _cache()
    with _locked(cache):
        folder = cache / "busybox-static"
        if not folder.exists():
            apt = _Apt(cache / "apt")
            apt.update()
            _unpack(apt, ["busybox-static"], folder)
        return _only(folder, ("bin/busybox", "usr/bin/busybox"))


def _cache() -> Path:
    root = os.environ.get("CGSTATFS_CACHE") or Path.home() / ".cache" / "cgstatfs"
    return Path(root).absolute() / "kernels"


@contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """Keep other runs from writing to the cache meanwhile."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with open(cache / "lock", "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise KernelError(
            f"{error.filename or cache}: {error.strerror}; set CGSTATFS_CACHE to a "
            "folder that can be written to and has 2 GB free"
        ) from None


def _select(cache: Path, name: str) -> None:
    """Unpack the newest release for `name` and point the name's link at it."""
    apt = _Apt(cache / "apt")
    apt.update()
    if name == "newest":
        apt = _backports(cache, apt)
    release, packages = _newest(name, apt.package_names())
    folder = cache / release
    if not folder.exists():
        _unpack(apt, packages, folder, release)
    if not _has_headers(folder):
        _add_headers(apt, release, folder)
    link = cache / name
    old = link.resolve() if link.is_symlink() else folder
    fresh = cache / f"{name}.link"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(release)
    fresh.replace(link)
    if old != folder and not any((cache / other).resolve() == old for other in NAMES):
        shutil.rmtree(old, ignore_errors=True)


def _newest(name: str, known: set[str]) -> tuple[str, list[str]]:
    """Return the newest complete release for `name`, and its packages."""
    releases = {
        match["release"]
        for package in known
        if (match := _PACKAGE.fullmatch(package))
        and _RELEASES[name].fullmatch(match["release"])
    }
    for release in sorted(releases, key=_numbers, reverse=True):
        if packages := _packages(release, known):
            return release, packages
    raise KernelError(
        f"{name}: the mirror has no such kernel; see what it has with "
        "`apt-cache search --names-only linux-image`"
    )


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", release))


def _packages(release: str, known: set[str]) -> list[str]:
    """Return the packages that make up a release, none if some are missing.

    The headers have to be there, too, though they are kept apart.

    Debian split its kernel packages at 6.19: before, `linux-image` held the
    image and the modules, since then it holds neither. A suite may have only
    the signed or only the unsigned image; to a guest they are the same.
    """
    if not known.issuperset(_header_packages(release)):
        return []
    modules = f"linux-modules-{release}"
    if modules in known:
        images = [f"linux-binary-{release}", f"linux-binary-unsigned-{release}"]
        others = [modules, f"linux-base-{release}"]
    else:
        images = [f"linux-image-{release}", f"linux-image-{release}-unsigned"]
        others = []
    image = [package for package in images if package in known][:1]
    return image and image + [package for package in others if package in known]


def _header_packages(release: str) -> tuple[str, str]:
    """Return the packages that `build` and `source` are links into.

    Who compiles with them does not build modules, so linux-kbuild is left out.
    """
    common = release.removesuffix("-amd64") + "-common"
    return f"linux-headers-{release}", f"linux-headers-{common}"


def _has_headers(folder: Path) -> bool:
    """Tell whether an unpacked kernel's modules lead to its headers."""
    modules = _describe(folder.name, folder).modules_path
    return (modules / "build").exists() and (modules / "source").exists()


def _add_headers(apt: _Apt, release: str, folder: Path) -> None:
    """Unpack a release's headers, and have its modules lead to them."""
    packages = _header_packages(release)
    headers = folder / "headers"
    if not headers.exists():
        _unpack(apt, list(packages), headers)
    modules = _describe(release, folder).modules_path
    for name, package in zip(("build", "source"), packages, strict=True):
        link = modules / name
        # Some kernel packages bring links to where an installation would be.
        link.unlink(missing_ok=True)
        # Relative, so that the cache can be moved.
        link.symlink_to(os.path.relpath(headers / "usr/src" / package, modules))


def _unpack(
    apt: _Apt, packages: list[str], folder: Path, release: str | None = None
) -> None:
    """Download and unpack packages into `folder`, which appears only complete."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    debs = partial / "debs"
    debs.mkdir(parents=True)
    apt.download(packages, debs)
    for deb in debs.glob("*.deb"):
        _output(["dpkg", "-x", str(deb), str(partial)])
    shutil.rmtree(debs)
    if release is not None:
        kernel = _describe(release, partial)
        _output(["depmod", "-b", str(kernel.modules_path.parents[2]), release])
    partial.rename(folder)


def _describe(name: str, folder: Path) -> Kernel:
    modules = _only(folder, ("lib/modules/*", "usr/lib/modules/*"))
    release = modules.name
    image = _only(
        folder, (f"boot/vmlinuz-{release}", f"usr/lib/modules/{release}/vmlinuz*")
    )
    return Kernel(name, release, image, modules)


def _only(folder: Path, patterns: tuple[str, ...]) -> Path:
    """Return the one file or folder that is at one of these places."""
    found = [path for pattern in patterns for path in folder.glob(pattern)]
    if len(found) != 1:
        raise KernelError(
            f"{folder}: {len(found)} matches for {' or '.join(patterns)}, not one; "
            "remove the folder, and if this comes again, Debian has changed the "
            "layout of its packages"
        )
    return found[0]


class _Apt:
    """apt with lists and caches of its own.

    :param folder: where they are kept.
    :param sources: a sources.list to use in place of the machine's own.
    """

    def __init__(self, folder: Path, sources: Path | None = None) -> None:
        for part in ("lists/partial", "cache/archives/partial"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        settings = {
            "Dir::State": folder,
            "Dir::State::Lists": folder / "lists",
            # What the machine has installed need not be on the mirror.
            "Dir::State::Status": "/dev/null",
            "Dir::Cache": folder / "cache",
            # The sandbox user cannot write below a home folder.
            "APT::Sandbox::User": "root",
            "Acquire::Retries": 3,
        }
        if sources is not None:
            settings["Dir::Etc::SourceList"] = sources
            settings["Dir::Etc::SourceParts"] = "-"
        self._options = [f"-o{name}={value}" for name, value in settings.items()]

    def update(self) -> None:
        # Otherwise a failed download counts as success with old lists.
        self._run("apt-get", "-qq", "-oAPT::Update::Error-Mode=any", "update")

    def package_names(self) -> set[str]:
        return set(self._run("apt-cache", "pkgnames", "linux-").split())

    def download(self, packages: list[str], folder: Path) -> None:
        self._run("apt-get", "-qq", "download", *packages, cwd=folder)

    def mirror(self) -> str:
        """Return the address of the Debian archive in these sources."""
        lines = self._run(
            "apt-get",
            "indextargets",
            "--format",
            "$(ORIGIN) $(LABEL) $(COMPONENT) $(REPO_URI)",
            "Identifier: Packages",
        ).splitlines()
        for line in lines:
            origin, label, component, uri = line.split(" ", 3)
            if (origin, label, component) == ("Debian", "Debian", "main"):
                return uri
        raise KernelError(
            "no Debian archive in this machine's apt sources, so there is nowhere "
            f"to fetch kernels from; add one, or copy a filled cache to {_cache()}"
        )

    def _run(self, program: str, *arguments: str, cwd: Path | None = None) -> str:
        return _output([program, *self._options, *arguments], cwd=cwd)


def _backports(cache: Path, apt: _Apt) -> _Apt:
    """Return an apt for the suite that gets the newest kernels first."""
    folder = cache / "apt-backports"
    folder.mkdir(exist_ok=True)
    sources = folder / "sources.list"
    signed_by = f"[signed-by={_KEYRING}] " if _KEYRING.exists() else ""
    sources.write_text(
        f"deb {signed_by}{apt.mirror()} {_BACKPORTS} main\n", encoding="utf-8"
    )
    backports = _Apt(folder, sources)
    backports.update()
    return backports


def _output(command: list[str], cwd: Path | None = None) -> str:
    """Run a command and return what it prints, or say why it failed."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"LC_ALL": "C", "PATH": _path()},
        )
    except FileNotFoundError:
        raise KernelError(
            f"{command[0]} is not installed; on Debian it comes with apt, dpkg or kmod"
        ) from None
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise KernelError(
            f"{command[0]} failed: {reason[-1]}; check the network and the free space, "
            "then run this again"
        )
    return done.stdout


def _path() -> str:
    """depmod is in a folder that is not on every user's PATH."""
    return os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
