// SPDX-License-Identifier: GPL-2.0-only
/*
 * As theirs.bpf.c, in cgroup local storage, which 6.2 brought: prctl(CALL, n).
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "GPL";

#define PRCTL 157	/* x86-64 */
#define CALL 0x74686570

struct io {
	__u64 reads;
	__u64 writes;
};

struct {
	__uint(type, BPF_MAP_TYPE_CGRP_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct io);
} local SEC(".maps");

SEC("tp_btf/sys_enter")
int BPF_PROG(on_call, struct pt_regs *regs, long number)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct io *io;

	if (number != PRCTL || PT_REGS_PARM1_CORE_SYSCALL(regs) != CALL)
		return 0;
	io = bpf_cgrp_storage_get(&local, task->cgroups->dfl_cgrp, 0,
				  BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (io) {
		__sync_fetch_and_add(&io->reads, PT_REGS_PARM2_CORE_SYSCALL(regs));
		__sync_fetch_and_add(&io->writes, 1);
	}
	return 0;
}
