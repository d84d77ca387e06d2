// SPDX-License-Identifier: GPL-2.0-only
/*
 * Every update is in the next lookup, though another cpu flushes all the time.
 *
 *	litmus ENGINE READER CGROUP OTHER ELEMENTS MAP ROUNDS CPU OTHER_CPU
 *
 * ENGINE is one's name, READER a descriptor of what its lookups go through: a
 * program, native's of the map itself. CGROUP and OTHER are ids: of the cgroup
 * that we are in, which is looked up after each update, and of the one that the
 * other cpu looks up, above.
 * MAP is one of tests/bpf/properties.bpf.c, of so many ELEMENTS, whose first
 * are a sum, a maximum and a minimum. Both cpus may be the same.
 *
 * Prints how often the other cpu flushed. Two updates a round: the first lists
 * the array, and the flush that takes it off its list meets the second.
 */
#define _GNU_SOURCE
#include <bpf/bpf.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#define CALL 0x63677072
#define MAX_ELEMENTS 128

/* struct NAME_lookup_ctx of bpf/cgstat.bpf.h */
struct lookup {
	uint64_t id;
	int64_t ret;
	uint64_t total[MAX_ELEMENTS];
};

static void (*look_up)(uint64_t id, uint64_t *total);
static int reader;
static unsigned int elements;
static uint64_t other;
static int other_cpu;
static atomic_bool stop;
static atomic_ulong flushes;

static void die(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(1);
}

static void look_up_standalone(uint64_t id, uint64_t *total)
{
	struct lookup lookup = { .id = id };
	LIBBPF_OPTS(bpf_test_run_opts, opts, .ctx_in = &lookup,
		    .ctx_size_in = offsetof(struct lookup, total) + 8 * elements);

	do {
		errno = -bpf_prog_test_run_opts(reader, &opts);
		if (errno)
			die("lookup");
	} while (lookup.ret == -EBUSY);
	errno = -lookup.ret;
	if (errno)
		die("lookup");
	memcpy(total, lookup.total, 8 * elements);
}

static void look_up_rstat(uint64_t id, uint64_t *total)
{
	union bpf_iter_link_info info = {
		.cgroup = { .order = BPF_CGROUP_ITER_SELF_ONLY, .cgroup_id = id },
	};
	LIBBPF_OPTS(bpf_link_create_opts, opts, .iter_info = &info,
		    .iter_info_len = sizeof(info));
	int link = bpf_link_create(reader, 0, BPF_TRACE_ITER, &opts);
	int walk = link < 0 ? link : bpf_iter_create(link);

	if (walk < 0 || read(walk, total, 8 * elements) != 8 * elements)
		die("lookup");
	close(walk);
	close(link);
}

static void look_up_native(uint64_t id, uint64_t *total)
{
	errno = -bpf_map_lookup_elem(reader, &id, total);
	if (errno)
		die("lookup");
}

static void run_on(int cpu)
{
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET(cpu, &cpus);
	if (sched_setaffinity(0, sizeof(cpus), &cpus))
		die("sched_setaffinity");
}

static void *flush_elsewhere(void *unused)
{
	uint64_t total[MAX_ELEMENTS];

	run_on(other_cpu);
	while (!stop) {
		look_up(other, total);
		flushes++;
	}
	return unused;
}

static void check(unsigned long round, const char *what, uint64_t found, uint64_t expected)
{
	if (found == expected)
		return;
	fprintf(stderr, "round %lu: %s is %lu, not %lu\n", round, what, found, expected);
	exit(1);
}

int main(int argc, char **argv)
{
	uint64_t total[MAX_ELEMENTS], sum = 0, id;
	unsigned long rounds, map;
	pthread_t thread;

	if (argc != 10)
		return 2;
	look_up = !strcmp(argv[1], "native") ? look_up_native :
		  !strcmp(argv[1], "rstat") ? look_up_rstat : look_up_standalone;
	reader = atoi(argv[2]);
	id = strtoul(argv[3], NULL, 10);
	other = strtoul(argv[4], NULL, 10);
	elements = atoi(argv[5]);
	map = atoi(argv[6]);
	rounds = strtoul(argv[7], NULL, 10);
	other_cpu = atoi(argv[9]);
	run_on(atoi(argv[8]));
	if (pthread_create(&thread, NULL, flush_elsewhere, NULL))
		die("pthread_create");
	for (unsigned long i = 1; i <= rounds; i++) {
		prctl(CALL, map, i, 0, 0);
		prctl(CALL, map, i, 0, 0);
		sum += 2 * i;
		look_up(id, total);
		check(i, "the sum", total[0], sum);
		check(i, "the maximum", total[1], i);
		check(i, "the minimum", ~total[2], 1);
	}
	stop = true;
	pthread_join(thread, NULL);
	printf("%lu\n", flushes);
	return 0;
}
