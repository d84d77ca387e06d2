// SPDX-License-Identifier: GPL-2.0-only
/*
 * A snapshot in pieces, for the engine rstat: what is updated and flushed
 * between them is in the snapshot or not, with certainty.
 */
#include "cgstat.bpf.h"

char LICENSE[] SEC("license") = "GPL";

struct tasks {
	__u64 forks;
	__u64 highest_pid CGSTAT_MAX;
};
CGSTAT_MAP(tasks, struct tasks, "test.snapshots");

SEC("tp_btf/sched_wakeup_new")
int BPF_PROG(on_fork, struct task_struct *p)
{
	__u32 pid = p->pid;

	cgstat_update(tasks, cgstat_task_cgroup(p), v) {
		cgstat_inc(v->forks, 1);
		cgstat_raise(v->highest_pid, pid);
	}
	return 0;
}

SEC("syscall") int begin(struct tasks_snapshot_ctx *ctx)
{
	struct cgstat_ctl *ctl = cgstat_get_ctl(CGSTAT_MAP_OF(tasks));
	__u32 count = ctx->count;
	struct cgstat_copy copy = { .count = count, .left = count };
	__u32 room = ctx->room;

	if (ctl && cgstat_config.engine == CGSTAT_RSTAT)
		ctx->ret = cgstat_begin_snapshot(ctl, &copy, room, tasks_quiet_step);
	return 0;
}

SEC("syscall") int copy(struct tasks_snapshot_ctx *ctx)
{
	struct cgstat_ctl *ctl = cgstat_get_ctl(CGSTAT_MAP_OF(tasks));
	__u32 count = ctx->count;
	struct cgstat_copy copy = { .count = count, .left = count };

	if (!ctl || cgstat_config.engine != CGSTAT_RSTAT)
		return 0;
	copy.number = ctl->snapshot;
	ctx->ret = cgstat_copy_snapshot(ctl, &copy, tasks_copy_step, tasks_settle_pending);
	cgstat_end_snapshot(ctl);
	return 0;
}
