// SPDX-License-Identifier: GPL-2.0-only
/* Can a program be attached to the kernel's rstat flush? Only trying tells. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "GPL";

SEC("fentry/bpf_rstat_flush")
int BPF_PROG(probe)
{
	return 0;
}
