# SPDX-License-Identifier: GPL-2.0-only
"""Build kernels of one's own: Debian's source, the series in kernel/patches, kernel/config.

A kernel is built once for all that goes into it: the cache has it under a digest
of the source's version, the patches, the configuration and this file. Needs the
programs that `make kernel` installs.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from .debian import Apt, KernelError, cache_folder, forget, locked, output, run_command, unpack

__all__ = ("NAMES", "TREE", "build")

_REPOSITORY = Path(__file__).resolve().parents[2]
_KERNEL = _REPOSITORY / "kernel"
_SOURCE = "linux-source-6.12"
# What the series is for, and applies to exactly. Mirrors have it until there are newer ones.
_SOURCE_VERSION = "6.12.117-1~deb12u1"
# A working tree with commits of one's own, built as it is in place of source and patches.
TREE = "tree"
_TREE_VARIABLE = "CGSTATFS_TREE"
# While it is built, with debugging information.
_FREE_GIGABYTES = 5
# Of 20 MB each; so many patches can be tried and gone back to.
_KEPT = 8
_OPTION = re.compile(r"(CONFIG_\w+)=(.+)|# (CONFIG_\w+) is not set")
_ERROR = re.compile(r"error:|\*\*\*|FAILED|[Ee]rror \d+$|: not found")


@dataclass(frozen=True)
class _Recipe:
    """What a kernel is made from.

    :ivar patched: whether with the series.
    :ivar configuration: files in kernel/; of what is in several, the last counts.
    """

    patched: bool
    configuration: tuple[str, ...]

    def patches(self) -> list[Path]:
        series = (_KERNEL / "patches").glob("*.patch") if self.patched else ()
        # The cover letter has nothing to apply.
        return sorted(patch for patch in series if not patch.name.startswith("0000-"))

    def options(self) -> dict[str, str]:
        """The values to be had, `n` for what is to be off."""
        return {
            option: value
            for file in self.configuration
            for option, value in _options(_KERNEL / file).items()
        }


_FAST = ("config",)
_DEBUG = ("config", "debug.config")
_RECIPES = {
    "native": _Recipe(True, _DEBUG),
    "native-fast": _Recipe(True, _FAST),
    "native-kasan": _Recipe(True, (*_DEBUG, "kasan.config")),
    "unpatched": _Recipe(False, _DEBUG),
    "unpatched-fast": _Recipe(False, _FAST),
}
NAMES = (*_RECIPES, TREE)


def build(name: str, *, refresh: bool = False) -> Path:
    """Return the folder of that kernel, as its packages would be unpacked.

    Beside the kernel there are its `config`, `vmlinux.h`, and `include`, with its
    own <linux/bpf.h>.

    :param name: one of `NAMES`.
    :param refresh: ask the mirror for a newer source although one is cached.
    """
    cache = cache_folder()
    # Guests with what is there do not wait for what is being built.
    folder = None if refresh else _built(cache, name)
    if folder is None:
        # Not the lock of the downloads either, as other guests are started meanwhile.
        with locked(cache, "build.lock"):
            if name == TREE:
                return _build_tree(cache)
            source = _source(cache, refresh)
            folder = _built(cache, name)
            if folder is None:
                folder = cache / "built" / _digest(source, _RECIPES[name])
                _build(cache, name, source, folder)
                forget(folder.parent.iterdir(), _KEPT)
    os.utime(folder)
    return folder


def _built(cache: Path, name: str) -> Path | None:
    """Return the folder of a kernel that the cache has."""
    link = cache / _SOURCE
    if name == TREE or not link.exists():
        return None
    folder = cache / "built" / _digest(_archive(link), _RECIPES[name])
    return folder if folder.exists() else None


def _source(cache: Path, refresh: bool) -> Path:
    """Return the source's archive, in a folder that is named for its version."""
    link = cache / _SOURCE
    if refresh or not link.exists():
        # The other users of apt's folder do not know of our lock.
        with locked(cache):
            apt = Apt(cache / "apt")
            apt.update()
            version = apt.version(_SOURCE, _SOURCE_VERSION)
            folder = cache / f"{_SOURCE}_{version}"
            if not folder.exists():
                partial = folder.with_name(folder.name + ".partial")
                unpack(apt, [f"{_SOURCE}={version}"], partial)
                partial.rename(folder)
        old = link.resolve()
        link.unlink(missing_ok=True)
        link.symlink_to(folder.name)
        if old not in (link, folder):
            shutil.rmtree(old, ignore_errors=True)
    return _archive(link)


def _archive(link: Path) -> Path:
    return link.resolve() / f"usr/src/{_SOURCE}.tar.xz"


def _version(source: Path) -> str:
    return source.parents[2].name


def _digest(source: Path, recipe: _Recipe) -> str:
    """Name all that goes into a kernel. The compiler is left out: any will do.

    Not any pahole: what the kernel says of its types depends on it.
    """
    digest = hashlib.sha256()
    pahole = output(["pahole", "--version"]).strip()
    for part in (_version(source), pahole, *sorted(recipe.options().items())):
        digest.update(f"{part}\n".encode())
    for file in (*recipe.patches(), Path(__file__)):
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _build(cache: Path, name: str, source: Path, folder: Path) -> None:
    recipe = _RECIPES[name]
    tree = cache / "build"
    # Of a build that did not end.
    shutil.rmtree(tree, ignore_errors=True)
    free = shutil.disk_usage(cache).free / 1e9
    if free < _FREE_GIGABYTES:
        raise KernelError(
            f"{cache}: {free:.1f} GB free, and a kernel takes {_FREE_GIGABYTES} while it "
            "is built; free some, or set CGSTATFS_CACHE to another folder"
        )
    begin = time.monotonic()
    steps = _Steps(cache / "build.log")
    patches = recipe.patches()
    print(
        f"building kernel {name}: {_version(source)}, {len(patches)} patches; "
        f"takes about ten minutes on two cores, log: {steps.log}",
        flush=True,
    )
    tree.mkdir()
    steps.run(tree, "tar", "-xf", source, "--strip-components=1")
    for patch in patches:
        _apply(steps, tree, patch, source)
    _compile(steps, tree, recipe)
    _collect(tree, folder)
    shutil.rmtree(tree)
    print(f"built kernel {name} in {time.monotonic() - begin:.0f} s", flush=True)


def _build_tree(cache: Path) -> Path:
    """Build a working tree, of which make only does what has changed."""
    tree = Path(os.environ.get(_TREE_VARIABLE, "")).absolute()
    if not (tree / "Kconfig").exists():
        raise KernelError(f"{tree}: no kernel source; set TREE, or {_TREE_VARIABLE}, to a tree with one")
    _compile(_Steps(cache / "build.log"), tree, _RECIPES["native"])
    folder = cache / "built" / TREE
    shutil.rmtree(folder, ignore_errors=True)
    _collect(tree, folder)
    return folder


class _Steps:
    """Runs the commands of a build; what they print goes to a log."""

    def __init__(self, log: Path) -> None:
        self.log = log
        log.write_bytes(b"")

    def run(self, tree: Path, *command: str | Path, **variables: str) -> None:
        # Not what `make kernel` hands to a make below it, and nothing that would change
        # the kernel.
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        start = self.log.stat().st_size
        try:
            with open(self.log, "ab") as log:
                done = subprocess.run(
                    ["nice", "-n", "10", *command],
                    cwd=tree,
                    env=kept | {"LC_ALL": "C"} | variables,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    check=False,
                    # The lock, see debian.locked().
                    close_fds=False,
                )
        except FileNotFoundError:
            raise KernelError("nice is not installed; it comes with coreutils") from None
        if done.returncode != 0:
            lines = self.log.read_bytes()[start:].decode(errors="replace").splitlines()
            reasons = [line for line in lines if _ERROR.search(line)] or lines[-1:]
            reason = reasons[0].strip() if reasons else f"exit status {done.returncode}"
            raise KernelError(f"{command[0]} failed: {reason}; all of it is in {self.log}")


def _apply(steps: _Steps, tree: Path, patch: Path, source: Path) -> None:
    try:
        # As git am, that has no fuzz either.
        steps.run(tree, "patch", "-p1", "--fuzz=0", "--batch", "--forward", "-i", patch)
    except KernelError as error:
        raise KernelError(
            f"{patch.relative_to(_REPOSITORY)}: does not apply to {_version(source)}; the series "
            f"is for {_SOURCE_VERSION}: {error}"
        ) from None


def _compile(steps: _Steps, tree: Path, recipe: _Recipe) -> None:
    wanted = recipe.options()
    lines = [f"{option}={value}\n" for option, value in wanted.items()]
    (tree / "cgstatfs.config").write_text("".join(lines), encoding="utf-8")
    steps.run(tree, "make", "allnoconfig", KCONFIG_ALLCONFIG="cgstatfs.config")
    _check(wanted, _options(tree / ".config"))
    jobs = len(os.sched_getaffinity(0))
    steps.run(tree, "make", f"-j{jobs}", "bzImage", "headers")


def _options(file: Path) -> dict[str, str]:
    found = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        if match := _OPTION.fullmatch(line):
            option, value, off = match.groups()
            found[option or off] = value or "n"
    return found


def _check(wanted: dict[str, str], got: dict[str, str]) -> None:
    """Kconfig drops silently what depends on something that is off."""
    dropped = [
        f"{option}={value}"
        for option, value in wanted.items()
        if got.get(option, "n") != value
    ]
    if dropped:
        raise KernelError(
            f"the kernel cannot be configured with {', '.join(dropped)}; see what they "
            "depend on, and add that to kernel/config"
        )


def _collect(tree: Path, folder: Path) -> None:
    """Copy what is used of a built tree; `folder` appears only complete."""
    release = (tree / "include/config/kernel.release").read_text().strip()
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for part in ("boot", f"lib/modules/{release}", "include/linux"):
        (partial / part).mkdir(parents=True)
    shutil.copyfile(tree / "arch/x86/boot/bzImage", partial / f"boot/vmlinuz-{release}")
    # It has no modules, but is asked for them.
    (partial / f"lib/modules/{release}/modules.dep").touch()
    shutil.copyfile(tree / ".config", partial / "config")
    shutil.copyfile(tree / "usr/include/linux/bpf.h", partial / "include/linux/bpf.h")
    types = output(["bpftool", "btf", "dump", "file", str(tree / "vmlinux"), "format", "c"])
    (partial / "vmlinux.h").write_text(types, encoding="utf-8")
    partial.rename(folder)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.vm.build", description=__doc__)
    parser.add_argument("name", nargs="?", choices=NAMES, default="native")
    parser.add_argument("--link", type=Path, help="have this lead to the kernel's folder")
    parser.add_argument(
        "--refresh", action="store_true", help="ask for a newer version of the source"
    )
    arguments = parser.parse_args()
    folder = build(arguments.name, refresh=arguments.refresh)
    print(f"kernel {arguments.name}: {folder}")
    if arguments.link is not None and arguments.link.resolve() != folder:
        arguments.link.unlink(missing_ok=True)
        arguments.link.symlink_to(folder)
        # What was compiled with those of another kernel is older now.
        for header in (folder / "vmlinux.h", folder / "include/linux/bpf.h"):
            header.touch()


if __name__ == "__main__":
    run_command(main)
