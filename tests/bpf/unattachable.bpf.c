// SPDX-License-Identifier: GPL-2.0-only
/* What could go on with properties.bpf.c's counts, if it could be attached. */
#include "properties.bpf.c"

SEC("raw_tp/no_such_tracepoint")
int nowhere(void *ctx)
{
	return 0;
}
