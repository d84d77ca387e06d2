// SPDX-License-Identifier: GPL-2.0-only
/*
 * Counts sockets in the storage of the cgroups that it is attached to: one
 * element for a cgroup and type of attachment, or one for a cgroup.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

#define STORAGE(name, map_type, key_type, value_type)	\
	struct {					\
		__uint(type, map_type);			\
		__type(key, key_type);			\
		__type(value, value_type);		\
	} name SEC(".maps")

struct sockets {
	__u64 made;
	__u64 datagram;
};

STORAGE(each, BPF_MAP_TYPE_CGROUP_STORAGE, struct bpf_cgroup_storage_key, struct sockets);
STORAGE(each_cpu, BPF_MAP_TYPE_PERCPU_CGROUP_STORAGE, struct bpf_cgroup_storage_key, struct sockets);
STORAGE(shared, BPF_MAP_TYPE_CGROUP_STORAGE, __u64, struct sockets);

static __always_inline void count(struct sockets *sockets, struct bpf_sock *sock)
{
	__sync_fetch_and_add(&sockets->made, 1);
	if (sock->type == SOCK_DGRAM)
		__sync_fetch_and_add(&sockets->datagram, 1);
}

SEC("cgroup/sock_create")
int on_create(struct bpf_sock *sock)
{
	count(bpf_get_local_storage(&each, 0), sock);
	count(bpf_get_local_storage(&each_cpu, 0), sock);
	return 1;
}

SEC("cgroup/sock_release")
int on_release(struct bpf_sock *sock)
{
	count(bpf_get_local_storage(&shared, 0), sock);
	return 1;
}
