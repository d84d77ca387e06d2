// SPDX-License-Identifier: GPL-2.0-only
/*
 * A collector for what is looked up and flushed: update() walks cgroups, and
 * updates as many as limit says.
 */
#define CGSTAT_MAX_CGROUPS 131072
#include "cgstat.bpf.h"

char LICENSE[] SEC("license") = "GPL";

struct counters {
	__u64 forks, execs, exits, oom_kills;
};
CGSTAT_MAP(counters, struct counters, "bench.counters");

/* At most so many cgroups are updated in a walk. */
struct limit {
	__u64 at_most;
	__u64 so_far;
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct limit);
} limit SEC(".maps");

static __always_inline bool is_enough(void)
{
	__u32 zero = 0;
	struct limit *l = bpf_map_lookup_elem(&limit, &zero);

	return !l || l->so_far++ >= l->at_most;
}

SEC("iter/cgroup")
int update(struct bpf_iter__cgroup *ctx)
{
	struct cgroup *cgrp = ctx->cgroup;

	if (!cgrp || is_enough())
		return 0;
	cgstat_add(counters, cgrp, forks, 1);
	return 0;
}
