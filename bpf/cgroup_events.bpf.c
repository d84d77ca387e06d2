// SPDX-License-Identifier: GPL-2.0-only
/*
 * Cgroups created and removed in the v2 hierarchy, as they happen, in a ring
 * buffer. The kernel fires the tracepoints under its cgroup lock, so the
 * records are in the order of the events, and before mkdir() or rmdir()
 * return.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "GPL";

#define NAME_SIZE 256

enum { CREATED = 1, REMOVED = 2 };

struct cgroup_event {
	__u64 id;
	__u64 parent;
	__u32 what;
	char name[NAME_SIZE];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} events SEC(".maps");

/* Events that found the ring buffer full: user space has to look for itself. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} dropped SEC(".maps");

static __always_inline int submit(struct cgroup *cgrp, __u32 what)
{
	struct cgroup *parent = (struct cgroup *)BPF_CORE_READ(cgrp, self.parent);
	struct cgroup_event *event;
	__u32 zero = 0;
	__u64 *count;

	if (cgrp->root->hierarchy_id)
		return 0;
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		count = bpf_map_lookup_elem(&dropped, &zero);
		if (count)
			__sync_fetch_and_add(count, 1);
		return 0;
	}
	event->id = cgrp->kn->id;
	event->parent = parent ? BPF_CORE_READ(parent, kn, id) : 0;
	event->what = what;
	bpf_probe_read_kernel_str(event->name, sizeof(event->name), cgrp->kn->name);
	bpf_ringbuf_submit(event, 0);
	return 0;
}

SEC("tp_btf/cgroup_mkdir")
int BPF_PROG(on_mkdir, struct cgroup *cgrp)
{
	return submit(cgrp, CREATED);
}

SEC("tp_btf/cgroup_rmdir")
int BPF_PROG(on_rmdir, struct cgroup *cgrp)
{
	return submit(cgrp, REMOVED);
}
