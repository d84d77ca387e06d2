// SPDX-License-Identifier: GPL-2.0-only
/*
 * A collector whose cost tests/kernel/measure.py measures: prctl(CALL, what, n)
 * by a task updates its cgroup, in one of the ways that collectors do.
 */
#include "cgstat.bpf.h"

char LICENSE[] SEC("license") = "GPL";

#define PRCTL 157	/* x86-64 */
#define CALL 0x63676d73

enum {
	NOTHING,	/* all but the update */
	ADD,
	OBSERVE,	/* a histogram, and a sum of the same update */
};

struct measured {
	__u64 count;
	__u64 sum;
	__u64 log2[30] CGSTAT_LOG2;
};
CGSTAT_MAP(measured, struct measured, "test.measured");

SEC("tp_btf/sys_enter")
int BPF_PROG(on_call, struct pt_regs *regs, long id)
{
	struct cgroup *cgrp;
	__u64 what, n;

	if (id != PRCTL || PT_REGS_PARM1_CORE_SYSCALL(regs) != CALL)
		return 0;
	cgrp = cgstat_task_cgroup(bpf_get_current_task_btf());
	what = PT_REGS_PARM2_CORE_SYSCALL(regs);
	n = PT_REGS_PARM3_CORE_SYSCALL(regs);
	if (what == ADD) {
		cgstat_add(measured, cgrp, count, n);
	} else if (what == OBSERVE) {
		cgstat_update(measured, cgrp, v) {
			cgstat_inc_log2(v->log2, n);
			cgstat_inc(v->sum, n);
		}
	}
	return 0;
}
