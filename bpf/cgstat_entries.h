/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What collectors that are compiled in advance know of the kernel: cgroups,
 * the entries that follow them, and rstat.
 */
#ifndef CGSTAT_ENTRIES_H
#define CGSTAT_ENTRIES_H

#include "cgstat_update.h"

enum cgstat_engine {
	CGSTAT_STANDALONE = 0,
	CGSTAT_RSTAT = 1,
	CGSTAT_NATIVE = 2,
};

/* Filled in by the loader before load, constant for the verifier after. */
struct cgstat_config {
	__u32 engine;
	__u32 nr_cpus;		/* possible cpus */
	__u32 css_rstat;	/* 6.16 and later: css_rstat_*(), before: cgroup_rstat_*() */
	__u32 cgroup_acquire;	/* 6.2 and later: bpf_cgroup_acquire() */
};
const volatile struct cgstat_config cgstat_config SEC(".rodata.cgstat") = {};

/* The same, for each stats map. */
struct cgstat_map_config {
	__u64 initial;		/* id of the initial cgroup; 0: the root */
	__u32 level;		/* ... and its level */
	__u32 elems;		/* for generic.bpf.c alone, as is: */
	__u32 flags;
	__u8 ops[CGSTAT_MAX_ELEMS];	/* enum cgstat_operation, by element */
};

enum cgstat_operation {
	CGSTAT_OP_SUM,
	CGSTAT_OP_MAX,		/* minima too, which are kept as complements */
	CGSTAT_OP_USER,		/* left to the map's aggregator */
};

extern void cgroup_rstat_updated(struct cgroup *cgrp, int cpu) __ksym __weak;
extern void cgroup_rstat_flush(struct cgroup *cgrp) __ksym __weak;
extern void css_rstat_updated(struct cgroup_subsys_state *css, int cpu) __ksym __weak;
extern void css_rstat_flush(struct cgroup_subsys_state *css) __ksym __weak;
extern struct cgroup *bpf_cgroup_acquire(struct cgroup *cgrp) __ksym __weak;
extern void bpf_cgroup_release(struct cgroup *cgrp) __ksym __weak;
/* native: kernels with BPF_MAP_TYPE_CGROUP_STATS */
extern __u64 *bpf_cgroup_stats_begin(struct bpf_map *map, struct cgroup *cgrp,
				     const __u32 rdwr_buf_size) __ksym __weak;
extern void bpf_cgroup_stats_end(struct cgroup *cgrp) __ksym __weak;
extern int bpf_cgroup_stats_lookup(struct bpf_map *map, struct cgroup *cgrp,
				   void *value, __u32 value__sz) __ksym __weak;
/* Other kernels' vmlinux.h do not have it, and libbpf compares kinds: complete. */
struct cgroup_stats_fold___cgstat {
	__u32 size;
};
extern __u64 *cgroup_stats_fold_into(struct cgroup_stats_fold___cgstat *fold,
				     const __u32 rdwr_buf_size) __ksym __weak;
extern __u64 *cgroup_stats_fold_from(struct cgroup_stats_fold___cgstat *fold,
				     const __u32 rdonly_buf_size) __ksym __weak;

/* v2 alone counts: the ids of v1 hierarchies collide with its ids. */
static __always_inline bool cgstat_is_v2(struct cgroup *cgrp)
{
	return cgrp->root->hierarchy_id == 0;
}

static __always_inline __u64 cgstat_id(struct cgroup *cgrp)
{
	return cgrp->kn->id;
}

/*
 * A cgroup begins with its own css, so the parent's css is the parent. To the
 * verifier it is a mere number, which only BPF_CORE_READ() can follow.
 */
static __always_inline struct cgroup *cgstat_parent(struct cgroup *cgrp)
{
	return (struct cgroup *)BPF_CORE_READ(cgrp, self.parent);
}

static __always_inline __u64 cgstat_ancestor_id(struct cgroup *cgrp)
{
	return BPF_CORE_READ(cgrp, kn, id);
}

/* The cgroup v2 cgroup of a task; good until the program ends. */
static __always_inline struct cgroup *cgstat_task_cgroup(struct task_struct *task)
{
	return task->cgroups->dfl_cgrp;
}

/* ---- entries ------------------------------------------------------------ */

static __always_inline __u64 *cgstat_total(struct cgstat_entry *entry, __u32 elems)
{
	return cgstat_spill(entry) + elems;
}

static __always_inline __u64 *cgstat_pending(struct cgstat_entry *entry, __u32 elems)
{
	return cgstat_spill(entry) + 2 * elems;
}

/* Whether @cgrp is the map's initial cgroup or below it. */
static __always_inline bool
cgstat_is_inside(struct cgroup *cgrp, const volatile struct cgstat_map_config *config)
{
	struct cgroup *ancestor;
	__u32 level = config->level;

	if (!config->initial)
		return true;
	if ((__u32)BPF_CORE_READ(cgrp, level) < level)
		return false;
	if (bpf_probe_read_kernel(&ancestor, sizeof(ancestor),
				  (void *)cgrp + bpf_core_field_offset(cgrp->ancestors) +
				  level * sizeof(ancestor)))
		return false;
	return cgstat_ancestor_id(ancestor) == config->initial;
}

/*
 * Make the entry of @cgrp. Its parent's must exist, so that a flush can walk
 * up from any entry; the parent's id is written last and makes it usable. The
 * top is its own parent: the initial cgroup, or the root.
 *
 * Called at cgroup_mkdir, for the cgroups that exist at load, and by an update
 * that finds no entry because there was no memory at cgroup_mkdir. Not for a
 * released cgroup, whose entry nothing would delete.
 */
static __always_inline struct cgstat_entry *
cgstat_make_entry(struct cgstat_map map, struct cgroup *cgrp)
{
	__u64 id = cgstat_ancestor_id(cgrp), parent_id = id;
	struct cgroup *parent = cgstat_parent(cgrp);
	struct cgstat_ctl *ctl = cgstat_get_ctl(map);
	struct cgstat_entry *entry, *above = NULL;

	if (!ctl || BPF_CORE_READ(cgrp, self.flags) & CSS_RELEASED)
		return NULL;
	if (!cgstat_is_inside(cgrp, map.config))
		return NULL;
	if (parent && id != map.config->initial) {
		parent_id = cgstat_ancestor_id(parent);
		above = bpf_map_lookup_elem(map.entries, &parent_id);
		if ((!above || !cgstat_read(above->parent)) &&
		    !(map.flags & CGSTAT_NO_HIERARCHY))
			return NULL;
	}
	/*
	 * It counts as a child before anybody can add to it, as who finds no
	 * children looks at none. Who finds one too many for a moment looks.
	 */
	if (above && !(map.flags & CGSTAT_NO_HIERARCHY))
		__sync_fetch_and_add(&above->children, 1);
	if (!bpf_map_update_elem(map.entries, &id, map.zero, BPF_NOEXIST))
		__sync_fetch_and_add(&ctl->entries, 1);
	else if (above && !(map.flags & CGSTAT_NO_HIERARCHY))
		__sync_fetch_and_add(&above->children, -1);
	entry = bpf_map_lookup_elem(map.entries, &id);
	if (entry)
		cgstat_write(entry->parent, parent_id);
	return entry;
}

/* ---- update ------------------------------------------------------------- */

#define CGSTAT_MAX_CLIMB 64

/*
 * The way for what cgstat_find_values() did not find: make the entry, and if
 * that cannot be, count to the nearest ancestor that has one. The totals of
 * the ancestors stay exact. Without hierarchy that would be wrong, and the
 * update is lost.
 *
 * What prevented it may be that an ancestor has no entry, because there was no
 * memory or no room when it was made, or because it is outside of the cgroup
 * namespace that the map was loaded in. No update may ever name that ancestor
 * itself. So make the entry of the topmost that has none: each update mends a
 * level.
 */
static __always_inline __u64 *
cgstat_make_values(struct cgstat_map map, struct cgstat_ctl *ctl,
		   struct cgroup *cgrp, struct cgstat_where *where)
{
	struct cgroup *below = NULL;
	__u64 *values = NULL;
	int i;

	cgstat_make_entry(map, cgrp);
	for (i = 0; i < CGSTAT_MAX_CLIMB && cgrp; i++) {
		values = cgstat_find_values(map, ctl, cgstat_ancestor_id(cgrp), where);
		if (values || map.flags & CGSTAT_NO_HIERARCHY)
			break;
		below = cgrp;
		cgrp = cgstat_parent(cgrp);
	}
	if (!values && map.flags & CGSTAT_NO_HIERARCHY)
		__sync_fetch_and_add(&ctl->lost, 1);
	if (below) {
		cgstat_make_entry(map, below);
		__sync_fetch_and_add(values ? &ctl->displaced : &ctl->lost, 1);
	}
	return values;
}

/*
 * rstat: tell the kernel that @cgrp was updated on this cpu. From 6.2 a
 * reference makes @cgrp a pointer that the verifier lets us pass on.
 *
 * Until 6.15 the kernel takes a raw lock of this cpu here, and a program that
 * runs with it held would wait for itself. A per-cpu guard around the call
 * would only tell of our own calls. The kernel takes the lock by itself, too,
 * for its updates and when it flushes, and whatever runs inside of our call can
 * run inside of the kernel's. So the place decides: the loader gives collectors
 * with programs there another engine, see cgstatfs/placement.py.
 */
static __noinline int cgstat_rstat_updated(struct cgroup *cgrp)
{
	int cpu = bpf_get_smp_processor_id();
	struct cgroup *ref;

	if (!cgstat_config.cgroup_acquire) {
		cgroup_rstat_updated(cgrp, cpu);
		return 0;
	}
	ref = bpf_cgroup_acquire(cgrp);
	if (!ref)
		return 0;
	if (cgstat_config.css_rstat)
		css_rstat_updated(&ref->self, cpu);
	else
		cgroup_rstat_updated(ref, cpu);
	bpf_cgroup_release(ref);
	return 0;
}

/*
 * rstat: tell the kernel, then mark the array as listed. Whoever finds it in
 * state LISTING tells the kernel too: the update that set LISTING may be one
 * that we interrupted, and its telling is still to come.
 *
 * The mark is set for the number of flushes that was read before the kernel
 * was told. If a flush came in between, the exchange fails, and that flush or
 * a later one that the kernel was told of takes what we added.
 */
static __always_inline void
cgstat_list_rstat(struct cgstat_where *where, struct cgroup *cgrp)
{
	__u64 flushes = cgstat_read(where->link->state) & ~CGSTAT_STATE_MASK;

	cgstat_cmpxchg(where->link->state, flushes | CGSTAT_UNLISTED,
		       flushes | CGSTAT_LISTING);
	cgstat_rstat_updated(cgrp);
	cgstat_cmpxchg(where->link->state, flushes | CGSTAT_LISTING,
		       flushes | CGSTAT_LISTED);
}

/*
 * native: this cpu's array of the entry, which the kernel made with the cgroup;
 * NULL outside of the initial cgroup. The kernel takes nothing away from what
 * is added here: it remembers what it has folded.
 */
static __always_inline __u64 *
cgstat_find_native(struct cgstat_map map, struct cgroup *cgrp, struct cgstat_where *where)
{
	where->ctl = map.ctl;
	return bpf_cgroup_stats_begin(map.native, cgrp, 8 * map.elems);
}

#endif /* CGSTAT_ENTRIES_H */
