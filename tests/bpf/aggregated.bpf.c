// SPDX-License-Identifier: GPL-2.0-only
/*
 * A stats map with an aggregator, updated on the same calls as those of
 * properties.bpf.c: prctl(CALL, IN_DISTINCT, n) by a task has its cgroup see n.
 */
#include "cgstat.bpf.h"

char LICENSE[] SEC("license") = "GPL";

#define PRCTL 157	/* x86-64 */
#define CALL 0x63677072
#define IN_DISTINCT 4

struct distinct {
	__u64 calls;
	__u64 seen[64] CGSTAT_HLL;
};

static __always_inline void merge(struct distinct *into, const struct distinct *from)
{
	cgstat_hll_merge(into->seen, from->seen);
}
CGSTAT_MAP_AGGREGATED(distinct, struct distinct, "test.distinct", merge);

SEC("tp_btf/sys_enter")
int BPF_PROG(on_call, struct pt_regs *regs, long id)
{
	if (id != PRCTL || PT_REGS_PARM1_CORE_SYSCALL(regs) != CALL ||
	    PT_REGS_PARM2_CORE_SYSCALL(regs) != IN_DISTINCT)
		return 0;
	cgstat_update(distinct, cgstat_task_cgroup(bpf_get_current_task_btf()), v) {
		cgstat_inc(v->calls, 1);
		cgstat_see(v->seen, PT_REGS_PARM3_CORE_SYSCALL(regs));
	}
	return 0;
}
