// SPDX-License-Identifier: GPL-2.0-only
/* calls.bpf.c with room for few cgroups. */
#define CGSTAT_MAX_CGROUPS 8
#include "calls.bpf.c"
