// SPDX-License-Identifier: GPL-2.0-only
/*
 * Updates that name cgroups by id, as those of bcc collectors do, also when the
 * cgroup was released; and flushes step by step. prctl(CALL, what, n, id,
 * other) does it, for the engine standalone, and returns when it has.
 */
#include "cgstat.bpf.h"

char LICENSE[] SEC("license") = "GPL";

#define PRCTL 157	/* x86-64 */
#define CALL 0x63676c74

enum {
	ADD = 1,	/* an update of cgroup id */
	OUTPACED = 2,	/* ... that a flush, the lock being held, overtakes when it has its
			 *     array; then one of cgroup other, if any, and a flush again */
	ORPHAN = 3,	/* ... that makes a pair whatever became of the entry */
	LOCK = 4,	/* keep others from flushing */
	UNLOCK = 5,
	STEP = 6,	/* n steps of a flush, the lock being held */
	GIVE_UP = 7,	/* ADD, but as if the push had given up, n notes being taken */
	MARK = 8,	/* in the slot of cgroup id, what a late update of who had it leaves
			 *     where the kernel is told (rstat) */
	IN_SHARED = 0x100,	/* any of them, of the map without per-cpu arrays */
};

CGSTAT_MAP(late, __u64, "test.late");
CGSTAT_MAP(shared, __u64, "test.late.shared", CGSTAT_NO_PERCPU);

struct call {
	__u64 what;
	__u64 n;
	__u64 id;
	__u64 other;
};

static __always_inline void
add_to(struct cgstat_map map, struct cgstat_where *where, __u64 *value, __u64 n)
{
	if (!value) {
		cgstat_count_lost(map.ctl);
		return;
	}
	cgstat_inc(*value, n);
	if (cgstat_state(where->link) != CGSTAT_LISTED)
		cgstat_list_standalone(map, where);
}

static __always_inline void
add(struct cgstat_map map, struct cgstat_ctl *ctl, __u64 id, __u64 n)
{
	struct cgstat_where where;

	add_to(map, &where, cgstat_find_values(map, ctl, id, &where), n);
}

static __always_inline void
add_outpaced(struct cgstat_map map, struct cgstat_ctl *ctl, struct call *call, void *flush_step)
{
	struct cgstat_where where;
	__u64 *value = cgstat_find_values(map, ctl, call->id, &where);

	cgstat_flush_all(ctl, flush_step);
	if (call->other) {
		add(map, ctl, call->other, 1);
		cgstat_flush_all(ctl, flush_step);
	}
	add_to(map, &where, value, call->n);
}

static __always_inline void
add_to_orphan(struct cgstat_map map, struct cgstat_ctl *ctl, struct call *call)
{
	__u64 key = cgstat_pair_key(call->id, bpf_get_smp_processor_id());

	if (!bpf_map_update_elem(map.pairs, &key, map.zero, BPF_NOEXIST))
		__sync_fetch_and_add(&ctl->pairs, 1);
	add(map, ctl, call->id, call->n);
}

/* The notes name cgroups that there are not. */
static __always_inline void
add_without_push(struct cgstat_map map, struct cgstat_ctl *ctl, struct call *call)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct cgstat_list *list = bpf_map_lookup_elem(map.lists, &cpu);
	struct cgstat_where where;
	__u64 *value = cgstat_find_values(map, ctl, call->id, &where);
	int i;

	if (!list || !value)
		return;
	for (i = 0; i < CGSTAT_ASIDE && i < call->n; i++)
		cgstat_set_aside(list, ~(__u64)i);
	cgstat_inc(*value, 1);
	cgstat_make_sure(list, &where, cgstat_read(where.link->state) & ~CGSTAT_STATE_MASK);
}

static __always_inline void mark(struct cgstat_map map, struct call *call)
{
	struct cgstat_slot *slot = cgstat_get_slot(map, call->id, bpf_get_smp_processor_id());

	if (!slot || cgstat_read(slot->owner))
		return;
	*cgstat_pair_values(&slot->pair) += call->n;
	cgstat_write(slot->pair.link.state, cgstat_read(slot->pair.link.state) | CGSTAT_LISTED);
}

static __always_inline void do_call(struct cgstat_map map, struct call *call, void *flush_step)
{
	struct cgstat_ctl *ctl = cgstat_get_ctl(map);

	if (!ctl)
		return;
	if (call->what == ADD)
		add(map, ctl, call->id, call->n);
	else if (call->what == OUTPACED)
		add_outpaced(map, ctl, call, flush_step);
	else if (call->what == ORPHAN)
		add_to_orphan(map, ctl, call);
	else if (call->what == GIVE_UP)
		add_without_push(map, ctl, call);
	else if (call->what == MARK)
		mark(map, call);
	else if (call->what == LOCK)
		cgstat_trylock(ctl);
	else if (call->what == UNLOCK)
		cgstat_unlock(ctl);
	else if (call->what == STEP)
		bpf_loop(call->n, flush_step, NULL, 0);
}

SEC("tp_btf/sys_enter")
int BPF_PROG(on_call, struct pt_regs *regs, long id)
{
	struct call call;
	bool is_shared;

	if (id != PRCTL || PT_REGS_PARM1_CORE_SYSCALL(regs) != CALL)
		return 0;
	call.what = PT_REGS_PARM2_CORE_SYSCALL(regs);
	call.n = PT_REGS_PARM3_CORE_SYSCALL(regs);
	call.id = PT_REGS_PARM4_CORE_SYSCALL(regs);
	call.other = PT_REGS_PARM5_CORE_SYSCALL(regs);
	is_shared = call.what & IN_SHARED;
	call.what &= ~IN_SHARED;
	if (is_shared)
		do_call(CGSTAT_MAP_OF(shared), &call, shared_flush_step);
	else
		do_call(CGSTAT_MAP_OF(late), &call, late_flush_step);
	return 0;
}
