// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a flush by rstat takes, stats maps or not: mark() tells it of updates of
 * the cgroups that are walked, on all cpus; flush() writes how long a flush of
 * the one that is walked took.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "GPL";

extern void cgroup_rstat_updated(struct cgroup *cgrp, int cpu) __ksym;
extern void cgroup_rstat_flush(struct cgroup *cgrp) __ksym;

SEC("iter/cgroup")
int mark(struct bpf_iter__cgroup *ctx)
{
	struct cgroup *cgrp = ctx->cgroup;

	if (cgrp) {
		cgroup_rstat_updated(cgrp, 0);
		cgroup_rstat_updated(cgrp, 1);
	}
	return 0;
}

SEC("iter.s/cgroup")
int flush(struct bpf_iter__cgroup *ctx)
{
	struct cgroup *cgrp = ctx->cgroup;
	__u64 took;

	/*
	 * No level is negative: were no field used, clang would only declare
	 * struct cgroup, and libbpf not find it to be the kernel's.
	 */
	if (!cgrp || cgrp->level < 0)
		return 0;
	took = bpf_ktime_get_ns();
	cgroup_rstat_flush(cgrp);
	took = bpf_ktime_get_ns() - took;
	bpf_seq_write(ctx->meta->seq, &took, sizeof(took));
	return 0;
}
