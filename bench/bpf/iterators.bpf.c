// SPDX-License-Identifier: GPL-2.0-only
/*
 * What one would write without us: cgroup iterators over a hash by cgroup id.
 * show() flushes its cgroup and prints five counters, as a pinned file does;
 * walk() flushes the first and looks each up, and leaves a sum in a map, as
 * printing more than 32 KiB fails.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "GPL";

extern void css_rstat_flush(struct cgroup_subsys_state *css) __ksym;

struct counters {
	__u64 forks, execs, exits, oom_kills;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct counters);
} counts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} sum SEC(".maps");

/* Make the elements, which a tool's program would make as it counts. */
SEC("iter/cgroup")
int fill(struct bpf_iter__cgroup *ctx)
{
	struct cgroup *cgrp = ctx->cgroup;
	struct counters one = { .forks = 1 };
	__u64 id;

	if (!cgrp)
		return 0;
	id = cgrp->kn->id;
	bpf_map_update_elem(&counts, &id, &one, BPF_ANY);
	return 0;
}

SEC("iter.s/cgroup")
int show(struct bpf_iter__cgroup *ctx)
{
	struct cgroup *cgrp = ctx->cgroup;
	struct counters *found, none = {};
	__u64 id;

	if (!cgrp)
		return 0;
	css_rstat_flush(&cgrp->self);
	id = cgrp->kn->id;
	found = bpf_map_lookup_elem(&counts, &id);
	if (!found)
		found = &none;
	BPF_SEQ_PRINTF(ctx->meta->seq, "forks %llu\nexecs %llu\nexits %llu\noom_kills %llu\n",
		       found->forks, found->execs, found->exits, found->oom_kills);
	return 0;
}

SEC("iter.s/cgroup")
int walk(struct bpf_iter__cgroup *ctx)
{
	struct cgroup *cgrp = ctx->cgroup;
	struct counters *found, *total;
	__u32 zero = 0;
	__u64 id;

	if (!cgrp)
		return 0;
	if (!ctx->meta->seq_num)
		css_rstat_flush(&cgrp->self);
	id = cgrp->kn->id;
	found = bpf_map_lookup_elem(&counts, &id);
	total = bpf_map_lookup_elem(&sum, &zero);
	if (!found || !total)
		return 0;
	total->forks += found->forks;
	total->execs += found->execs;
	total->exits += found->exits;
	total->oom_kills += found->oom_kills;
	return 0;
}

/* What it takes to have a program run by a system call. */
SEC("syscall")
int nothing(__u64 *ctx)
{
	return 0;
}
