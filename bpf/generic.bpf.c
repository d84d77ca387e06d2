// SPDX-License-Identifier: GPL-2.0-only
/*
 * The life cycle, flush and lookup of a stats map whose updates are compiled by
 * bcc: the loader sets its size and flags, and hands its BPF maps to the bcc
 * program. Declared as large as a value can be.
 */
#define CGSTAT_FOLDING_FUNCTION static __always_inline
#include "cgstat.bpf.h"

char LICENSE[] SEC("license") = "GPL";

typedef __u64 generic_value[CGSTAT_MAX_ELEMS];
CGSTAT_DECLARE(generic, generic_value, "generic", cgstat_no_merge,
	       generic_config.elems, generic_config.flags);
