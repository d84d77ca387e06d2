// SPDX-License-Identifier: GPL-2.0-only
/* Maps and programs that the tests of BPF_MAP_TYPE_CGROUP_STATS load. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "stats.h"

#define TAG(text) __attribute__((btf_decl_tag("cgroup_stats:" text)))

extern __u64 *bpf_cgroup_stats_begin(struct bpf_map *map, struct cgroup *cgrp,
				     const __u32 rdwr_buf_size) __ksym;
extern void bpf_cgroup_stats_end(struct cgroup *cgrp) __ksym;
extern int bpf_cgroup_stats_update(struct bpf_map *map, struct cgroup *cgrp,
				   __u32 element, __u64 value) __ksym;
extern int bpf_cgroup_stats_lookup(struct bpf_map *map, struct cgroup *cgrp,
				   void *value, __u32 value__sz) __ksym;
extern struct cgroup *bpf_cgroup_from_id(__u64 id) __ksym;
extern void bpf_cgroup_release(struct cgroup *cgrp) __ksym;

struct value {
	__u64 count;
	__u64 highest TAG("max");
	__u64 lowest TAG("min");
	__u64 buckets[5];
};

#define STATS_MAP(name, flags)					\
struct {							\
	__uint(type, BPF_MAP_TYPE_CGROUP_STATS);		\
	__uint(map_flags, flags);				\
	__type(key, __u64);					\
	__type(value, struct value);				\
} name SEC(".maps")

STATS_MAP(stats, 0);
STATS_MAP(shared, BPF_F_CGROUP_STATS_NO_PERCPU);
STATS_MAP(flat, BPF_F_CGROUP_STATS_NO_HIERARCHY);

#define MAP(name) ((struct bpf_map *)&name)

/* A cgroup that is kept from being freed. */
/* clang 14 loses the tag of a pointer to a struct. */
typedef struct cgroup cgroup_type;

struct kept {
	cgroup_type __attribute__((btf_type_tag("kptr"))) *cgrp;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct kept);
} keeper SEC(".maps");

/* In one piece, as clang sorts variables as it likes. */
struct globals globals;

static int update(struct cgroup *cgrp, struct args *args)
{
	switch (args->map) {
	case MAP_STATS:
		return bpf_cgroup_stats_update(MAP(stats), cgrp, args->element, args->value);
	case MAP_SHARED:
		return bpf_cgroup_stats_update(MAP(shared), cgrp, args->element, args->value);
	case MAP_FLAT:
		return bpf_cgroup_stats_update(MAP(flat), cgrp, args->element, args->value);
	}
	return -22;
}

SEC("syscall")
int do_update(struct args *args)
{
	struct cgroup *cgrp = bpf_cgroup_from_id(args->cgroup);
	int err = 0;
	__u32 i;

	if (!cgrp)
		return -2;
	for (i = 0; i < 1000; i++) {
		if (i >= args->times)
			break;
		err = update(cgrp, args);
		if (err)
			break;
	}
	bpf_cgroup_release(cgrp);
	return err;
}

/* As above, by way of the array. */
SEC("syscall")
int do_array(struct args *args)
{
	struct cgroup *cgrp = bpf_cgroup_from_id(args->cgroup);
	struct value *v = NULL;

	if (!cgrp)
		return -2;
	if (args->map == MAP_STATS)
		v = (void *)bpf_cgroup_stats_begin(MAP(stats), cgrp, sizeof(*v));
	else if (args->map == MAP_SHARED)
		v = (void *)bpf_cgroup_stats_begin(MAP(shared), cgrp, sizeof(*v));
	if (v) {
		__sync_fetch_and_add(&v->count, args->value);
		__sync_fetch_and_add(&v->buckets[4], args->value);
		if (!args->no_end)
			bpf_cgroup_stats_end(cgrp);
	}
	bpf_cgroup_release(cgrp);
	return v ? 0 : -2;
}

/* The size is not that of the value. */
SEC("syscall")
int do_wrong_size(struct args *args)
{
	struct cgroup *cgrp = bpf_cgroup_from_id(args->cgroup);
	int found;

	if (!cgrp)
		return -2;
	found = !!bpf_cgroup_stats_begin(MAP(stats), cgrp, 8);
	bpf_cgroup_release(cgrp);
	return found;
}

/* A map of another type has no entries. */
SEC("syscall")
int do_wrong_map(struct args *args)
{
	struct cgroup *cgrp = bpf_cgroup_from_id(args->cgroup);
	int err;

	if (!cgrp)
		return -2;
	err = bpf_cgroup_stats_update(MAP(keeper), cgrp, 0, 1);
	bpf_cgroup_release(cgrp);
	return err;
}

SEC("syscall")
int do_lookup(struct args *args)
{
	struct cgroup *cgrp = bpf_cgroup_from_id(args->cgroup);
	__u64 total[8] = {};
	int err;

	if (!cgrp)
		return -2;
	err = bpf_cgroup_stats_lookup(MAP(stats), cgrp, total, sizeof(total));
	__builtin_memcpy(args->total, total, sizeof(total));
	bpf_cgroup_release(cgrp);
	return err;
}

static struct kept *kept(void)
{
	__u32 key = 0;

	return bpf_map_lookup_elem(&keeper, &key);
}

SEC("syscall")
int do_keep(struct args *args)
{
	struct cgroup *cgrp = bpf_cgroup_from_id(args->cgroup);
	struct kept *k = kept();

	if (!cgrp)
		return -2;
	if (k)
		cgrp = bpf_kptr_xchg(&k->cgrp, cgrp);
	if (cgrp)
		bpf_cgroup_release(cgrp);
	return 0;
}

/* Update, or else look up, the cgroup that is kept, and put it back. */
SEC("syscall")
int do_kept(struct args *args)
{
	struct kept *k = kept();
	__u64 total[8] = {};
	struct cgroup *cgrp;
	int err;

	if (!k)
		return -2;
	cgrp = bpf_kptr_xchg(&k->cgrp, NULL);
	if (!cgrp)
		return -2;
	if (args->times)
		err = update(cgrp, args);
	else
		err = bpf_cgroup_stats_lookup(MAP(stats), cgrp, total, sizeof(total));
	__builtin_memcpy(args->total, total, sizeof(total));
	cgrp = bpf_kptr_xchg(&k->cgrp, cgrp);
	if (cgrp)
		bpf_cgroup_release(cgrp);
	return err;
}

SEC("syscall")
int do_unkeep(struct args *args)
{
	struct kept *k = kept();
	struct cgroup *cgrp = NULL;

	if (k)
		cgrp = bpf_kptr_xchg(&k->cgrp, NULL);
	if (cgrp)
		bpf_cgroup_release(cgrp);
	return 0;
}

SEC("tp_btf/sched_wakeup_new")
int BPF_PROG(count_forks, struct task_struct *p)
{
	if (globals.tgid && p->tgid != globals.tgid)
		return 0;
	bpf_cgroup_stats_update(MAP(stats), p->cgroups->dfl_cgrp, 0, 1);
	return 0;
}

static void update_watched(void)
{
	struct cgroup *cgrp = bpf_cgroup_from_id(globals.watched);

	if (!cgrp)
		return;
	if (bpf_cgroup_stats_update(MAP(stats), cgrp, 0, 1))
		__sync_fetch_and_add(&globals.failures, 1);
	else
		__sync_fetch_and_add(&globals.runs, 1);
	bpf_cgroup_release(cgrp);
}

/* With cgroup_rstat_cpu_lock held ... */
SEC("tp_btf/cgroup_rstat_cpu_locked")
int BPF_PROG(on_cpu_locked)
{
	update_watched();
	return 0;
}

/* ... and with cgroup_rstat_lock. */
SEC("tp_btf/cgroup_rstat_locked")
int BPF_PROG(on_locked)
{
	update_watched();
	return 0;
}

/* The last to come across a cgroup: it is on the tracepoints of its last flush. */
SEC("tp_btf/cgroup_rstat_unlock")
int BPF_PROG(on_unlock, struct cgroup *cgrp)
{
	if (!bpf_cgroup_stats_update(MAP(stats), cgrp, 0, 1))
		__sync_fetch_and_add(&globals.runs, 1);
	bpf_cgroup_stats_end(cgrp);
	return 0;
}

SEC("tp_btf/nmi_handler")
int BPF_PROG(on_nmi)
{
	__sync_fetch_and_add(&globals.nmi_runs, 1);
	update_watched();
	return 0;
}

/*
 * At an instruction, which is an int3, which counts as NMI. A cgroup of a task
 * as bpf_cgroup_from_id() is not for this kind of program.
 */
SEC("kprobe")
int at_instruction(void *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();

	if (task->tgid != globals.tgid)
		return 0;
	if (bpf_cgroup_stats_update(MAP(stats), task->cgroups->dfl_cgrp, 0, 1))
		__sync_fetch_and_add(&globals.failures, 1);
	else
		__sync_fetch_and_add(&globals.runs, 1);
	return 0;
}

char _license[] SEC("license") = "GPL";
