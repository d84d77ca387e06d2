# SPDX-License-Identifier: GPL-2.0-only
"""Fetch kernels for the guests and keep them unpacked in a cache.

Covers x86-64 kernels: those of Debian, as packages, and those that are built
here, see `build`. An installation would build an initramfs and change the
machine.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from . import build
from .debian import Apt, KernelError, cache_folder, locked, only, output, unpack

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
    """Return the kernel of that name, downloading or building it if the cache has none.

    :param name: one of `NAMES`, or of `build.NAMES`.
    :param refresh: ask the mirror for a newer version although one is cached.
    """
    if name in build.NAMES:
        return _built(name, refresh)
    if name not in _RELEASES:
        known = ", ".join((*NAMES, *build.NAMES))
        raise KernelError(f'no kernel "{name}"; use one of {known}')
    cache = cache_folder()
    with locked(cache):
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
    cache = cache_folder()
    with locked(cache):
        folder = cache / "busybox-static"
        if not folder.exists():
            apt = Apt(cache / "apt")
            apt.update()
            _unpack(apt, ["busybox-static"], folder)
        return only(folder, ("bin/busybox", "usr/bin/busybox"))


def _built(name: str, refresh: bool) -> Kernel:
    """Return a kernel that is built here, with the headers of Debian's of that version.

    They are good for what bcc needs of types. As Debian configures it otherwise, fields of its
    structs may be elsewhere.
    """
    folder = build.build(name, refresh=refresh)
    kernel = _describe(name, folder)
    if not _has_headers(folder):
        headers = fetch("6.12").modules_path
        for link in ("build", "source"):
            _lead(kernel.modules_path / link, (headers / link).resolve())
    return kernel


def _lead(link: Path, target: Path) -> None:
    """Make a link, relative so that the cache can be moved; others may, too."""
    fresh = link.with_name(f"{link.name}.{os.getpid()}")
    fresh.symlink_to(os.path.relpath(target, link.parent))
    fresh.replace(link)


def _select(cache: Path, name: str) -> None:
    """Unpack the newest release for `name` and point the name's link at it."""
    apt = Apt(cache / "apt")
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


def _add_headers(apt: Apt, release: str, folder: Path) -> None:
    """Unpack a release's headers, and have its modules lead to them."""
    packages = _header_packages(release)
    headers = folder / "headers"
    if not headers.exists():
        _unpack(apt, list(packages), headers)
    modules = _describe(release, folder).modules_path
    for name, package in zip(("build", "source"), packages, strict=True):
        # Some kernel packages bring links to where an installation would be.
        _lead(modules / name, headers / "usr/src" / package)


def _unpack(
    apt: Apt, packages: list[str], folder: Path, release: str | None = None
) -> None:
    """Download and unpack packages into `folder`, which appears only complete."""
    partial = folder.with_name(folder.name + ".partial")
    unpack(apt, packages, partial)
    if release is not None:
        kernel = _describe(release, partial)
        output(["depmod", "-b", str(kernel.modules_path.parents[2]), release])
    partial.rename(folder)


def _describe(name: str, folder: Path) -> Kernel:
    modules = only(folder, ("lib/modules/*", "usr/lib/modules/*"))
    release = modules.name
    image = only(
        folder, (f"boot/vmlinuz-{release}", f"usr/lib/modules/{release}/vmlinuz*")
    )
    return Kernel(name, release, image, modules)


def _backports(cache: Path, apt: Apt) -> Apt:
    """Return an apt for the suite that gets the newest kernels first."""
    folder = cache / "apt-backports"
    folder.mkdir(exist_ok=True)
    sources = folder / "sources.list"
    signed_by = f"[signed-by={_KEYRING}] " if _KEYRING.exists() else ""
    sources.write_text(
        f"deb {signed_by}{apt.mirror()} {_BACKPORTS} main\n", encoding="utf-8"
    )
    backports = Apt(folder, sources)
    backports.update()
    return backports
