/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef STATS_H
#define STATS_H

enum { MAP_STATS, MAP_SHARED, MAP_FLAT };

/* What a program is run with. */
struct args {
	__u64 cgroup;
	__u64 value;
	__u32 map;
	__u32 element;
	__u32 times;
	__u32 no_end;
	__u64 total[8];
};

/* What its programs share with it. */
struct globals {
	__u64 runs;		/* of programs that update by themselves */
	__u64 nmi_runs;
	__u64 watched;		/* id of the cgroup that they update */
	__u64 failures;
	int tgid;		/* of the tasks whose forks are counted; 0: all */
};

#endif
