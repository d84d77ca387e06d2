// SPDX-License-Identifier: GPL-2.0-only
/*
 * A collector that counts on call: prctl(CALL, what, n) by a task adds to its
 * cgroup, in every way that an update can go, and returns when it has.
 */
#include "cgstat.bpf.h"

char LICENSE[] SEC("license") = "GPL";

#define PRCTL 157	/* x86-64 */
#define CALL 0x63677374

enum {
	ADD = 1,	/* an update */
	INTERRUPT = 2,	/* an update that is interrupted when it is about to list */
	RESUME = 3,	/* ... and goes on */
	SPILL = 4,	/* an update that finds no per-cpu array; native: in one call */
	OBSERVE = 5,	/* into the histogram */
};

/* Globals of a collector's own, constant and not. */
const volatile __u64 call = CALL;
__u64 calls_seen;

/* As large as a value can be. */
struct calls {
	__u64 count;
	__u64 list[119];
	__u64 observed[8] CGSTAT_LOG2;
};
CGSTAT_MAP(calls, struct calls, "test.calls");

/*
 * Set the mark that whoever lists an array sets first, and go no further.
 * native: the kernel is not told, and the next update's end is.
 */
static __always_inline void interrupt(struct cgroup *cgrp, __u64 n)
{
	struct cgstat_where where = {};
	struct calls *v = calls_begin(cgrp, &where);
	__u64 flushes;

	if (!v)
		return;
	cgstat_inc(v->count, n);
	if (cgstat_config.engine == CGSTAT_NATIVE)
		return;
	flushes = cgstat_read(where.link->state) & ~CGSTAT_STATE_MASK;
	cgstat_cmpxchg(where.link->state, flushes | CGSTAT_UNLISTED,
		       flushes | CGSTAT_LISTING);
}

/* What was interrupted goes on: list, then set the mark. */
static __always_inline void resume(struct cgroup *cgrp)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct cgstat_where where = {};
	struct cgstat_list *list;
	__u64 flushes;

	if (cgstat_config.engine == CGSTAT_NATIVE) {
		bpf_cgroup_stats_end(cgrp);
		return;
	}
	list = bpf_map_lookup_elem(&calls_lists, &cpu);
	if (!list || !calls_begin(cgrp, &where))
		return;
	flushes = cgstat_read(where.link->state) & ~CGSTAT_STATE_MASK;
	if (cgstat_config.engine == CGSTAT_RSTAT)
		cgstat_rstat_updated(cgrp);
	else
		cgstat_push(&list->pairs, &where.link->next, where.id);
	cgstat_cmpxchg(where.link->state, flushes | CGSTAT_LISTING,
		       flushes | CGSTAT_LISTED);
}

/* native has nothing to spill to, but a call that does all of an update. */
extern int bpf_cgroup_stats_update(struct bpf_map *map, struct cgroup *cgrp,
				   __u32 element, __u64 value) __ksym __weak;

static __always_inline void spill(struct cgroup *cgrp, __u64 n)
{
	struct cgstat_where where = { .id = cgstat_id(cgrp), .spill = true, .ctl = &calls_ctl };
	struct cgstat_entry *entry;

	if (cgstat_config.engine == CGSTAT_NATIVE) {
		bpf_cgroup_stats_update((void *)&calls_native, cgrp, 0, n);
		return;
	}
	entry = bpf_map_lookup_elem(&calls_entries, &where.id);
	if (!entry)
		return;
	where.link = &entry->link;
	cgstat_fetch_add(*cgstat_spill(entry), n);
	calls_end(cgrp, &where);
}

SEC("tp_btf/sys_enter")
int BPF_PROG(on_call, struct pt_regs *regs, long id)
{
	struct cgroup *cgrp;
	__u64 what, n;

	if (id != PRCTL || PT_REGS_PARM1_CORE_SYSCALL(regs) != call)
		return 0;
	__sync_fetch_and_add(&calls_seen, 1);
	cgrp = cgstat_task_cgroup(bpf_get_current_task_btf());
	what = PT_REGS_PARM2_CORE_SYSCALL(regs);
	n = PT_REGS_PARM3_CORE_SYSCALL(regs);
	if (what == ADD)
		cgstat_add(calls, cgrp, count, n);
	else if (what == INTERRUPT)
		interrupt(cgrp, n);
	else if (what == RESUME)
		resume(cgrp);
	else if (what == SPILL)
		spill(cgrp, n);
	else if (what == OBSERVE)
		cgstat_log2(calls, cgrp, observed, n);
	return 0;
}
