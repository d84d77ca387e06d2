// SPDX-License-Identifier: GPL-2.0-only
/*
 * A collector that counts on call, compiled by bcc: prctl(CALL, what, n) by a
 * task adds to its cgroup, and returns when it has. All in one file, as it is
 * slow to compile in a guest.
 */
#define CGSTAT_MAX_CGROUPS 4096
#include "cgstat.bcc.h"

#define PRCTL 157	/* x86-64 */
#define CALL 0x63677374

/* Where struct pt_regs of x86-64, which is ABI, has the arguments. */
#define DI 14
#define SI 13
#define DX 12

enum {
	ADD = 1,	/* to everything */
	FLAT = 2,	/* to the map without hierarchy */
	SHARED = 3,	/* to the one without per-cpu arrays */
	STRANGER = 4,	/* to a cgroup that does not exist, n */
};

struct both {
	u64 times;
	u64 last CGSTAT_MAX;
};

struct calls {
	u64 count;
	u64 largest CGSTAT_MAX; u64 smallest CGSTAT_MIN;
	u64 log2[8] CGSTAT_LOG2;
	u64 linear[4] CGSTAT_LINEAR(10, 5);
	struct both both;
	u64 list[3];
};
/* CGSTAT_MAP(commented, u64, "test.commented"); */
CGSTAT_MAP(calls, struct calls, "test.bcc");
CGSTAT_MAP(flat, u64, "test.flat", CGSTAT_NO_HIERARCHY);
CGSTAT_MAP(shared, struct calls, "test.shared", /* as cpus are few: */
	   CGSTAT_NO_PERCPU);
#ifdef NOT_DEFINED
CGSTAT_MAP(out, u64, "test.out");
#endif

static inline u64 argument(u64 regs, u32 place)
{
	u64 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), (void *)(regs + 8 * place));
	return value;
}

RAW_TRACEPOINT_PROBE(sys_enter)
{
	u64 regs = ctx->args[0], id = bpf_get_current_cgroup_id(), what, n;

	if (ctx->args[1] != PRCTL || argument(regs, DI) != CALL)
		return 0;
	what = argument(regs, SI);
	n = argument(regs, DX);
	if (what == ADD) {
		cgstat_update(calls, id, v) {
			cgstat_inc(v->count, n);
			cgstat_raise(v->largest, n);
			cgstat_lower(v->smallest, n);
			cgstat_inc_log2(v->log2, n);
			cgstat_inc_linear(v->linear, n, 10, 5);
			cgstat_inc(v->both.times, 1);
			cgstat_raise(v->both.last, n);
			cgstat_inc(v->list[2], 1);
		}
	} else if (what == FLAT) {
		cgstat_update(flat, id, v)
			cgstat_inc(*v, n);
	} else if (what == SHARED) {
		cgstat_add(shared, id, count, n);
		cgstat_max(shared, id, largest, n);
		cgstat_min(shared, id, smallest, n);
		cgstat_log2(shared, id, log2, n);
		cgstat_linear(shared, id, linear, n, 10, 5);
	} else if (what == STRANGER) {
		cgstat_add(calls, n, count, 1);
	}
	return 0;
}
