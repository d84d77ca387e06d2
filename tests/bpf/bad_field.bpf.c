// SPDX-License-Identifier: GPL-2.0-only
/* A value with a field that is not supported. */
#include "cgstat.bpf.h"

char LICENSE[] SEC("license") = "GPL";

struct bad {
	__u64 good;
	char name[16];
};
CGSTAT_MAP(bad, struct bad, "test.bad");

SEC("tp_btf/sys_enter")
int BPF_PROG(on_call)
{
	return 0;
}
