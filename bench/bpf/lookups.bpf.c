// SPDX-License-Identifier: GPL-2.0-only
/*
 * A collector for what is looked up and flushed: update() updates all cgroups
 * that are walked.
 */
#define CGSTAT_MAX_CGROUPS 131072
#include "cgstat.bpf.h"

char LICENSE[] SEC("license") = "GPL";

struct counters {
	__u64 forks, execs, exits, oom_kills;
};
CGSTAT_MAP(counters, struct counters, "bench.counters");

SEC("iter/cgroup")
int update(struct bpf_iter__cgroup *ctx)
{
	struct cgroup *cgrp = ctx->cgroup;

	if (cgrp)
		cgstat_add(counters, cgrp, forks, 1);
	return 0;
}
