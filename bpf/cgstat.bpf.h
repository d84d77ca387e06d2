/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a collector's author includes: one line declares a stats map, one line
 * adds to it.
 *
 *	struct proc_events { __u64 forks; __u64 exits; };
 *	CGSTAT_MAP(events, struct proc_events, "proc.events");
 *	...
 *	cgstat_add(events, cgstat_task_cgroup(p), forks, 1);
 *
 * Everything else in here is what the one line stands for: the entries of the
 * map and their life cycle, the update, the flush and the lookup, for each
 * engine. The loader picks the engine by filling in cgstat_config before the
 * object is loaded; the verifier then removes the other engines' branches, and
 * with them all use of BPF maps and kfuncs that may not be there.
 *
 * The rules that make a lookup exact are at the head of cgstat_update.h. How to
 * write a collector is in docs/authors.md.
 */
#ifndef CGSTAT_BPF_H
#define CGSTAT_BPF_H

/* Those of kfuncs that are used here are declared here: no kernel has all. */
#define BPF_NO_KFUNC_PROTOTYPES
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

/* Cgroups that a stats map has entries for; a collector may define its own. */
#ifndef CGSTAT_MAX_CGROUPS
#define CGSTAT_MAX_CGROUPS 65536
#endif

#define CGSTAT_ENOENT 2
#define CGSTAT_EAGAIN 11
#define CGSTAT_EBUSY 16
#define CGSTAT_EINVAL 22

#include "cgstat_flush.h"

#define CGSTAT_NATIVE_TYPE 34	/* BPF_MAP_TYPE_CGROUP_STATS on 6.12 */

/* ---- what the declaration of a stats map makes --------------------------- */

#define CGSTAT_MAP_OF(map)						\
	((struct cgstat_map) {						\
		.entries = &map##_entries,				\
		.pairs = &map##_pairs,					\
		.slots = &map##_slots,					\
		.lists = &map##_lists,					\
		.ctl = &map##_ctl,					\
		.native = &map##_native,				\
		.buffers = &map##_buffers,				\
		.zero = &map##_zero,					\
		.elems = map##_elems(),					\
		.flags = map##_flags(),					\
		.config = &map##_config,				\
		.take = (void *)map##_take,				\
		.fold = (void *)map##_fold,				\
	})

#define CGSTAT_DESCRIBED(file, ...)					\
	__attribute__((btf_decl_tag("cgstat:map:" file)))		\
	__attribute__((btf_decl_tag("cgstat:flags:" CGSTAT_TEXT(__VA_ARGS__))))

/*
 * Those of standalone and rstat, among them that which has the buffer of
 * snapshots as its element, then native's, whose type, initial cgroup and
 * flags the loader sets; its number is not the same on every kernel.
 */
#define CGSTAT_BPF_MAPS(map, vtype, file, ...)				\
struct map##_pair {							\
	struct cgstat_pair pair;					\
	vtype values;							\
};									\
struct map##_slot {							\
	struct cgstat_slot slot;					\
	vtype values;							\
};									\
struct map##_entry {							\
	struct cgstat_entry entry;					\
	vtype spill;							\
	vtype total;							\
	vtype pending;							\
} CGSTAT_DESCRIBED(file, __VA_ARGS__);					\
struct map##_total {							\
	vtype total;							\
} CGSTAT_DESCRIBED(file, __VA_ARGS__);					\
_Static_assert(sizeof(vtype) && sizeof(vtype) % 8 == 0 &&			\
	       sizeof(vtype) <= 8 * CGSTAT_MAX_ELEMS,			\
	       "the value of a stats map is 1 to 128 unsigned 64-bit elements"); \
struct {								\
	__uint(type, BPF_MAP_TYPE_HASH);				\
	__uint(map_flags, BPF_F_NO_PREALLOC);				\
	__uint(max_entries, CGSTAT_MAX_CGROUPS);			\
	__type(key, __u64);						\
	__type(value, struct map##_entry);				\
} map##_entries SEC(".maps");						\
struct {								\
	__uint(type, BPF_MAP_TYPE_HASH);				\
	__uint(map_flags, BPF_F_NO_PREALLOC);				\
	__uint(max_entries, CGSTAT_MAX_CGROUPS);			\
	__type(key, __u64);						\
	__type(value, struct map##_pair);				\
} map##_pairs SEC(".maps");						\
struct {								\
	__uint(type, BPF_MAP_TYPE_ARRAY);				\
	__uint(max_entries, 1);	/* the loader: 1 << cgstat_slot_bits() a cpu */ \
	__type(key, __u32);						\
	__type(value, struct map##_slot);				\
} map##_slots SEC(".maps");						\
struct {								\
	__uint(type, BPF_MAP_TYPE_ARRAY);				\
	__uint(max_entries, 1);	/* the loader: one a cpu */		\
	__type(key, __u32);						\
	__type(value, struct cgstat_list);				\
} map##_lists SEC(".maps");						\
struct {								\
	__uint(type, BPF_MAP_TYPE_ARRAY);				\
	__uint(max_entries, 1);						\
	__type(key, __u32);						\
	__type(value, struct cgstat_ctl);				\
} map##_ctl SEC(".maps");						\
struct map##_buffer {							\
	__uint(type, BPF_MAP_TYPE_ARRAY);				\
	__uint(map_flags, BPF_F_MMAPABLE | BPF_F_INNER_MAP);		\
	__uint(max_entries, 1);	/* user space: another, as large as it takes */ \
	__uint(key_size, 4);						\
	__uint(value_size, 8 + sizeof(vtype));				\
};									\
struct {								\
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);			\
	__uint(max_entries, 1);						\
	__type(key, __u32);						\
	__array(values, struct map##_buffer);				\
} map##_buffers SEC(".maps");						\
struct {								\
	__uint(type, CGSTAT_NATIVE_TYPE);				\
	__type(key, __u64);						\
	__type(value, struct map##_total);				\
} map##_native SEC(".maps");						\
const struct map##_entry map##_zero SEC(".rodata.zero") = {};		\
const volatile struct cgstat_map_config map##_config SEC(".rodata." #map) = {};

#define CGSTAT_UPDATE(map)						\
static __always_inline __attribute__((unused)) void *			\
map##_begin(struct cgroup *cgrp, struct cgstat_where *where)		\
{									\
	struct cgstat_ctl *ctl;						\
	__u64 *values;							\
									\
	if (cgstat_config.engine == CGSTAT_NATIVE)			\
		return cgstat_find_native(CGSTAT_MAP_OF(map), cgrp, where); \
	/* What is outside has no pair. */				\
	values = cgstat_find_pair(CGSTAT_MAP_OF(map), cgstat_id(cgrp), where); \
	if (values)							\
		return values;						\
	ctl = cgstat_get_ctl(CGSTAT_MAP_OF(map));			\
	if (!ctl || !cgstat_is_inside(cgrp, &map##_config))		\
		return NULL;						\
	values = cgstat_find_others(CGSTAT_MAP_OF(map), ctl,		\
				    cgstat_id(cgrp), where);		\
	if (!values)							\
		values = cgstat_make_values(CGSTAT_MAP_OF(map), ctl,	\
					    cgrp, where);		\
	return values;							\
}									\
static __always_inline __attribute__((unused)) void			\
map##_end(struct cgroup *cgrp, struct cgstat_where *where)		\
{									\
	if (cgstat_config.engine == CGSTAT_NATIVE) {			\
		bpf_cgroup_stats_end(cgrp);				\
		return;							\
	}								\
	if (cgstat_state(where->link) == CGSTAT_LISTED)			\
		return;							\
	if (cgstat_config.engine == CGSTAT_RSTAT)			\
		cgstat_list_rstat(where, cgrp);				\
	else								\
		cgstat_list_standalone(CGSTAT_MAP_OF(map), where);	\
}

/*
 * What folds one array into another. Global functions, which the verifier sees
 * once and not wherever they are called; one that can be called with arrays
 * smaller than the type has to be inlined.
 */
#ifndef CGSTAT_FOLDING_FUNCTION
#define CGSTAT_FOLDING_FUNCTION __noinline
#endif
#define CGSTAT_FOLDING(map, vtype, aggregator)				\
struct map##_values {							\
	vtype values;							\
};									\
CGSTAT_FOLDING_FUNCTION int						\
map##_take(struct map##_values *values, struct map##_values *pending);	\
CGSTAT_FOLDING_FUNCTION int						\
map##_fold(struct map##_values *into, struct map##_values *pending);	\
CGSTAT_FOLDING_FUNCTION int						\
map##_take(struct map##_values *values, struct map##_values *pending)	\
{									\
	if (!values || !pending)					\
		return 0;						\
	cgstat_take_elements(CGSTAT_MAP_OF(map), (__u64 *)values, (__u64 *)pending); \
	aggregator((void *)pending, (void *)values);			\
	return 0;							\
}									\
CGSTAT_FOLDING_FUNCTION int						\
map##_fold(struct map##_values *into, struct map##_values *pending)	\
{									\
	if (!into || !pending)						\
		return 0;						\
	cgstat_fold_elements(CGSTAT_MAP_OF(map), (__u64 *)into, (__u64 *)pending); \
	aggregator((void *)into, (void *)pending);			\
	return 0;							\
}

/*
 * native: what the kernel calls where the others fold. Both are copies. The
 * loader has it loaded for a map with an aggregator, and registers it.
 */
#define CGSTAT_AGGREGATOR(map, vtype, aggregator)			\
SEC("?struct_ops/cgroup_stats_ops")					\
void BPF_PROG(map##_aggregator, struct cgroup_stats_fold___cgstat *fold) \
{									\
	__u64 *into = cgroup_stats_fold_into(fold, sizeof(vtype));	\
	__u64 *from = cgroup_stats_fold_from(fold, sizeof(vtype));	\
									\
	if (into && from)						\
		aggregator((void *)into, (void *)from);			\
}

#define CGSTAT_CALLBACKS(map)						\
static long map##_climb_step(__u32 i, struct cgstat_climb *climb)	\
{									\
	return cgstat_climb_step(CGSTAT_MAP_OF(map), climb);		\
}									\
static long map##_flush_step(__u32 i, void *unused)			\
{									\
	return cgstat_flush_step(CGSTAT_MAP_OF(map), map##_climb_step);	\
}									\
static long map##_own_step(__u32 cpu, struct cgstat_own *own)		\
{									\
	return cgstat_own_step(CGSTAT_MAP_OF(map), cpu, own);		\
}									\
static long map##_settle_step(__u32 i, struct cgstat_settle *settle)	\
{									\
	return cgstat_settle_step(CGSTAT_MAP_OF(map), settle);		\
}									\
static long map##_copy_step(__u32 i, struct cgstat_copy *copy)		\
{									\
	if (cgstat_config.engine == CGSTAT_RSTAT)			\
		return cgstat_copy_step_rstat(CGSTAT_MAP_OF(map), i, copy); \
	return cgstat_copy_step_standalone(CGSTAT_MAP_OF(map), i, copy); \
}									\
static long map##_settle_pending(__u32 i, struct cgstat_copy *copy)	\
{									\
	return cgstat_settle_pending(CGSTAT_MAP_OF(map), i, copy);	\
}									\
static long map##_quiet_step(__u32 i, struct cgstat_copy *copy)		\
{									\
	return cgstat_quiet_step(CGSTAT_MAP_OF(map), copy);		\
}									\
static __attribute__((unused)) long					\
map##_lock_step(__u32 i, bool *locked)					\
{									\
	return cgstat_lock_step(CGSTAT_MAP_OF(map), locked);		\
}									\
static __always_inline __attribute__((unused)) long			\
map##_get(struct cgroup *cgrp, void *out)				\
{									\
	return cgstat_lookup_total(CGSTAT_MAP_OF(map), cgrp, out, map##_lock_step, \
				   map##_own_step, map##_climb_step,	\
				   map##_flush_step);			\
}

/* Programs of rstat and standalone: the life cycle of entries. */
#define CGSTAT_LIFE_CYCLE(map)						\
SEC("tp_btf/cgroup_mkdir")						\
int BPF_PROG(map##_mkdir, struct cgroup *cgrp)				\
{									\
	if (cgstat_is_v2(cgrp))						\
		cgstat_make_entry(CGSTAT_MAP_OF(map), cgrp);		\
	return 0;							\
}									\
SEC("iter/cgroup")							\
int map##_populate(struct bpf_iter__cgroup *ctx)			\
{									\
	struct cgroup *cgrp = ctx->cgroup;				\
									\
	if (cgrp)							\
		cgstat_make_entry(CGSTAT_MAP_OF(map), cgrp);		\
	return 0;							\
}									\
SEC("tp_btf/cgroup_release")						\
int BPF_PROG(map##_release, struct cgroup *cgrp)			\
{									\
	struct cgstat_ctl *ctl = cgstat_get_ctl(CGSTAT_MAP_OF(map));	\
	struct cgstat_entry *entry;					\
	__u64 id = cgstat_id(cgrp);					\
									\
	if (!ctl || !cgstat_is_v2(cgrp))				\
		return 0;						\
	entry = bpf_map_lookup_elem(&map##_entries, &id);		\
	if (!entry)							\
		return 0;						\
	/* Once: while a collector is replaced, two of these programs run. */ \
	if (cgstat_cmpxchg(entry->dead, 0, 1))				\
		return 0;						\
	if (cgstat_config.engine == CGSTAT_RSTAT)			\
		cgstat_release_rstat(cgrp);				\
	else								\
		cgstat_release_standalone(CGSTAT_MAP_OF(map), ctl, entry, \
					  id, map##_flush_step);	\
	return 0;							\
}

#define CGSTAT_RSTAT_PROGRAMS(map)					\
SEC("fentry/bpf_rstat_flush")						\
int BPF_PROG(map##_flush, struct cgroup *cgrp, struct cgroup *parent, int cpu) \
{									\
	if (cgstat_is_v2(cgrp))						\
		cgstat_flush_rstat(CGSTAT_MAP_OF(map), cgstat_id(cgrp), cpu, \
				   map##_settle_step);			\
	return 0;							\
}									\
SEC("iter.s/cgroup")							\
int map##_read(struct bpf_iter__cgroup *ctx)				\
{									\
	return cgstat_read_rstat(CGSTAT_MAP_OF(map), ctx);		\
}

/*
 * What a lookup hands in and gets back. The total is copied under the lock,
 * element by element with constant offsets, as the verifier wants it of a
 * context. Where there is no entry there is nothing to flush for.
 */
#define CGSTAT_LOOKUP_STANDALONE(map, vtype)				\
struct map##_lookup_ctx {						\
	__u64 id;							\
	__s64 ret;		/* 0, -EBUSY or -ENOENT */		\
	__u64 total[sizeof(vtype) / 8];					\
};									\
SEC("syscall") int map##_lookup(struct map##_lookup_ctx *ctx)		\
{									\
	struct cgstat_ctl *ctl = cgstat_get_ctl(CGSTAT_MAP_OF(map));	\
	struct cgstat_entry *entry;					\
	__u64 id = ctx->id, *total;					\
									\
	ctx->ret = -CGSTAT_ENOENT;					\
	if (!ctl || !bpf_map_lookup_elem(&map##_entries, &id))		\
		return 0;						\
	ctx->ret = -CGSTAT_EBUSY;					\
	if (!cgstat_trylock(ctl))					\
		return 0;						\
	ctx->ret = -CGSTAT_ENOENT;					\
	entry = bpf_map_lookup_elem(&map##_entries, &id);		\
	if (entry)							\
		cgstat_flush_entry(CGSTAT_MAP_OF(map), ctl, entry, id,	\
				   map##_own_step, map##_climb_step,	\
				   map##_flush_step);			\
	/* The flush may have deleted it. */				\
	entry = bpf_map_lookup_elem(&map##_entries, &id);		\
	if (entry && !entry->dead) {					\
		total = cgstat_total(entry, map##_elems());		\
		_Pragma("clang loop unroll(full)")			\
		for (int i = 0; i < sizeof(vtype) / 8; i++)		\
			if (i < map##_elems())				\
				ctx->total[i] = total[i];		\
		ctx->ret = 0;						\
	}								\
	cgstat_unlock(ctl);						\
	return 0;							\
}

/*
 * A snapshot. With rstat the flush has to precede it, by a program of the kind
 * that may.
 */
#define CGSTAT_SNAPSHOT(map)						\
struct map##_snapshot_ctx {						\
	__u32 count;		/* cgroups */				\
	__u32 room;		/* rstat: entries that can be saved */	\
	__s64 ret;		/* 0, -EBUSY, -EAGAIN or -EINVAL */	\
};									\
SEC("syscall") int map##_snapshot(struct map##_snapshot_ctx *ctx)	\
{									\
	struct cgstat_ctl *ctl = cgstat_get_ctl(CGSTAT_MAP_OF(map));	\
	__u32 count = ctx->count;					\
	struct cgstat_copy copy = { .count = count, .left = count };	\
	__u32 room = ctx->room;						\
									\
	ctx->ret = -CGSTAT_EBUSY;					\
	if (!ctl || !cgstat_trylock(ctl))				\
		return 0;						\
	if (cgstat_config.engine == CGSTAT_RSTAT) {			\
		ctx->ret = cgstat_begin_snapshot(ctl, &copy, room,	\
						 map##_quiet_step);	\
		if (!ctx->ret)						\
			ctx->ret = cgstat_copy_snapshot(ctl, &copy, map##_copy_step, \
							map##_settle_pending); \
		cgstat_end_snapshot(ctl);				\
	} else {							\
		cgstat_flush_all(ctl, map##_flush_step);		\
		bpf_loop(copy.count, map##_copy_step, &copy, 0);	\
		ctx->ret = copy.left ? -CGSTAT_EINVAL : 0;		\
	}								\
	cgstat_unlock(ctl);						\
	return 0;							\
}

/* Everything: @elems and @flags_ are constants to the verifier at the latest. */
#define CGSTAT_DECLARE(map, vtype, file, aggregator, elems, flags_, ...)	\
	CGSTAT_BPF_MAPS(map, vtype, file, __VA_ARGS__)			\
	static __always_inline __u32 map##_elems(void) { return elems; } \
	static __always_inline __u32 map##_flags(void) { return flags_; } \
	CGSTAT_FOLDING(map, vtype, aggregator)				\
	CGSTAT_AGGREGATOR(map, vtype, aggregator)			\
	CGSTAT_UPDATE(map)						\
	CGSTAT_CALLBACKS(map)						\
	CGSTAT_LIFE_CYCLE(map)						\
	CGSTAT_LOOKUP_STANDALONE(map, vtype)				\
	CGSTAT_SNAPSHOT(map)						\
	CGSTAT_RSTAT_PROGRAMS(map)					\
	struct map##_entry

/* ---- what a collector's author uses, besides what cgstat_update.h has ----- */

/*
 * Declare a stats map. @vtype is an unsigned 64-bit integer, or a struct or
 * array of such, nested as one likes; @file names its file. Then, if any,
 * flags: CGSTAT_NO_PERCPU | CGSTAT_NO_HIERARCHY.
 */
#define CGSTAT_MAP(map, vtype, file, ...)				\
	CGSTAT_DECLARE(map, vtype, file, cgstat_no_merge, sizeof(vtype) / 8, \
		       CGSTAT_FIRST(__VA_ARGS__ __VA_OPT__(,) 0), __VA_ARGS__)

/*
 * The same, with an aggregator for the fields that are tagged for it:
 *
 *	static void merge(vtype *into, const vtype *from)
 *
 * It runs at flush in place of these fields' operation, and must touch no
 * other. @from may be updated meanwhile, and is folded again by later flushes:
 * so it must not matter in which order, how, and how often values are merged,
 * and a value of zeros must change nothing.
 */
#define CGSTAT_MAP_AGGREGATED(map, vtype, file, aggregator, ...)	\
	CGSTAT_DECLARE(map, vtype, file, aggregator, sizeof(vtype) / 8,	\
		       CGSTAT_FIRST(__VA_ARGS__ __VA_OPT__(,) 0),	\
		       CGSTAT_AGGREGATED_MAP __VA_OPT__(|) __VA_ARGS__)

/*
 * Tags of fields, after the name: ours, and the kernel's for the operation, by
 * which native folds. What has none is a sum.
 */
#define CGSTAT_TAG(text) __attribute__((btf_decl_tag("cgstat:" text)))
#define CGSTAT_OPERATION(text) __attribute__((btf_decl_tag("cgroup_stats:" text)))
#define CGSTAT_MAX CGSTAT_TAG("max") CGSTAT_OPERATION("max")
#define CGSTAT_MIN CGSTAT_TAG("min") CGSTAT_OPERATION("min")
#define CGSTAT_AGGREGATED CGSTAT_TAG("aggregated") CGSTAT_OPERATION("user")
/* On a field that is an array: a histogram, see cgstat_log2_bucket() ... */
#define CGSTAT_LOG2 CGSTAT_TAG("log2") CGSTAT_OPERATION("sum")
/* ... START, STEP; see cgstat_linear_bucket() ... */
#define CGSTAT_LINEAR(...) \
	CGSTAT_TAG("linear:" CGSTAT_TEXT(__VA_ARGS__)) CGSTAT_OPERATION("sum")
/* ... BOUND, BOUND, ...: upper bounds, inclusive; the last bucket has none. */
#define CGSTAT_BOUNDS(...) \
	CGSTAT_TAG("bounds:" CGSTAT_TEXT(__VA_ARGS__)) CGSTAT_OPERATION("sum")
/* Distinct keys, by HyperLogLog: aggregated by cgstat_hll_merge(). */
#define CGSTAT_HLL CGSTAT_TAG("hll") CGSTAT_OPERATION("user")

/* For aggregators: fold the field @from into @into, of the same type. */
#define cgstat_hll_merge(into, from)					\
	do {								\
		__u64 *into__ = (__u64 *)(into);			\
		const __u64 *from__ = (const __u64 *)(from);		\
		for (int i__ = 0; i__ < sizeof(into) / 8; i__++)	\
			cgstat_write(into__[i__],			\
				     cgstat_hll_max(into__[i__],	\
						    cgstat_read(from__[i__]))); \
	} while (0)

/*
 * From a program that can sleep: the total of @cgrp, flushed, into *@out, of
 * the map's value type. @cgrp is a pointer that the verifier trusts: an
 * argument, or one from bpf_cgroup_acquire(). A minimum is there as its
 * complement. Returns 0, -ENOENT where there is no entry, or -EBUSY if a flush
 * by somebody else does not end.
 */
#define cgstat_lookup(map, cgrp, out)					\
	({								\
		typeof(((struct map##_entry *)0)->total) *out__ = (out); \
		map##_get(cgrp, out__);					\
	})

/* Something could not be counted at all: have it shown as lost. */
#define cgstat_lost(map) cgstat_count_lost(&map##_ctl)

#endif /* CGSTAT_BPF_H */
