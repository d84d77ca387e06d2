# SPDX-License-Identifier: GPL-2.0-only
"""What in a guest's kernel log fails the run."""

from __future__ import annotations

import pytest

from ..vm.guest import is_stray_trap, kernel_trouble

TROUBLE = """\
WARNING: possible circular locking dependency detected
WARNING: possible recursive locking detected
WARNING: possible irq lock inversion dependency detected
WARNING: inconsistent lock state
WARNING: bad unlock balance detected!
WARNING: suspicious RCU usage
kernel/bpf/cgroup_stats.c:123 suspicious RCU usage!
[ BUG: Invalid wait context ]
BUG: MAX_LOCKDEP_CHAINS too low!
turning off the locking correctness validator.
INFO: trying to register non-static key.
INFO: lockdep is turned off.
WARNING: CPU: 0 PID: 12 at kernel/locking/lockdep.c:5203
BUG: sleeping function called from invalid context at kernel/locking/mutex.c:579
BUG: scheduling while atomic: test/104/0x00000002
BUG: using smp_processor_id() in preemptible [00000000] code: test/99
BUG: KASAN: slab-use-after-free in cgroup_stats_flush+0x1c/0x30
BUG kmalloc-64 (Not tainted): Poison overwritten
BUG: unable to handle page fault for address: ffffc90000a5b000
kernel BUG at mm/slub.c:4316!
Oops: Oops: 0000 [#1] PREEMPT SMP PTI
Oops: general protection fault, probably for non-canonical address 0x6b6b6b6b6b6b6b6b
Kernel panic - not syncing: Fatal exception in interrupt
list_add corruption. prev->next should be next (ffff8881), but was ffff8882.
list_del corruption, ffff88 is LIST_POISON1 (dead000000000100)
refcount_t: underflow; use-after-free.
ODEBUG: free active (active state 0) object: ffff88 object type: work_struct
UBSAN: array-index-out-of-bounds in kernel/cgroup/rstat.c:40:2
watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [test:77]
rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:
INFO: task kworker/1:1:34 blocked for more than 122 seconds.
kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)
kmemleak: Kernel memory leak detector disabled
unreferenced object 0xffff888004e3a000 (size 1024):""".splitlines()

NO_TROUBLE = """\
Linux version 6.12.117-cgstatfs (gcc 12.2.0) #1 SMP PREEMPT
Lock dependency validator: Copyright (c) 2006 Red Hat, Inc., Ingo Molnar
rcu: RCU lockdep checking is enabled.
kmemleak: Kernel memory leak detector initialized (mem pool available: 15651)
kmemleak: Automatic memory scanning thread started
Memory cgroup out of memory: Killed process 123 (work) total-vm:2345kB
reboot: Power down""".splitlines()


@pytest.mark.parametrize("line", TROUBLE)
def test_trouble(line: str) -> None:
    console = ["[    1.0] before", f"[    2.345678] {line}", "[    2.4] Call Trace:"]
    assert kernel_trouble(console) == console[1:]


def test_no_trouble() -> None:
    assert kernel_trouble([f"[    0.5] {line}" for line in NO_TROUBLE]) == []


@pytest.mark.parametrize(
    ("console", "stray"),
    [
        (["[    6.9] Oops: int3: 0000 [#1] PREEMPT SMP NOPTI", "[    6.9] RIP: 0010:f+0x1/0x2"], True),
        (["[    6.9] int3: 0000 [#1] PREEMPT SMP NOPTI"], True),
        (["[    6.9] Oops: general protection fault [#1]", "[    7.0] Oops: int3: 0000 [#2]"], False),
        (["[    6.9] booted, int3: 0000"], False),
    ],
)
def test_a_stray_breakpoint_is_told_from_a_bug(console: list[str], stray: bool) -> None:
    assert is_stray_trap(console) == stray
