# SPDX-License-Identifier: GPL-2.0-only
"""What the package is going to find in a machine, without the package.

Where something of this fails, what fails in the other files is not the fault of cgstatfs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from ..vm.boot import Link, Machine

_ROOT = "/dev/vda / ext4 errors=remount-ro 0 0\n"
_AFTER_LOCAL_FS = """\
[Unit]
DefaultDependencies=no
After=local-fs.target
Before=multi-user.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'echo written >/data/after'

[Install]
WantedBy=multi-user.target
"""
_FILES = {
    "/etc/fstab": f"{_ROOT}none /data tmpfs size=1m 0 0\n",
    "/etc/systemd/system/after.service": _AFTER_LOCAL_FS,
    "/etc/systemd/system/multi-user.target.wants/after.service": Link("../after.service"),
}
# One that is waited for in vain, and one that cannot be mounted.
_BROKEN = (
    f"{_ROOT}/dev/missing /missing ext4 nofail,x-systemd.device-timeout=1s 0 0\n"
    "none /unknown no-such-type nofail 0 0\n"
)
# A map of one's own, with the release's libbpf; BPF_MAP_TYPE_ARRAY is 2.
_BPF = """\
import ctypes, os
libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)
fd = libbpf.bpf_map_create(2, b"example", 4, 8, 1, None)
assert fd >= 0, os.strerror(-fd)
key, value, found = ctypes.c_uint32(0), ctypes.c_uint64(42), ctypes.c_uint64()
assert libbpf.bpf_map_update_elem(fd, ctypes.byref(key), ctypes.byref(value), 0) == 0
assert libbpf.bpf_map_lookup_elem(fd, ctypes.byref(key), ctypes.byref(found)) == 0
print(found.value)
"""


@pytest.fixture(scope="module")
def booted(
    bare_machine: Callable[..., AbstractContextManager[Machine]],
) -> Iterator[Machine]:
    """One machine for those that leave it as it is."""
    with bare_machine(files=_FILES) as machine:
        print(f"a shell in {machine.shell_seconds:.0f} s, all in {machine.boot_seconds:.0f} s")
        yield machine


def test_nothing_fails_at_boot(booted: Machine) -> None:
    state = booted.wait_for_boot()
    assert (state, booted.failed_units()) == ("running", [])


def test_the_kernel_and_systemd_are_the_releases(booted: Machine, release: str) -> None:
    kernel, systemd = {"bookworm": ("6.1.", "252"), "trixie": ("6.12.", "257")}[release]
    assert booted.check("uname -r").startswith(kernel)
    assert booted.check("systemctl --version").split()[1] == systemd
    assert booted.check("cat /proc/1/comm") == "systemd\n"


def test_a_unit_after_local_file_systems_finds_them(booted: Machine) -> None:
    assert booted.check("findmnt -n -o FSTYPE /data") == "tmpfs\n"
    assert booted.check("cat /data/after") == "written\n"


def test_cgroup_v2_is_all_there_is_of_cgroups(booted: Machine) -> None:
    assert booted.check("findmnt -n -o FSTYPE /sys/fs/cgroup") == "cgroup2\n"
    assert booted.run("findmnt -n -t cgroup").output == ""
    controllers = booted.check("cat /sys/fs/cgroup/cgroup.controllers").split()
    assert {"cpu", "io", "memory", "pids"} <= set(controllers)


def test_the_kernel_tells_its_types(booted: Machine) -> None:
    # BTF's magic number.
    assert booted.check("od -An -N2 -tx2 /sys/kernel/btf/vmlinux").strip() == "eb9f"


def test_fuse_can_be_had(booted: Machine) -> None:
    booted.check("exec 3<>/dev/fuse")
    assert "\tfuse\n" in booted.check("cat /proc/filesystems")


def test_a_bpf_map_can_be_made(booted: Machine) -> None:
    assert booted.check(f"python3 -c '{_BPF}'") == "42\n"
    assert booted.check("findmnt -n -o FSTYPE /sys/fs/bpf") == "bpf\n"


def test_what_cgstatfs_imports_is_there(booted: Machine, release: str) -> None:
    versions = booted.check("python3 -c 'import pyfuse3, trio; print(pyfuse3.__version__, trio.__version__)'")
    print(release, versions)


def test_a_line_of_fstab_that_may_fail_does_not_keep_it_from_booting(
    bare_machine: Callable[..., AbstractContextManager[Machine]],
) -> None:
    with bare_machine(files={"/etc/fstab": _BROKEN}) as machine:
        assert machine.failed_units() == ["unknown.mount"]
        assert machine.wait_for_boot() == "degraded"
        assert machine.run("systemctl is-active missing.mount").output == "inactive\n"
        assert machine.run("systemctl is-active multi-user.target").output == "active\n"
        end = machine.shutdown()
        assert end.clean, end.trouble
