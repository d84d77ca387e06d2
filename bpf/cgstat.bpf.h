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
 * object is loaded; the verifier then removes the other engines' branches.
 *
 * The exactness of a lookup rests on three rules that hold throughout:
 *  - an update adds, with a full barrier, before it tests whether its array is
 *    already listed for the next flush;
 *  - a flush takes the listed mark away, with a full barrier, before it reads;
 *  - what a flush takes, it takes by atomic exchange.
 * So of an update and a flush that race, either the update finds the mark gone
 * and lists its array again, or the flush finds what was added.
 *
 * Not for programs that run inside of rstat's locks (cgroup_rstat_* and lock
 * contention tracepoints), nor in NMI before 6.16: the rstat engine calls
 * cgroup_rstat_updated(), which takes such a lock.
 */
#ifndef CGSTAT_BPF_H
#define CGSTAT_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

/* Cgroups that a stats map has entries for; a collector may define its own. */
#ifndef CGSTAT_MAX_CGROUPS
#define CGSTAT_MAX_CGROUPS 65536
#endif
/* Elements of a value. An entry holds three arrays of them. */
#define CGSTAT_MAX_ELEMS 128

#define CGSTAT_EBUSY 16
#define CGSTAT_ENOENT 2

enum cgstat_engine {
	CGSTAT_STANDALONE = 0,
	CGSTAT_RSTAT = 1,
};

/* Filled in by the loader before load, constant for the verifier after. */
struct cgstat_config {
	__u32 engine;
	__u32 nr_cpus;		/* possible cpus */
	__u32 css_rstat;	/* 6.16 and later: css_rstat_*(), before: cgroup_rstat_*() */
	__u32 cgroup_acquire;	/* 6.2 and later: bpf_cgroup_acquire() */
};
const volatile struct cgstat_config cgstat_config SEC(".rodata.cgstat") = {};

extern void cgroup_rstat_updated(struct cgroup *cgrp, int cpu) __ksym __weak;
extern void cgroup_rstat_flush(struct cgroup *cgrp) __ksym __weak;
extern void css_rstat_updated(struct cgroup_subsys_state *css, int cpu) __ksym __weak;
extern void css_rstat_flush(struct cgroup_subsys_state *css) __ksym __weak;
extern struct cgroup *bpf_cgroup_acquire(struct cgroup *cgrp) __ksym __weak;
extern void bpf_cgroup_release(struct cgroup *cgrp) __ksym __weak;

/*
 * Heads a per-cpu array ("pair", for its key of cgroup and cpu) and the spill
 * array of an entry.
 *
 * The low bits of @state say whether the next flush will come here; the rest
 * counts flushes, so that an update that was interrupted while it listed the
 * array cannot take a later listing for its own.
 */
struct cgstat_link {
	__u64 state;
	__u64 next;		/* standalone: cgroup id of the next on this list */
};
#define CGSTAT_UNLISTED 0
#define CGSTAT_LISTING 1	/* somebody is about to list it */
#define CGSTAT_LISTED 2
#define CGSTAT_STATE_MASK 3ULL

struct cgstat_pair_key {
	__u64 id;
	__u64 cpu;
};

/* A pair's values follow it. */
struct cgstat_pair {
	struct cgstat_link link;
};

/* An entry's spill, total and pending arrays follow it. */
struct cgstat_entry {
	__u64 parent;		/* id of the parent; the root's own id at the root; 0: not ready */
	__u64 dead;		/* the cgroup was released */
	__u64 next_dead;	/* standalone: id of the next on the list of released cgroups */
	struct cgstat_link link;	/* of the spill array */
};

/* Notes that a list has room for, see cgstat_set_aside(). */
#define CGSTAT_ASIDE 6

/*
 * standalone: the arrays that were listed on one cpu, as cgroup ids. Of the
 * size of a cache line, as each cpu pushes to its own.
 */
struct cgstat_list {
	__u64 pairs;
	__u64 spills;
	__u64 aside[CGSTAT_ASIDE];
};

/* Per stats map: the flusher's state (standalone), and what went wrong. */
struct cgstat_ctl {
	__u64 entries;		/* entries there are */
	__u64 pairs;		/* per-cpu arrays there are */
	__u64 spilled;		/* updates that found no per-cpu array */
	__u64 displaced;	/* updates counted to an ancestor, for want of an entry */
	__u64 lost;		/* updates that could not be counted */
	/* standalone alone, from here on: */
	__u64 lock;		/* held by the flusher */
	__u64 released;		/* cgroups released since the last cycle began: the newest */
	__u64 phase;		/* of the cycle that is under way, and where it is: */
	__u64 cpu;		/* ... the next cpu */
	__u64 pair;		/* ... the next on the list of pairs taken from cpu - 1 */
	__u64 spill;		/* ... the next on the list of spill arrays taken there */
	__u64 dead;		/* ... the next released cgroup to delete */
};

enum cgstat_phase {
	CGSTAT_IDLE,
	CGSTAT_FOLDING,
	CGSTAT_DELETING,
};

/* A stats map: its BPF maps, a zeroed entry to make new ones from, its size. */
struct cgstat_map {
	void *entries;
	void *pairs;
	void *lists;
	void *ctl;
	const void *zero;
	__u32 elems;
};

/* Where an update goes; lives on the stack from begin to end. */
struct cgstat_where {
	struct cgstat_link *link;
	__u64 id;
	bool spill;
};

#define cgstat_read(x) (*(volatile typeof(x) *)&(x))
#define cgstat_write(x, v) (*(volatile typeof(x) *)&(x) = (v))
#define cgstat_xchg(x, v) __sync_lock_test_and_set(&(x), (v))
#define cgstat_cmpxchg(x, old, v) __sync_val_compare_and_swap(&(x), (old), (v))

/*
 * The result has to be used: without it the compiler emits the form of the
 * addition that does not return the old value, and that one is no barrier on
 * arm64.
 */
#define cgstat_fetch_add(x, n)						\
	({								\
		__u64 old__ = __sync_fetch_and_add(&(x), (n));		\
		asm volatile("" : : "r"(old__));			\
	})

#define cgstat_state(link) (cgstat_read((link)->state) & CGSTAT_STATE_MASK)

static __always_inline __u64 *cgstat_pair_values(struct cgstat_pair *pair)
{
	return (__u64 *)(pair + 1);
}

static __always_inline __u64 *cgstat_spill(struct cgstat_entry *entry)
{
	return (__u64 *)(entry + 1);
}

static __always_inline __u64 *cgstat_total(struct cgstat_entry *entry, __u32 elems)
{
	return cgstat_spill(entry) + elems;
}

static __always_inline __u64 *cgstat_pending(struct cgstat_entry *entry, __u32 elems)
{
	return cgstat_spill(entry) + 2 * elems;
}

static __always_inline struct cgstat_ctl *cgstat_get_ctl(struct cgstat_map map)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(map.ctl, &zero);
}

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

/*
 * Bucket of @value in a log2 histogram of @n buckets: 0 for values up to 1, i
 * for values above 2^(i-1) and up to 2^i, the last for all that are larger.
 */
static __always_inline __u32 cgstat_log2_bucket(__u64 value, __u32 n)
{
	__u32 bits = 1;

	if (value <= 1)
		return 0;
	value--;
	if (value >> 32) { value >>= 32; bits += 32; }
	if (value >> 16) { value >>= 16; bits += 16; }
	if (value >> 8) { value >>= 8; bits += 8; }
	if (value >> 4) { value >>= 4; bits += 4; }
	if (value >> 2) { value >>= 2; bits += 2; }
	if (value >> 1) { bits += 1; }
	return bits < n ? bits : n - 1;
}

/* ---- entries ------------------------------------------------------------ */

/*
 * Make the entry of @cgrp. Its parent's must exist, so that a flush can walk
 * up from any entry; the parent's id is written last and makes it usable.
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
	struct cgstat_entry *entry;

	if (!ctl || BPF_CORE_READ(cgrp, self.flags) & CSS_RELEASED)
		return NULL;
	if (parent) {
		parent_id = cgstat_ancestor_id(parent);
		entry = bpf_map_lookup_elem(map.entries, &parent_id);
		if (!entry || !cgstat_read(entry->parent))
			return NULL;
	}
	if (!bpf_map_update_elem(map.entries, &id, map.zero, BPF_NOEXIST))
		__sync_fetch_and_add(&ctl->entries, 1);
	entry = bpf_map_lookup_elem(map.entries, &id);
	if (entry)
		cgstat_write(entry->parent, parent_id);
	return entry;
}

/* ---- update ------------------------------------------------------------- */

/*
 * The array that an update of cgroup @id on this cpu adds to, without making
 * an entry: the per-cpu array, or where there is no memory for one (as is
 * common with interrupts off, the memory being refilled when they are on), the
 * entry's spill array.
 */
static __always_inline __u64 *
cgstat_find_values(struct cgstat_map map, struct cgstat_ctl *ctl, __u64 id,
		   struct cgstat_where *where)
{
	struct cgstat_pair_key key = { .id = id, .cpu = bpf_get_smp_processor_id() };
	struct cgstat_entry *entry;
	struct cgstat_pair *pair;

	where->id = id;
	where->spill = false;
	pair = bpf_map_lookup_elem(map.pairs, &key);
	if (!pair) {
		entry = bpf_map_lookup_elem(map.entries, &id);
		if (!entry || !cgstat_read(entry->parent))
			return NULL;
		if (!bpf_map_update_elem(map.pairs, &key, map.zero, BPF_NOEXIST))
			__sync_fetch_and_add(&ctl->pairs, 1);
		pair = bpf_map_lookup_elem(map.pairs, &key);
		if (!pair) {
			__sync_fetch_and_add(&ctl->spilled, 1);
			where->spill = true;
			where->link = &entry->link;
			return cgstat_spill(entry);
		}
	}
	where->link = &pair->link;
	return cgstat_pair_values(pair);
}

static __always_inline void cgstat_count_lost(struct cgstat_map map)
{
	struct cgstat_ctl *ctl = cgstat_get_ctl(map);

	if (ctl)
		__sync_fetch_and_add(&ctl->lost, 1);
}

#define CGSTAT_MAX_CLIMB 64

/*
 * The way for what cgstat_find_values() did not find: make the entry, and if
 * that cannot be, count to the nearest ancestor that has one. The totals of
 * the ancestors stay exact.
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
		if (values)
			break;
		below = cgrp;
		cgrp = cgstat_parent(cgrp);
	}
	if (below) {
		cgstat_make_entry(map, below);
		__sync_fetch_and_add(values ? &ctl->displaced : &ctl->lost, 1);
	}
	return values;
}

/*
 * rstat: tell the kernel that @cgrp was updated on this cpu. From 6.2 a
 * reference makes @cgrp a pointer that the verifier lets us pass on.
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
 * standalone: push cgroup @id to a list of this cpu. Only this cpu pushes
 * there, so the exchange fails only where an interrupt pushed, or a flush
 * emptied the list, between the read and the exchange. Being linked by ids the
 * list has no ABA problem: whatever happened in between, @next names what is
 * at the head at the moment of the exchange.
 */
static __always_inline bool cgstat_push(__u64 *head, __u64 *next, __u64 id)
{
	__u64 old;
	int i;

	for (i = 0; i < 64; i++) {
		old = cgstat_read(*head);
		cgstat_write(*next, old);
		if (cgstat_cmpxchg(*head, old, id) == old)
			return true;
	}
	return false;
}

/*
 * standalone: the update that we interrupted is about to list this array but
 * may not have. Leave a note for the flush, which then takes the values
 * without a look at the link. Where all notes are taken nothing is lost: the
 * interrupted update lists the array when it goes on. Until then a lookup
 * misses this one. Where programs cannot be preempted no more than three
 * arrays are about to be listed on a cpu, so that does not happen.
 */
static __always_inline void cgstat_set_aside(struct cgstat_list *list, __u64 id)
{
	__u64 old;
	int i;

	for (i = 0; i < CGSTAT_ASIDE; i++) {
		old = cgstat_cmpxchg(list->aside[i], 0, id);
		if (!old || old == id)
			return;
	}
}

/* standalone: put the array on its list, if it is not there. */
static __always_inline void
cgstat_list_standalone(struct cgstat_map map, struct cgstat_where *where)
{
	struct cgstat_link *link = where->link;
	__u32 cpu = bpf_get_smp_processor_id();
	struct cgstat_list *list;
	__u64 flushes, state;
	bool listed;

	list = bpf_map_lookup_elem(map.lists, &cpu);
	if (!list)
		return;
	flushes = cgstat_read(link->state) & ~CGSTAT_STATE_MASK;
	if (cgstat_cmpxchg(link->state, flushes | CGSTAT_UNLISTED,
			   flushes | CGSTAT_LISTING) == (flushes | CGSTAT_UNLISTED)) {
		listed = cgstat_push(where->spill ? &list->spills : &list->pairs,
				     &link->next, where->id);
		/* Where the push gave up, the note and the next update remain. */
		cgstat_cmpxchg(link->state, flushes | CGSTAT_LISTING,
			       flushes | (listed ? CGSTAT_LISTED : CGSTAT_UNLISTED));
	}
	/* A flush that came since we read their number takes what we added. */
	state = cgstat_read(link->state);
	if (state == (flushes | CGSTAT_LISTING) || state == (flushes | CGSTAT_UNLISTED))
		cgstat_set_aside(list, where->id);
}

/* ---- flush -------------------------------------------------------------- */

/*
 * Take the listed mark away: what is added from here on is listed again.
 *
 * Only a flush changes the number of flushes, and flushes are serialised, by
 * our lock (standalone) or the kernel's (rstat). So the number that is read is
 * current, whatever updates do to the low bits meanwhile.
 */
static __always_inline void cgstat_unlist(struct cgstat_link *link)
{
	__u64 flushes = cgstat_read(link->state) & ~CGSTAT_STATE_MASK;

	cgstat_xchg(link->state, flushes + CGSTAT_STATE_MASK + 1);
}

/* Move @values, which may be added to meanwhile, to @pending. */
static __always_inline void
cgstat_take(__u64 *values, __u64 *pending, __u32 elems)
{
	__u32 i;

	for (i = 0; i < elems; i++)
		if (cgstat_read(values[i]))
			pending[i] += cgstat_xchg(values[i], 0);
}

/* ---- flush and lookup: standalone ----------------------------------------
 *
 * A flush is made of steps, each of bounded work, and runs in cycles: take the
 * list of released cgroups; empty every cpu's lists; delete the released
 * cgroups, to which nothing can be pending any more. A lookup runs whole
 * cycles; cgroup_release runs a few steps, so that what released cgroups leave
 * behind stays in proportion to what is live, whether or not anybody reads.
 *
 * All of it under the lock, which is only ever tried: it is taken in a
 * tracepoint with interrupts off. Only its holder deletes, since the memory of
 * a deleted element is reused at once.
 */

static __always_inline bool cgstat_trylock(struct cgstat_ctl *ctl)
{
	return cgstat_xchg(ctl->lock, 1) == 0;
}

static __always_inline void cgstat_unlock(struct cgstat_ctl *ctl)
{
	cgstat_xchg(ctl->lock, 0);
}

struct cgstat_climb {
	struct cgstat_entry *from;
	__u64 id;
};

/* Add what is pending in one entry to the total of it or of an ancestor. */
static __always_inline long
cgstat_climb_step(struct cgstat_map map, struct cgstat_climb *climb)
{
	struct cgstat_entry *entry = bpf_map_lookup_elem(map.entries, &climb->id);
	__u64 *total, *pending;
	__u32 i;

	if (!entry || !climb->from)
		return 1;
	total = cgstat_total(entry, map.elems);
	pending = cgstat_pending(climb->from, map.elems);
	for (i = 0; i < map.elems; i++)
		if (pending[i])
			total[i] += pending[i];
	if (entry->parent == climb->id)
		return 1;
	climb->id = entry->parent;
	return 0;
}

/* What is pending in @entry becomes part of its total and its ancestors'. */
static __always_inline void
cgstat_propagate(struct cgstat_map map, struct cgstat_entry *entry, __u64 id,
		 void *climb_step)
{
	struct cgstat_climb climb = { .from = entry, .id = id };
	__u64 *pending = cgstat_pending(entry, map.elems);
	__u32 i;

	bpf_loop(1 << 20, climb_step, &climb, 0);
	/* By volatile stores: BPF has no memset() to make of a plain loop. */
	for (i = 0; i < map.elems; i++)
		cgstat_write(pending[i], 0);
}

/*
 * Fold the array behind @link, one of the pair of (@id, @cpu) and the spill
 * array of @id, having taken it off its list. Returns what came next on the
 * list. That is read before the listed mark goes: from then on @next belongs
 * to whoever lists the array again.
 */
static __always_inline __u64
cgstat_fold(struct cgstat_map map, struct cgstat_entry *entry, __u64 id,
	    struct cgstat_link *link, __u64 *values, void *climb_step)
{
	__u64 next = cgstat_read(link->next);

	cgstat_unlist(link);
	cgstat_take(values, cgstat_pending(entry, map.elems), map.elems);
	cgstat_propagate(map, entry, id, climb_step);
	return next;
}

static __always_inline __u64
cgstat_fold_pair(struct cgstat_map map, __u64 id, __u64 cpu, void *climb_step)
{
	struct cgstat_pair_key key = { .id = id, .cpu = cpu };
	struct cgstat_pair *pair = bpf_map_lookup_elem(map.pairs, &key);
	struct cgstat_entry *entry = bpf_map_lookup_elem(map.entries, &id);

	if (!pair || !entry)
		return 0;
	return cgstat_fold(map, entry, id, &pair->link, cgstat_pair_values(pair),
			   climb_step);
}

static __always_inline __u64
cgstat_fold_spill(struct cgstat_map map, __u64 id, void *climb_step)
{
	struct cgstat_entry *entry = bpf_map_lookup_elem(map.entries, &id);

	if (!entry)
		return 0;
	return cgstat_fold(map, entry, id, &entry->link, cgstat_spill(entry),
			   climb_step);
}

/* Fold what a note of cgstat_set_aside() names, leaving the lists alone. */
static __always_inline void
cgstat_fold_aside(struct cgstat_map map, __u64 id, __u64 cpu, void *climb_step)
{
	struct cgstat_pair_key key = { .id = id, .cpu = cpu };
	struct cgstat_entry *entry = bpf_map_lookup_elem(map.entries, &id);
	struct cgstat_pair *pair = bpf_map_lookup_elem(map.pairs, &key);
	__u64 *pending;

	if (!entry)
		return;
	pending = cgstat_pending(entry, map.elems);
	if (pair)
		cgstat_take(cgstat_pair_values(pair), pending, map.elems);
	cgstat_take(cgstat_spill(entry), pending, map.elems);
	cgstat_propagate(map, entry, id, climb_step);
}

/* Go to the next cpu: take its lists, and fold its notes. */
static __always_inline void
cgstat_enter_cpu(struct cgstat_map map, struct cgstat_ctl *ctl, void *climb_step)
{
	__u32 cpu = ctl->cpu;
	struct cgstat_list *list = bpf_map_lookup_elem(map.lists, &cpu);
	__u64 id;
	int i;

	ctl->cpu = cpu + 1;
	if (!list)
		return;
	ctl->pair = cgstat_xchg(list->pairs, 0);
	ctl->spill = cgstat_xchg(list->spills, 0);
	for (i = 0; i < CGSTAT_ASIDE; i++) {
		if (!cgstat_read(list->aside[i]))
			continue;
		id = cgstat_xchg(list->aside[i], 0);
		cgstat_fold_aside(map, id, cpu, climb_step);
	}
}

/*
 * Delete a released cgroup's pair on one cpu, and with the last cpu the entry.
 * All was folded since the cgroup was released, and nothing can be added to
 * it: whoever could name the cgroup held a reference.
 */
static __always_inline void
cgstat_delete_step(struct cgstat_map map, struct cgstat_ctl *ctl)
{
	struct cgstat_pair_key key = { .id = ctl->dead, .cpu = ctl->cpu };
	struct cgstat_entry *entry;
	__u64 id = ctl->dead;

	if (!bpf_map_delete_elem(map.pairs, &key))
		__sync_fetch_and_add(&ctl->pairs, -1);
	if (++ctl->cpu < cgstat_config.nr_cpus)
		return;
	entry = bpf_map_lookup_elem(map.entries, &id);
	ctl->cpu = 0;
	ctl->dead = entry ? entry->next_dead : 0;
	if (!bpf_map_delete_elem(map.entries, &id))
		__sync_fetch_and_add(&ctl->entries, -1);
}

/* One step of a cycle; returns 1 when the cycle is complete. */
static __always_inline long cgstat_flush_step(struct cgstat_map map, void *climb_step)
{
	struct cgstat_ctl *ctl = cgstat_get_ctl(map);

	if (!ctl)
		return 1;
	if (ctl->phase == CGSTAT_IDLE) {
		ctl->dead = cgstat_xchg(ctl->released, 0);
		ctl->cpu = 0;
		ctl->phase = CGSTAT_FOLDING;
	} else if (ctl->phase == CGSTAT_FOLDING) {
		if (ctl->pair) {
			ctl->pair = cgstat_fold_pair(map, ctl->pair, ctl->cpu - 1, climb_step);
		} else if (ctl->spill) {
			ctl->spill = cgstat_fold_spill(map, ctl->spill, climb_step);
		} else if (ctl->cpu < cgstat_config.nr_cpus) {
			cgstat_enter_cpu(map, ctl, climb_step);
		} else {
			ctl->cpu = 0;
			ctl->phase = CGSTAT_DELETING;
		}
	} else if (ctl->dead) {
		cgstat_delete_step(map, ctl);
	} else {
		ctl->phase = CGSTAT_IDLE;
		return 1;
	}
	return 0;
}

/*
 * cgroup_release: the id goes to the flusher, and if nobody flushes just now,
 * some of the flusher's work is done. More than a released cgroup adds to it,
 * so that churn alone keeps the backlog small.
 */
static __always_inline void
cgstat_release_standalone(struct cgstat_map map, struct cgstat_ctl *ctl,
			  struct cgstat_entry *entry, __u64 id, void *flush_step)
{
	cgstat_push(&ctl->released, &entry->next_dead, id);
	if (!cgstat_trylock(ctl))
		return;
	bpf_loop(32 + 4 * cgstat_config.nr_cpus, flush_step, NULL, 0);
	cgstat_unlock(ctl);
}

/*
 * What a lookup hands in and gets back. The total is copied under the lock,
 * element by element with constant offsets, as the verifier wants it of a
 * context.
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
	ctx->ret = -CGSTAT_EBUSY;					\
	if (!ctl || !cgstat_trylock(ctl))				\
		return 0;						\
	/* A cycle begun earlier may have passed what was updated since. */ \
	if (ctl->phase != CGSTAT_IDLE)					\
		bpf_loop(1 << 23, map##_flush_step, NULL, 0);		\
	bpf_loop(1 << 23, map##_flush_step, NULL, 0);			\
	ctx->ret = -CGSTAT_ENOENT;					\
	entry = bpf_map_lookup_elem(&map##_entries, &id);		\
	if (entry && !entry->dead) {					\
		total = cgstat_total(entry, sizeof(vtype) / 8);		\
		_Pragma("clang loop unroll(full)")			\
		for (int i = 0; i < sizeof(vtype) / 8; i++)		\
			ctx->total[i] = total[i];			\
		ctx->ret = 0;						\
	}								\
	cgstat_unlock(ctl);						\
	return 0;							\
}

/* ---- flush and lookup: rstat ---------------------------------------------
 *
 * The kernel calls the flush for each cgroup and cpu that it was told of,
 * children before parents, one at a time under its lock. So what is pending
 * needs no atomics; what updates add to still does.
 *
 * The kernel promises no order between its list and our values. None is
 * needed: it takes a cgroup off its list before it calls the flush, the flush
 * takes the listed mark away with a full barrier, and then the values. An
 * update that found the cgroup still on the kernel's list is thereby seen.
 */

struct cgstat_settle {
	struct cgstat_entry *entry;
	struct cgstat_pair_key key;
};

/* Take and delete the pair of a released cgroup on one cpu. */
static __always_inline long
cgstat_settle_step(struct cgstat_map map, struct cgstat_settle *settle)
{
	struct cgstat_ctl *ctl = cgstat_get_ctl(map);
	struct cgstat_pair_key key = settle->key;
	struct cgstat_pair *pair = bpf_map_lookup_elem(map.pairs, &key);

	settle->key.cpu++;
	if (!pair || !ctl || !settle->entry)
		return 0;
	cgstat_take(cgstat_pair_values(pair),
		    cgstat_pending(settle->entry, map.elems), map.elems);
	if (!bpf_map_delete_elem(map.pairs, &key))
		__sync_fetch_and_add(&ctl->pairs, -1);
	return 0;
}

/* Fold per-cpu, spill and pending into total, and into the parent's pending. */
static __always_inline void
cgstat_flush_rstat(struct cgstat_map map, __u64 id, __u64 cpu, void *settle_step)
{
	struct cgstat_settle settle = { .key = { .id = id } };
	struct cgstat_pair_key key = { .id = id, .cpu = cpu };
	struct cgstat_entry *entry = bpf_map_lookup_elem(map.entries, &id), *parent;
	struct cgstat_ctl *ctl = cgstat_get_ctl(map);
	__u64 *pending, *total, parent_id;
	struct cgstat_pair *pair;
	__u32 i;

	if (!entry || !ctl)
		return;
	pending = cgstat_pending(entry, map.elems);
	total = cgstat_total(entry, map.elems);
	pair = bpf_map_lookup_elem(map.pairs, &key);
	if (pair) {
		cgstat_unlist(&pair->link);
		cgstat_take(cgstat_pair_values(pair), pending, map.elems);
	}
	cgstat_unlist(&entry->link);
	cgstat_take(cgstat_spill(entry), pending, map.elems);
	if (entry->dead) {
		settle.entry = entry;
		bpf_loop(cgstat_config.nr_cpus, settle_step, &settle, 0);
	}
	/* An entry's parent has an entry; the root is its own parent. */
	parent_id = entry->parent;
	parent = bpf_map_lookup_elem(map.entries, &parent_id);
	if (!parent)
		return;
	for (i = 0; i < map.elems; i++) {
		if (!pending[i])
			continue;
		cgstat_write(total[i], total[i] + pending[i]);
		cgstat_pending(parent, map.elems)[i] += pending[i];
		pending[i] = 0;
	}
	if (entry->dead && !bpf_map_delete_elem(map.entries, &id))
		__sync_fetch_and_add(&ctl->entries, -1);
}

/*
 * cgroup_release comes before the kernel's last flush of the cgroup. Telling
 * the kernel makes sure that this flush comes to us, for this cpu at least; it
 * then takes what is left on every cpu and deletes the entry.
 */
static __always_inline void
cgstat_release_rstat(struct cgroup *cgrp)
{
	int cpu = bpf_get_smp_processor_id();

	if (cgstat_config.css_rstat)
		css_rstat_updated(&cgrp->self, cpu);
	else
		cgroup_rstat_updated(cgrp, cpu);
}

/* Write the total to the reader of a cgroup iterator, after a flush. */
static __always_inline int
cgstat_read_rstat(struct cgstat_map map, struct bpf_iter__cgroup *ctx)
{
	struct seq_file *seq = ctx->meta->seq;
	struct cgroup *cgrp = ctx->cgroup;
	struct cgstat_entry *entry;
	__u64 id, value;
	__u32 i;

	if (!cgrp)
		return 0;
	if (cgstat_config.css_rstat)
		css_rstat_flush(&cgrp->self);
	else
		cgroup_rstat_flush(cgrp);
	/* The iterator holds the cgroup, so it is not released while we read. */
	id = cgstat_id(cgrp);
	entry = bpf_map_lookup_elem(map.entries, &id);
	if (!entry)
		return 0;
	for (i = 0; i < map.elems; i++) {
		value = cgstat_read(cgstat_total(entry, map.elems)[i]);
		bpf_seq_write(seq, &value, sizeof(value));
	}
	return 0;
}

/* ---- what the declaration of a stats map makes --------------------------- */

#define CGSTAT_MAP_OF(map)						\
	((struct cgstat_map) {						\
		.entries = &map##_entries,				\
		.pairs = &map##_pairs,					\
		.lists = &map##_lists,					\
		.ctl = &map##_ctl,					\
		.zero = &map##_zero,					\
		.elems = sizeof(((struct map##_entry *)0)->total) / 8,	\
	})

#define CGSTAT_BPF_MAPS(map, vtype, file)				\
struct map##_pair {							\
	struct cgstat_pair pair;					\
	vtype values;							\
};									\
struct map##_entry {							\
	struct cgstat_entry entry;					\
	vtype spill;							\
	vtype total;							\
	vtype pending;							\
} __attribute__((btf_decl_tag("cgstat:map:" file)));			\
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
	__type(key, struct cgstat_pair_key);				\
	__type(value, struct map##_pair);				\
} map##_pairs SEC(".maps");						\
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
const struct map##_entry map##_zero SEC(".rodata.zero") = {};

#define CGSTAT_UPDATE(map)						\
static __always_inline __attribute__((unused)) void *			\
map##_begin(struct cgroup *cgrp, struct cgstat_where *where)		\
{									\
	struct cgstat_ctl *ctl = cgstat_get_ctl(CGSTAT_MAP_OF(map));	\
	__u64 *values;							\
									\
	if (!ctl)							\
		return NULL;						\
	values = cgstat_find_values(CGSTAT_MAP_OF(map), ctl,		\
				    cgstat_id(cgrp), where);		\
	if (!values)							\
		values = cgstat_make_values(CGSTAT_MAP_OF(map), ctl,	\
					    cgrp, where);		\
	return values;							\
}									\
static __always_inline __attribute__((unused)) void			\
map##_end(struct cgroup *cgrp, struct cgstat_where *where)		\
{									\
	if (cgstat_state(where->link) == CGSTAT_LISTED)			\
		return;							\
	if (cgstat_config.engine == CGSTAT_RSTAT)			\
		cgstat_list_rstat(where, cgrp);				\
	else								\
		cgstat_list_standalone(CGSTAT_MAP_OF(map), where);	\
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
static long map##_settle_step(__u32 i, struct cgstat_settle *settle)	\
{									\
	return cgstat_settle_step(CGSTAT_MAP_OF(map), settle);		\
}

/* Programs of both engines: the life cycle of entries. */
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
	cgstat_xchg(entry->dead, 1);					\
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

/* ---- what a collector's author uses -------------------------------------- */

/*
 * Declare a stats map. @vtype is a struct whose fields are unsigned 64-bit
 * integers or arrays of them, or one such integer; @file names its file.
 */
#define CGSTAT_MAP(map, vtype, file)					\
	CGSTAT_BPF_MAPS(map, vtype, file)				\
	CGSTAT_UPDATE(map)						\
	CGSTAT_CALLBACKS(map)						\
	CGSTAT_LIFE_CYCLE(map)						\
	CGSTAT_LOOKUP_STANDALONE(map, vtype)				\
	CGSTAT_RSTAT_PROGRAMS(map)					\
	struct map##_entry

/* On a field that is an array: a log2 histogram, see cgstat_log2_bucket(). */
#define CGSTAT_LOG2 __attribute__((btf_decl_tag("cgstat:log2")))

/* Count @n more in @field. */
#define cgstat_add(map, cgrp, field, n)					\
	cgstat_update(map, cgrp, v__)					\
		cgstat_inc(v__->field, n)

/* Count @value in the log2 histogram @field. */
#define cgstat_log2(map, cgrp, field, value)				\
	cgstat_update(map, cgrp, v__)					\
		cgstat_inc_log2(v__->field, value)

/*
 * Several additions to one cgroup for one look-up:
 *
 *	cgstat_update(latency, cgrp, v) {
 *		cgstat_inc(v->total_ns, delta);
 *		cgstat_inc_log2(v->wait_ns, delta);
 *	}
 *
 * The block runs once, or not at all where there is nothing to add to, which
 * is shown as lost. It must not be left by return, break or goto.
 */
#define cgstat_update(map, cgrp, v)					\
	for (struct {							\
		struct cgroup *cg;					\
		struct cgstat_where where;				\
		typeof(((struct map##_entry *)0)->total) *values;	\
	     } at__ = { .cg = (cgrp) },					\
	     *once__ = (at__.values = map##_begin(at__.cg, &at__.where)) ? &at__ : NULL; \
	     once__; map##_end(at__.cg, &at__.where), once__ = NULL)	\
		for (typeof(at__.values) v = at__.values; v; v = NULL)

#define cgstat_inc(element, n) cgstat_fetch_add(element, n)
#define cgstat_inc_log2(array, value)					\
	cgstat_fetch_add((array)[cgstat_log2_bucket(value, sizeof(array) / 8)], 1)

/* Something could not be counted at all: have it shown as lost. */
#define cgstat_lost(map) cgstat_count_lost(CGSTAT_MAP_OF(map))

#endif /* CGSTAT_BPF_H */
