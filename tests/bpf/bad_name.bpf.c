// SPDX-License-Identifier: GPL-2.0-only
/* A file name that is a path. */
#include "cgstat.bpf.h"

char LICENSE[] SEC("license") = "GPL";

struct bad {
	__u64 good;
};
CGSTAT_MAP(bad, struct bad, "etc/passwd");
