// SPDX-License-Identifier: GPL-2.0-only
/*
 * mystats: tasks that were forked, and how long they lived, per cgroup.
 *
 * bcc compiles this file when it is loaded. Programs are placed with
 * RAW_TRACEPOINT_PROBE() alone: BPF skips those of the other kinds while user
 * space uses BPF maps, and what they missed would be missing here.
 *
 * What structs of the kernel's look like, bcc takes from the headers that are
 * installed; read in them only if those are the running kernel's own.
 */
#include "cgstat.bcc.h"

/*
 * The file has a line for each field; units are in the names: _ns, _bytes.
 * What has no tag is a sum.
 */
struct mystats_value {
	u64 forks;
	u64 longest_ns CGSTAT_MAX;
	u64 lifetime_ns[40] CGSTAT_LOG2;
};

/* The name in this program, the type of the value, and the name of the file. */
CGSTAT_MAP(mystats, struct mystats_value, "mystats");

/* When tasks began, by the address of their struct task_struct. */
BPF_TABLE("lru_hash", u64, u64, began, 10240);

/*
 * A task that was forked is woken for the first time. ctx->args are what the
 * tracepoint has in its TP_PROTO(), in include/trace/events of the kernel's
 * source; here: the task.
 *
 * From 7.0 on, BPF can skip programs where the kernel can be preempted, as at
 * sched_process_fork. Here it cannot.
 */
RAW_TRACEPOINT_PROBE(sched_wakeup_new)
{
	u64 child = ctx->args[0], now = bpf_ktime_get_ns();

	began.update(&child, &now);
	/* In the cgroup of the task that forks. */
	cgstat_add(mystats, bpf_get_current_cgroup_id(), forks, 1);
	return 0;
}

/* The task that ends, which is the current one. */
RAW_TRACEPOINT_PROBE(sched_process_exit)
{
	u64 task = ctx->args[0], *begin = began.lookup(&task), lived;

	if (!begin)
		return 0;
	lived = bpf_ktime_get_ns() - *begin;
	began.delete(&task);
	/* Several fields of one value. */
	cgstat_update(mystats, bpf_get_current_cgroup_id(), v) {
		cgstat_raise(v->longest_ns, lived);
		cgstat_inc_log2(v->lifetime_ns, lived);
	}
	return 0;
}
