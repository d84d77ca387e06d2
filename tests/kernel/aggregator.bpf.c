// SPDX-License-Identifier: GPL-2.0-only
/* A map with elements that are left to an aggregator, and the aggregator. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "stats.h"

#define TAG(text) __attribute__((btf_decl_tag("cgroup_stats:" text)))

extern __u64 *bpf_cgroup_stats_begin(struct bpf_map *map, struct cgroup *cgrp,
				     const __u32 rdwr_buf_size) __ksym;
extern void bpf_cgroup_stats_end(struct cgroup *cgrp) __ksym;
extern int bpf_cgroup_stats_update(struct bpf_map *map, struct cgroup *cgrp,
				   __u32 element, __u64 value) __ksym;
extern __u64 *cgroup_stats_fold_into(struct cgroup_stats_fold *fold,
				     const __u32 rdwr_buf_size) __ksym;
extern __u64 *cgroup_stats_fold_from(struct cgroup_stats_fold *fold,
				     const __u32 rdonly_buf_size) __ksym;
extern struct cgroup *bpf_cgroup_from_id(__u64 id) __ksym;
extern void bpf_cgroup_release(struct cgroup *cgrp) __ksym;

struct seen {
	__u64 count;
	__u64 flags TAG("user");
	__u64 bytes[2] TAG("user");
};

struct {
	__uint(type, BPF_MAP_TYPE_CGROUP_STATS);
	__type(key, __u64);
	__type(value, struct seen);
} seen SEC(".maps");

__u64 merges;

/* Or, and of each byte the larger; and spoils what is not its own. */
SEC("struct_ops/merge")
void BPF_PROG(merge, struct cgroup_stats_fold *fold)
{
	struct seen *into = (void *)cgroup_stats_fold_into(fold, sizeof(*into));
	const struct seen *from = (void *)cgroup_stats_fold_from(fold, sizeof(*from));
	int i, j;

	if (!into || !from)
		return;
	into->flags |= from->flags;
	for (i = 0; i < 2; i++) {
		__u64 a = into->bytes[i], b = from->bytes[i], larger = 0;

		for (j = 0; j < 64; j += 8) {
			__u64 x = (a >> j) & 0xff, y = (b >> j) & 0xff;

			larger |= (x > y ? x : y) << j;
		}
		into->bytes[i] = larger;
	}
	into->count = 12345;
	__sync_fetch_and_add(&merges, 1);
}

SEC(".struct_ops")
struct cgroup_stats_ops ops = {
	.fold = (void *)merge,
	.name = "seen",
};

/* Element 0 is added to, 1 is or-ed, the others are raised. */
SEC("syscall")
int do_see(struct args *args)
{
	struct cgroup *cgrp = bpf_cgroup_from_id(args->cgroup);
	struct seen *v;

	if (!cgrp)
		return -2;
	v = (void *)bpf_cgroup_stats_begin((struct bpf_map *)&seen, cgrp, sizeof(*v));
	if (v) {
		__sync_fetch_and_add(&v->count, 1);
		if (args->element == 1)
			__sync_fetch_and_or(&v->flags, args->value);
		else
			__sync_lock_test_and_set(&v->bytes[args->element & 1], args->value);
		bpf_cgroup_stats_end(cgrp);
	}
	bpf_cgroup_release(cgrp);
	return v ? 0 : -2;
}

SEC("syscall")
int do_update_refused(struct args *args)
{
	struct cgroup *cgrp = bpf_cgroup_from_id(args->cgroup);
	int err;

	if (!cgrp)
		return -2;
	err = bpf_cgroup_stats_update((struct bpf_map *)&seen, cgrp, 1, 1);
	bpf_cgroup_release(cgrp);
	return err;
}

char _license[] SEC("license") = "GPL";
