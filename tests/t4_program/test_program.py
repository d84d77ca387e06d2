# SPDX-License-Identifier: GPL-2.0-only
"""The command line, and the daemon's life from mount to umount."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cgstatfs import mountpoint as mounting
from cgstatfs.hierarchy import mounts
from cgstatfs.runtime import RUN, Runtime, State

from ..conftest import REPOSITORY, cgroup_id, cgstatfs, times, wait_until

MANY = 10_000


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    """An empty directory; what is mounted on it is unmounted, and its daemon ended."""
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    cgstatfs("umount", "--lazy", path)
    runtime = Runtime(path)
    assert runtime.lock(timeout=120), "the daemon lives on"
    runtime.remove()
    runtime.log.unlink(missing_ok=True)
    assert not runtime.pins.exists()


def mount(*arguments: str | Path) -> int:
    """Returns the daemon's process id."""
    result = cgstatfs("mount", *arguments)
    assert result.returncode == 0, result.stderr
    state = Runtime(Path(arguments[-1])).read_state()
    assert state is not None
    return state.pid


def fails(*arguments: str | Path, code: int = 1, **options: object) -> str:
    """Run a command that fails as it should: a line that says why, and no traceback."""
    result = cgstatfs(*arguments, **options)
    assert result.returncode == code, (result.stdout, result.stderr)
    assert "Traceback" not in result.stderr
    if code == 1:
        assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def test_mount_read_umount(mountpoint: Path) -> None:
    result = cgstatfs("mount", mountpoint)
    assert result.returncode == 0, result.stderr
    assert f"{mountpoint}: mounted, engine " in result.stdout
    assert (mountpoint / "proc.events").read_text().startswith("forks ")
    runtime = Runtime(mountpoint)
    assert {path.name for path in runtime.pins.iterdir()} == {
        "mm_reclaim", "proc_events", "sched_runqlat",
    }  # fmt: skip
    assert cgstatfs("umount", mountpoint).returncode == 0
    assert os.listdir(mountpoint) == []
    assert not runtime.pins.exists()
    assert list(RUN.glob(f"{runtime.name}.*")) == []
    # And again, at any time.
    mount(mountpoint)
    assert runtime.log.read_text() == ""


def test_help_and_version() -> None:
    assert cgstatfs("--version").stdout.startswith("cgstatfs ")
    for command in ("mount", "umount", "check", "list"):
        text = cgstatfs(command, "--help").stdout
        assert f"example:\n  cgstatfs {command}" in text
        assert "exit codes:" in text


def test_wrong_command_lines(tmp_path: Path) -> None:
    fails(code=2)
    fails("mount", "--engine", "steam", tmp_path, code=2)
    fails("frobnicate", code=2)
    assert "bogus" in fails("mount", "-o", "ro,bogus=1", tmp_path)
    assert "steam" in fails("mount", "-o", "engine=steam", tmp_path)


def test_what_cannot_be_mounted_on(tmp_path: Path, mountpoint: Path) -> None:
    assert "No such file" in fails("mount", tmp_path / "absent")
    (tmp_path / "file").touch()
    assert "Not a directory" in fails("mount", tmp_path / "file")
    full = tmp_path / "full"
    full.mkdir()
    (full / "something").touch()
    assert "something" in fails("mount", full)
    subprocess.run(["mount", "-t", "tmpfs", "none", mountpoint], check=True)
    try:
        assert "tmpfs" in fails("mount", mountpoint)
    finally:
        subprocess.run(["umount", mountpoint], check=True)
    mount(mountpoint)
    assert "is mounted there" in fails("mount", mountpoint)
    assert (mountpoint / "proc.events").read_text()
    assert "no cgstatfs is mounted" in fails("umount", tmp_path / "full")


def test_not_root(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    shutil.copytree(REPOSITORY / "cgstatfs", clone / "cgstatfs")
    for path in (tmp_path, *tmp_path.parents):
        if path != Path("/tmp") and path.is_relative_to("/tmp"):
            path.chmod(0o755)
    site = next(p for p in sys.path if p.startswith(sys.prefix) and "site-packages" in p)
    packages = tmp_path / "packages"
    shutil.copytree(site, packages)
    for command in (("mount", "/mnt"), ("umount", "/mnt"), ("check",), ("list",)):
        result = subprocess.run(
            ["/usr/bin/python3", "-m", "cgstatfs", *command], cwd=clone, text=True,
            capture_output=True, user=65534, group=65534, extra_groups=[],
            env={"PYTHONPATH": str(packages), "PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
        assert result.returncode == 1
        assert result.stderr.startswith("cgstatfs: not root"), result.stderr


def in_a_mount_namespace(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", "-ec", script],
        text=True, capture_output=True, cwd=REPOSITORY,
    )  # fmt: skip


def test_no_cgroup2(mountpoint: Path, cgroupfs: Path) -> None:
    result = in_a_mount_namespace(
        f"umount -l {cgroupfs}; exec {sys.executable} -m cgstatfs mount {mountpoint}"
    )
    assert result.returncode == 1
    assert result.stderr.startswith("cgstatfs: /proc/self/mountinfo: cgroup v2 is not mounted")
    assert not Runtime(mountpoint).pins.exists()


def test_no_btf(mountpoint: Path) -> None:
    result = in_a_mount_namespace(
        # libbpf also looks where kernel headers are.
        "mount -t tmpfs none /sys/kernel/btf; mkdir -p /lib/modules; mount -t tmpfs none /lib/modules; "
        f"exec {sys.executable} -m cgstatfs mount {mountpoint}"
    )
    assert result.returncode == 1
    assert "the kernel has no BTF" in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_engine_that_cannot_be_used(mountpoint: Path) -> None:
    report = cgstatfs("check").stdout
    for name in ("native", "rstat", "standalone"):
        if f"engine {name}: cannot be used" in report:
            assert f"{name}: " in fails("mount", "--engine", name, mountpoint)
        else:
            mount("--engine", name, mountpoint)
            assert f"engine {name}" in cgstatfs("list").stdout
            assert cgstatfs("umount", mountpoint).returncode == 0


def test_check_says_what_works() -> None:
    result = cgstatfs("check")
    assert result.returncode == 0, result.stdout
    for word in ("cgroup v2: mounted at", "engine native: ", "engine rstat: ", "engine standalone: can be used",
                 "collector proc_events: can be used; file proc.events"):  # fmt: skip
        assert word in result.stdout


def test_list(mountpoint: Path) -> None:
    mount(mountpoint)
    text = cgstatfs("list").stdout
    for line in (
        f"{mountpoint}: engine ", "proc.events: engine ", "    forks: sum\n",
        "    wait_ns: sum, ns, log2 histogram of 40 buckets\n", "    entries ", "lost 0\n",
        "    runs that BPF skipped 0\n",
    ):  # fmt: skip
        assert line in text, text


def test_busy_and_lazy(mountpoint: Path) -> None:
    mount(mountpoint)
    with open(mountpoint / "proc.events", "rb") as file:
        assert "in use" in fails("umount", mountpoint)
        assert file.read().startswith(b"forks ")
        assert cgstatfs("umount", "--lazy", mountpoint).returncode == 0
        assert os.listdir(mountpoint) == []
        file.seek(0)
        assert file.read().startswith(b"forks ")
        assert "still runs" in fails("mount", mountpoint)
    check_ended(mountpoint)


def test_a_root_of_ones_own(mountpoint: Path, tree: Path, cgroupfs: Path) -> None:
    (tree / "a").mkdir()
    mount("--root", f"/{tree.relative_to(cgroupfs)}", mountpoint)
    assert sorted(p.name for p in mountpoint.iterdir() if p.is_dir()) == ["a"]
    assert mountpoint.stat().st_ino == cgroup_id(tree)
    (tree / "b").mkdir()
    assert (mountpoint / "b/proc.events").read_text().startswith("forks 0\n")
    assert cgstatfs("umount", mountpoint).returncode == 0
    for root in ("/no/such", "../../../tmp", "/cgroup.procs"):
        assert "no such cgroup" in fails("mount", "--root", root, mountpoint)


def test_a_cgroup_namespaces_view(
    mountpoint: Path, tree: Path, tmp_path: Path, work: Path
) -> None:
    """Its root has ancestors that nobody in it sees; counts go up to them all the same."""
    a, b = tree / "a", tree / "a/b"
    b.mkdir(parents=True)
    view = tmp_path / "view"
    view.mkdir()
    command = f"{sys.executable} -m cgstatfs"
    result = in_a_mount_namespace(
        f"echo 0 > {a}/cgroup.procs; exec unshare -C sh -ec '"
        f"mount -t cgroup2 none {view}; umount -l {tree.parent}; "
        f"{command} mount {mountpoint}; {work} fork {view}/b 5; "
        f"stat -c %i {mountpoint}; ls {mountpoint}; "
        f"cat {mountpoint}/b/proc.events {mountpoint}/proc.events; "
        f"{command} umount {mountpoint}; umount {view}'"
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()[1:]
    assert lines[:2] == [str(cgroup_id(a)), "b"]
    assert lines[5] == "forks 5"
    assert int(lines[10].split()[1]) >= 5


def test_two_mounts(mountpoint: Path, tmp_path: Path, tree: Path, work: Path) -> None:
    # Longer than the path of a socket can be.
    second = tmp_path / f"mnt.2{'-x' * 100}"
    second.mkdir()
    mount(mountpoint)
    mount(second)
    try:
        assert cgstatfs("unload", "--mount", second, "mm_reclaim").returncode == 0
        assert (mountpoint / "mm.reclaim").exists() and not (second / "mm.reclaim").exists()
        subprocess.run([work, "fork", tree, "4"], check=True)
        for path in (mountpoint, second):
            assert (path / tree.name / "proc.events").read_text().startswith("forks 4\n")
    finally:
        assert cgstatfs("umount", second).returncode == 0
    assert (mountpoint / "proc.events").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unmounts(mountpoint: Path, number: signal.Signals) -> None:
    mount(mountpoint)
    os.kill(holder(mountpoint), number)
    check_ended(mountpoint)
    assert os.listdir(mountpoint) == []


def check_ended(mountpoint: Path) -> None:
    """The daemon ends by itself, and leaves nothing."""
    runtime = Runtime(mountpoint)
    wait_until(lambda: not list(RUN.glob(f"{runtime.name}.*")), "the daemon to end", seconds=120)
    assert not runtime.pins.exists()


def holder(mountpoint: Path) -> int:
    """The process id of who holds the mount."""
    return Runtime(mountpoint).read_state().holder


def kill(mountpoint: Path) -> State:
    """kill -9 a daemon, and its holder; returns what they have left."""
    runtime = Runtime(mountpoint)
    state = runtime.read_state()
    # Stopped, it cannot say in the log, which would stay, that its holder has gone.
    os.kill(state.pid, signal.SIGSTOP)
    for pid in (state.holder, state.pid):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not state.lives() and not runtime.is_held(), "them to end")
    return state


def test_after_a_kill_it_can_be_mounted_again(mountpoint: Path) -> None:
    for _ in range(2):
        mount(mountpoint)
        kill(mountpoint)
        with pytest.raises(OSError):
            os.listdir(mountpoint)
    mount(mountpoint)
    assert (mountpoint / "proc.events").read_text().startswith("forks ")
    kill(mountpoint)
    assert cgstatfs("umount", mountpoint).returncode == 0
    check_ended(mountpoint)


def test_after_a_kill_and_an_umount_of_the_systems(mountpoint: Path) -> None:
    """The collectors go on, which can be seen, and ended."""
    mount(mountpoint)
    kill(mountpoint)
    subprocess.run(["umount", mountpoint], check=True)
    listed = cgstatfs("list").stdout
    assert f"{mountpoint}: engine " in listed
    assert "its daemon was killed" in listed
    assert "proc.events: engine" in listed
    result = subprocess.run(["make", "umount", f"MOUNTPOINT={mountpoint}"], cwd=REPOSITORY)
    assert result.returncode == 0
    check_ended(mountpoint)


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[Callable[[], int]]:
    """A function that mounts a FUSE file system which is not ours; returns its connection."""
    path = tmp_path / "foreign"
    path.mkdir()
    device = os.open("/dev/fuse", os.O_RDWR)

    def mount() -> int:
        subprocess.run(
            ["mount", "-i", "-t", "fuse.other", "-o",
             f"fd={device},rootmode=40000,user_id=0,group_id=0", "other", path],
            check=True, pass_fds=[device],
        )  # fmt: skip
        line = next(m for m in mounts() if m.point == os.fsencode(path))
        return int(line.device.partition(b":")[2])

    yield mount
    subprocess.run(["umount", "-l", path], check=False)
    os.close(device)


def test_a_stale_state_does_not_harm_others(
    mountpoint: Path, foreign: Callable[[], int]
) -> None:
    """The number of a connection that is gone is soon another's."""
    mount(mountpoint)
    state = kill(mountpoint)
    subprocess.run(["umount", mountpoint], check=True)
    connection = foreign()
    Runtime(mountpoint).write_state(replace(state, connection=connection))
    mounting.ensure_mounted(Path("/sys/fs/fuse/connections"), b"fusectl")
    control = Path(f"/sys/fs/fuse/connections/{connection}/waiting")
    wait_until(lambda: control.read_text() == "1\n", "the kernel's INIT request")
    mount(mountpoint)
    # An aborted connection has nothing waiting.
    assert control.read_text() == "1\n"


def test_a_signal_while_it_starts(mountpoint: Path) -> None:
    """At any moment: either it is mounted, or nothing is left."""
    runtime = Runtime(mountpoint)
    for number in range(times(10)):
        process = subprocess.Popen(
            [sys.executable, "-m", "cgstatfs", "mount", "--foreground", mountpoint],
            cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        wait_until(lambda: runtime.read_state() or process.poll() is not None, "it to begin")  # noqa: B023
        time.sleep(number / 20)
        process.send_signal((signal.SIGTERM, signal.SIGINT)[number % 2])
        _, errors = process.communicate(timeout=120)
        assert "Traceback" not in errors
        assert process.returncode in (0, 1)
        check_ended(mountpoint)
    assert not mounting.mounted(mountpoint)


def test_the_log_of_a_daemon_that_failed_stays(mountpoint: Path) -> None:
    fails("mount", "--root", "/no/such", mountpoint)
    runtime = Runtime(mountpoint)
    assert list(RUN.glob(f"{runtime.name}.*")) == [runtime.log]
    assert "no such cgroup" in runtime.log.read_text()


def begin_to_mount(mountpoint: Path) -> tuple[subprocess.Popen, int]:
    """A mount command whose daemon is stopped before it has mounted, and the daemon's id."""
    runtime = Runtime(mountpoint)
    while True:
        process = subprocess.Popen(
            [sys.executable, "-m", "cgstatfs", "mount", mountpoint],
            cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        wait_until(runtime.read_state, "the daemon to begin")
        pid = runtime.read_state().pid
        os.kill(pid, signal.SIGSTOP)
        if not runtime.read_state().connection:
            return process, pid
        # It was faster than we.
        os.kill(pid, signal.SIGCONT)
        process.communicate()
        assert cgstatfs("umount", mountpoint).returncode == 0


def test_an_interrupted_mount_is_undone(mountpoint: Path) -> None:
    process, pid = begin_to_mount(mountpoint)
    try:
        assert "is starting" in fails("mount", mountpoint)
        assert "is starting" in fails("umount", mountpoint)
        process.send_signal(signal.SIGINT)
        assert process.communicate()[1] == "cgstatfs: interrupted\n"
    finally:
        os.kill(pid, signal.SIGCONT)
    check_ended(mountpoint)


@pytest.fixture
def busy(mountpoint: Path, tree: Path, cgroupfs: Path, work: Path) -> Iterator[None]:
    """A mount in which names are looked up and go all the time."""
    mount(mountpoint)
    mirror = mountpoint / tree.relative_to(cgroupfs)
    loops = [f"while :; do ls {mirror}/x0 {mirror}/missing; done >/dev/null 2>&1"] * 3
    loops.append(f"while {work} churn {tree} 20 x; do :; done >/dev/null 2>&1")
    children = [subprocess.Popen(["sh", "-c", loop]) for loop in loops]
    time.sleep(1)
    yield
    for child in children:
        child.kill()
        child.wait()


def test_a_signal_under_load_unmounts(mountpoint: Path, busy: None) -> None:
    os.kill(holder(mountpoint), signal.SIGTERM)
    check_ended(mountpoint)


def test_after_a_kill_under_load_it_can_be_mounted_again(mountpoint: Path, busy: None) -> None:
    kill(mountpoint)
    mount(mountpoint)
    assert (mountpoint / "proc.events").read_text().startswith("forks ")


def test_foreground(mountpoint: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "cgstatfs", "mount", "--foreground", mountpoint],
        cwd=REPOSITORY, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert "mounted, engine" in process.stdout.readline()
    assert (mountpoint / "proc.events").read_text()
    assert cgstatfs("umount", mountpoint).returncode == 0
    assert process.wait(timeout=120) == 0


@pytest.fixture
def many(tree: Path) -> Path:
    for number in range(MANY):
        (tree / f"c{number}").mkdir()
    return tree


def cpu_and_switches(pid: int) -> tuple[int, ...]:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    status = Path(f"/proc/{pid}/status").read_text()
    switches = [int(line.split()[1]) for line in status.splitlines() if "ctxt_switches" in line]
    return (int(fields[11]), int(fields[12]), *switches)


def test_ten_thousand_cgroups(
    mountpoint: Path, many: Path, cgroupfs: Path
) -> None:
    begun = time.monotonic()
    pid = mount(mountpoint)
    assert (mountpoint / "proc.events").read_text()
    print(f"answers after {time.monotonic() - begun:.2f} s, python's start included")
    mirror = mountpoint / many.relative_to(cgroupfs)
    expected = sorted(path.name for path in many.iterdir() if path.is_dir())
    listing = subprocess.run(["ls", mirror], text=True, capture_output=True, check=True).stdout
    files = ["mm.reclaim", "proc.events", "sched.runqlat"]
    assert sorted(listing.split()) == sorted(expected + files)
    found = subprocess.run(["find", mountpoint], text=True, capture_output=True, check=True)
    mirrored = [line for line in found.stdout.splitlines() if line.startswith(str(mirror))]
    assert len(mirrored) == (MANY + 1) * 4
    memory = Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split("\n")[0]
    print(f"resident memory with {MANY} cgroups, all of them listed: {memory.strip()}")
    # An idle daemon is woken to say that it lives, every 10 s, and else by nothing.
    wait_until(
        lambda: Path(f"/proc/{pid}/syscall").read_text().split()[0] in ("232", "281"), "rest"
    )
    time.sleep(1)
    idle = [pid, holder(mountpoint)]
    before = [cpu_and_switches(each) for each in idle]
    time.sleep(20)
    for each, was in zip(idle, before):
        ticks, more_ticks, waits, preemptions = (
            now - then for now, then in zip(cpu_and_switches(each), was)
        )
        assert waits <= 2 and ticks + more_ticks <= 2 and preemptions <= 2, each


def test_events_beyond_the_buffer_are_caught_up_with(
    mountpoint: Path, tree: Path, cgroupfs: Path
) -> None:
    pid = mount(mountpoint)
    mirror = mountpoint / tree.relative_to(cgroupfs)
    (tree / "old").mkdir()
    assert (mirror / "old").stat()
    os.kill(pid, signal.SIGSTOP)
    try:
        (tree / "old").rmdir()
        for number in range(6000):
            (tree / f"c{number}").mkdir()
        for number in range(0, 6000, 2):
            (tree / f"c{number}").rmdir()
        (tree / "old").mkdir()
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (mirror / "c1/proc.events").read_text()
    names = {path.name for path in mirror.iterdir() if path.is_dir()}
    assert names == {"old", *(f"c{number}" for number in range(1, 6000, 2))}
    assert (mirror / "old").stat().st_ino == cgroup_id(tree / "old")
    assert "found the buffer full" in Runtime(mountpoint).log.read_text()
