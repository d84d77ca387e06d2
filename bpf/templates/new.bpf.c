// SPDX-License-Identifier: GPL-2.0-only
/*
 * mystats: tasks and how long they live, by the cgroup they are in.
 *
 * started	tasks that ran for the first time
 * longest_ns	longest life of one that has ended
 * lifetime_ns	histogram of lives; its count is the number of tasks that ended
 *
 * A starting point: it builds and counts as it is. Change the value type, the
 * places where the programs are attached, and what they add.
 */
#include "cgstat.bpf.h"

/* The kernel's helpers are for programs under the GPL. */
char LICENSE[] SEC("license") = "GPL";

/*
 * The value of each cgroup: unsigned 64-bit fields, or arrays and structs of
 * such. The file has a line for each, in this order. A field is a sum unless a
 * tag says otherwise: CGSTAT_MAX, CGSTAT_MIN; and for arrays that are
 * histograms CGSTAT_LOG2, CGSTAT_LINEAR(START, STEP), CGSTAT_BOUNDS(...).
 * Names end in their unit, if they have one: _ns, _bytes.
 */
struct mystats_value {
	__u64 started;
	__u64 longest_ns CGSTAT_MAX;
	/* Up to 2^46 ns, 19 hours, then what is longer. */
	__u64 lifetime_ns[48] CGSTAT_LOG2;
};

/* The stats map: its name in this source, its value type, its file's name. */
CGSTAT_MAP(mystats, struct mystats_value, "mystats");

/*
 * The arguments are those of the kernel's tracepoint: TP_PROTO in
 * include/trace/events/sched.h. This one fires with interrupts off, so that BPF
 * never skips a run of the program; so does the next.
 */
SEC("tp_btf/sched_wakeup_new")
int BPF_PROG(on_start, struct task_struct *p)
{
	cgstat_add(mystats, cgstat_task_cgroup(p), started, 1);
	return 0;
}

#define TASK_DEAD 0x80

SEC("tp_btf/sched_switch")
int BPF_PROG(on_switch, bool preempt, struct task_struct *prev,
	     struct task_struct *next, unsigned int prev_state)
{
	__u64 life;

	if (!(prev_state & TASK_DEAD))
		return 0;
	life = bpf_ktime_get_ns() - prev->start_time;
	/* Several elements of one cgroup for one look-up. */
	cgstat_update(mystats, cgstat_task_cgroup(prev), v) {
		cgstat_raise(v->longest_ns, life);
		cgstat_inc_log2(v->lifetime_ns, life);
	}
	return 0;
}
