// SPDX-License-Identifier: GPL-2.0-only
/*
 * proc.events: what happens to tasks, by the cgroup they are in.
 *
 * forks, exits	tasks, that is threads as well as processes
 * execs	successful ones
 * oom_kills	processes that the OOM killer marked as victims, counted when the
 *		first of their threads is gone
 * attaches	migrations into the cgroup: one for each write to cgroup.procs or
 *		cgroup.threads, however many threads it moves
 *
 * Needs 6.1 or later. Costs one addition per event, and two loads and a branch
 * per context switch (exits are seen there).
 *
 * forks are counted at sched_wakeup_new and exits at the task's last
 * sched_switch, because these fire with interrupts off: from 7.0 on programs
 * at other tracepoints can be preempted, and are then skipped when another
 * task comes by. execs cannot be seen with interrupts off; what is skipped
 * there `cgstatfs list` shows as misses.
 *
 * The OOM killer also marks processes that were about to exit anyway. Those
 * count here, and not as oom_kill in cgroupfs's memory.events.
 */
#include "cgstat.bpf.h"

char LICENSE[] SEC("license") = "GPL";

#define TASK_DEAD 0x80

struct proc_events {
	__u64 forks;
	__u64 execs;
	__u64 exits;
	__u64 oom_kills;
	__u64 attaches;
};
CGSTAT_MAP(events, struct proc_events, "proc.events");

/* A process, not to be taken for a later one with its pid. */
struct process_key {
	__u64 tgid;
	__u64 start_time;
};

/*
 * Victims that have been counted. Whichever of their threads goes first counts
 * them: the leader may have gone before they were marked. Made in advance, as
 * nothing can be allocated in sched_switch.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct process_key);
	__type(value, __u64);
} victims SEC(".maps");

/* Whether @task is the first to go of a process that the OOM killer marked. */
static __always_inline bool is_new_victim(struct task_struct *task)
{
	struct process_key key = { .tgid = task->tgid };
	__u64 seen = 1;

	if (!task->signal->oom_mm)
		return false;
	key.start_time = task->group_leader->start_time;
	return !bpf_map_update_elem(&victims, &key, &seen, BPF_NOEXIST);
}

SEC("tp_btf/sched_wakeup_new")
int BPF_PROG(on_fork, struct task_struct *p)
{
	cgstat_add(events, cgstat_task_cgroup(p), forks, 1);
	return 0;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(on_exec, struct task_struct *p)
{
	cgstat_add(events, cgstat_task_cgroup(p), execs, 1);
	return 0;
}

SEC("tp_btf/sched_switch")
int BPF_PROG(on_exit, bool preempt, struct task_struct *prev,
	     struct task_struct *next, unsigned int prev_state)
{
	if (!(prev_state & TASK_DEAD))
		return 0;
	cgstat_update(events, cgstat_task_cgroup(prev), v) {
		cgstat_inc(v->exits, 1);
		if (is_new_victim(prev))
			cgstat_inc(v->oom_kills, 1);
	}
	return 0;
}

SEC("tp_btf/cgroup_attach_task")
int BPF_PROG(on_attach, struct cgroup *dst)
{
	if (cgstat_is_v2(dst))
		cgstat_add(events, dst, attaches, 1);
	return 0;
}
