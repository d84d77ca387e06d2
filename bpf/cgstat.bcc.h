/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the author of a collector includes that bcc compiles, NAME.bcc.c:
 *
 *	struct mystats { u64 forks; u64 longest_ns CGSTAT_MAX; };
 *	CGSTAT_MAP(mystats, struct mystats, "my.stats");
 *	...
 *	cgstat_add(mystats, bpf_get_current_cgroup_id(), forks, 1);
 *
 * As in cgstat.bpf.h, but that a cgroup is named by its id. What it does not
 * have: bounds, distinct keys, aggregators, lookups. Reading by a pointer of the
 * kernel's, which bcc makes safe, it does not do so in the arguments of macros:
 * read into a variable first.
 *
 * The id has to be that of a cgroup that lives: that of the current task is, one
 * that was stored may not be. An update of a released cgroup is counted to it
 * and its ancestors while its data is there, and else shown as lost; "Late
 * updates" in cgstat_flush.h has the whole of it.
 *
 * The update alone is compiled by bcc, for the standalone engine. Entries,
 * flush and lookup are those of generic.bpf.c. The two share BPF maps: their
 * descriptors have numbers that the loader defines, for each stats map
 * CGSTAT_FD_map_{entries,pairs,slots,lists,ctl,zero}.
 */
#ifndef CGSTAT_BCC_H
#define CGSTAT_BCC_H

#include <linux/types.h>
#include "cgstat_update.h"

/* Cgroups that a stats map has entries for; a collector may define its own, before. */
#ifndef CGSTAT_MAX_CGROUPS
#define CGSTAT_MAX_CGROUPS 65536
#endif

#define CGSTAT_BCC_MAP(map, part) ((void *)bpf_pseudo_fd(1, CGSTAT_FD_##map##_##part))

#define CGSTAT_BCC_MAP_OF(map, zero_, flags_)				\
	((struct cgstat_map) {						\
		.entries = CGSTAT_BCC_MAP(map, entries),		\
		.pairs = CGSTAT_BCC_MAP(map, pairs),			\
		.slots = CGSTAT_BCC_MAP(map, slots),			\
		.elems = sizeof(((struct map##_entry *)0)->total) / 8,	\
		.lists = CGSTAT_BCC_MAP(map, lists),			\
		.ctl = CGSTAT_BCC_MAP(map, ctl),			\
		.zero = zero_,						\
		.flags = flags_,					\
	})

/* Levels of cgroups that are searched for an entry. */
#define CGSTAT_BCC_LEVELS 64

/*
 * The nearest ancestor that has an entry, of the current task's cgroup @id,
 * which has none as there was no memory or no room when it was made; 0 if
 * there is none, or it is another's cgroup. An entry's parent has an entry.
 */
static __always_inline __u64 cgstat_bcc_ancestor(struct cgstat_map map, __u64 id)
{
	__u64 found = 0, ancestor;
	int level;

	if (bpf_get_current_cgroup_id() != id)
		return 0;
	_Pragma("clang loop unroll(disable)")
	for (level = 0; level < CGSTAT_BCC_LEVELS; level++) {
		ancestor = bpf_get_current_ancestor_cgroup_id(level);
		if (!ancestor || !bpf_map_lookup_elem(map.entries, &ancestor))
			break;
		found = ancestor;
	}
	return found;
}

/* As cgstat_make_values(); an entry cannot be made from here. */
static __always_inline __u64 *
cgstat_bcc_displace(struct cgstat_map map, struct cgstat_ctl *ctl, __u64 id,
		    struct cgstat_where *where)
{
	__u64 *values = NULL;

	if (!(map.flags & CGSTAT_NO_HIERARCHY)) {
		id = cgstat_bcc_ancestor(map, id);
		if (id)
			values = cgstat_find_values(map, ctl, id, where);
	}
	__sync_fetch_and_add(values ? &ctl->displaced : &ctl->lost, 1);
	return values;
}

/* ---- what a collector's author uses, besides what cgstat_update.h has ----- */

/*
 * Declare a stats map, in the source itself and not by way of a macro: the
 * loader reads it, too. @vtype is u64, or a struct of u64 and arrays of it,
 * nested as one likes; @file names its file. Then, if any, flags:
 * CGSTAT_NO_PERCPU | CGSTAT_NO_HIERARCHY.
 */
#define CGSTAT_MAP(map, vtype, file, ...)				\
struct map##_entry {							\
	struct cgstat_entry entry;					\
	vtype spill;							\
	vtype total;							\
	vtype pending;							\
};									\
_Static_assert(sizeof(vtype) <= 8 * CGSTAT_MAX_ELEMS,			\
	       "the value of a stats map has more than 128 elements");	\
_Static_assert(CGSTAT_MAX_CGROUPS > 0 && CGSTAT_MAX_CGROUPS <= 1 << 20,	\
	       "CGSTAT_MAX_CGROUPS is 1 to 1048576");			\
/* For the loader to learn the type and the room from; never used. */	\
BPF_F_TABLE("hash", u64, vtype, map##_type, CGSTAT_MAX_CGROUPS, BPF_F_NO_PREALLOC); \
static __always_inline __attribute__((unused)) void *			\
map##_begin(__u64 id, struct cgstat_where *where)			\
{									\
	__u32 flags = CGSTAT_FIRST(__VA_ARGS__ __VA_OPT__(,) 0), key = 0; \
	struct cgstat_map self = CGSTAT_BCC_MAP_OF(map, NULL, flags);	\
	struct cgstat_ctl *ctl = cgstat_get_ctl(self);			\
	__u64 *values;							\
									\
	if (!ctl)							\
		return NULL;						\
	if (id >> CGSTAT_ID_BITS) {					\
		cgstat_count_lost(self.ctl);				\
		return NULL;						\
	}								\
	if (!(flags & CGSTAT_NO_PERCPU)) {				\
		values = cgstat_find_pair(self, id, where);		\
		if (values)						\
			return values;					\
		self.zero = bpf_map_lookup_elem(CGSTAT_BCC_MAP(map, zero), &key); \
	}								\
	values = cgstat_find_others(self, ctl, id, where);		\
	if (!values)							\
		values = cgstat_bcc_displace(self, ctl, id, where);	\
	return values;							\
}									\
static __always_inline __attribute__((unused)) void			\
map##_end(__u64 id, struct cgstat_where *where)				\
{									\
	if (cgstat_state(where->link) == CGSTAT_LISTED)			\
		return;							\
	cgstat_list_standalone(CGSTAT_BCC_MAP_OF(map, NULL, 0), where);	\
}									\
struct map##_entry

/*
 * Tags of fields, after the name; one field to a declaration. What has none is
 * a sum. bcc tells us nothing of attributes, so a tag is a member without a
 * size that follows the field, and whose name says the same.
 */
#define CGSTAT_TAG__(tag, n) ; char cgstat_##tag##__##n[0]
#define CGSTAT_TAG_(tag, n) CGSTAT_TAG__(tag, n)
#define CGSTAT_MAX CGSTAT_TAG_(max, __COUNTER__)
#define CGSTAT_MIN CGSTAT_TAG_(min, __COUNTER__)
/* On a field that is an array: a histogram, see cgstat_log2_bucket() ... */
#define CGSTAT_LOG2 CGSTAT_TAG_(log2, __COUNTER__)
/* ... START, STEP: plain numbers; see cgstat_linear_bucket(). */
#define CGSTAT_LINEAR_(start, step, n) CGSTAT_TAG_(linear_##start##_##step, n)
#define CGSTAT_LINEAR(start, step) CGSTAT_LINEAR_(start, step, __COUNTER__)

/* Something could not be counted at all: have it shown as lost. */
#define cgstat_lost(map) cgstat_count_lost(CGSTAT_BCC_MAP(map, ctl))

#endif /* CGSTAT_BCC_H */
