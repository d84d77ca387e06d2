// SPDX-License-Identifier: GPL-2.0-only
/*
 * A collector of three stats maps with the same value, one of each kind:
 * prctl(CALL, what, n) by a task updates its cgroup in all of them.
 */
#include "cgstat.bpf.h"

char LICENSE[] SEC("license") = "GPL";

#define PRCTL 157	/* x86-64 */
#define CALL 0x63677375

enum {
	ADD = 1,
	RAISE = 2,
	LOWER = 3,
	OBSERVE = 4,
};

struct value {
	__u64 sum;
	__u64 highest CGSTAT_MAX;
	__u64 lowest CGSTAT_MIN;
	__u64 sizes[8] CGSTAT_LOG2;
};
CGSTAT_MAP(usual, struct value, "state.usual");
CGSTAT_MAP(shared, struct value, "state.shared", CGSTAT_NO_PERCPU);
CGSTAT_MAP(own, struct value, "state.own", CGSTAT_NO_HIERARCHY);

#define UPDATE(map)							\
	cgstat_update(map, cgrp, v) {					\
		if (what == ADD)					\
			cgstat_inc(v->sum, n);				\
		else if (what == RAISE)					\
			cgstat_raise(v->highest, n);			\
		else if (what == LOWER)					\
			cgstat_lower(v->lowest, n);			\
		else if (what == OBSERVE)				\
			cgstat_inc_log2(v->sizes, n);			\
	}

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
	UPDATE(usual);
	UPDATE(shared);
	UPDATE(own);
	return 0;
}
