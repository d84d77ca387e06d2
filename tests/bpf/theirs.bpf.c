// SPDX-License-Identifier: GPL-2.0-only
/*
 * Of a tool that knows nothing of cgstatfs: prctl(CALL, n) by a task is counted
 * in flat maps, keyed by the id of its cgroup.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "GPL";

#define PRCTL 157	/* x86-64 */
#define CALL 0x74686569

struct io {
	__u64 reads;
	__u64 writes;
};

struct named {
	__u64 count;
	char comm[16];
};

struct signed_io {
	__s64 balance;
};

#define FLAT(name, map_type, key_type, value_type)	\
	struct {					\
		__uint(type, map_type);			\
		__uint(max_entries, 128);		\
		__type(key, key_type);			\
		__type(value, value_type);		\
	} name SEC(".maps")

typedef __u64 many[3];

FLAT(flat, BPF_MAP_TYPE_HASH, __u64, struct io);
FLAT(percpu, BPF_MAP_TYPE_PERCPU_HASH, __u64, many);
FLAT(recent, BPF_MAP_TYPE_LRU_HASH, __u64, __u64);
FLAT(named, BPF_MAP_TYPE_HASH, __u64, struct named);
FLAT(balances, BPF_MAP_TYPE_HASH, __u64, struct signed_io);

/* The element of @id, made if there is none. */
static __always_inline void *at(void *map, __u64 *id, void *zero)
{
	bpf_map_update_elem(map, id, zero, BPF_NOEXIST);
	return bpf_map_lookup_elem(map, id);
}

SEC("tp_btf/sys_enter")
int BPF_PROG(on_call, struct pt_regs *regs, long number)
{
	struct named zero = {};
	many none = {};
	__u64 id, n, *count;
	struct io *io;

	if (number != PRCTL || PT_REGS_PARM1_CORE_SYSCALL(regs) != CALL)
		return 0;
	n = PT_REGS_PARM2_CORE_SYSCALL(regs);
	id = bpf_get_current_cgroup_id();
	io = at(&flat, &id, &none);
	if (io) {
		__sync_fetch_and_add(&io->reads, n);
		__sync_fetch_and_add(&io->writes, 1);
	}
	count = at(&percpu, &id, none);
	if (count) {
		count[0] += n;
		count[2] += 1;
	}
	count = at(&recent, &id, none);
	if (count)
		__sync_fetch_and_add(count, n);
	at(&named, &id, &zero);
	at(&balances, &id, &zero);
	return 0;
}
