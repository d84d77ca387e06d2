# SPDX-License-Identifier: GPL-2.0-only
"""Mounted at boot, in each way that people do it, and a machine that ends cleanly whatever state
the daemon is in.

Booting takes minutes here, so all tests of a release share one machine, in the order in which they
are written: each leaves the machine as the next wants to boot it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from cgstatfs import __version__

from ..conftest import REPOSITORY
from ..vm.boot import Machine, Shutdown

POINT = "/cgstat"
LATER = "9.8.7"
FSTAB_LINE = f"cgstatfs {POINT} fuse.cgstatfs defaults,allow_other,nofail 0 0"
SHIPPED = {"mm.reclaim", "proc.events", "sched.runqlat"}
_SETTINGS = "/etc/cgstatfs/cgstatfs.toml"
# What takes a second elsewhere takes a minute in an emulated machine that others slow down.
_SLOW = "systemd.default_timeout_start_sec=900"
_PATIENT = "[limits]\nunserved-seconds = 3600\n"
# What is to be told from a daemon that is slow: one that is not there.
_NEVER_AGAIN = "/run/systemd/system/cgstatfs.service.d/never.conf"
# Reads when the boot gets to it, and keeps what it read.
_READER = f"""\
[Unit]
RequiresMountsFor={POINT}

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'cat {POINT}/init.scope/proc.events >/var/lib/read'

[Install]
WantedBy=multi-user.target
"""
# Forks as often as it is told to, in a cgroup that nobody else is in.
_FORK = """\
#!/bin/sh
mkdir -p /sys/fs/cgroup/known
echo $$ >/sys/fs/cgroup/known/cgroup.procs
i=0
while [ $i -lt "$1" ]; do /bin/true; i=$((i + 1)); done
"""
# Prints the processes of ours whose command lines have $1; pgrep is in a package that is not there.
_PROCESSES = """\
#!/bin/sh
for each in /proc/[0-9]*; do
    case $(tr '\\0' ' ' <$each/cmdline 2>/dev/null) in
    /usr/bin/python3\\ *"$1"*) echo ${each#/proc/} ;;
    esac
done
"""


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of somebody's own, compiled."""
    directory = tmp_path_factory.mktemp("collector")
    for arguments in (["new", "mystats"], ["build", "mystats.bpf.c"]):
        subprocess.run(
            [sys.executable, "-m", "cgstatfs", *arguments], cwd=directory, check=True,
            env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )  # fmt: skip
    return directory / "mystats.bpf.o"


@pytest.fixture(scope="module")
def later(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A later version of the package."""
    tree = tmp_path_factory.mktemp("later") / "tree"
    subprocess.run(["dpkg-deb", "-R", package, tree], check=True)
    for file in (tree / "DEBIAN/control", tree / "usr/lib/python3/dist-packages/cgstatfs/__init__.py"):
        text = file.read_text()
        assert text.count(__version__) == 1
        file.write_text(text.replace(__version__, LATER))
    subprocess.run(["dpkg-deb", "-b", "--root-owner-group", tree, tree.parent], check=True)
    (found,) = tree.parent.glob("*.deb")
    return found


@pytest.fixture(scope="module")
def booted(
    machine: Callable[..., AbstractContextManager[Machine]], collector: Path, package: Path, later: Path
) -> Iterator[Machine]:
    files = {
        "/root/mystats.bpf.o": collector,
        f"/root/{__version__}.deb": package,
        f"/root/{LATER}.deb": later,
        "/root/fork": _FORK,
        "/root/processes": _PROCESSES,
        "/etc/systemd/system/reader.service": _READER,
    }
    with machine(files=files, append=_SLOW) as running:
        configure(running, _PATIENT)
        yield running
        clean(running.shutdown())


def configure(machine: Machine, settings: str) -> None:
    machine.check(f"cat >{_SETTINGS} <<'END'\n{settings}END")


def clean(end: Shutdown) -> None:
    assert end.clean, end.trouble
    print(f"it ended in {end.seconds:.0f} s")


def reboot(machine: Machine) -> None:
    clean(machine.reboot())


def main_pid(machine: Machine, unit: str = "cgstatfs.service") -> int:
    return int(machine.check(f"systemctl show -P MainPID {unit}"))


def check_gone(machine: Machine) -> None:
    """Within a moment there is nothing left of it, but a log if it was not started by systemd."""
    machine.check(
        """set +e
        left() {
            findmnt -n -t fuse.cgstatfs
            find /run/cgstatfs /sys/fs/bpf -mindepth 1 ! -name '*.log'
            for each in $(sh /root/processes cgstatfs); do
                grep -H . /proc/$each/cmdline /proc/$each/wchan | tr '\\0' ' '
            done
            systemctl show -P MainPID cgstatfs-holder | grep -vx 0
        }
        for try in $(seq 200); do [ -n "$(left)" ] || exit 0; sleep 1; done
        left; exit 1"""
    )


def statuses(machine: Machine, *units: str) -> list[str]:
    return machine.run(f"systemctl is-active {' '.join(units)}").output.split()


# In a machine that has booted: cgstatfs.service


def test_the_service_is_ready_when_the_mount_answers(booted: Machine) -> None:
    booted.check(f"systemctl start cgstatfs; grep -q ^forks {POINT}/proc.events")
    assert set(booted.check(f"ls {POINT}").split()) >= SHIPPED
    assert booted.check("systemctl show -P Type cgstatfs") == "notify\n"
    # By systemd it is a mount as any other.
    assert statuses(booted, "cgstat.mount", "cgstatfs-holder") == ["active", "active"]
    assert booted.failed_units() == []


def test_a_restart_and_a_kill_leave_the_mount(booted: Machine) -> None:
    """What is open, or bind-mounted, stays valid, and counts go on while nobody serves."""
    booted.check("sh /root/fork 20")
    holder = main_pid(booted, "cgstatfs-holder")
    booted.check(f"mkdir -p /mnt/bind; mount --bind {POINT}/known /mnt/bind")
    # Descriptor 9 and the working directory are the shell's, until both daemons have gone.
    read = booted.check(
        f"""cd {POINT}/known; exec 9<proc.events
        first=$(systemctl show -P MainPID cgstatfs)
        systemctl restart cgstatfs
        second=$(systemctl show -P MainPID cgstatfs)
        kill -9 $second; sh /root/fork 30
        head -n 1 /mnt/bind/proc.events; head -n 1 proc.events; head -n 1 <&9
        while [ $(systemctl show -P SubState cgstatfs) != running ]; do sleep 0.5; done
        third=$(systemctl show -P MainPID cgstatfs)
        [ $first != $second ] && [ $second != $third ] && echo three daemons"""
    )
    assert read.splitlines() == ["forks 50"] * 3 + ["three daemons"]
    assert main_pid(booted, "cgstatfs-holder") == holder
    booted.check("umount /mnt/bind")
    assert "\nrestarts 2\n" in booted.check("cgstatfs status")


def test_another_version_of_the_package(booted: Machine) -> None:
    """Its daemon serves; the holder goes on, and with it all that is open. There and back."""
    booted.check(f"systemctl start cgstatfs; sh /root/fork 0; stat {POINT}/known")
    holder = main_pid(booted, "cgstatfs-holder")
    for version in (LATER, __version__):
        before = main_pid(booted)
        read = booted.check(
            f"""cd {POINT}/known; exec 9<proc.events; forks=$(head -n 1 proc.events)
            dpkg -i /root/{version}.deb >/root/dpkg.log 2>&1 || {{ cat /root/dpkg.log; exit 1; }}
            cat {POINT}/.cgstatfs/version
            sh /root/fork 10; echo $forks; head -n 1 proc.events; head -n 1 <&9"""
        )
        first, *forks = read.splitlines()
        assert first == version
        was, by_path, by_descriptor = (int(line.split()[1]) for line in forks)
        assert by_path == by_descriptor == was + 10
        assert main_pid(booted) != before
        assert main_pid(booted, "cgstatfs-holder") == holder
        assert statuses(booted, "cgstatfs", "cgstat.mount") == ["active", "active"]
    assert booted.failed_units() == []


def test_all_that_is_asked_of_a_daemon_works_in_the_sandbox(booted: Machine) -> None:
    pid = main_pid(booted)
    status = dict(
        line.split(":\t") for line in booted.check(f"cat /proc/{pid}/status").splitlines() if ":\t" in line
    )
    # SECCOMP_MODE_FILTER
    assert status["Seccomp"].strip() == "2" and status["NoNewPrivs"] == "1"
    assert booted.check("cgstatfs load /root/mystats.bpf.o") == "mystats: loaded; mystats\n"
    # It counts what begins from now on.
    booted.check("sh /root/fork 7")
    assert booted.check(f"head -n 1 {POINT}/known/mystats") == "started 7\n"
    # The next daemon has what this one pinned.
    booted.check("cgstatfs restart; sh /root/fork 5")
    assert booted.check(f"head -n 1 {POINT}/known/mystats") == "started 12\n"
    assert main_pid(booted) != pid
    # Who reads a subtree is looked up in /proc: root comes everywhere.
    booted.check(
        """mkdir -p /sys/fs/cgroup/known/theirs/below
        chown 1000:1000 /sys/fs/cgroup/known/theirs; chmod 700 /sys/fs/cgroup/known/theirs"""
    )
    paths = f"{POINT}/known/.tree/mystats | cut -d ' ' -f 1"
    assert booted.check(f"cat {paths}").split() == ["/", "/theirs", "/theirs/below"]
    assert booted.check(f"setpriv --reuid=2000 --regid=2000 --clear-groups cat {paths}") == "/\n"
    booted.check("rmdir /sys/fs/cgroup/known/theirs/below /sys/fs/cgroup/known/theirs")
    booted.check("cgstatfs unload mystats")
    assert set(booted.check(f"ls {POINT}/known").split()) == SHIPPED
    booted.check("cp /root/mystats.bpf.o /etc/cgstatfs/collectors.d/; systemctl reload cgstatfs")
    assert "mystats" in booted.check(f"ls {POINT}/known").split()
    booted.check("rm /etc/cgstatfs/collectors.d/mystats.bpf.o; systemctl reload cgstatfs")
    booted.check(
        """systemctl kill -s USR1 --kill-whom=main cgstatfs
        until journalctl -b -o cat -u cgstatfs | grep -q '^version 0.*, engine '; do sleep 1; done"""
    )
    # What a filter forbids ends a process, and is told by the kernel.
    assert booted.run("journalctl -b -k --no-pager | grep type=1326").output == ""


def test_the_documented_score_is_what_systemd_says(booted: Machine) -> None:
    said = booted.check("systemd-analyze security --no-pager cgstatfs.service")
    (score,) = re.findall(r"Overall exposure level for cgstatfs.service: ([0-9.]+)", said)
    documented = (REPOSITORY / "docs" / "security.md").read_text()
    assert f"`systemd-analyze security cgstatfs.service` says {score}" in documented


def test_a_daemon_that_hangs_is_replaced(booted: Machine) -> None:
    pid = main_pid(booted)
    booted.check(f"kill -STOP {pid}")
    booted.check(f"grep -q ^forks {POINT}/known/proc.events")
    assert main_pid(booted) != pid
    assert "has not been heard of" in booted.check("journalctl -b -o cat -u cgstatfs-holder --no-pager")


def test_a_stop_clears_everything_away(booted: Machine) -> None:
    booted.check("systemctl stop cgstatfs")
    check_gone(booted)
    assert booted.check(f"ls -A {POINT}") == ""
    assert booted.failed_units() == []


def test_an_umount_ends_the_service(booted: Machine) -> None:
    """It is not mounted again behind the administrator's back."""
    booted.check(f"systemctl start cgstatfs; umount {POINT}")
    check_gone(booted)
    assert statuses(booted, "cgstatfs", "cgstatfs-holder") == ["inactive", "inactive"]
    assert booted.failed_units() == []


def test_without_a_daemon_nobody_waits_for_ever(booted: Machine) -> None:
    """Who waits can be killed; after unserved-seconds the others get an error."""
    configure(booted, "[limits]\nunserved-seconds = 60\n")
    without_daemon(booted)
    # The cat is killed while it waits. Of umount, see there: it may wait, or be done at once.
    booted.check(
        f"""cat {POINT}/proc.events & sleep 2; kill -9 $!; wait $! || [ $? = 137 ]
        for command in 'df {POINT}' 'ls {POINT}' 'cat {POINT}/mm.reclaim' 'umount {POINT}'; do
            timeout -k 1 700 $command & processes="$processes $!"
        done
        for each in $processes; do wait $each && status=0 || status=$?; [ $status -lt 124 ]; done"""
    )
    booted.check("systemctl stop cgstatfs")
    check_gone(booted)
    configure(booted, _PATIENT)
    booted.check(f"rm {_NEVER_AGAIN}; systemctl daemon-reload; systemctl reset-failed")


def without_daemon(machine: Machine) -> None:
    """Kill the service's daemon, and let no other come."""
    machine.check(
        f"""systemctl start cgstatfs
        mkdir -p {Path(_NEVER_AGAIN).parent}
        printf '[Service]\\nRestartSec=1h\\n' >{_NEVER_AGAIN}
        systemctl daemon-reload
        systemctl kill -s KILL --kill-whom=main cgstatfs
        while [ $(systemctl show -P SubState cgstatfs) != auto-restart ]; do sleep 0.5; done"""
    )


def test_a_configuration_that_is_wrong_is_said_at_once(booted: Machine) -> None:
    configure(booted, 'engine = "steam"\n')
    assert booted.run("systemctl start cgstatfs").status != 0
    said = booted.check("journalctl -b -o cat -u cgstatfs-holder -n 20 --no-pager")
    assert f"{_SETTINGS}:1: engine: there is no engine" in said
    assert statuses(booted, "cgstatfs", "cgstatfs-holder") == ["inactive", "failed"]
    booted.check("systemctl reset-failed")
    configure(booted, _PATIENT)


# At boot: cgstatfs.service, and the machine ends with its daemon alive, and dead


def test_the_service_mounts_at_boot(booted: Machine) -> None:
    """Though the automount, which it excludes, is enabled as well."""
    booted.check("systemctl enable --now cgstatfs.service")
    booted.check("systemctl enable reader.service cgstat.automount")
    reboot(booted)
    assert booted.failed_units() == []
    assert statuses(booted, "cgstat.automount") == ["inactive"]
    assert statuses(booted, "cgstatfs", "cgstat.mount", "reader") == ["active"] * 3
    assert booted.check("cat /var/lib/read").startswith("forks ")
    assert booted.check(f"findmnt -n -o SOURCE,FSTYPE {POINT}").split() == ["cgstatfs", "fuse.cgstatfs"]
    assert set(booted.check(f"ls {POINT}").split()) >= SHIPPED


def test_a_line_of_fstab_mounts_at_boot(booted: Machine) -> None:
    booted.check(
        f"""systemctl disable cgstatfs.service reader.service cgstat.automount
        sed -i '/fuse.cgstatfs/d' /etc/fstab; echo '{FSTAB_LINE}' >>/etc/fstab"""
    )
    without_daemon(booted)
    reboot(booted)
    assert booted.failed_units() == []
    assert statuses(booted, "cgstat.mount", "cgstatfs") == ["active", "inactive"]
    assert set(booted.check(f"ls {POINT}").split()) >= SHIPPED


def test_mount_umount_and_remount(booted: Machine) -> None:
    shown = booted.check(f"findmnt -n -o TARGET,SOURCE,FSTYPE,OPTIONS {POINT}").split()
    assert shown[:3] == [POINT, "cgstatfs", "fuse.cgstatfs"]
    assert {"ro", "nosuid", "nodev", "noexec", "allow_other"} <= set(shown[3].split(","))
    # As mounted already.
    booted.check(f"mount {POINT}; mount -a")
    assert booted.check("findmnt -n -t fuse.cgstatfs | wc -l") == "1\n"
    refused = booted.run(f"mount -o remount {POINT}")
    assert refused.status == 32 and "nothing of it can be changed while it is mounted" in refused.output
    booted.check(f"grep -q ^forks {POINT}/proc.events; umount {POINT}")
    check_gone(booted)
    booted.check(f"mount {POINT}; grep -q ^forks {POINT}/proc.events")
    booted.check("cgstatfs restart")
    assert "\nrestarts 1\n" in booted.check("cgstatfs status")
    booted.check("systemctl stop cgstat.mount")
    check_gone(booted)
    # Both at once, as at a boot where both are enabled: systemctl would begin with one of two.
    booted.check(
        """echo '[Unit]\nWants=cgstat.mount cgstatfs.service' >/run/systemd/system/both.target
        systemctl daemon-reload; systemctl start both.target"""
    )
    assert statuses(booted, "cgstat.mount", "cgstatfs") == ["active", "active"]
    booted.check("systemctl stop cgstatfs.service")
    check_gone(booted)
    configure(booted, 'engine = "steam"\n')
    refused = booted.run(f"mount {POINT}")
    assert refused.status == 32
    assert f"cgstatfs: {_SETTINGS}:1: engine: there is no engine" in refused.output
    configure(booted, _PATIENT)
    booted.check("systemctl start cgstat.mount")


def test_a_broken_configuration_leaves_a_machine_that_boots(booted: Machine) -> None:
    """And the one that boots was ended with a daemon that had been stopped."""
    configure(booted, 'engine = "steam"\n')
    booted.check("kill -STOP $(sh /root/processes 'cgstatfs serve')")
    reboot(booted)
    assert booted.failed_units() == ["cgstat.mount"]
    assert statuses(booted, "multi-user.target") == ["active"]
    said = booted.check("journalctl -b -o cat -u cgstat.mount --no-pager")
    assert f"{_SETTINGS}:1: engine: there is no engine" in said
    configure(booted, _PATIENT)
    booted.check(f"mount {POINT}; grep -q ^forks {POINT}/proc.events; umount {POINT}")


def test_the_automount_mounts_when_it_is_looked_at(booted: Machine) -> None:
    """With a collector that is broken: what there is otherwise is there."""
    booted.check(
        """sed -i '/fuse.cgstatfs/d' /etc/fstab
        head -c 1000 /root/mystats.bpf.o >/etc/cgstatfs/collectors.d/broken.bpf.o
        systemctl enable --now cgstat.automount"""
    )
    reboot(booted)
    assert booted.failed_units() == []
    assert booted.check(f"findmnt -n -o FSTYPE {POINT}") == "autofs\n"
    assert booted.check("sh /root/processes cgstatfs") == ""
    for _ in range(2):
        booted.check(f"grep -q ^forks {POINT}/proc.events")
        assert statuses(booted, "cgstat.automount", "cgstat.mount", "cgstatfs") == [
            "active", "active", "inactive"
        ]  # fmt: skip
        assert set(booted.check(f"ls {POINT}").split()) >= SHIPPED
        assert "collector broken: failed: " in booted.check("cgstatfs list")
        booted.check(f"umount {POINT}")
        check_gone(booted)


def test_the_service_goes_before_the_automount(booted: Machine) -> None:
    booted.check(f"systemctl start cgstatfs; grep -q ^forks {POINT}/proc.events")
    assert statuses(booted, "cgstat.automount", "cgstatfs") == ["inactive", "active"]
    assert booted.failed_units() == []
