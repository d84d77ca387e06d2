// SPDX-License-Identifier: GPL-2.0-only
/*
 * A stats map of every kind but one with an aggregator, updated on call: prctl(CALL, map, n) by a task
 * updates every element of one with n, in the task's cgroup, and returns when
 * that is done. prctl(CALL, INTERRUPTS | map) by a process has interrupts that
 * hit it do the same with 7, and be counted in `truth`.
 */
#include "cgstat.bpf.h"

char LICENSE[] SEC("license") = "GPL";

#define PRCTL 157	/* x86-64 */
#define CALL 0x63677072

enum {
	IN_KINDS = 1,
	IN_SHARED = 2,
	IN_OWN = 3,		/* 4: aggregated.bpf.c */
	INTERRUPTS = 0x100,
};

#define LINEAR_BOUNDS 0, 10
#define EXPLICIT_BOUNDS 5, 50, 500
#define HALF 1000

struct kinds {
	__u64 sum;
	__u64 max CGSTAT_MAX;
	__u64 min CGSTAT_MIN;
	__u64 log2[8] CGSTAT_LOG2;
	__u64 linear[5] CGSTAT_LINEAR(LINEAR_BOUNDS);
	__u64 bounds[4] CGSTAT_BOUNDS(EXPLICIT_BOUNDS);
	struct {
		__u64 calls;
		__u64 last CGSTAT_MAX;
	} nested;
	/* Its tag is for those in it that have none. */
	struct {
		__u64 high;
		__u64 low CGSTAT_MIN;
		__u64 halves[2] CGSTAT_BOUNDS(HALF);
	} tagged CGSTAT_MAX;
};
CGSTAT_MAP(kinds, struct kinds, "test.kinds");
CGSTAT_MAP(shared, struct kinds, "test.shared", CGSTAT_NO_PERCPU);
CGSTAT_MAP(own, struct kinds, "test.own", CGSTAT_NO_HIERARCHY);

/* Interrupts that updated. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} truth SEC(".maps");

/* Whom interrupts count for, and in which map. */
__u32 target;
__u32 target_map;

#define UPDATE(map, cgrp, n)						\
	cgstat_update(map, cgrp, v) {					\
		cgstat_inc(v->sum, n);					\
		cgstat_raise(v->max, n);				\
		cgstat_lower(v->min, n);				\
		cgstat_inc_log2(v->log2, n);				\
		cgstat_inc_linear(v->linear, n, LINEAR_BOUNDS);		\
		cgstat_inc_bounds(v->bounds, n, EXPLICIT_BOUNDS);	\
		cgstat_inc(v->nested.calls, 1);				\
		cgstat_raise(v->nested.last, n);			\
		cgstat_raise(v->tagged.high, n);			\
		cgstat_lower(v->tagged.low, n);				\
		cgstat_inc_bounds(v->tagged.halves, n, HALF);		\
	}

static __always_inline void update(struct cgroup *cgrp, __u64 map, __u64 n)
{
	if (map == IN_KINDS)
		UPDATE(kinds, cgrp, n)
	else if (map == IN_SHARED)
		UPDATE(shared, cgrp, n)
	else if (map == IN_OWN)
		UPDATE(own, cgrp, n)
}

SEC("tp_btf/sys_enter")
int BPF_PROG(on_call, struct pt_regs *regs, long id)
{
	struct task_struct *task;
	__u64 what, n;

	if (id != PRCTL || PT_REGS_PARM1_CORE_SYSCALL(regs) != CALL)
		return 0;
	task = bpf_get_current_task_btf();
	what = PT_REGS_PARM2_CORE_SYSCALL(regs);
	n = PT_REGS_PARM3_CORE_SYSCALL(regs);
	if (what & INTERRUPTS) {
		target_map = what & ~INTERRUPTS;
		target = n ? task->tgid : 0;
		return 0;
	}
	update(cgstat_task_cgroup(task), what, n);
	return 0;
}

/* With interrupts off, in whatever they interrupted: another update, often. */
SEC("tp_btf/hrtimer_expire_entry")
int BPF_PROG(on_interrupt)
{
	struct task_struct *task = bpf_get_current_task_btf();
	__u32 zero = 0;
	__u64 *count;

	if (!target || task->tgid != target)
		return 0;
	count = bpf_map_lookup_elem(&truth, &zero);
	if (!count)
		return 0;
	update(cgstat_task_cgroup(task), target_map, 7);
	__sync_fetch_and_add(count, 1);
	return 0;
}

/* A sleepable program that looks a total up: for whoever iterates. */
SEC("iter.s/cgroup")
int look_up(struct bpf_iter__cgroup *ctx)
{
	struct cgroup *cgrp = ctx->cgroup;
	struct kinds total;
	long ret;

	if (!cgrp)
		return 0;
	ret = cgstat_lookup(kinds, cgrp, &total);
	bpf_seq_write(ctx->meta->seq, &ret, sizeof(ret));
	if (!ret)
		bpf_seq_write(ctx->meta->seq, &total, sizeof(total));
	return 0;
}
