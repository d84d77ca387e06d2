// SPDX-License-Identifier: GPL-2.0-only
/*
 * mm.reclaim: tasks that had to free memory before they could go on, by the
 * cgroup of the task: direct reclaim, for want of free memory in the machine,
 * and memcg reclaim, for a cgroup's limit. (Not to be confused with cgroupfs's
 * memory.reclaim, which is written to.)
 *
 * pages		pages reclaimed
 * stall_total_ns	time spent reclaiming
 * stall_ns		histogram of single stalls; its count is the number of reclaims
 *
 * kswapd is not counted: nobody waits for it. The cgroup is that of the task
 * that stalled, which need not be the one whose limit was hit: memory.stat
 * counts pgsteal by the owner of the pages. Before 6.5 pages includes slab
 * pages that were freed on the way, and pgsteal does not.
 *
 * Needs 6.1 or later with CONFIG_MEMCG. Costs nothing until memory is short;
 * then two hash operations and an update per reclaim, beside the microseconds
 * or more that it takes. On 7.0 and later runs can be skipped (these
 * tracepoints are preemptible there); `cgstatfs list` shows them as misses.
 */
#include "cgstat.bpf.h"

char LICENSE[] SEC("license") = "GPL";

#define MAX_RECLAIMING 4096

struct mm_reclaim {
	__u64 pages;
	__u64 stall_total_ns;
	/* Up to 2^38 ns, 275 s, then what is longer. */
	__u64 stall_ns[40] CGSTAT_LOG2;
};
CGSTAT_MAP(reclaim, struct mm_reclaim, "mm.reclaim");

/* A task, not to be taken for a later one with its pid. */
struct task_key {
	__u64 pid;
	__u64 start_time;
};

/*
 * Since when a task reclaims. Made in advance: memory is short here. Where the
 * end of a reclaim was skipped, its element is evicted in time. So may be that
 * of a reclaim under way, if thousands are: it is then shown as lost.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_RECLAIMING);
	__type(key, struct task_key);
	__type(value, __u64);
} reclaiming SEC(".maps");

static __always_inline int begin(void)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct task_key key = { .pid = task->pid, .start_time = task->start_time };
	__u64 now = bpf_ktime_get_ns();

	/* Where that fails, the end of the reclaim counts it as lost. */
	bpf_map_update_elem(&reclaiming, &key, &now, BPF_ANY);
	return 0;
}

static __always_inline int end(__u64 pages)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct task_key key = { .pid = task->pid, .start_time = task->start_time };
	__u64 *since, delta;

	since = bpf_map_lookup_elem(&reclaiming, &key);
	if (!since) {
		/* Or it began before we were attached, or its begin was skipped. */
		cgstat_lost(reclaim);
		return 0;
	}
	delta = bpf_ktime_get_ns() - *since;
	bpf_map_delete_elem(&reclaiming, &key);
	cgstat_update(reclaim, cgstat_task_cgroup(task), v) {
		cgstat_inc(v->pages, pages);
		cgstat_inc(v->stall_total_ns, delta);
		cgstat_inc_log2(v->stall_ns, delta);
	}
	return 0;
}

/* 7.x changed the order of the begin tracepoints' arguments; none is used. */
SEC("tp_btf/mm_vmscan_direct_reclaim_begin")
int BPF_PROG(on_direct_begin)
{
	return begin();
}

SEC("tp_btf/mm_vmscan_direct_reclaim_end")
int BPF_PROG(on_direct_end, unsigned long nr_reclaimed)
{
	return end(nr_reclaimed);
}

SEC("tp_btf/mm_vmscan_memcg_reclaim_begin")
int BPF_PROG(on_memcg_begin)
{
	return begin();
}

SEC("tp_btf/mm_vmscan_memcg_reclaim_end")
int BPF_PROG(on_memcg_end, unsigned long nr_reclaimed)
{
	return end(nr_reclaimed);
}
