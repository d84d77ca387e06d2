// SPDX-License-Identifier: GPL-2.0-only
/* How deep a cgroup is: the iterator over its ancestors gives a byte for each. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

SEC("iter/cgroup")
int level(struct bpf_iter__cgroup *ctx)
{
	char byte = 0;

	if (ctx->cgroup)
		bpf_seq_write(ctx->meta->seq, &byte, sizeof(byte));
	return 0;
}
