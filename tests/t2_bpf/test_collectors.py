# SPDX-License-Identifier: GPL-2.0-only
"""The shipped collectors count what they say, as others count it too."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..conftest import Loaded, remove_tree, skip, wait_for_bpftrace, wait_until

PINGPONGS = 2000
MIB = 1 << 20


def process_state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def waits(loaded: Loaded, cgroup: Path) -> int:
    return sum(loaded.value("sched.runqlat", cgroup)["wait_ns"])


@pytest.mark.on_host
def test_runqlat_counts_what_bpftrace_counts(
    loaded: Loaded, tree: Path, work: Path, tracefs: Path
) -> None:
    """Both count switches to the tasks of one cgroup, which nobody else's are named like."""
    name = f"pp{os.getpid()}"
    worker = subprocess.Popen([work, "pingpong", tree, str(PINGPONGS), name])
    wait_until(lambda: process_state(worker.pid) == "T", "the worker to stop")
    program = (
        f'tracepoint:sched:sched_switch /args->next_comm == "{name}"/ {{ @switches = count(); }} '
        'interval:ms:200 { printf("up\\n"); }'
    )
    tracer = subprocess.Popen(["bpftrace", "-e", program], stdout=subprocess.PIPE, text=True)
    try:
        wait_for_bpftrace(tracer)
        before = waits(loaded, tree)
        worker.send_signal(signal.SIGCONT)
        wait_until(
            lambda: waits(loaded, tree) - before > PINGPONGS and process_state(worker.pid) == "T",
            "the worker to end its rounds",
        )
    finally:
        tracer.send_signal(signal.SIGINT)
        output = tracer.communicate()[0]
        # After the tracer: a task that ended its rounds may have been switched to once more.
        counted = waits(loaded, tree) - before
        worker.send_signal(signal.SIGCONT)
        assert worker.wait() == 0
    switches = int(re.search(r"@switches: (\d+)", output)[1])
    assert counted == switches
    assert loaded.one("sched.runqlat", tree, "wait_total_ns") > 0


def test_runqlat_totals_fit_the_histogram(loaded: Loaded, tree: Path, work: Path) -> None:
    subprocess.run([work, "fork", tree, "50"], check=True)
    value = loaded.value("sched.runqlat", tree)
    buckets, (total,) = value["wait_ns"], value["wait_total_ns"]
    assert sum(buckets) >= 50
    lowest = sum(count << (i - 1) for i, count in enumerate(buckets) if i and count)
    highest = sum(count << i for i, count in enumerate(buckets))
    assert lowest <= total <= highest


def test_execs_and_exits(loaded: Loaded, tree: Path, cgroupfs: Path) -> None:
    script = f"echo 0 > {tree}/cgroup.procs; /bin/true; /bin/true; exec /bin/true"
    subprocess.run(["sh", "-c", script], check=True)
    wait_until(lambda: loaded.one("proc.events", tree, "exits") == 3, "three exits")
    value = loaded.value("proc.events", tree)
    assert value == {
        "forks": (2,), "execs": (3,), "exits": (3,), "oom_kills": (0,), "attaches": (1,),
    }  # fmt: skip


def test_threads_are_forks_and_one_migration(loaded: Loaded, tree: Path) -> None:
    script = (
        "import threading, sys; from pathlib import Path\n"
        "stop = threading.Event()\n"
        "threads = [threading.Thread(target=stop.wait) for _ in range(5)]\n"
        "for t in threads: t.start()\n"
        f"Path({str(tree)!r}, 'cgroup.procs').write_text('0')\n"
        "more = [threading.Thread(target=stop.wait) for _ in range(3)]\n"
        "for t in more: t.start()\n"
        "stop.set()\n"
        "for t in threads + more: t.join()\n"
    )
    subprocess.run(["/usr/bin/python3", "-c", script], check=True)
    assert loaded.one("proc.events", tree, "attaches") == 1
    assert loaded.one("proc.events", tree, "forks") == 3
    wait_until(lambda: loaded.one("proc.events", tree, "exits") == 9, "nine exits")


# Reclaim: where cgroup v2 has the memory controller.


@pytest.fixture
def memory_tree(cgroupfs: Path, tree: Path) -> Iterator[Path]:
    if "memory" not in (cgroupfs / "cgroup.controllers").read_text().split():
        skip("cgroup v2 has no memory controller here (v1 has it)")
    had_it = "memory" in (cgroupfs / "cgroup.subtree_control").read_text().split()
    for directory in (cgroupfs, tree):
        (directory / "cgroup.subtree_control").write_text("+memory")
    for name in ("a", "sibling"):
        (tree / name).mkdir()
    yield tree
    if not had_it:
        for name in ("a", "sibling"):
            remove_tree(tree / name)
        for directory in (tree, cgroupfs):
            (directory / "cgroup.subtree_control").write_text("-memory")


def memory_stat(cgroup: Path, key: str) -> int:
    lines = (line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    return int(dict(lines)[key])


def reclaims(loaded: Loaded, cgroup: Path) -> tuple[int, int, int]:
    """Number of stalls, pages, nanoseconds."""
    value = loaded.value("mm.reclaim", cgroup)
    return sum(value["stall_ns"]), value["pages"][0], value["stall_total_ns"][0]


def check_reclaim(loaded: Loaded, tree: Path, act: Callable[[Path], None]) -> None:
    """Reclaim in *tree*/a shows there and above, not beside, and agrees with memory.stat."""
    a, sibling = tree / "a", tree / "sibling"
    act(a)
    count, pages, stalled = reclaims(loaded, a)
    assert count > 0 and pages > 0 and stalled > 0
    assert reclaims(loaded, tree) == (count, pages, stalled)
    assert reclaims(loaded, sibling) == (0, 0, 0)
    # pgsteal is by the owner of the pages, mm.reclaim by the task that stalled; here both are
    # the same. But work of the kernel's own (memory.high's) steals pages without a task that
    # stalls, and before 6.5 a reclaim counts the slab pages that it freed, which pgsteal never
    # does: a tenth of the pages, as seen on 6.1.
    stolen = memory_stat(a, "pgsteal_direct") + proactive(a)
    missed = sum(loaded.misses("mm.reclaim").values())
    assert pages <= stolen * 1.25
    assert missed or pages >= stolen * 0.8


def proactive(cgroup: Path) -> int:
    """6.16 and later count what memory.reclaim frees apart."""
    try:
        return memory_stat(cgroup, "pgsteal_proactive")
    except KeyError:
        return 0


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A file on a file system with a cache that can be dropped: not tmpfs."""
    directory, image = tmp_path / "mounted", tmp_path / "image"
    directory.mkdir()
    with open(image, "wb") as file:
        file.truncate(96 * MIB)
    subprocess.run(["mke2fs", "-q", "-F", image], check=True)
    subprocess.run(["modprobe", "-q", "loop"])
    subprocess.run(["mount", "-o", "loop", image, directory], check=True)
    yield directory / "file"
    subprocess.run(["umount", directory], check=True)


@pytest.mark.parametrize("limit", ["memory.high", "memory.reclaim"])
def test_memcg_reclaim(
    loaded: Loaded, memory_tree: Path, work: Path, scratch: Path, limit: str
) -> None:
    def act(cgroup: Path) -> None:
        if limit == "memory.high":
            (cgroup / "memory.high").write_text(str(8 * MIB))
            copy = f"echo 0 > {cgroup}/cgroup.procs; dd if=/dev/zero of={scratch} bs=1M count=64"
            subprocess.run(["sh", "-c", copy], check=True, stderr=subprocess.DEVNULL)
        else:
            copy = f"echo 0 > {cgroup}/cgroup.procs; dd if=/dev/zero of={scratch} bs=1M count=32; sync"
            subprocess.run(["sh", "-c", copy], check=True, stderr=subprocess.DEVNULL)
            # The writer reclaims, so the writer has to be inside.
            subprocess.run(
                [work, "write", cgroup, cgroup / "memory.reclaim", str(16 * MIB)], check=True
            )

    check_reclaim(loaded, memory_tree, act)


def oom(work: Path, cgroup: Path, how: str) -> None:
    """Have the OOM killer kill one process in a cgroup."""
    (cgroup / "memory.max").write_text(str(16 * MIB))
    try:
        (cgroup / "memory.swap.max").write_text("0")
    except FileNotFoundError:
        pass  # without CONFIG_SWAP there is nothing to turn off
    worker = subprocess.run([work, how, cgroup, str(64 * MIB)])
    assert worker.returncode == -signal.SIGKILL
    events = dict(line.split() for line in (cgroup / "memory.events").read_text().splitlines())
    assert events["oom_kill"] == "1"


def test_oom_kills(loaded: Loaded, memory_tree: Path, work: Path) -> None:
    a = memory_tree / "a"
    oom(work, a, "touch")
    wait_until(lambda: loaded.one("proc.events", a, "oom_kills") == 1, "the victim to be counted")
    assert loaded.one("proc.events", memory_tree, "oom_kills") == 1
    assert loaded.one("proc.events", memory_tree / "sibling", "oom_kills") == 0


def test_a_victim_without_its_leader_is_an_oom_kill(
    loaded: Loaded, memory_tree: Path, work: Path
) -> None:
    """The main thread has ended; another one runs out of memory."""
    a = memory_tree / "a"
    oom(work, a, "touch_in_thread")
    wait_until(lambda: loaded.one("proc.events", a, "oom_kills") == 1, "the victim to be counted")
    wait_until(lambda: loaded.one("proc.events", a, "exits") == 2, "both threads to be gone")
    assert loaded.one("proc.events", memory_tree, "oom_kills") == 1
