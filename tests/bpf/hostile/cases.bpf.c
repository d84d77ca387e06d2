// SPDX-License-Identifier: GPL-2.0-only
/*
 * Collectors that are to be refused, one to an #ifdef: make compiles the file
 * once for each, with that name defined. tests/t2_bpf/test_hostile.py says what
 * each has to be refused with.
 */

/* What the header refuses to compile reaches the loader from other compilers. */
#if defined(case_empty_struct) || defined(case_many_elements) || defined(case_u32)
#define _Static_assert(...)
#endif
#ifdef case_entries_enormous
#define CGSTAT_MAX_CGROUPS 0x80000000
#endif
#ifdef case_entries_none
#define CGSTAT_MAX_CGROUPS 0
#endif
#include "cgstat.bpf.h"

#ifdef case_license_missing
#elif defined(case_license_proprietary)
char LICENSE[] SEC("license") = "Proprietary";
#else
char LICENSE[] SEC("license") = "GPL";
#endif

#define VALUE(...) struct hst { __VA_ARGS__ }
#define MAP(...) CGSTAT_MAP(hst, struct hst, "test.hostile", ##__VA_ARGS__)
/* A stats map of one counter, under a name; a program, somewhere. */
#define NAMED(name) VALUE(__u64 n;); CGSTAT_MAP(hst, struct hst, name)
#define PROGRAM(section, ...)						\
	NAMED("test.hostile");						\
	SEC(section) int hst_own(__u64 *ctx) { __VA_ARGS__ return 0; }

/* The buffer of snapshots, of which user space makes others that are like it. */
#ifdef case_buffer_unmappable
#define BPF_F_MMAPABLE 0
NAMED("test.hostile");
#endif

/* Nothing is wrong with these two: what others are made of. */
#ifdef case_tiny
CGSTAT_MAP(hst, __u64, "test.hostile");
SEC("tp_btf/sys_enter") int hst_own(__u64 *ctx) { return 0; }
#endif
#ifdef case_kinds
struct inner { __u64 a, b[2]; };
VALUE(
	__u64 sum, high CGSTAT_MAX, low CGSTAT_MIN, sums[3];
	__u64 log2[8] CGSTAT_LOG2, linear[4] CGSTAT_LINEAR(10, 5), bounds[3] CGSTAT_BOUNDS(1, 7);
	__u64 seen[8] CGSTAT_HLL, own CGSTAT_AGGREGATED;
	struct inner inner, inners[2];
);
static void merge(struct hst *into, const struct hst *from)
{
	cgstat_hll_merge(into->seen, from->seen);
	cgstat_write(into->own, into->own | cgstat_read(from->own));
}
CGSTAT_MAP_AGGREGATED(hst, struct hst, "test.hostile", merge);
CGSTAT_MAP(hst2, __u64, "test.flags", CGSTAT_NO_PERCPU | CGSTAT_NO_HIERARCHY);
SEC("tp_btf/sched_switch")
int BPF_PROG(hst_own, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	struct cgroup *cgrp = cgstat_task_cgroup(next);

	cgstat_update(hst, cgrp, v) {
		cgstat_inc(v->sum, 1);
		cgstat_inc_log2(v->log2, 9);
	}
	cgstat_update(hst2, cgrp, v)
		cgstat_inc(*v, 1);
	return 0;
}
#endif

/* Licences: the helpers that every stats map uses are for GPL programs. */
#ifdef case_license_missing
PROGRAM("tp_btf/sys_enter")
#endif
#ifdef case_license_proprietary
PROGRAM("tp_btf/sys_enter")
#endif

/* Values */
#ifdef case_map_missing
SEC("tp_btf/sys_enter") int hst_own(__u64 *ctx) { return 0; }
#endif
#ifdef case_char_array
VALUE(__u64 good; char name[16];); MAP();
#endif
#ifdef case_u32
VALUE(__u32 one;); MAP();
#endif
#ifdef case_two_u32
VALUE(__u32 one, two;); MAP();
#endif
#ifdef case_signed
VALUE(__u64 good; __s64 balance;); MAP();
#endif
#ifdef case_bitfield
VALUE(__u64 good; __u64 bits : 7, more : 57;); MAP();
#endif
#ifdef case_union
VALUE(union { __u64 one, two; } either;); MAP();
#endif
#ifdef case_pointer
VALUE(__u64 good; void *where;); MAP();
#endif
#ifdef case_double
VALUE(__u64 good; double ratio;); MAP();
#endif
#ifdef case_empty_struct
VALUE(); MAP();
#endif
#ifdef case_empty_inside
VALUE(__u64 good; struct { } nothing;); MAP();
#endif
#ifdef case_zero_length
VALUE(__u64 good; __u64 none[0];); MAP();
#endif
#ifdef case_many_elements
VALUE(__u64 many[129];); MAP();
#endif
#ifdef case_nested
#define IN struct {
VALUE(IN IN IN IN IN IN IN IN IN __u64 n; } j; } i; } h; } g; } f; } e; } d; } c; } b;); MAP();
#endif
#ifdef case_padded
VALUE(__u64 good; __u64 late __attribute__((aligned(16)));); MAP();
#endif
#ifdef case_anonymous
VALUE(__u64 good; struct { __u64 inside; };); MAP();
#endif

/* Tags and flags */
#ifdef case_histogram_scalar
VALUE(__u64 wait_ns CGSTAT_LOG2;); MAP();
#endif
#ifdef case_tag_unknown
VALUE(__u64 wait_ns CGSTAT_TAG("mean");); MAP();
#endif
#ifdef case_bounds_order
VALUE(__u64 size[4] CGSTAT_BOUNDS(1, 4, 2);); MAP();
#endif
#ifdef case_bounds_count
VALUE(__u64 size[4] CGSTAT_BOUNDS(1, 2);); MAP();
#endif
#ifdef case_bounds_text
VALUE(__u64 size[4] CGSTAT_BOUNDS(1, PAGE_SIZE, 3);); MAP();
#endif
#ifdef case_linear_step
VALUE(__u64 size[4] CGSTAT_LINEAR(1, 0);); MAP();
#endif
#ifdef case_log2_long
VALUE(__u64 size[66] CGSTAT_LOG2;); MAP();
#endif
#ifdef case_hll_three
VALUE(__u64 keys[3] CGSTAT_HLL;); MAP();
#endif
#ifdef case_histogram_of_maxima
VALUE(__u64 size[4] CGSTAT_LOG2 CGSTAT_MAX;); MAP();
#endif
#ifdef case_aggregator_missing
VALUE(__u64 own CGSTAT_AGGREGATED;); MAP();
#endif
#ifdef case_flag_unknown
enum { CGSTAT_FASTER = 64 };
VALUE(__u64 n;); MAP(CGSTAT_FASTER);
#endif

/* Names of files */
#ifdef case_file_slash
NAMED("etc/passwd");
#endif
#ifdef case_file_parent
NAMED("..");
#endif
#ifdef case_file_unnamed
NAMED("");
#endif
#ifdef case_file_long
#define TEN "0123456789"
NAMED(TEN TEN TEN TEN TEN TEN "01234");
#endif
#ifdef case_file_hidden
NAMED(".hidden");
#endif
#ifdef case_file_newline
NAMED("two\nlines");
#endif
#ifdef case_file_escape
NAMED("\033[2Jscreen");
#endif
#ifdef case_file_not_ascii
NAMED("größe");
#endif
#ifdef case_file_twice
NAMED("test.hostile");
CGSTAT_MAP(hst2, __u64, "test.hostile");
#endif
/* Two names that are one to whoever has 14 bits for them. */
#ifdef case_files_collide
NAMED("m79");
CGSTAT_MAP(hst2, __u64, "m2300");
#endif
#ifdef case_file_taken
NAMED("proc.events");
#endif

/* What the verifier refuses */
#ifdef case_loop
PROGRAM("tp_btf/sys_enter", for (;;) asm volatile("");)
#endif
#ifdef case_out_of_bounds
NAMED("test.hostile");
SEC("tp_btf/sys_enter") int hst_own(__u64 *ctx)
{
	struct cgstat_ctl *ctl = cgstat_get_ctl(CGSTAT_MAP_OF(hst));

	return ctl ? ((volatile int *)ctl)[sizeof(*ctl)] : 0;
}
#endif
#ifdef case_long_log
#define FIFTY(x) x x x x x x x x x x x x x x x x x x x x x x x x x \
		 x x x x x x x x x x x x x x x x x x x x x x x x x
PROGRAM("tp_btf/sys_enter",
	FIFTY(FIFTY(asm volatile("r2 = 1" : : : "r2"); asm volatile("r3 = 2" : : : "r3");))
	asm volatile("r0 = *(u64 *)(r2 + 0)" : : : "r0");)
#endif
#ifdef case_too_complex
PROGRAM("tp_btf/sys_enter",
	for (__u32 i = 0; i < 1 << 30; i++) asm volatile("" : "+r"(i));)
#endif

/* Programs that cannot run here, or that nothing runs */
#ifdef case_tracepoint_missing
PROGRAM("tp_btf/cgroup_fly_away")
#endif
#ifdef case_function_missing
PROGRAM("fentry/cgroup_fly_away")
#endif
#ifdef case_raw_tracepoint_missing
PROGRAM("raw_tp/cgroup_fly_away")
#endif
#ifdef case_target_missing
PROGRAM("tp_btf")
#endif
#ifdef case_xdp
PROGRAM("xdp")
#endif
#ifdef case_perf_event
PROGRAM("perf_event")
#endif
#ifdef case_section_unknown
PROGRAM("frobnicate/sys_enter")
#endif
#ifdef case_optional
PROGRAM("?tp_btf/sys_enter")
#endif

/* Maps of its own */
#define OWN_MAP(...) struct { __VA_ARGS__ __type(key, __u32); __type(value, __u64); } hst_map SEC(".maps")
#ifdef case_map_type
NAMED("test.hostile");
OWN_MAP(__uint(type, 9999); __uint(max_entries, 1););
#endif
#ifdef case_map_enormous
NAMED("test.hostile");
OWN_MAP(__uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 0xffffffff););
#endif
#ifdef case_map_pinned
NAMED("test.hostile");
OWN_MAP(__uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 1);
	__uint(pinning, LIBBPF_PIN_BY_NAME););
#endif
#ifdef case_entries_enormous
NAMED("test.hostile");
#endif
#ifdef case_entries_none
NAMED("test.hostile");
#endif

/* These are loaded; what can be missed, and why not by rstat, is said. */
#ifdef case_noted_tp
PROGRAM("tp/sched/sched_switch")
#endif
#ifdef case_noted_kprobe
PROGRAM("kprobe/do_exit")
#endif
#ifdef case_noted_raw_tp
PROGRAM("raw_tp/sched_switch")
#endif
#ifdef case_noted_contention
PROGRAM("tp_btf/contention_begin")
#endif
#ifdef case_noted_rstat_lock
PROGRAM("tp_btf/cgroup_rstat_lock_contended")
#endif
#ifdef case_noted_rstat_cpu_lock
PROGRAM("tp_btf/cgroup_rstat_cpu_locked")
#endif
