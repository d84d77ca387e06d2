// SPDX-License-Identifier: GPL-2.0-only
/* As large as a value can be, and room for few cgroups. */
#define CGSTAT_MAX_CGROUPS 64
#include "cgstat.bcc.h"

struct large {
	u64 forks;
	u64 between[126];
	u64 again;
};
CGSTAT_MAP(large, struct large, "test.large");

/* A fork, where programs are not preempted. */
RAW_TRACEPOINT_PROBE(sched_wakeup_new)
{
	cgstat_update(large, bpf_get_current_cgroup_id(), v) {
		cgstat_inc(v->forks, 1);
		cgstat_inc(v->again, 1);
	}
	return 0;
}
