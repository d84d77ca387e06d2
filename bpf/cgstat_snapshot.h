/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Snapshots: the totals of many cgroups, of one moment.
 *
 * User space lays out a buffer, an array that it has mapped and that is the one
 * element of the stats map's @buffers. A place in it is a word and a value. Of
 * @count cgroups, parents before their children:
 *
 *	place			word			value
 *	i			in: id			total
 *				out: 0 if it has none
 *	count + i		in: place of its parent	pending (rstat)
 *	2 * count + 2 * j	-			total of an entry that was saved (rstat)
 *	2 * count + 2 * j + 1	-			... and what was pending there
 *
 * What is promised is that of the totals shown each is the sum of those of its
 * children, of what was updated in itself, and of what removed children left;
 * and that all that was updated before is in them. (So with maxima.)
 *
 * standalone: the flush and the copying are under one lock, with which all
 * totals of an entry and its ancestors change together, see cgstat_propagate().
 *
 * rstat: the lock is the kernel's, and is let go of when a flush has ended, or
 * goes on to the next cpu. From then on flushes of parts of the subtree, by
 * anybody, change some of its totals, and leave to a later flush what is pending
 * in the ancestors. So it takes two things.
 *
 * Let a cgroup's *sum* be its total and all that is pending in itself and below.
 * A fold, that is one call of the kernel's hook, moves what it finds in the
 * per-cpu arrays to the total, and the same to the parent's pending array: after
 * it each sum has become larger by what was updated in its subtree, whatever is
 * still pending. So between two folds sums are exact, at any moment. They are
 * what is shown, and made in a walk from the leaves up, cgstat_settle_pending().
 *
 * And the moment has to be the same for all. Folds are serialised; from one of
 * them on, all find @snapshot set, and each saves the entries that it is about to
 * change, as they were, unless that has been done: the moment is before this
 * fold. The copying takes what was saved where there is such, and else what is
 * there, and then looks again whether it was saved meanwhile: what was not saved
 * by then was not changed before. A fold that is under way when @snapshot is set
 * may not have seen it. It is waited for, for microseconds: both write and then
 * read, with a full barrier between (@folding and @snapshot; @snapshot and
 * @folding), so one of the two sees the other.
 *
 * Both include what was updated before the flush that precedes the moment. Of
 * cgroups that are not asked for nothing is needed: what is pending there is of
 * updates during the snapshot, or else the flush would have folded it.
 */
#ifndef CGSTAT_SNAPSHOT_H
#define CGSTAT_SNAPSHOT_H

#include "cgstat_entries.h"

/* What @saved of an entry is made of: the number of a snapshot, and which j. */
#define CGSTAT_SAVED_BITS 24
#define CGSTAT_SAVED_MASK ((1ULL << CGSTAT_SAVED_BITS) - 1)

/* In the word of count + i: something is pending there. */
#define CGSTAT_IS_PENDING (1ULL << 63)

#define CGSTAT_WAIT_TRIES (1 << 20)

/* What the steps of one snapshot share. */
struct cgstat_copy {
	__u64 number;
	__u32 count;
	__u32 left;		/* cgroups that have not been seen to; counted down, as the
				 * verifier follows what begins with a number it knows */
	bool pending;		/* something is, in one of them */
	bool quiet;		/* no fold is under way */
};

/* A place of the buffer: its word, which the value follows. */
static __always_inline __u64 *cgstat_place(struct cgstat_map map, __u32 place)
{
	__u32 zero = 0;
	void *buffer = bpf_map_lookup_elem(map.buffers, &zero);

	return buffer ? bpf_map_lookup_elem(buffer, &place) : NULL;
}

/* Copy a value. Returns whether any of it is not 0. */
static __always_inline bool cgstat_copy_value(struct cgstat_map map, __u64 *to, __u64 *from)
{
	__u64 value, any = 0;
	__u32 i;

	for (i = 0; i < map.elems; i++) {
		value = cgstat_read(from[i]);
		cgstat_write(to[i], value);
		any |= value;
	}
	return any;
}

/* ---- in folds: rstat ------------------------------------------------------ */

/*
 * Save @entry, which is about to be changed. Where there is no room, or no
 * buffer, it is not, and @saved is more than @room: the snapshot is made anew.
 */
static __always_inline void
cgstat_save(struct cgstat_map map, struct cgstat_ctl *ctl, struct cgstat_entry *entry,
	    __u64 number)
{
	__u64 *total, *pending, at;

	if (entry->saved >> CGSTAT_SAVED_BITS == number)
		return;
	at = __sync_fetch_and_add(&ctl->saved, 1);
	if (at >= ctl->room || at > CGSTAT_SAVED_MASK)
		return;
	total = cgstat_place(map, ctl->first + 2 * at);
	pending = cgstat_place(map, ctl->first + 2 * at + 1);
	if (!total || !pending) {
		__sync_fetch_and_add(&ctl->saved, ctl->room);
		return;
	}
	cgstat_copy_value(map, total + 1, cgstat_total(entry, map.elems));
	cgstat_copy_value(map, pending + 1, cgstat_pending(entry, map.elems));
	cgstat_xchg(entry->saved, number << CGSTAT_SAVED_BITS | at);
}

/* A fold of @entry begins; it is to end with cgstat_end_fold(). */
static __always_inline void
cgstat_begin_fold(struct cgstat_map map, struct cgstat_ctl *ctl, struct cgstat_entry *entry,
		  __u64 id)
{
	__u64 parent_id = entry->parent, number;
	struct cgstat_entry *parent;

	cgstat_xchg(ctl->folding, 1);
	number = cgstat_read(ctl->snapshot);
	if (!number)
		return;
	cgstat_save(map, ctl, entry, number);
	parent = bpf_map_lookup_elem(map.entries, &parent_id);
	if (parent && parent_id != id && !(map.flags & CGSTAT_NO_HIERARCHY))
		cgstat_save(map, ctl, parent, number);
}

static __always_inline void cgstat_end_fold(struct cgstat_ctl *ctl)
{
	cgstat_xchg(ctl->folding, 0);
}

/* ---- steps of bpf_loop() -------------------------------------------------- */

/* standalone: with the lock held, after a flush. */
static __always_inline long
cgstat_copy_step_standalone(struct cgstat_map map, __u32 i, struct cgstat_copy *copy)
{
	__u64 *total = cgstat_place(map, i), id;
	struct cgstat_entry *entry;

	if (!total)
		return 1;
	id = total[0];
	entry = bpf_map_lookup_elem(map.entries, &id);
	if (entry && !entry->dead)
		cgstat_copy_value(map, total + 1, cgstat_total(entry, map.elems));
	else
		total[0] = 0;
	copy->left--;
	return 0;
}

/*
 * rstat. Who deletes an entry does not wait for us, and its memory can be
 * another's at once. Then it is not found any more: an id is used once.
 */
static __always_inline long
cgstat_copy_step_rstat(struct cgstat_map map, __u32 i, struct cgstat_copy *copy)
{
	struct cgstat_ctl *ctl = cgstat_get_ctl(map);
	__u64 *total = cgstat_place(map, i), *pending = cgstat_place(map, copy->count + i);
	__u64 *total_saved, *pending_saved, id, saved, at;
	struct cgstat_entry *entry;
	bool any = false;

	if (!ctl || !total || !pending)
		return 1;
	copy->left--;
	id = total[0];
	entry = bpf_map_lookup_elem(map.entries, &id);
	if (!entry || cgstat_read(entry->dead)) {
		total[0] = 0;
		return 0;
	}
	cgstat_copy_value(map, total + 1, cgstat_total(entry, map.elems));
	any = cgstat_copy_value(map, pending + 1, cgstat_pending(entry, map.elems));
	/* With a full barrier: after the values. */
	saved = __sync_fetch_and_add(&entry->saved, 0);
	if (bpf_map_lookup_elem(map.entries, &id) != entry) {
		total[0] = 0;
		return 0;
	}
	if (saved >> CGSTAT_SAVED_BITS == copy->number) {
		at = ctl->first + 2 * (saved & CGSTAT_SAVED_MASK);
		total_saved = cgstat_place(map, at);
		pending_saved = cgstat_place(map, at + 1);
		if (!total_saved || !pending_saved)
			return 1;
		cgstat_copy_value(map, total + 1, total_saved + 1);
		any = cgstat_copy_value(map, pending + 1, pending_saved + 1);
	}
	pending[0] &= ~CGSTAT_IS_PENDING;
	if (any) {
		pending[0] |= CGSTAT_IS_PENDING;
		copy->pending = true;
	}
	return 0;
}

/* rstat: add what is pending to the total, and to what is pending in the parent. */
static __always_inline long
cgstat_settle_pending(struct cgstat_map map, __u32 step, struct cgstat_copy *copy)
{
	__u32 i = copy->count - 1 - step, parent;
	__u64 *total = cgstat_place(map, i), *pending = cgstat_place(map, copy->count + i);
	__u64 *above;

	if (!total || !pending)
		return 1;
	if (!total[0] || !(pending[0] & CGSTAT_IS_PENDING))
		return 0;
	map.fold(total + 1, pending + 1);
	parent = pending[0];
	if (!i || parent >= i || map.flags & CGSTAT_NO_HIERARCHY)
		return 0;
	above = cgstat_place(map, copy->count + parent);
	if (!above)
		return 1;
	map.fold(above + 1, pending + 1);
	above[0] |= CGSTAT_IS_PENDING;
	return 0;
}

/* rstat: wait for a fold to end. */
static __always_inline long cgstat_quiet_step(struct cgstat_map map, struct cgstat_copy *copy)
{
	struct cgstat_ctl *ctl = cgstat_get_ctl(map);

	copy->quiet = ctl && !cgstat_read(ctl->folding);
	return copy->quiet;
}

/* ---- the whole: rstat ------------------------------------------------------
 *
 * After a flush, and with our lock held, that keeps others from making another.
 */

/* Have folds save, from a moment on. -EBUSY: one that is under way does not end. */
static __always_inline long
cgstat_begin_snapshot(struct cgstat_ctl *ctl, struct cgstat_copy *copy, __u32 room,
		      void *quiet_step)
{
	/* One that began during an earlier snapshot may save for that. */
	bpf_loop(CGSTAT_WAIT_TRIES, quiet_step, copy, 0);
	if (!copy->quiet)
		return -CGSTAT_EBUSY;
	ctl->saved = 0;
	ctl->room = room;
	ctl->first = 2 * copy->count;
	copy->number = ++ctl->snapshots;
	cgstat_xchg(ctl->snapshot, copy->number);
	bpf_loop(CGSTAT_WAIT_TRIES, quiet_step, copy, 0);
	return copy->quiet ? 0 : -CGSTAT_EBUSY;
}

/* Copy. -EAGAIN: there was no room to save; -EINVAL: the buffer is too small. */
static __always_inline long
cgstat_copy_snapshot(struct cgstat_ctl *ctl, struct cgstat_copy *copy, void *copy_step,
		     void *settle_step)
{
	bpf_loop(copy->count, copy_step, copy, 0);
	if (cgstat_read(ctl->saved) > ctl->room)
		return -CGSTAT_EAGAIN;
	if (copy->pending)
		bpf_loop(copy->count, settle_step, copy, 0);
	return copy->left ? -CGSTAT_EINVAL : 0;
}

static __always_inline void cgstat_end_snapshot(struct cgstat_ctl *ctl)
{
	cgstat_xchg(ctl->snapshot, 0);
}

#endif /* CGSTAT_SNAPSHOT_H */
