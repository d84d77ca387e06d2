// SPDX-License-Identifier: GPL-2.0-only
/*
 * An update of a histogram of 64 buckets, in our way and in others', in a loop
 * inside of BPF: prctl(CALL, what, n) by a task updates its cgroup n times.
 */
#include "cgstat.bpf.h"

char LICENSE[] SEC("license") = "GPL";

#define PRCTL 157	/* x86-64 */
#define CALL 0x6367626e
#define BUCKETS 64

enum {
	NOTHING,	/* the loop, and to choose the bucket */
	OURS,
	PERCPU_ARRAY,	/* one for all cgroups: the limit */
	PERCPU_HASH,	/* by cgroup id */
	SELFTEST,	/* the same, and rstat is told each time */
};

struct histogram {
	__u64 log2[BUCKETS] CGSTAT_LOG2;
};
CGSTAT_MAP(histogram, struct histogram, "bench.histogram");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct histogram);
} array SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct histogram);
} flat SEC(".maps");

const struct histogram none SEC(".rodata.none") = {};

static __always_inline __u32 bucket(__u32 i)
{
	return cgstat_log2_bucket((__u64)i << (i & 15), BUCKETS) & (BUCKETS - 1);
}

static long do_nothing(__u32 i, __u64 *seen)
{
	*seen += bucket(i);
	return 0;
}

static long update_ours(__u32 i, __u64 *unused)
{
	struct cgroup *cgrp = cgstat_task_cgroup(bpf_get_current_task_btf());

	cgstat_update(histogram, cgrp, v)
		cgstat_inc(v->log2[bucket(i)], 1);
	return 0;
}

static long update_array(__u32 i, __u64 *unused)
{
	__u32 zero = 0;
	struct histogram *found = bpf_map_lookup_elem(&array, &zero);

	if (found)
		found->log2[bucket(i)]++;
	return 0;
}

static __always_inline void count_flat(__u32 i)
{
	__u64 id = bpf_get_current_cgroup_id();
	struct histogram *found = bpf_map_lookup_elem(&flat, &id);

	if (!found) {
		bpf_map_update_elem(&flat, &id, &none, BPF_NOEXIST);
		found = bpf_map_lookup_elem(&flat, &id);
	}
	if (found)
		found->log2[bucket(i)]++;
}

static long update_flat(__u32 i, __u64 *unused)
{
	count_flat(i);
	return 0;
}

static long update_as_selftest(__u32 i, __u64 *unused)
{
	count_flat(i);
	cgstat_rstat_updated(cgstat_task_cgroup(bpf_get_current_task_btf()));
	return 0;
}

SEC("tp_btf/sys_enter")
int BPF_PROG(on_call, struct pt_regs *regs, long id)
{
	__u64 what, n, seen = 0;

	if (id != PRCTL || PT_REGS_PARM1_CORE_SYSCALL(regs) != CALL)
		return 0;
	what = PT_REGS_PARM2_CORE_SYSCALL(regs);
	n = PT_REGS_PARM3_CORE_SYSCALL(regs);
	if (what == NOTHING)
		bpf_loop(n, do_nothing, &seen, 0);
	else if (what == OURS)
		bpf_loop(n, update_ours, &seen, 0);
	else if (what == PERCPU_ARRAY)
		bpf_loop(n, update_array, &seen, 0);
	else if (what == PERCPU_HASH)
		bpf_loop(n, update_flat, &seen, 0);
	else if (what == SELFTEST)
		bpf_loop(n, update_as_selftest, &seen, 0);
	return 0;
}

/* Update every cgroup that is walked, on this cpu: once for each, all ways. */
SEC("iter/cgroup")
int touch(struct bpf_iter__cgroup *ctx)
{
	struct cgroup *cgrp = ctx->cgroup;
	__u64 id;

	if (!cgrp)
		return 0;
	cgstat_update(histogram, cgrp, v)
		cgstat_inc(v->log2[0], 1);
	id = cgrp->kn->id;
	bpf_map_update_elem(&flat, &id, &none, BPF_ANY);
	return 0;
}
