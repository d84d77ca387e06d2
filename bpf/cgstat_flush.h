/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Flush and lookup of stats maps, for each engine.
 */
#ifndef CGSTAT_FLUSH_H
#define CGSTAT_FLUSH_H

#include "cgstat_snapshot.h"

/* ---- flush -------------------------------------------------------------- */

/*
 * Fold @values, which may be updated meanwhile, into @pending: sums are moved,
 * by exchange; maxima are left, and so is what the aggregator folds. Those can
 * be folded any number of times, and a reader of the total that is about to
 * change sees one or the other of what it has been.
 */
static __always_inline void
cgstat_take_elements(struct cgstat_map map, __u64 *values, __u64 *pending)
{
	__u64 value;
	__u32 i;

	for (i = 0; i < map.elems; i++) {
		value = cgstat_read(values[i]);
		if (!value)
			continue;
		if (map.config->ops[i] == CGSTAT_OP_SUM)
			pending[i] += cgstat_xchg(values[i], 0);
		else if (map.config->ops[i] == CGSTAT_OP_MAX && value > pending[i])
			pending[i] = value;
	}
}

/* Fold @pending, which nobody else changes, into a total or another's pending. */
static __always_inline void
cgstat_fold_elements(struct cgstat_map map, __u64 *into, __u64 *pending)
{
	__u32 i;

	for (i = 0; i < map.elems; i++) {
		if (!pending[i])
			continue;
		if (map.config->ops[i] == CGSTAT_OP_SUM)
			cgstat_write(into[i], into[i] + pending[i]);
		else if (map.config->ops[i] == CGSTAT_OP_MAX && pending[i] > into[i])
			cgstat_write(into[i], pending[i]);
	}
}

/* By volatile stores: BPF has no memset() to make of a plain loop. */
static __always_inline void cgstat_clear_pending(struct cgstat_map map, __u64 *pending)
{
	__u32 i;

	for (i = 0; i < map.elems; i++)
		cgstat_write(pending[i], 0);
}

/* Of a map without an aggregator. */
static __always_inline void cgstat_no_merge(void *into, const void *from)
{
}

/* ---- flush and lookup: standalone ----------------------------------------
 *
 * A flush is made of steps, each of bounded work, and runs in cycles: take the
 * list of released cgroups, and turn it round; empty every cpu's lists; delete
 * the released cgroups to which nothing is pending any more. A lookup runs whole
 * cycles, or for a leaf none, see cgstat_flush_entry(); cgroup_release runs a few
 * steps, so that what released cgroups leave behind stays in proportion to what
 * is live, whether or not anybody reads.
 *
 * All of it under the lock, which is only ever tried: it is taken in a
 * tracepoint with interrupts off. Only its holder deletes, since the memory of
 * a deleted element is reused at once.
 *
 * Late updates. A cgroup that a program can name by a pointer is not released
 * before the program ends, unless it runs at cgroup_release. An id keeps
 * nothing: a bcc collector that stored one can use it after the release, at any
 * moment of a cycle. Such an update is
 *  - counted, as any other, where it finds the cgroup's array. An array that is
 *    listed, or about to be, is not deleted: the cgroup stays for another cycle,
 *    and so do the entries above, by their number of children;
 *  - lost, and shown, where there is no array: none is made for a released
 *    cgroup. Or where a flush retires the array (CGSTAT_DEAD) between the
 *    update's addition and its look at the mark;
 *  - added to another cgroup, shown as lost or not, if between its look-up of
 *    the array and its addition a flush on another cpu retires and deletes the
 *    array and an update there gets the memory for an array of its own. That is
 *    nanoseconds, or as long as an interrupt between the two. It ends with this
 *    one update: no list is harmed, see cgstat_list_standalone();
 *  - lost if it makes an array for an entry that it found alive, and a flush
 *    has deleted it by then, after the whole of a release and a cycle. All
 *    that are added to this array until the next flush are shown as one.
 */

enum cgstat_phase {
	CGSTAT_IDLE,
	CGSTAT_TURNING,
	CGSTAT_FOLDING,
	CGSTAT_DELETING,
};

static __always_inline bool cgstat_trylock(struct cgstat_ctl *ctl)
{
	return cgstat_xchg(ctl->lock, 1) == 0;
}

static __always_inline void cgstat_unlock(struct cgstat_ctl *ctl)
{
	cgstat_xchg(ctl->lock, 0);
}

/*
 * Have nobody list this array any more, for it to be deleted. Not if it is on a
 * list, or about to be.
 */
static __always_inline bool cgstat_retire(struct cgstat_link *link)
{
	__u64 state = cgstat_read(link->state);

	return (state & CGSTAT_STATE_MASK) == CGSTAT_UNLISTED &&
	       cgstat_cmpxchg(link->state, state, state | CGSTAT_DEAD) == state;
}

static __always_inline void
cgstat_delete_pair(struct cgstat_map map, struct cgstat_ctl *ctl,
		   __u64 *key)
{
	if (!bpf_map_delete_elem(map.pairs, key))
		__sync_fetch_and_add(&ctl->pairs, -1);
}

/*
 * Give a slot back whose values have been taken, and which is on no list. The
 * count of flushes goes on, so that an update which still has the link does not
 * take the next owner's state for what it has read.
 */
static __always_inline void cgstat_free_slot(struct cgstat_slot *slot)
{
	cgstat_unlist(&slot->pair.link);
	cgstat_xchg(slot->owner, 0);
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

	if (!entry || !climb->from)
		return 1;
	map.fold(cgstat_total(entry, map.elems), cgstat_pending(climb->from, map.elems));
	if (entry->parent == climb->id || map.flags & CGSTAT_NO_HIERARCHY)
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

	bpf_loop(1 << 20, climb_step, &climb, 0);
	cgstat_clear_pending(map, cgstat_pending(entry, map.elems));
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
	map.take(values, cgstat_pending(entry, map.elems));
	cgstat_propagate(map, entry, id, climb_step);
	return next;
}

/*
 * Have no update list a pair that was made for an entry when that was being
 * deleted, having taken it off its list; it goes next. Returns what came next
 * on the list.
 */
static __always_inline __u64
cgstat_drop_pair(struct cgstat_pair *pair, struct cgstat_ctl *ctl)
{
	__u64 next = cgstat_read(pair->link.next);

	cgstat_xchg(pair->link.state, cgstat_read(pair->link.state) | CGSTAT_DEAD);
	__sync_fetch_and_add(&ctl->lost, 1);
	return next;
}

/* A pair that is listed is there, and so is an entry whose spill array is. */
static __always_inline __u64
cgstat_fold_hashed(struct cgstat_map map, __u64 id, __u64 cpu, void *climb_step)
{
	__u64 key = cgstat_pair_key(id, cpu), next;
	struct cgstat_pair *pair = bpf_map_lookup_elem(map.pairs, &key);
	struct cgstat_entry *entry = bpf_map_lookup_elem(map.entries, &id);
	struct cgstat_ctl *ctl = cgstat_get_ctl(map);

	if (!pair || !ctl)
		return 0;
	if (entry)
		return cgstat_fold(map, entry, id, &pair->link, cgstat_pair_values(pair),
				   climb_step);
	next = cgstat_drop_pair(pair, ctl);
	cgstat_delete_pair(map, ctl, &key);
	return next;
}

static __always_inline __u64
cgstat_fold_slot(struct cgstat_map map, __u64 id, __u64 cpu, void *climb_step)
{
	struct cgstat_entry *entry = bpf_map_lookup_elem(map.entries, &id);
	struct cgstat_slot *slot = cgstat_get_slot(map, id, cpu);
	struct cgstat_ctl *ctl = cgstat_get_ctl(map);
	__u64 next;

	if (!slot || slot->owner != id || !ctl)
		return 0;
	if (entry)
		return cgstat_fold(map, entry, id, &slot->pair.link,
				   cgstat_pair_values(&slot->pair), climb_step);
	next = cgstat_drop_pair(&slot->pair, ctl);
	cgstat_free_slot(slot);
	return next;
}

static __always_inline __u64
cgstat_fold_pair(struct cgstat_map map, __u64 listed, __u64 cpu, void *climb_step)
{
	if (listed & CGSTAT_IN_SLOT)
		return cgstat_fold_slot(map, listed & ~CGSTAT_IN_SLOT, cpu, climb_step);
	return cgstat_fold_hashed(map, listed, cpu, climb_step);
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

/* Take what a cgroup has on one cpu, listed or not. */
static __always_inline void
cgstat_take_pairs(struct cgstat_map map, __u64 id, __u64 cpu, __u64 *pending)
{
	__u64 key = cgstat_pair_key(id, cpu);
	struct cgstat_pair *pair = bpf_map_lookup_elem(map.pairs, &key);

	if (pair)
		map.take(cgstat_pair_values(pair), pending);
	pair = cgstat_find_slot(map, id, cpu);
	if (pair)
		map.take(cgstat_pair_values(pair), pending);
}

/* Fold what a note of cgstat_set_aside() names, leaving the lists alone. */
static __always_inline void
cgstat_fold_aside(struct cgstat_map map, __u64 id, __u64 cpu, void *climb_step)
{
	struct cgstat_entry *entry;
	__u64 *pending;

	id &= ~CGSTAT_IN_SLOT;
	entry = bpf_map_lookup_elem(map.entries, &id);
	if (!entry)
		return;
	pending = cgstat_pending(entry, map.elems);
	cgstat_take_pairs(map, id, cpu, pending);
	map.take(cgstat_spill(entry), pending);
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
 * Take the newest from the list of released cgroups, so that the oldest is the
 * first to be deleted: children are released before their parents.
 */
static __always_inline void
cgstat_turn_step(struct cgstat_map map, struct cgstat_ctl *ctl)
{
	__u64 id = ctl->pair;
	struct cgstat_entry *entry = bpf_map_lookup_elem(map.entries, &id);

	if (!entry) {
		ctl->pair = 0;
		return;
	}
	ctl->pair = entry->next_dead;
	entry->next_dead = ctl->dead;
	ctl->dead = id;
}

/* In place of 1 in an entry's @dead: it has an array that cannot be deleted yet. */
#define CGSTAT_KEPT 2

/*
 * Delete the entry of a released cgroup, or have the next cycle see to it: what
 * is still to be folded needs the entry and those above.
 */
static __always_inline void
cgstat_delete_entry(struct cgstat_map map, struct cgstat_ctl *ctl,
		    struct cgstat_entry *entry, __u64 id)
{
	__u64 next = entry->next_dead, parent_id = entry->parent;
	struct cgstat_entry *parent;

	if (entry->dead == CGSTAT_KEPT || cgstat_read(entry->children) ||
	    !cgstat_retire(&entry->link)) {
		/* Where the push gives up, the next step is this one again. */
		if (!cgstat_push(&ctl->released, &entry->next_dead, id)) {
			entry->next_dead = next;
			return;
		}
		entry->dead = 1;
	} else {
		parent = bpf_map_lookup_elem(map.entries, &parent_id);
		if (parent && parent_id != id && !(map.flags & CGSTAT_NO_HIERARCHY))
			__sync_fetch_and_add(&parent->children, -1);
		if (!bpf_map_delete_elem(map.entries, &id))
			__sync_fetch_and_add(&ctl->entries, -1);
	}
	ctl->cpu = 0;
	ctl->dead = next;
}

/*
 * Delete a released cgroup's pairs on one cpu, and with the last cpu the entry.
 * All that was added before the release has been folded.
 */
static __always_inline void
cgstat_delete_step(struct cgstat_map map, struct cgstat_ctl *ctl)
{
	__u64 id = ctl->dead, key = cgstat_pair_key(id, ctl->cpu);
	struct cgstat_pair *pair = bpf_map_lookup_elem(map.pairs, &key);
	struct cgstat_slot *slot = cgstat_get_slot(map, id, ctl->cpu);
	struct cgstat_entry *entry = bpf_map_lookup_elem(map.entries, &id);

	if (!entry) {
		ctl->dead = 0;
		return;
	}
	if (pair && cgstat_retire(&pair->link))
		cgstat_delete_pair(map, ctl, &key);
	else if (pair)
		entry->dead = CGSTAT_KEPT;
	if (slot && slot->owner == id) {
		if (cgstat_retire(&slot->pair.link))
			cgstat_free_slot(slot);
		else
			entry->dead = CGSTAT_KEPT;
	}
	if (++ctl->cpu >= cgstat_config.nr_cpus)
		cgstat_delete_entry(map, ctl, entry, id);
}

/* One step of a cycle; returns 1 when the cycle is complete. */
static __always_inline long cgstat_flush_step(struct cgstat_map map, void *climb_step)
{
	struct cgstat_ctl *ctl = cgstat_get_ctl(map);

	if (!ctl)
		return 1;
	if (ctl->phase == CGSTAT_IDLE) {
		ctl->pair = cgstat_xchg(ctl->released, 0);
		ctl->phase = CGSTAT_TURNING;
	} else if (ctl->phase == CGSTAT_TURNING) {
		if (ctl->pair) {
			cgstat_turn_step(map, ctl);
		} else {
			ctl->cpu = 0;
			ctl->phase = CGSTAT_FOLDING;
		}
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

/* Two whole cycles at most, with the lock held: all that was updated before. */
static __always_inline void cgstat_flush_all(struct cgstat_ctl *ctl, void *flush_step)
{
	/* A cycle begun earlier may have passed what was updated since. */
	if (ctl->phase != CGSTAT_IDLE)
		bpf_loop(1 << 23, flush_step, NULL, 0);
	bpf_loop(1 << 23, flush_step, NULL, 0);
}

struct cgstat_own {
	struct cgstat_entry *entry;
	__u64 id;
};

static __always_inline long
cgstat_own_step(struct cgstat_map map, __u32 cpu, struct cgstat_own *own)
{
	if (!own->entry)
		return 1;
	cgstat_take_pairs(map, own->id, cpu, cgstat_pending(own->entry, map.elems));
	return 0;
}

/*
 * With the lock held: all that was added before to @entry, or to one whose total
 * is a part of its total, is in that.
 *
 * If there are no others, what the lists hold does not matter, which can be the
 * whole machine's. It is the arrays that count: each is there before anything is
 * added to it, listed or not, and they are left as they are listed. What is
 * taken is propagated like that of any flush.
 */
static __always_inline void
cgstat_flush_entry(struct cgstat_map map, struct cgstat_ctl *ctl, struct cgstat_entry *entry,
		   __u64 id, void *own_step, void *climb_step, void *flush_step)
{
	struct cgstat_own own = { .entry = entry, .id = id };

	if (cgstat_read(entry->children) && !(map.flags & CGSTAT_NO_HIERARCHY)) {
		cgstat_flush_all(ctl, flush_step);
		return;
	}
	if (!(map.flags & CGSTAT_NO_PERCPU))
		bpf_loop(cgstat_config.nr_cpus, own_step, &own, 0);
	map.take(cgstat_spill(entry), cgstat_pending(entry, map.elems));
	cgstat_propagate(map, entry, id, climb_step);
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
	__u64 id;
	__u64 cpu;
};

/* Take and delete the pairs of a released cgroup on one cpu. */
static __always_inline long
cgstat_settle_step(struct cgstat_map map, struct cgstat_settle *settle)
{
	__u64 id = settle->id, cpu = settle->cpu++, key = cgstat_pair_key(id, cpu);
	struct cgstat_slot *slot = cgstat_get_slot(map, id, cpu);
	struct cgstat_ctl *ctl = cgstat_get_ctl(map);

	if (!ctl || !settle->entry)
		return 0;
	cgstat_take_pairs(map, id, cpu, cgstat_pending(settle->entry, map.elems));
	cgstat_delete_pair(map, ctl, &key);
	if (slot && slot->owner == id)
		cgstat_free_slot(slot);
	return 0;
}

/* Fold per-cpu, spill and pending into total, and into the parent's pending. */
static __always_inline void
cgstat_fold_rstat(struct cgstat_map map, struct cgstat_ctl *ctl, struct cgstat_entry *entry,
		  __u64 id, __u64 cpu, void *settle_step)
{
	struct cgstat_settle settle = { .id = id };
	__u64 key = cgstat_pair_key(id, cpu);
	struct cgstat_entry *parent;
	__u64 *pending, parent_id;
	struct cgstat_pair *pair;

	pending = cgstat_pending(entry, map.elems);
	pair = bpf_map_lookup_elem(map.pairs, &key);
	if (pair)
		cgstat_unlist(&pair->link);
	pair = cgstat_find_slot(map, id, cpu);
	if (pair)
		cgstat_unlist(&pair->link);
	cgstat_take_pairs(map, id, cpu, pending);
	cgstat_unlist(&entry->link);
	map.take(cgstat_spill(entry), pending);
	if (entry->dead) {
		settle.entry = entry;
		bpf_loop(cgstat_config.nr_cpus, settle_step, &settle, 0);
	}
	/* An entry's parent has an entry; the top is its own parent. */
	parent_id = entry->parent;
	parent = bpf_map_lookup_elem(map.entries, &parent_id);
	if (!parent && !(map.flags & CGSTAT_NO_HIERARCHY))
		return;
	map.fold(cgstat_total(entry, map.elems), pending);
	if (parent && parent_id != id && !(map.flags & CGSTAT_NO_HIERARCHY))
		map.fold(cgstat_pending(parent, map.elems), pending);
	cgstat_clear_pending(map, pending);
	if (entry->dead && !bpf_map_delete_elem(map.entries, &id))
		__sync_fetch_and_add(&ctl->entries, -1);
}

static __always_inline void
cgstat_flush_rstat(struct cgstat_map map, __u64 id, __u64 cpu, void *settle_step)
{
	struct cgstat_entry *entry = bpf_map_lookup_elem(map.entries, &id);
	struct cgstat_ctl *ctl = cgstat_get_ctl(map);

	if (!entry || !ctl)
		return;
	cgstat_begin_fold(map, ctl, entry, id);
	cgstat_fold_rstat(map, ctl, entry, id, cpu, settle_step);
	cgstat_end_fold(ctl);
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

/* Flush, from a sleepable program. @cgrp is a pointer that the verifier trusts. */
static __always_inline void cgstat_flush_cgroup(struct cgroup *cgrp)
{
	if (cgstat_config.css_rstat)
		css_rstat_flush(&cgrp->self);
	else
		cgroup_rstat_flush(cgrp);
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
	cgstat_flush_cgroup(cgrp);
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

/* ---- lookup by a BPF program --------------------------------------------- */

/* Wait for another flush to end, as a step of bpf_loop(). */
static __always_inline long cgstat_lock_step(struct cgstat_map map, bool *locked)
{
	struct cgstat_ctl *ctl = cgstat_get_ctl(map);

	*locked = ctl && cgstat_trylock(ctl);
	return *locked;
}

static __always_inline long
cgstat_copy_total(struct cgstat_map map, __u64 id, __u64 *out)
{
	struct cgstat_entry *entry = bpf_map_lookup_elem(map.entries, &id);
	__u64 *total;
	__u32 i;

	if (!entry || entry->dead)
		return -CGSTAT_ENOENT;
	total = cgstat_total(entry, map.elems);
	for (i = 0; i < map.elems; i++)
		cgstat_write(out[i], cgstat_read(total[i]));
	return 0;
}

/*
 * The total of @cgrp, flushed, to @out. The caller holds the cgroup and can
 * sleep: the kernel's flush does. standalone waits for a flush by somebody
 * else, for so long.
 */
#define CGSTAT_LOCK_TRIES (1 << 20)

static __always_inline long
cgstat_lookup_total(struct cgstat_map map, struct cgroup *cgrp, __u64 *out,
		    void *lock_step, void *own_step, void *climb_step, void *flush_step)
{
	struct cgstat_entry *entry;
	struct cgstat_ctl *ctl;
	bool locked = false;
	__u64 id;
	long ret;

	if (cgstat_config.engine == CGSTAT_NATIVE)
		return bpf_cgroup_stats_lookup(map.native, cgrp, out, 8 * map.elems);
	if (cgstat_config.engine == CGSTAT_RSTAT) {
		cgstat_flush_cgroup(cgrp);
		return cgstat_copy_total(map, cgstat_id(cgrp), out);
	}
	ctl = cgstat_get_ctl(map);
	bpf_loop(CGSTAT_LOCK_TRIES, lock_step, &locked, 0);
	if (!ctl || !locked)
		return -CGSTAT_EBUSY;
	id = cgstat_id(cgrp);
	entry = bpf_map_lookup_elem(map.entries, &id);
	if (entry)
		cgstat_flush_entry(map, ctl, entry, id, own_step, climb_step, flush_step);
	ret = cgstat_copy_total(map, id, out);
	cgstat_unlock(ctl);
	return ret;
}

#endif /* CGSTAT_FLUSH_H */
