# SPDX-License-Identifier: GPL-2.0-only
"""Build root file systems of Debian releases, with systemd as init, and keep them in a cache.

An image is built once for all that goes into it: the cache has it under a digest of the
packages' names, the files in image/ and this file. It has each package in the version that the
mirror had then. Needs root, and the programs that `make test-boot` installs.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from .debian import Apt, KernelError, cache_folder, forget, locked, output, run_command

__all__ = ("RELEASES", "Image", "ImageError", "fetch")

RELEASES = ("bookworm", "trixie")

_FILES = Path(__file__).with_name("image")
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_PACKAGES = (
    # A machine: its kernel, what that starts with, and init.
    "linux-image-amd64", "initramfs-tools", "busybox", "systemd-sysv", "dbus", "udev", "kmod",
    # What runs commands for the host.
    "qemu-guest-agent",
    # What cgstatfs needs; a machine has no network to get it from.
    "python3", "python3-pyfuse3", "python3-trio", "fuse3", "libbpf1",
)  # fmt: skip
# What would run at a moment of its own, or is waited for at boot, and does nothing for a machine
# that lives for minutes, without network, clock or screen.
_MASKED = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer",
    "fstrim.timer", "man-db.timer", "systemd-tmpfiles-clean.timer",
    "e2scrub_reap.service", "systemd-networkd-wait-online.service", "systemd-timesyncd.service",
    "systemd-pstore.service", "systemd-binfmt.service", "proc-sys-fs-binfmt_misc.automount",
    "getty@tty1.service", "serial-getty@ttyS0.service",
    # See image/etc/systemd/system/machine-agent.service.
    "qemu-guest-agent.service",
)  # fmt: skip
# Of what looks at boot for units to make, what looks for hardware or set-ups that are not there.
_NO_GENERATORS = (
    "cryptsetup", "gpt-auto", "hibernate-resume", "import", "integritysetup", "rc-local", "ssh",
    "system-update", "tpm2", "veritysetup",
)  # fmt: skip
# Modules of hardware that no guest has: two thirds of them, which would all be copied.
_NO_MODULES = ("sound", "drivers/gpu", "drivers/infiniband", "drivers/media", "drivers/net")
# Of the disk, sparse: what is not used takes no space.
_DISK_SIZE = "3G"
# While an image is built: its tree and its packages.
_FREE_GIGABYTES = 3
# Of half a GB each: those of both releases, and of another branch.
_KEPT = 4


class ImageError(KernelError):
    """An image cannot be had; the message is for the user."""


@dataclass(frozen=True)
class Image:
    """A root file system, and the kernel and the initramfs that are installed in it.

    :ivar disk: an ext4 file system; not to be written to.
    """

    release: str
    disk: Path
    vmlinuz: Path
    initrd: Path


def fetch(release: str, *, refresh: bool = False) -> Image:
    """Return the image of that release, building it if the cache has none.

    :param release: one of `RELEASES`.
    :param refresh: build it anew, with what the mirror has now.
    :raises KernelError: if it cannot be had.
    """
    if release not in RELEASES:
        raise ImageError(f'no image "{release}"; use one of {", ".join(RELEASES)}')
    cache = cache_folder().with_name("images")
    folder = cache / f"{release}-{_digest(release)}"
    # Those who boot what is there do not wait for what is being built.
    if refresh or not folder.exists():
        with locked(cache):
            if refresh or not folder.exists():
                _build(cache, release, folder)
                forget((each for name in RELEASES for each in cache.glob(f"{name}-*")), _KEPT)
    os.utime(folder)
    return Image(release, folder / "disk", folder / "vmlinuz", folder / "initrd")


def _digest(release: str) -> str:
    """Name all that goes into an image but the packages' versions."""
    digest = hashlib.sha256(release.encode())
    for file in (Path(__file__), *sorted(_FILES.rglob("*"))):
        if file.is_file():
            digest.update(f"{file.name} {file.stat().st_mode:o} {file.stat().st_size}\n".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _build(cache: Path, release: str, folder: Path) -> None:
    """Build an image; `folder` appears only complete."""
    free = shutil.disk_usage(cache).free / 1e9
    if free < _FREE_GIGABYTES:
        raise ImageError(
            f"{cache}: {free:.1f} GB free, and an image takes {_FREE_GIGABYTES} while it is "
            "built; free some, or set CGSTATFS_CACHE to another folder"
        )
    begin = time.monotonic()
    partial, tree = cache / "partial", cache / "tree"
    # Of a build that did not end.
    for left in (partial, tree):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir()
    print(f"building an image of Debian {release}, a minute or two", flush=True)
    _install(cache, release, tree)
    _configure(tree)
    for name, link in (("vmlinuz", "vmlinuz"), ("initrd", "initrd.img")):
        shutil.copyfile(tree / link, partial / name)
    output(["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(partial / "disk"), _DISK_SIZE])
    shutil.rmtree(tree)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    print(f"built it in {time.monotonic() - begin:.0f} s", flush=True)


def _install(cache: Path, release: str, tree: Path) -> None:
    """Install the packages into `tree`, and keep their files for the next time."""
    log = cache / f"{release}.log"
    archives = cache / f"archives-{release}"
    archives.mkdir(exist_ok=True)
    apt = Apt(cache / "apt")
    # Without its lists apt does not tell whose an address is.
    apt.update()
    kept, inside = shlex.quote(str(archives)), "/var/cache/apt/archives"
    command = [
        "mmdebstrap", "--mode=root", "--variant=minbase", f"--include={','.join(_PACKAGES)}",
        # What is interrupted is made again from the beginning.
        "--dpkgopt=force-unsafe-io",
        *(f"--dpkgopt=path-exclude=/*lib/modules/*/kernel/{part}/*" for part in _NO_MODULES),
        # apt's other user cannot write below a home folder.
        '--aptopt=APT::Sandbox::User "root"',
        "--skip=essential/unlink", f'--setup-hook=mkdir -p "$1"{inside}',
        f"--setup-hook=sync-in {kept} {inside}",
        # Before initramfs-tools is configured, which makes the initramfs then.
        f"--essential-hook=copy-in {shlex.quote(str(_FILES / 'etc'))} /",
        '--customize-hook=APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get autoclean',
        f"--customize-hook=sync-out {inside} {kept}",
        *([f"--keyring={_KEYRING}"] if _KEYRING.exists() else []),
        release, str(tree), f"deb {apt.mirror()} {release} main",
    ]  # fmt: skip
    _run(command, log)


def _run(command: list[str], log: Path) -> None:
    with open(log, "wb") as file:
        done = subprocess.run(
            command,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            check=False,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"} | _proxies(),
        )
    if done.returncode != 0:
        lines = log.read_text(errors="replace").splitlines()
        reasons = [line for line in lines if line.startswith("E: ")] or lines[-1:]
        reason = reasons[0] if reasons else f"exit status {done.returncode}"
        raise ImageError(f"{command[0]} failed: {reason}; all of it is in {log}")


def _proxies() -> dict[str, str]:
    """What apt is told of the network by variables."""
    return {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}


def _configure(tree: Path) -> None:
    """Do what an installer does, and have nothing happen that the machine can do without."""
    units = tree / "etc/systemd/system"
    for unit in _MASKED:
        (units / unit).symlink_to("/dev/null")
    generators = tree / "etc/systemd/system-generators"
    generators.mkdir(exist_ok=True)
    for generator in _NO_GENERATORS:
        (generators / f"systemd-{generator}-generator").symlink_to("/dev/null")
    wants = units / "sysinit.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "machine-agent.service").symlink_to("../machine-agent.service")
    # An empty one would make every boot the first, at which presets are applied.
    identity = hashlib.md5(b"cgstatfs", usedforsecurity=False).hexdigest()
    (tree / "etc/machine-id").write_text(identity + "\n", encoding="ascii")
    # Nor is it the first since an update, at which caches are made.
    for folder in ("etc", "var"):
        (tree / folder / ".updated").touch()


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.vm.images", description=__doc__)
    parser.add_argument("release", nargs="*", help=f"default: {' '.join(RELEASES)}")
    parser.add_argument("--refresh", action="store_true", help="build anew what is there")
    arguments = parser.parse_args()
    for release in arguments.release or RELEASES:
        image = fetch(release, refresh=arguments.refresh)
        print(f"image {release}: {image.disk.parent}")


if __name__ == "__main__":
    run_command(main)
