# SPDX-License-Identifier: GPL-2.0-only
"""Packages from the Debian mirror that this machine's apt is set up with, in a cache.

They are downloaded and unpacked, never installed. apt works on lists of its own
in the cache, so neither root nor a previous `apt-get update` is needed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

__all__ = (
    "Apt", "KernelError", "cache_folder", "forget", "locked", "only", "output", "run_command",
    "unpack",
)  # fmt: skip


class KernelError(Exception):
    """A kernel cannot be had; the message is for the user."""


def cache_folder() -> Path:
    """Return the folder that everything is kept in."""
    root = os.environ.get("CGSTATFS_CACHE") or Path.home() / ".cache" / "cgstatfs"
    return Path(root).resolve() / "kernels"


@contextmanager
def locked(cache: Path, name: str = "lock") -> Iterator[None]:
    """Keep other runs from writing to the cache meanwhile.

    What inherits it keeps the lock, too: a make that goes on when its build was killed.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = open(cache / name, "w", encoding="ascii")
    except OSError as error:
        raise KernelError(
            f"{error.filename or cache}: {error.strerror}; set CGSTATFS_CACHE to a "
            "folder that can be written to"
        ) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.set_inheritable(lock.fileno(), True)
        try:
            yield
        except OSError as error:
            raise KernelError(f"{error.filename or cache}: {error.strerror}") from None


def forget(folders: Iterable[Path], kept: int) -> None:
    """Remove those that were not used for longest, but for so many."""
    for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime)[:-kept]:
        shutil.rmtree(folder, ignore_errors=True)


def run_command(main: Callable[[], None]) -> NoReturn:
    """Run a module from the command line, and end with an exit code and an error in a line."""
    try:
        main()
    except KernelError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def unpack(apt: Apt, packages: list[str], folder: Path) -> None:
    """Download packages and unpack them into `folder`, which is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    debs = folder / "debs"
    debs.mkdir(parents=True)
    apt.download(packages, debs)
    for deb in debs.glob("*.deb"):
        output(["dpkg", "-x", str(deb), str(folder)])
    shutil.rmtree(debs)


def only(folder: Path, patterns: tuple[str, ...]) -> Path:
    """Return the one file or folder that is at one of these places."""
    found = [path for pattern in patterns for path in folder.glob(pattern)]
    if len(found) != 1:
        raise KernelError(
            f"{folder}: {len(found)} matches for {' or '.join(patterns)}, not one; "
            "remove the folder, and if this comes again, Debian has changed the "
            "layout of its packages"
        )
    return found[0]


class Apt:
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

    def version(self, package: str, wanted: str | None = None) -> str:
        """Return the version of a package that there is: the one that is wanted, or the newest."""
        lines = self._run("apt-cache", "policy", package).splitlines()
        if wanted is not None and any(line.split()[:1] == [wanted] for line in lines):
            return wanted
        for line in lines:
            if line.startswith("  Candidate: ") and not line.endswith("(none)"):
                return line.split()[1]
        raise KernelError(
            f"the mirror has no {package}; see what it has with `apt-cache search "
            "--names-only linux-source`"
        )

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
            f"to fetch kernels from; add one, or copy a filled cache to {cache_folder()}"
        )

    def _run(self, program: str, *arguments: str, cwd: Path | None = None) -> str:
        return output([program, *self._options, *arguments], cwd=cwd)


def output(command: list[str], cwd: Path | None = None) -> str:
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
            f"{command[0]} is not installed; on Debian it comes with apt, dpkg, kmod or "
            "bpftool"
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
