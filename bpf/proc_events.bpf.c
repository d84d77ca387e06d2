// SPDX-License-Identifier: GPL-2.0-only
/*
 * proc.events: what happens to tasks, by the cgroup they are in.
 *
 * forks, exits	tasks, that is threads as well as processes
 * execs	successful ones
 * oom_kills	processes that the OOM killer killed, counted when the victim dies
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
		/* One victim is one process: its leader speaks for it. */
		if (prev->pid == prev->tgid && prev->signal->oom_mm)
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
