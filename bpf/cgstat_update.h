/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The update of a stats map, and what its data looks like: shared by
 * collectors that are compiled in advance (cgstat.bpf.h) and by those that bcc
 * compiles (cgstat.bcc.h). Uses nothing of the kernel's but BPF helpers.
 *
 * The exactness of a lookup rests on three rules that hold throughout:
 *  - an update adds, with a full barrier, before it tests whether its array is
 *    already listed for the next flush;
 *  - a flush takes the listed mark away, with a full barrier, before it reads;
 *  - what a flush takes from a sum, it takes by atomic exchange. A maximum it
 *    leaves in place: folding that once more changes nothing.
 *    (Of a leaf it takes so, too, what is listed, and leaves it listed: no harm.)
 * So of an update and a flush that race, either the update finds the mark gone
 * and lists its array again, or the flush finds what was added.
 */
#ifndef CGSTAT_UPDATE_H
#define CGSTAT_UPDATE_H

/* Elements of a value. An entry holds three arrays of them. */
#define CGSTAT_MAX_ELEMS 128

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
#define CGSTAT_DEAD 3		/* standalone: about to be deleted, and listed no more */
#define CGSTAT_STATE_MASK 3ULL

/*
 * The key of a pair: one word, which takes less to hash and to compare than two.
 * Ids count what was made in cgroupfs, files too, and end far below 2^48; there
 * are at most 8192 cpus, whose numbers end below CGSTAT_IN_SLOT.
 */
#define CGSTAT_ID_BITS 48
static __always_inline __u64 cgstat_pair_key(__u64 id, __u64 cpu)
{
	return cpu << CGSTAT_ID_BITS | id;
}

/* A pair's values follow it. */
struct cgstat_pair {
	struct cgstat_link link;
};

/*
 * Pairs are in a hash, but for those that a cpu has a slot for: in an array,
 * where an update comes to them without hashing, and by a lookup that is a few
 * instructions of its own program. A cgroup's slot is told by a hash of its id,
 * see cgstat_get_slot(); the first to come has it, until its entry is deleted.
 * Whoever finds it taken has a pair in the hash.
 *
 * Only updates on a slot's cpu take it, and only the flusher gives it back. A
 * cgroup can come to have both, if the slot is given back while the pair lives;
 * so lists, flushes and deletions tell one from the other, and see to each.
 */
struct cgstat_slot {
	__u64 owner;		/* cgroup id; 0: free; CGSTAT_IN_SLOT: about to be taken */
	struct cgstat_pair pair;
};

/* In a list, and in a note: the array of the cgroup in its slot. Ids are below. */
#define CGSTAT_IN_SLOT (1ULL << 63)

/* Slots of a cpu, as a power of two: some 32 KiB. Known to the loader, too. */
static __always_inline __u32 cgstat_slot_bits(__u32 elems)
{
	return elems <= 13 ? 8 : elems <= 29 ? 7 : elems <= 61 ? 6 : 5;
}

/* An entry's spill, total and pending arrays follow it. */
struct cgstat_entry {
	__u64 parent;		/* id of the parent; its own id at the top; 0: not ready */
	__u32 dead;		/* the cgroup was released */
	__u32 children;		/* standalone: entries whose parent this is */
	union {
		__u64 next_dead;	/* standalone: id of the next on the list of released cgroups */
		__u64 saved;		/* rstat: where a snapshot has it, see cgstat_snapshot.h */
	};
	struct cgstat_link link;	/* of the spill array */
};

/* Notes that a list has room for, see cgstat_make_sure(). */
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

/*
 * Per stats map: the flusher's state (standalone), and what went wrong: native
 * uses @lost alone.
 */
struct cgstat_ctl {
	__u64 entries;		/* entries there are */
	__u64 pairs;		/* per-cpu arrays there are */
	__u64 spilled;		/* updates that found no per-cpu array */
	__u64 displaced;	/* updates counted to an ancestor, for want of an entry */
	__u64 lost;		/* updates that could not be counted */
	__u64 lock;		/* standalone: held by the flusher; rstat: by who makes a snapshot */
	union {
		struct {	/* standalone */
			__u64 released;	/* cgroups released since the last cycle began: the newest */
			__u64 phase;	/* of the cycle that is under way, and where it is: */
			__u64 cpu;	/* ... the next cpu */
			__u64 pair;	/* ... the next on the list taken: of pairs, from cpu - 1;
					 *     before that, of released cgroups */
			__u64 spill;	/* ... the next on the list of spill arrays taken there */
			__u64 dead;	/* ... the next released cgroup to delete */
		};
		struct {	/* rstat: of snapshots, see cgstat_snapshot.h */
			__u64 folding;	/* a fold is under way */
			__u64 snapshot;	/* the number of the one that is being made; or 0 */
			__u64 snapshots;	/* how many there have been */
			__u64 saved;	/* entries that folds have saved for it */
			__u64 room;	/* ... and that there is room for */
			__u64 first;	/* ... the first place in the buffer */
		};
	};
};

/* Flags of a stats map, given with its declaration. */
enum cgstat_flags {
	/* No per-cpu arrays: all cpus add to one array of the entry. */
	CGSTAT_NO_PERCPU = 1,
	/* An entry counts its own cgroup alone. */
	CGSTAT_NO_HIERARCHY = 2,
};

/*
 * A stats map: its BPF maps, a zeroed entry to make new ones from, its size,
 * and to whoever flushes, how elements are folded and where the top is.
 */
struct cgstat_map {
	void *entries;
	void *pairs;
	void *slots;
	void *lists;
	void *ctl;
	void *native;
	void *buffers;
	const void *zero;
	__u32 elems;
	__u32 flags;
	const volatile struct cgstat_map_config *config;
	int (*take)(void *values, void *pending);
	int (*fold)(void *into, void *pending);
};

/* Where an update goes; lives on the stack from begin to end. */
struct cgstat_where {
	struct cgstat_link *link;	/* native: none */
	void *ctl;		/* the BPF map; what is lost is seldom, and looks there */
	__u64 id;		/* as lists have it */
	bool spill;
};

#define cgstat_read(x) (*(volatile typeof(x) *)&(x))
#define cgstat_write(x, v) (*(volatile typeof(x) *)&(x) = (v))
#define cgstat_xchg(x, v) __sync_lock_test_and_set(&(x), (v))
#define cgstat_cmpxchg(x, old, v) __sync_val_compare_and_swap(&(x), (old), (v))

/*
 * The result has to be used: without it the compiler emits the form of the
 * operation that does not return the old value, and that one is no barrier on
 * arm64.
 */
#define cgstat_fetch_add(x, n)						\
	({								\
		__u64 old__ = __sync_fetch_and_add(&(x), (n));		\
		asm volatile("" : : "r"(old__));			\
	})
#define cgstat_fetch_or(x, bits)					\
	({								\
		__u64 old__ = __sync_fetch_and_or(&(x), (bits));	\
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

static __always_inline struct cgstat_ctl *cgstat_get_ctl(struct cgstat_map map)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(map.ctl, &zero);
}

/* An update could not be counted. */
static __always_inline void cgstat_count_lost(void *ctl_map)
{
	__u32 zero = 0;
	struct cgstat_ctl *ctl = bpf_map_lookup_elem(ctl_map, &zero);

	if (ctl)
		__sync_fetch_and_add(&ctl->lost, 1);
}

/* ---- values -------------------------------------------------------------- */

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

/*
 * Bucket of @value in a linear histogram of @n buckets: 0 for values up to
 * @start, i for those above and up to @start + i * @step, the last for all
 * that are larger.
 */
static __always_inline __u64
cgstat_linear_bucket(__u64 value, __u32 n, __u64 start, __u64 step)
{
	__u64 bucket;

	if (value <= start)
		return 0;
	bucket = (value - start - 1) / step + 1;
	/* So that the comparison is of what is used, for the verifier to see. */
	asm volatile("" : "+r"(bucket));
	if (bucket >= n)
		return n - 1;
	return bucket;
}

/* Tries to raise an element. Each that fails means that another one raised it. */
#define CGSTAT_RAISE_TRIES 64

/*
 * Make @element at least @value, with a full barrier in any case, so that the
 * test of the listed mark that follows comes after it: where the element holds
 * as much already, whoever raised it may not have listed the array yet.
 */
static __always_inline void
cgstat_raise_element(__u64 *element, __u64 value, struct cgstat_where *where)
{
	__u64 old;
	int i;

	for (i = 0; i < CGSTAT_RAISE_TRIES; i++) {
		old = cgstat_read(*element);
		if (old >= value) {
			cgstat_fetch_add(*element, 0);
			return;
		}
		if (cgstat_cmpxchg(*element, old, value) == old)
			return;
	}
	cgstat_count_lost(where->ctl);
}

/*
 * HyperLogLog: 8 registers to an element, a byte each. A register holds the
 * highest rank, the position of the lowest bit set, of the hashes that fell to
 * it. Flajolet et al., "HyperLogLog", 2007.
 */
#define CGSTAT_HLL_HIGH 0x8080808080808080ULL

/* Of each byte the larger one; ranks are below 128. */
static __always_inline __u64 cgstat_hll_max(__u64 a, __u64 b)
{
	/* The high bit of each byte: whether a's is at least b's. */
	__u64 larger = ((a | CGSTAT_HLL_HIGH) - b) & CGSTAT_HLL_HIGH;
	/* ... as a mask of whole bytes, high bits left out */
	__u64 mask = larger - (larger >> 7);

	return (a & mask) | (b & ~mask);
}

/* The finalizer of MurmurHash3 (Appleby, public domain): any integer to a hash. */
static __always_inline __u64 cgstat_hash(__u64 key)
{
	key ^= key >> 33;
	key *= 0xff51afd7ed558ccdULL;
	key ^= key >> 33;
	key *= 0xc4ceb9fe1a85ec53ULL;
	key ^= key >> 33;
	return key;
}

/* Have @hash seen by the @n elements of @registers; @n is a power of two. */
static __always_inline void
cgstat_hll_see(__u64 *registers, __u32 n, __u64 hash, struct cgstat_where *where)
{
	__u32 index = hash & (8 * n - 1), shift = index % 8 * 8, i;
	__u64 *element = &registers[index / 8], rest = hash / (8 * n), rank, old, new;

	/* Of 64 bits the lowest have been used; a 1 above what is left ends it. */
	rest |= 1ULL << 50;
	rank = cgstat_log2_bucket(rest & -rest, 64) + 1;
	for (i = 0; i < CGSTAT_RAISE_TRIES; i++) {
		old = cgstat_read(*element);
		new = cgstat_hll_max(old, rank << shift);
		if (new == old) {
			cgstat_fetch_add(*element, 0);
			return;
		}
		if (cgstat_cmpxchg(*element, old, new) == old)
			return;
	}
	cgstat_count_lost(where->ctl);
}

/* ---- update ------------------------------------------------------------- */

/*
 * Take the listed mark away: what is added from here on is listed again.
 *
 * Only a flush changes the number of flushes, and flushes are serialised, by
 * our lock (standalone) or the kernel's (rstat); and of a slot that is nobody's,
 * where no flush looks, who is about to take it. So the number that is read is
 * current, whatever updates do to the low bits meanwhile.
 */
static __always_inline void cgstat_unlist(struct cgstat_link *link)
{
	__u64 flushes = cgstat_read(link->state) & ~CGSTAT_STATE_MASK;

	cgstat_xchg(link->state, flushes + CGSTAT_STATE_MASK + 1);
}

/*
 * Where cgroup @id's slot on @cpu is, whoever has it. The ids of cgroups that
 * are made one after the other are as far apart as each has files, which may be
 * a multiple of the slots there are. Multiplied by 2^64 over the golden ratio,
 * such ids spread evenly (Knuth, The Art of Computer Programming, 6.4).
 */
static __always_inline struct cgstat_slot *
cgstat_get_slot(struct cgstat_map map, __u64 id, __u32 cpu)
{
	__u32 bits = cgstat_slot_bits(map.elems);
	__u32 key = cpu << bits | id * 0x9e3779b97f4a7c15ULL >> (64 - bits);

	return bpf_map_lookup_elem(map.slots, &key);
}

/* The pair of cgroup @id in its slot on @cpu, if it has that. */
static __always_inline struct cgstat_pair *
cgstat_find_slot(struct cgstat_map map, __u64 id, __u32 cpu)
{
	struct cgstat_slot *slot = cgstat_get_slot(map, id, cpu);

	return slot && cgstat_read(slot->owner) == id ? &slot->pair : NULL;
}

/*
 * The way of most updates: cgroup @id has the slot on this cpu. A slot is given
 * back as a pair is deleted, so what holds of an update that finds a pair holds
 * here.
 */
static __always_inline __u64 *
cgstat_find_quickly(struct cgstat_map map, __u64 id, struct cgstat_where *where)
{
	struct cgstat_pair *pair;

	if (map.flags & CGSTAT_NO_PERCPU)
		return NULL;
	pair = cgstat_find_slot(map, id, bpf_get_smp_processor_id());
	if (!pair)
		return NULL;
	where->link = &pair->link;
	where->ctl = map.ctl;
	where->id = id | CGSTAT_IN_SLOT;
	where->spill = false;
	return cgstat_pair_values(pair);
}

/* The way of those that found their slot taken: cgroup @id's pair in the hash. */
static __always_inline __u64 *
cgstat_find_hashed(struct cgstat_map map, __u64 id, struct cgstat_where *where)
{
	__u64 key = cgstat_pair_key(id, bpf_get_smp_processor_id());
	struct cgstat_pair *pair;

	if (map.flags & CGSTAT_NO_PERCPU)
		return NULL;
	pair = bpf_map_lookup_elem(map.pairs, &key);
	if (!pair)
		return NULL;
	where->link = &pair->link;
	where->ctl = map.ctl;
	where->id = id;
	where->spill = false;
	return cgstat_pair_values(pair);
}

/*
 * Take the slot, if it is free, for an entry that is alive. A late update may
 * have added to it since it was given back, and marked it as listed, which kept
 * ours from being listed: so both are cleared now, before any of ours can be
 * there. An update that interrupts us finds it taken by none.
 */
static __always_inline void cgstat_take_slot(struct cgstat_map map, __u64 id)
{
	struct cgstat_slot *slot = cgstat_get_slot(map, id, bpf_get_smp_processor_id());

	if (!slot || cgstat_read(slot->owner) || !map.zero ||
	    cgstat_cmpxchg(slot->owner, 0, CGSTAT_IN_SLOT))
		return;
	bpf_probe_read_kernel(cgstat_pair_values(&slot->pair), 8 * map.elems, map.zero);
	cgstat_unlist(&slot->pair.link);
	cgstat_xchg(slot->owner, id);
}

/* What nearly all updates of cgroup @id add to, as it is there. */
static __always_inline __u64 *
cgstat_find_pair(struct cgstat_map map, __u64 id, struct cgstat_where *where)
{
	__u64 *values = cgstat_find_quickly(map, id, where);

	return values ? values : cgstat_find_hashed(map, id, where);
}

/*
 * What an update of cgroup @id adds to that has no pair on this cpu, without
 * making an entry: the slot, if it is free, or a new pair in the hash, or where
 * there is no memory for one (as is common with interrupts off, the memory being
 * refilled when they are on), the entry's spill array. For a cgroup that was
 * released no array is made, as the flush that would delete it may have been
 * there.
 */
static __always_inline __u64 *
cgstat_find_others(struct cgstat_map map, struct cgstat_ctl *ctl, __u64 id,
		   struct cgstat_where *where)
{
	__u64 key = cgstat_pair_key(id, bpf_get_smp_processor_id());
	struct cgstat_entry *entry;
	__u64 *values;

	where->link = NULL;
	where->ctl = map.ctl;
	where->id = id;
	where->spill = false;
	entry = bpf_map_lookup_elem(map.entries, &id);
	if (!entry || !cgstat_read(entry->parent) || cgstat_read(entry->dead))
		return NULL;
	if (!(map.flags & CGSTAT_NO_PERCPU)) {
		/* It may have been taken by somebody who interrupted us. */
		cgstat_take_slot(map, id);
		values = cgstat_find_quickly(map, id, where);
		if (values)
			return values;
		if (map.zero && !bpf_map_update_elem(map.pairs, &key, (void *)map.zero, BPF_NOEXIST))
			__sync_fetch_and_add(&ctl->pairs, 1);
		values = cgstat_find_hashed(map, id, where);
		if (values)
			return values;
		__sync_fetch_and_add(&ctl->spilled, 1);
	}
	where->spill = true;
	where->link = &entry->link;
	return cgstat_spill(entry);
}

static __always_inline __u64 *
cgstat_find_values(struct cgstat_map map, struct cgstat_ctl *ctl, __u64 id,
		   struct cgstat_where *where)
{
	__u64 *values = cgstat_find_pair(map, id, where);

	return values ? values : cgstat_find_others(map, ctl, id, where);
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
 * standalone: leave a note of an array that may not be listed, for the flush,
 * which then takes the values without a look at the link. Returns whether there
 * was room.
 */
static __always_inline bool cgstat_set_aside(struct cgstat_list *list, __u64 id)
{
	__u64 old;
	int i;

	for (i = 0; i < CGSTAT_ASIDE; i++) {
		old = cgstat_cmpxchg(list->aside[i], 0, id);
		if (!old || old == id)
			return true;
	}
	return false;
}

/*
 * standalone: see to an update whose array may be on no list, though it has
 * added and tried to list it. A flush that came since @flushes was read takes
 * what was added.
 *
 * LISTING: the update that we interrupted is about to list the array, but may
 * not have. Where all notes are taken nothing is lost: it lists the array when
 * it goes on, and until then a lookup misses this update. Where programs cannot
 * be preempted no more than three arrays are about to be listed on a cpu, so
 * that there is room.
 *
 * UNLISTED: our push gave up. The next update of the array lists it. As there
 * may be none, this one is shown as lost where all notes are taken.
 *
 * DEAD: the cgroup was released, and the array is being deleted.
 */
static __always_inline void
cgstat_make_sure(struct cgstat_list *list, struct cgstat_where *where, __u64 flushes)
{
	__u64 state = cgstat_read(where->link->state);
	bool lost = (state & CGSTAT_STATE_MASK) == CGSTAT_DEAD;

	if (state == (flushes | CGSTAT_LISTING))
		cgstat_set_aside(list, where->id);
	else if (state == (flushes | CGSTAT_UNLISTED))
		lost = !cgstat_set_aside(list, where->id);
	if (lost)
		cgstat_count_lost(where->ctl);
}

/* standalone: whether @where's array is the one that its map has for its cgroup. */
static __always_inline bool
cgstat_is_current(struct cgstat_map map, struct cgstat_where *where)
{
	__u64 id = where->id & ~CGSTAT_IN_SLOT, key;
	__u32 cpu = bpf_get_smp_processor_id();
	struct cgstat_entry *entry;
	struct cgstat_pair *pair;

	if (where->spill) {
		entry = bpf_map_lookup_elem(map.entries, &id);
		return entry && &entry->link == where->link;
	}
	key = cgstat_pair_key(id, cpu);
	if (where->id & CGSTAT_IN_SLOT)
		pair = cgstat_find_slot(map, id, cpu);
	else
		pair = bpf_map_lookup_elem(map.pairs, &key);
	return pair && &pair->link == where->link;
}

/*
 * standalone: put the array on its list, if it is not there.
 *
 * What was listed by a wrong name would cut off all that is behind it on the
 * list. An array that is being listed, or is listed, is not deleted. Until then
 * it may have been, if its cgroup was released (see "Late updates" in
 * cgstat_flush.h), and its memory may be another's by now. So look when the mark
 * is set.
 */
static __always_inline void
cgstat_list_standalone(struct cgstat_map map, struct cgstat_where *where)
{
	struct cgstat_link *link = where->link;
	__u32 cpu = bpf_get_smp_processor_id();
	struct cgstat_list *list;
	__u64 flushes;
	bool listed;

	list = bpf_map_lookup_elem(map.lists, &cpu);
	if (!list)
		return;
	flushes = cgstat_read(link->state) & ~CGSTAT_STATE_MASK;
	if (cgstat_cmpxchg(link->state, flushes | CGSTAT_UNLISTED,
			   flushes | CGSTAT_LISTING) == (flushes | CGSTAT_UNLISTED)) {
		if (!cgstat_is_current(map, where)) {
			cgstat_cmpxchg(link->state, flushes | CGSTAT_LISTING,
				       flushes | CGSTAT_UNLISTED);
			cgstat_count_lost(where->ctl);
			return;
		}
		listed = cgstat_push(where->spill ? &list->spills : &list->pairs,
				     &link->next, where->id);
		cgstat_cmpxchg(link->state, flushes | CGSTAT_LISTING,
			       flushes | (listed ? CGSTAT_LISTED : CGSTAT_UNLISTED));
	}
	cgstat_make_sure(list, where, flushes);
}

/* ---- what a collector's author uses -------------------------------------- */

#define CGSTAT_TEXT_(...) #__VA_ARGS__
#define CGSTAT_TEXT(...) CGSTAT_TEXT_(__VA_ARGS__)
#define CGSTAT_FIRST_(first, ...) first
#define CGSTAT_FIRST(...) CGSTAT_FIRST_(__VA_ARGS__, 0)

/* Count @n more in @field. */
#define cgstat_add(map, cgrp, field, n)					\
	cgstat_update(map, cgrp, v__)					\
		cgstat_inc(v__->field, n)

/* Count @value in the histogram @field: log2, linear, of explicit bounds. */
#define cgstat_log2(map, cgrp, field, value)				\
	cgstat_update(map, cgrp, v__)					\
		cgstat_inc_log2(v__->field, value)
#define cgstat_linear(map, cgrp, field, value, ...)			\
	cgstat_update(map, cgrp, v__)					\
		cgstat_inc_linear(v__->field, value, __VA_ARGS__)
#define cgstat_bounds(map, cgrp, field, value, ...)			\
	cgstat_update(map, cgrp, v__)					\
		cgstat_inc_bounds(v__->field, value, __VA_ARGS__)

/* Make @field, tagged CGSTAT_MAX, at least @value; CGSTAT_MIN, at most. */
#define cgstat_max(map, cgrp, field, value)				\
	cgstat_update(map, cgrp, v__)					\
		cgstat_raise(v__->field, value)
#define cgstat_min(map, cgrp, field, value)				\
	cgstat_update(map, cgrp, v__)					\
		cgstat_lower(v__->field, value)

/* Have @key counted as one of the distinct keys of @field, tagged CGSTAT_HLL. */
#define cgstat_distinct(map, cgrp, field, key)				\
	cgstat_update(map, cgrp, v__)					\
		cgstat_see(v__->field, key)

/*
 * Several additions to one cgroup for one look-up:
 *
 *	cgstat_update(latency, cgrp, v) {
 *		cgstat_inc(v->total_ns, delta);
 *		cgstat_inc_log2(v->wait_ns, delta);
 *		cgstat_raise(v->max_ns, delta);
 *	}
 *
 * The block runs once, or not at all where there is nothing to add to, which
 * is shown as lost. It must not be left by return, break or goto.
 */
#define cgstat_update(map, cgrp, v)					\
	for (struct {							\
		typeof(cgrp) cg;					\
		struct cgstat_where where;				\
		typeof(((struct map##_entry *)0)->total) *values;	\
	     } at__ = { .cg = (cgrp) },					\
	     *once__ = (at__.values = map##_begin(at__.cg, &at__.where)) ? &at__ : NULL; \
	     once__; map##_end(at__.cg, &at__.where), once__ = NULL)	\
		for (typeof(at__.values) v = at__.values; v; v = NULL)

/* In such a block: */
#define cgstat_inc(element, n) cgstat_fetch_add(element, n)
#define cgstat_inc_log2(array, value)					\
	cgstat_fetch_add((array)[cgstat_log2_bucket(value, sizeof(array) / 8)], 1)
/* The bounds are those of the field's tag; START, STEP. */
#define cgstat_inc_linear(array, value, ...)				\
	cgstat_fetch_add((array)[cgstat_linear_bucket(value, sizeof(array) / 8, \
						      __VA_ARGS__)], 1)
/* BOUND, BOUND, ...: one bucket more than there are bounds. */
#define cgstat_inc_bounds(array, value, ...)				\
	({								\
		const __u64 bounds__[] = { __VA_ARGS__ };		\
		__u64 value__ = (value);				\
		__u32 bucket__ = 0, i__;				\
		_Static_assert(sizeof(array) == sizeof(bounds__) + 8,	\
			       "a histogram has one bucket more than bounds"); \
		_Pragma("clang loop unroll(full)")			\
		for (i__ = 0; i__ < sizeof(bounds__) / 8; i__++)	\
			bucket__ += value__ > bounds__[i__];		\
		if (bucket__ < sizeof(array) / 8)			\
			cgstat_fetch_add((array)[bucket__], 1);		\
	})
#define cgstat_raise(element, value)					\
	cgstat_raise_element(&(element), (value), &at__.where)
/* Kept as the maximum of the complement: 0 is what was never updated. */
#define cgstat_lower(element, value)					\
	cgstat_raise_element(&(element), ~(__u64)(value), &at__.where)
#define cgstat_see(array, key)						\
	cgstat_hll_see((array), sizeof(array) / 8, cgstat_hash(key), &at__.where)

#endif /* CGSTAT_UPDATE_H */
