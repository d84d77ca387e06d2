# SPDX-License-Identifier: GPL-2.0-only
"""Which engine a collector gets for where its programs run."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from cgstatfs.engines import Engine, Native, Rstat, Standalone
from cgstatfs.placement import check

INSIDE = (
    "cgroup_rstat_updated", "cgroup_rstat_flush", "cgroup_rstat_flush_locked",
    "__cgroup_rstat_lock", "css_rstat_updated", "css_rstat_flush", "css_rstat_init",
    "cgroup_rstat_lock_contended", "cgroup_rstat_cpu_locked", "cgroup_rstat_cpu_lock_contended",
    "bpf_rstat_flush", "cgroup_base_stat_flush", "cgroup_base_stat_add",
    "mem_cgroup_css_rstat_flush", "blkcg_rstat_flush", "__blkcg_rstat_flush",
    "contention_begin", "contention_end", "lock_acquire", "lock_release",
    "_raw_spin_lock", "_raw_spin_lock_irqsave", "_raw_spin_unlock_irqrestore",
    "__raw_spin_lock", "do_raw_spin_lock", "queued_spin_lock_slowpath",
    "native_queued_spin_lock_slowpath", "pv_queued_spin_lock_slowpath",
    "__pv_queued_spin_lock_slowpath", "__pv_queued_spin_unlock_slowpath",
    "irq_disable", "irq_enable", "preempt_disable", "preempt_enable",
    "nmi_handler", "nmi_handle", "exc_nmi", "default_do_nmi", "nmi_cpu_backtrace", "do_nmi",
    "perf_event_nmi_handler", "perf_ibs_nmi_handler", "perf_event_overflow",
    "__perf_event_overflow", "x86_pmu_handle_irq", "intel_pmu_handle_irq",
    "amd_pmu_handle_irq", "watchdog_overflow_callback", "bpf_overflow_handler",
)  # fmt: skip
OUTSIDE = (
    "sched_switch", "sched_wakeup", "sched_process_fork", "cgroup_mkdir", "cgroup_release",
    "cgroup_attach_task", "mm_vmscan_memcg_reclaim_begin", "sys_enter", "do_exit", "vfs_read",
    "tcp_sendmsg", "block_rq_issue", "irq_handler_entry", "softirq_entry", "nonmi_ipi_setup",
    "tcp_rcv_spurious_retrans", "io_uring_cqe_overflow", "spin_lock_irqsave_ssp_contention",
)  # fmt: skip


@dataclass
class Program:
    """What is asked of one."""

    section: str
    name: str = "own"
    is_autoloaded: bool = True


@pytest.mark.parametrize("kind", ["tp_btf", "fentry", "fexit"])
@pytest.mark.parametrize("target", INSIDE)
def test_inside_of_rstats_locks(kind: str, target: str) -> None:
    engine, (note,) = check([Program("tp_btf/sched_switch"), Program(f"{kind}/{target}")], Rstat())
    assert engine.name == Standalone.name
    assert f"({kind}/{target}) runs inside of locks that rstat takes" in note


@pytest.mark.parametrize("kind", [Native, Standalone])
@pytest.mark.parametrize("target", INSIDE)
def test_the_other_engines_may_be_there(target: str, kind: type[Engine]) -> None:
    engine, notes = check([Program(f"fentry/{target}")], kind())
    assert (engine.name, notes) == (kind.name, [])


@pytest.mark.parametrize("kind", ["tp_btf", "fentry", "fexit"])
@pytest.mark.parametrize("target", OUTSIDE)
def test_elsewhere(kind: str, target: str) -> None:
    engine, notes = check([Program(f"{kind}/{target}")], Rstat())
    assert (engine.name, notes) == (Rstat.name, [])
