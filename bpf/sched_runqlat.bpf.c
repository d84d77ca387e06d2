// SPDX-License-Identifier: GPL-2.0-only
/*
 * sched.runqlat: how long runnable tasks waited for a cpu, by the cgroup they
 * are in when they get it.
 *
 * wait_total_ns	all waiting time
 * wait_ns		histogram of single waits; its count is the number of times
 *			that a task of the cgroup was switched to
 *
 * A wait begins when a task is woken, or put off the cpu while it could run,
 * and ends when it is switched to. Waits that began before the collector was
 * loaded are not counted; nor are a cpu's idle task's.
 *
 * Needs 6.1 or later (its sched_switch has the previous task's state). Costs one hash insertion per wake-up, and one deletion
 * and one update per context switch; 1 MiB for the hash. Tasks that wait at
 * the same time beyond the hash's size are shown as lost.
 */
#include "cgstat.bpf.h"

char LICENSE[] SEC("license") = "GPL";

#define MAX_WAITING 16384

struct sched_runqlat {
	__u64 wait_total_ns;
	/* Up to 2^38 ns, 275 s, then what is longer. */
	__u64 wait_ns[40] CGSTAT_LOG2;
};
CGSTAT_MAP(runqlat, struct sched_runqlat, "sched.runqlat");

/* Since when a task waits. Made in advance: all this runs with interrupts off. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_WAITING);
	__type(key, __u32);
	__type(value, __u64);
} waiting SEC(".maps");

#define EEXIST 17

/* A task that waits already goes on with that wait. */
static __always_inline void begin(__u32 pid)
{
	__u64 now = bpf_ktime_get_ns();
	long err;

	if (!pid)
		return;
	err = bpf_map_update_elem(&waiting, &pid, &now, BPF_NOEXIST);
	if (err && err != -EEXIST)
		cgstat_lost(runqlat);
}

/* Ints before 7.x, then bytes. From unsigned ones the loader can adapt. */
struct task_struct___unsigned {
	unsigned int on_cpu;
	unsigned int on_rq;
} __attribute__((preserve_access_index));

/* 6.12 and later: a task that sleeps may stay queued for a while. */
struct sched_entity___delayed {
	unsigned char sched_delayed;
} __attribute__((preserve_access_index));

/*
 * Whether a task that is switched from waits for a cpu again. Before 6.13
 * @prev_state can be one that a pending signal has made void; the task is then
 * still queued.
 */
static __always_inline bool waits(struct task_struct *prev, unsigned int prev_state)
{
	struct sched_entity___delayed *se = (void *)&prev->se;

	if (!prev_state)
		return true;
	if (!((struct task_struct___unsigned *)prev)->on_rq)
		return false;
	return !bpf_core_field_exists(se->sched_delayed) ||
	       !BPF_CORE_READ(se, sched_delayed);
}

SEC("tp_btf/sched_wakeup")
int BPF_PROG(on_wakeup, struct task_struct *p)
{
	/* Woken before it had gone to sleep: it does not wait. */
	if (!((struct task_struct___unsigned *)p)->on_cpu)
		begin(p->pid);
	return 0;
}

SEC("tp_btf/sched_wakeup_new")
int BPF_PROG(on_wakeup_new, struct task_struct *p)
{
	begin(p->pid);
	return 0;
}

SEC("tp_btf/sched_switch")
int BPF_PROG(on_switch, bool preempt, struct task_struct *prev,
	     struct task_struct *next, unsigned int prev_state)
{
	__u64 *since, delta;
	__u32 pid = next->pid;

	if (preempt || waits(prev, prev_state))
		begin(prev->pid);
	since = bpf_map_lookup_elem(&waiting, &pid);
	if (!since)
		return 0;
	delta = bpf_ktime_get_ns() - *since;
	bpf_map_delete_elem(&waiting, &pid);
	cgstat_update(runqlat, cgstat_task_cgroup(next), v) {
		cgstat_inc(v->wait_total_ns, delta);
		cgstat_inc_log2(v->wait_ns, delta);
	}
	return 0;
}
