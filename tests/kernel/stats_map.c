// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests of BPF_MAP_TYPE_CGROUP_STATS.
 *
 *	stats_map --list
 *	stats_map CASE CGROUP
 *
 * CGROUP is the directory of an empty cgroup of v2 for the case to work below.
 * The object stats.bpf.o is in the program's own folder.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <linux/bpf.h>
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include "stats.h"

#define CPUS 2
#define PIN "/sys/fs/bpf/stats_map_test"
#define ELEMS 8
#define VALUE (ELEMS * sizeof(__u64))
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

typedef __u64 total_t[ELEMS];

static char folder[PATH_MAX];	/* of this program */
static const char *top;		/* the cgroup to work below */

/* With the line of the caller, for a failure to be found. */
#define fail(...) fail_at(__LINE__, __VA_ARGS__)
#define check(condition)						\
	do {								\
		if (!(condition))					\
			fail("not so: %s (errno %d)", #condition, errno);	\
	} while (0)
#define check_equal(a, b)						\
	do {								\
		long long a__ = (a), b__ = (b);				\
		if (a__ != b__)						\
			fail("%s is %lld, not %lld", #a, a__, b__);	\
	} while (0)

__attribute__((noreturn, format(printf, 2, 3)))
static void fail_at(int line, const char *format, ...)
{
	va_list args;

	fprintf(stderr, "line %d: ", line);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static void wait_a_little(void)
{
	usleep(20000);
}

/* ---- cgroups -------------------------------------------------------------- */

static char *path(const char *format, ...)
{
	char *relative, *whole;
	va_list args;

	va_start(args, format);
	check(vasprintf(&relative, format, args) >= 0);
	va_end(args);
	check(asprintf(&whole, "%s%s%s", top, *relative ? "/" : "", relative) >= 0);
	free(relative);
	return whole;
}

static __u64 id_of_path(const char *directory)
{
	char buffer[sizeof(struct file_handle) + sizeof(__u64)];
	struct file_handle *handle = (void *)buffer;
	int mount;
	__u64 id;

	handle->handle_bytes = sizeof(id);
	if (name_to_handle_at(AT_FDCWD, directory, handle, &mount, 0))
		fail("%s: no file handle: %m", directory);
	memcpy(&id, handle->f_handle, sizeof(id));
	return id;
}

#define id_of(...)							\
	({								\
		char *p__ = path(__VA_ARGS__);				\
		__u64 id__ = id_of_path(p__);				\
		free(p__);						\
		id__;							\
	})

static __u64 make_path(char *directory)
{
	__u64 id;

	if (mkdir(directory, 0755))
		fail("%s: %m", directory);
	id = id_of_path(directory);
	free(directory);
	return id;
}

#define make(...) make_path(path(__VA_ARGS__))

static void remove_path(char *directory)
{
	int tries;

	/* a task that has ended may be there for a moment */
	for (tries = 0; rmdir(directory); tries++) {
		if (errno != EBUSY || tries == 500)
			fail("%s: rmdir: %m", directory);
		wait_a_little();
	}
	free(directory);
}

#define drop(...) remove_path(path(__VA_ARGS__))

static void write_path(char *file, const char *text)
{
	int fd = open(file, O_WRONLY);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		fail("%s: %m", file);
	close(fd);
	free(file);
}

static long long read_number(const char *file, const char *key)
{
	char line[256];
	long long n = -1;
	FILE *f = fopen(file, "r");

	if (!f)
		fail("%s: %m", file);
	while (n < 0 && fgets(line, sizeof(line), f)) {
		size_t length = key ? strlen(key) : 0;

		if (!length)
			n = atoll(line);
		else if (!strncmp(line, key, length) && (line[length] == ' ' || line[length] == '\t'))
			n = atoll(line + length + 1);
	}
	fclose(f);
	return n;
}

/* ---- maps and programs ---------------------------------------------------- */

struct loaded {
	struct bpf_object *object;
	int maps[3];
};

static int quiet(enum libbpf_print_level level, const char *format, va_list args)
{
	if (level == LIBBPF_WARN && getenv("VERBOSE"))
		vfprintf(stderr, format, args);
	return 0;
}

/*
 * The object, with maps below the cgroup @initial, and those programs of @also.
 * @keeper: the map of kept cgroups to use, or -1
 */
static struct loaded load_sharing(__u64 initial, const char *also, int keeper)
{
	static const char *const names[] = { "stats", "shared", "flat" };
	struct bpf_program *prog;
	struct loaded loaded;
	char file[PATH_MAX + 16];
	unsigned int i;
	int err;

	snprintf(file, sizeof(file), "%s/stats.bpf.o", folder);
	loaded.object = bpf_object__open_file(file, NULL);
	if (!loaded.object)
		fail("%s: %m", file);
	bpf_object__for_each_program(prog, loaded.object) {
		const char *name = bpf_program__name(prog);

		bpf_program__set_autoload(prog, !strncmp(name, "do_", 3) ||
					  (also && strstr(also, name)));
	}
	for (i = 0; i < ARRAY_SIZE(names); i++)
		bpf_map__set_map_extra(bpf_object__find_map_by_name(loaded.object, names[i]), initial);
	if (keeper >= 0)
		check(!bpf_map__reuse_fd(bpf_object__find_map_by_name(loaded.object, "keeper"),
					 keeper));
	err = bpf_object__load(loaded.object);
	if (err)
		fail("%s: load: %s", file, strerror(-err));
	for (i = 0; i < ARRAY_SIZE(names); i++)
		loaded.maps[i] = bpf_object__find_map_fd_by_name(loaded.object, names[i]);
	return loaded;
}

static struct loaded load(__u64 initial, const char *also)
{
	return load_sharing(initial, also, -1);
}

static void unload(struct loaded *loaded)
{
	bpf_object__close(loaded->object);
}

static int run(struct loaded *loaded, const char *name, struct args *args)
{
	struct bpf_program *prog = bpf_object__find_program_by_name(loaded->object, name);
	LIBBPF_OPTS(bpf_test_run_opts, opts, .ctx_in = args, .ctx_size_in = sizeof(*args));
	int err = bpf_prog_test_run_opts(bpf_program__fd(prog), &opts);

	if (err)
		fail("%s: test run: %s", name, strerror(-err));
	return (int)opts.retval;
}

static int update(struct loaded *loaded, int map, __u64 cgroup, __u32 element, __u64 value,
		  __u32 times)
{
	struct args args = {
		.cgroup = cgroup, .map = map, .element = element, .value = value, .times = times,
	};

	return run(loaded, "do_update", &args);
}

static void add(struct loaded *loaded, __u64 cgroup, __u64 value)
{
	check_equal(update(loaded, MAP_STATS, cgroup, 0, value, 1), 0);
}

static int look_up(int map, __u64 cgroup, total_t total)
{
	return bpf_map_lookup_elem(map, &cgroup, total) ? -errno : 0;
}

static __u64 count(int map, __u64 cgroup)
{
	total_t total;
	int err = look_up(map, cgroup, total);

	if (err)
		fail("lookup of cgroup %llu: %s", cgroup, strerror(-err));
	return total[0];
}

static int new_map(__u64 extra, __u32 flags, __u32 value_size)
{
	LIBBPF_OPTS(bpf_map_create_opts, opts, .map_flags = flags, .map_extra = extra);
	int fd = bpf_map_create(BPF_MAP_TYPE_CGROUP_STATS, "test", 8, value_size, 0, &opts);

	return fd < 0 ? -errno : fd;
}

static struct globals *globals(struct loaded *loaded)
{
	struct bpf_map *map = bpf_object__find_map_by_name(loaded->object, "stats.bss");
	static struct globals g;
	__u32 key = 0;

	check(map && bpf_map__value_size(map) >= sizeof(g));
	check(!bpf_map_lookup_elem(bpf_map__fd(map), &key, &g));
	return &g;
}

static void set_globals(struct loaded *loaded, __u64 watched, int tgid)
{
	struct bpf_map *map = bpf_object__find_map_by_name(loaded->object, "stats.bss");
	struct globals g = { .watched = watched, .tgid = tgid };
	__u32 key = 0;

	check(!bpf_map_update_elem(bpf_map__fd(map), &key, &g, 0));
}

static struct bpf_link *attach(struct loaded *loaded, const char *name)
{
	struct bpf_program *prog = bpf_object__find_program_by_name(loaded->object, name);
	struct bpf_link *link = bpf_program__attach(prog);

	if (!link)
		fail("%s: attach: %m", name);
	return link;
}

/* ---- creation -------------------------------------------------------------- */

static void creation_errors(void)
{
	__u64 id = make("a"), gone = make("b");
	LIBBPF_OPTS(bpf_map_create_opts, opts);
	int fd;

	drop("b");
	check_equal(new_map(id, 0, 0), -EINVAL);
	check_equal(new_map(id, 0, 4), -EINVAL);
	check_equal(new_map(id, 0, 12), -EINVAL);
	check_equal(new_map(id, 0, 129 * 8), -EINVAL);
	check_equal(new_map(id, BPF_F_NO_PREALLOC, 8), -EINVAL);
	check_equal(new_map(id, BPF_F_NUMA_NODE, 8), -EINVAL);
	check_equal(new_map(id, BPF_F_MMAPABLE, 8), -EINVAL);
	check_equal(new_map(id, BPF_F_RDONLY_PROG, 8), -EINVAL);
	check_equal(new_map(id, 1U << 21, 8), -EINVAL);
	check_equal(new_map(id, BPF_F_RDONLY | BPF_F_WRONLY, 8), -EINVAL);
	check_equal(new_map(gone, 0, 8), -ENOENT);
	check_equal(new_map(~0ULL, 0, 8), -ENOENT);
	/* a file of a cgroup has an id, too */
	check_equal(new_map(id_of("a/cgroup.procs"), 0, 8), -ENOENT);

	opts.map_extra = id;
	check(bpf_map_create(BPF_MAP_TYPE_CGROUP_STATS, "test", 4, 8, 0, &opts) < 0);
	check_equal(errno, EINVAL);
	check(bpf_map_create(BPF_MAP_TYPE_CGROUP_STATS, "test", 8, 8, 1, &opts) < 0);
	check_equal(errno, EINVAL);
	check(bpf_map_create(BPF_MAP_TYPE_ARRAY, "test", 4, 8, 1, &opts) < 0);
	check_equal(errno, EINVAL);

	check((fd = new_map(id, 0, 128 * 8)) >= 0);
	close(fd);
	check((fd = new_map(0, BPF_F_RDONLY | BPF_F_CGROUP_STATS_NO_PERCPU |
			    BPF_F_CGROUP_STATS_NO_HIERARCHY, 8)) >= 0);
	close(fd);
	drop("a");
}

static void creation_needs_capability(void)
{
	pid_t child = fork();
	int status;

	check(child >= 0);
	if (!child) {
		check(!setresuid(65534, 65534, 65534));
		check_equal(new_map(0, 0, 8), -EPERM);
		_exit(0);
	}
	check(waitpid(child, &status, 0) == child && !status);
}

/* A cgroup namespace hides what is outside; 0 is its root. */
static void creation_in_namespace(void)
{
	__u64 outside = make("outside"), inside = make("inside"), below = make("inside/below");
	pid_t child = fork();
	int status;

	check(child >= 0);
	if (!child) {
		total_t total;
		int fd;

		write_path(path("inside/cgroup.procs"), "0");
		check(!unshare(CLONE_NEWCGROUP));
		check_equal(new_map(outside, 0, 8), -ENOENT);
		check((fd = new_map(below, 0, 8)) >= 0);
		close(fd);
		check((fd = new_map(0, 0, 8)) >= 0);
		check_equal(look_up(fd, inside, total), 0);
		check_equal(look_up(fd, below, total), 0);
		check_equal(look_up(fd, outside, total), -ENOENT);
		_exit(0);
	}
	check(waitpid(child, &status, 0) == child && !status);
	drop("inside/below");
	drop("inside");
	drop("outside");
}

/* Types of the value; those that are made in each case start with u64. */
struct value_type {
	const char *what;
	int (*build)(struct btf *btf, int u64);
	__u32 size;
	int err;
};

static int plain(struct btf *btf __attribute__((unused)), int u64)
{
	return u64;
}

static int signed_int(struct btf *btf, int u64 __attribute__((unused)))
{
	return btf__add_int(btf, "long long", 8, BTF_INT_SIGNED);
}

static int two_halves(struct btf *btf, int u64 __attribute__((unused)))
{
	return btf__add_array(btf, u64, btf__add_int(btf, "unsigned int", 4, 0), 2);
}

/* To the type that was added last. */
static void add_field(struct btf *btf, const char *name, int type, int bit, int bits)
{
	check(!btf__add_field(btf, name, type, bit, bits));
}

static int a_struct(struct btf *btf, int first, int second, const char *tag)
{
	int id = btf__add_struct(btf, "value", 16);

	add_field(btf, "first", first, 0, 0);
	add_field(btf, "second", second, 64, 0);
	if (tag)
		btf__add_decl_tag(btf, tag, id, 1);
	return id;
}

static int tagged(struct btf *btf, int u64)
{
	return a_struct(btf, u64, u64, "cgroup_stats:max");
}

static int tagged_by_others(struct btf *btf, int u64)
{
	return a_struct(btf, u64, u64, "theirs:median");
}

static int tagged_wrongly(struct btf *btf, int u64)
{
	return a_struct(btf, u64, u64, "cgroup_stats:median");
}

static int tagged_twice(struct btf *btf, int u64)
{
	int id = tagged(btf, u64);

	btf__add_decl_tag(btf, "cgroup_stats:min", id, 1);
	return id;
}

static int with_pointer(struct btf *btf, int u64)
{
	return a_struct(btf, u64, btf__add_ptr(btf, u64), NULL);
}

static int with_hole(struct btf *btf, int u64)
{
	int id = btf__add_struct(btf, "value", 24);

	add_field(btf, "first", u64, 0, 0);
	add_field(btf, "second", u64, 128, 0);
	return id;
}

static int with_tail(struct btf *btf, int u64)
{
	int id = btf__add_struct(btf, "value", 16);

	add_field(btf, "first", u64, 0, 0);
	return id;
}

static int bitfield(struct btf *btf, int u64)
{
	int id = btf__add_struct(btf, "value", 8);

	add_field(btf, "first", u64, 0, 63);
	return id;
}

static int a_union(struct btf *btf, int u64)
{
	int id = btf__add_union(btf, "value", 8);

	add_field(btf, "first", u64, 0, 0);
	return id;
}

static int nested(struct btf *btf, int u64)
{
	int inner = a_struct(btf, u64, btf__add_typedef(btf, "word", u64), "cgroup_stats:min");
	int array = btf__add_array(btf, u64, inner, 3);
	int first = btf__add_const(btf, u64), id = btf__add_struct(btf, "outer", 56);

	add_field(btf, "first", first, 0, 0);
	add_field(btf, "rest", array, 64, 0);
	return id;
}

static int nested_too_deep(struct btf *btf, int u64)
{
	int i, id = u64;

	for (i = 0; i < 9; i++) {
		int inner = id;

		id = btf__add_struct(btf, NULL, 8);
		add_field(btf, "inner", inner, 0, 0);
	}
	return id;
}

static int locked(struct btf *btf, int u64)
{
	int word = btf__add_int(btf, "unsigned int", 4, 0), lock, id;

	lock = btf__add_struct(btf, "bpf_spin_lock", 4);
	add_field(btf, "val", word, 0, 0);
	id = btf__add_struct(btf, "value", 16);
	add_field(btf, "first", u64, 0, 0);
	add_field(btf, "lock", lock, 64, 0);
	add_field(btf, "pad", word, 96, 0);
	return id;
}

static void creation_value_types(void)
{
	static const struct value_type types[] = {
		{ "u64", plain, 8, 0 },
		{ "u64, other size", plain, 16, -EINVAL },
		{ "signed", signed_int, 8, -EINVAL },
		{ "two u32", two_halves, 8, -EINVAL },
		{ "tag", tagged, 16, 0 },
		{ "tag of others", tagged_by_others, 16, 0 },
		{ "unknown tag", tagged_wrongly, 16, -EINVAL },
		{ "two tags", tagged_twice, 16, -EINVAL },
		{ "pointer", with_pointer, 16, -EINVAL },
		{ "hole", with_hole, 24, -EINVAL },
		{ "hole at the end", with_tail, 16, -EINVAL },
		{ "bit field", bitfield, 8, -EINVAL },
		{ "union", a_union, 8, -EINVAL },
		{ "nested", nested, 56, 0 },
		{ "nested too deep", nested_too_deep, 8, -EINVAL },
		{ "spin lock", locked, 16, -EOPNOTSUPP },
	};
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(types); i++) {
		LIBBPF_OPTS(bpf_map_create_opts, opts);
		struct btf *btf = btf__new_empty();
		int u64 = btf__add_int(btf, "unsigned long long", 8, 0), fd;

		opts.btf_value_type_id = types[i].build(btf, u64);
		opts.btf_key_type_id = u64;
		check(!btf__load_into_kernel(btf));
		opts.btf_fd = btf__fd(btf);
		fd = bpf_map_create(BPF_MAP_TYPE_CGROUP_STATS, "test", 8, types[i].size, 0, &opts);
		if ((fd < 0 ? -errno : 0) != types[i].err)
			fail("value %s: %d, not %d", types[i].what, fd < 0 ? -errno : 0,
			     types[i].err);
		close(fd);
		btf__free(btf);
	}
}

/* ---- counting --------------------------------------------------------------- */

/* Each cgroup counts its own and its descendants'. */
static void hierarchy(void)
{
	__u64 a = make("a"), b = make("a/b"), c = make("a/b/c"), d = make("a/b/d");
	struct loaded loaded = load(a, NULL);
	total_t total;

	add(&loaded, a, 1);
	add(&loaded, b, 10);
	add(&loaded, c, 100);
	add(&loaded, d, 1000);
	/* lower ones first: the upper ones have only what is pending */
	check_equal(count(loaded.maps[MAP_STATS], c), 100);
	check_equal(count(loaded.maps[MAP_STATS], d), 1000);
	check_equal(count(loaded.maps[MAP_STATS], b), 1110);
	check_equal(count(loaded.maps[MAP_STATS], a), 1111);
	add(&loaded, c, 5);
	check_equal(count(loaded.maps[MAP_STATS], a), 1116);
	check_equal(count(loaded.maps[MAP_STATS], c), 105);
	/* outside */
	check_equal(update(&loaded, MAP_STATS, id_of(""), 0, 1, 1), -ENOENT);
	check_equal(look_up(loaded.maps[MAP_STATS], id_of(""), total), -ENOENT);
	unload(&loaded);
	drop("a/b/d");
	drop("a/b/c");
	drop("a/b");
	drop("a");
}

static void operations(void)
{
	__u64 a = make("a"), b = make("a/b"), c = make("a/c");
	struct loaded loaded = load(a, NULL);
	int map;
	total_t total;

	for (map = MAP_STATS; map <= MAP_SHARED; map++) {
		check_equal(look_up(loaded.maps[map], a, total), 0);
		check_equal(total[2], 0);
		check_equal(update(&loaded, map, b, 1, 7, 1), 0);
		check_equal(update(&loaded, map, b, 1, 5, 1), 0);
		check_equal(update(&loaded, map, c, 1, 6, 1), 0);
		check_equal(update(&loaded, map, b, 2, 30, 1), 0);
		check_equal(update(&loaded, map, b, 2, 40, 1), 0);
		check_equal(update(&loaded, map, c, 2, 20, 1), 0);
		check_equal(update(&loaded, map, b, 7, 2, 1000), 0);
		check_equal(update(&loaded, map, c, 7, 1, 1), 0);
		check_equal(update(&loaded, map, b, ELEMS, 1, 1), -EINVAL);
		check_equal(look_up(loaded.maps[map], b, total), 0);
		check_equal(total[1], 7);
		check_equal(~total[2], 30);
		check_equal(total[7], 2000);
		check_equal(look_up(loaded.maps[map], a, total), 0);
		check_equal(total[1], 7);
		check_equal(~total[2], 20);
		check_equal(total[7], 2001);
		check_equal(total[0], 0);
	}
	unload(&loaded);
	drop("a/c");
	drop("a/b");
	drop("a");
}

static void no_hierarchy(void)
{
	__u64 a = make("a"), b = make("a/b");
	struct loaded loaded = load(a, NULL);

	check_equal(update(&loaded, MAP_FLAT, b, 0, 3, 1), 0);
	check_equal(update(&loaded, MAP_FLAT, a, 0, 4, 1), 0);
	check_equal(count(loaded.maps[MAP_FLAT], b), 3);
	check_equal(count(loaded.maps[MAP_FLAT], a), 4);
	drop("a/b");
	check_equal(count(loaded.maps[MAP_FLAT], a), 4);
	unload(&loaded);
	drop("a");
}

static void on_cpu(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	check(!sched_setaffinity(0, sizeof(set), &set));
}

static void several_cpus(void)
{
	__u64 a = make("a"), b = make("a/b");
	struct loaded loaded = load(a, NULL);
	int map, cpu;
	total_t total;

	for (map = MAP_STATS; map <= MAP_SHARED; map++) {
		for (cpu = 0; cpu < CPUS; cpu++) {
			on_cpu(cpu);
			check_equal(update(&loaded, map, b, 0, 1, 100), 0);
			check_equal(update(&loaded, map, b, 1, 10 + cpu, 1), 0);
		}
		check_equal(look_up(loaded.maps[map], a, total), 0);
		check_equal(total[0], 100 * CPUS);
		check_equal(total[1], 10 + CPUS - 1);
	}
	unload(&loaded);
	drop("a/b");
	drop("a");
}

static void array(void)
{
	__u64 a = make("a"), b = make("a/b");
	struct loaded loaded = load(a, NULL);
	struct args args = { .cgroup = b, .value = 3 };
	total_t total;
	int map;

	for (map = MAP_STATS; map <= MAP_SHARED; map++) {
		args.map = map;
		check_equal(run(&loaded, "do_array", &args), 0);
		check_equal(look_up(loaded.maps[map], a, total), 0);
		check_equal(total[0], 3);
		check_equal(total[7], 3);
	}
	check_equal(run(&loaded, "do_wrong_size", &args), 0);
	check_equal(run(&loaded, "do_wrong_map", &args), -ENOENT);
	args.cgroup = id_of("");
	check_equal(run(&loaded, "do_array", &args), -ENOENT);
	unload(&loaded);
	drop("a/b");
	drop("a");
}

/* Programs that leave out the end are counted when the cgroup is gone, at the latest. */
static void array_without_end(void)
{
	__u64 a = make("a"), b = make("a/b");
	struct loaded loaded = load(a, NULL);
	struct args args = { .cgroup = b, .value = 3, .no_end = 1 };
	double end = now() + 60;

	check_equal(run(&loaded, "do_array", &args), 0);
	check_equal(count(loaded.maps[MAP_STATS], a), 0);
	drop("a/b");
	while (count(loaded.maps[MAP_STATS], a) != 3) {
		if (now() > end)
			fail("never counted");
		wait_a_little();
	}
	unload(&loaded);
	drop("a");
}

static void lookup_by_program(void)
{
	__u64 a = make("a"), b = make("a/b");
	struct loaded loaded = load(a, NULL);
	struct args args = { .cgroup = a };

	add(&loaded, b, 12);
	check_equal(run(&loaded, "do_lookup", &args), 0);
	check_equal(args.total[0], 12);
	args.cgroup = id_of("");
	check_equal(run(&loaded, "do_lookup", &args), -ENOENT);
	unload(&loaded);
	drop("a/b");
	drop("a");
}

static void forks(void)
{
	static const int numbers[] = { 3, 1, 2, 4 };
	__u64 ids[4] = { make("a"), make("a/b"), make("a/b/c"), make("a/b/c/d") };
	const char *const names[] = { "a", "a/b", "a/b/c", "a/b/c/d" };
	struct loaded loaded = load(ids[0], "count_forks");
	struct bpf_link *link = attach(&loaded, "count_forks");
	int i, j, sum = 0, status;

	for (i = 0; i < 4; i++) {
		pid_t child = fork();

		check(child >= 0);
		if (!child) {
			write_path(path("%s/cgroup.procs", names[i]), "0");
			for (j = 0; j < numbers[i]; j++) {
				pid_t grandchild = fork();

				if (!grandchild)
					_exit(0);
				waitpid(grandchild, &status, 0);
			}
			_exit(0);
		}
		check(waitpid(child, &status, 0) == child && !status);
	}
	for (i = 3; i >= 0; i--) {
		sum += numbers[i];
		check_equal(count(loaded.maps[MAP_STATS], ids[i]), sum);
	}
	bpf_link__destroy(link);
	unload(&loaded);
	for (i = 3; i >= 0; i--)
		drop("%s", names[i]);
}

/* ---- what is refused ---------------------------------------------------------- */

static void element_calls(void)
{
	__u64 a = make("a"), value = 1, key = a;
	int fd = new_map(a, 0, 8), inner;
	LIBBPF_OPTS(bpf_map_create_opts, opts);
	LIBBPF_OPTS(bpf_map_batch_opts, batch);
	__u32 one = 1;

	check(fd >= 0);
	check_equal(bpf_map_update_elem(fd, &key, &value, BPF_ANY), -EOPNOTSUPP);
	check_equal(bpf_map_delete_elem(fd, &key), -EOPNOTSUPP);
	check(bpf_map_lookup_and_delete_elem(fd, &key, &value) < 0);
	check_equal(bpf_map_lookup_elem_flags(fd, &key, &value, BPF_F_LOCK), -EINVAL);
	check(bpf_map_update_batch(fd, &key, &value, &one, &batch) < 0);
	check(bpf_map_delete_batch(fd, &key, &one, &batch) < 0);
	opts.inner_map_fd = fd;
	inner = bpf_map_create(BPF_MAP_TYPE_ARRAY_OF_MAPS, "test", 4, 4, 1, &opts);
	check(inner < 0);
	close(fd);

	fd = new_map(a, BPF_F_WRONLY, 8);
	check_equal(look_up(fd, a, (total_t){}), -EPERM);
	check_equal(bpf_map_get_next_key(fd, NULL, &key), -EPERM);
	close(fd);
	fd = new_map(a, BPF_F_RDONLY, 8);
	check_equal(look_up(fd, a, (total_t){}), 0);
	check_equal(bpf_map_update_elem(fd, &key, &value, BPF_ANY), -EPERM);
	close(fd);
	drop("a");
}

/* There is a limit to how many maps have entries for a cgroup. */
static void many_maps(void)
{
	__u64 a = make("a"), b = make("a/b");
	int maps[64], i;

	maps[0] = new_map(b, 0, 8);
	check(maps[0] >= 0);
	for (i = 1; i < 64; i++) {
		maps[i] = new_map(a, BPF_F_CGROUP_STATS_NO_PERCPU, 8);
		check(maps[i] >= 0);
	}
	check_equal(new_map(a, 0, 8) < 0 ? -errno : 0, -E2BIG);
	check_equal(new_map(b, 0, 8) < 0 ? -errno : 0, -E2BIG);
	close(maps[1]);
	for (i = 0; (maps[1] = new_map(a, 0, 8)) < 0; i++) {
		check(errno == E2BIG && i < 500);
		wait_a_little();
	}
	for (i = 0; i < 64; i++)
		close(maps[i]);
	drop("a/b");
	drop("a");
}

/* Helpers of other maps are refused by the verifier. */
static void helpers(void)
{
	static const struct {
		const char *what;
		int func;
	} calls[] = {
		{ "lookup", BPF_FUNC_map_lookup_elem },
		{ "update", BPF_FUNC_map_update_elem },
		{ "delete", BPF_FUNC_map_delete_elem },
		{ "lookup percpu", BPF_FUNC_map_lookup_percpu_elem },
		{ "peek", BPF_FUNC_map_peek_elem },
	};
	__u64 a = make("a");
	int fd = new_map(a, 0, 8);
	unsigned int i;

	check(fd >= 0);
	for (i = 0; i < ARRAY_SIZE(calls); i++) {
		const struct bpf_insn insns[] = {
			/* *(u64 *)(fp - 8) = 1 */
			{ .code = BPF_ST | BPF_MEM | BPF_DW, .dst_reg = 10, .off = -8, .imm = 1 },
			{ .code = BPF_LD | BPF_DW | BPF_IMM, .dst_reg = 1,
			  .src_reg = BPF_PSEUDO_MAP_FD, .imm = fd },
			{},
			/* r2 = r3 = fp - 8, r4 = 0 */
			{ .code = BPF_ALU64 | BPF_MOV | BPF_X, .dst_reg = 2, .src_reg = 10 },
			{ .code = BPF_ALU64 | BPF_ADD | BPF_K, .dst_reg = 2, .imm = -8 },
			{ .code = BPF_ALU64 | BPF_MOV | BPF_X, .dst_reg = 3, .src_reg = 2 },
			{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 4 },
			{ .code = BPF_JMP | BPF_CALL, .imm = calls[i].func },
			{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0 },
			{ .code = BPF_JMP | BPF_EXIT },
		};
		static char log[65536];
		LIBBPF_OPTS(bpf_prog_load_opts, opts, .log_buf = log, .log_size = sizeof(log),
			    .log_level = 1, .prog_flags = BPF_F_SLEEPABLE);
		int prog = bpf_prog_load(BPF_PROG_TYPE_SYSCALL, "test", "GPL", insns,
					 ARRAY_SIZE(insns), &opts);

		if (prog >= 0)
			fail("%s is not refused", calls[i].what);
		check_equal(prog, -EINVAL);
		if (!strstr(log, "cannot pass map_type"))
			fail("%s is refused for another reason: %s", calls[i].what, log);
	}
	close(fd);
	drop("a");
}

/* ---- life cycle ------------------------------------------------------------- */

static void new_cgroups(void)
{
	__u64 a = make("a"), b, c;
	struct loaded loaded = load(a, NULL);
	total_t total;

	b = make("a/b");
	c = make("a/b/c");
	add(&loaded, c, 3);
	check_equal(count(loaded.maps[MAP_STATS], c), 3);
	check_equal(count(loaded.maps[MAP_STATS], b), 3);
	drop("a/b/c");
	check_equal(look_up(loaded.maps[MAP_STATS], c, total), -ENOENT);
	check_equal(update(&loaded, MAP_STATS, c, 0, 1, 1), -ENOENT);
	check_equal(count(loaded.maps[MAP_STATS], b), 3);
	check_equal(count(loaded.maps[MAP_STATS], a), 3);
	unload(&loaded);
	drop("a/b");
	drop("a");
}

/* A removed cgroup's counts are in its parent at once, flushed before or not. */
static void removed_with_updates_pending(void)
{
	__u64 a = make("a");
	struct loaded loaded = load(a, NULL);
	int i, cpu;

	for (i = 1; i <= 200; i++) {
		__u64 b = make("a/b"), c = make("a/b/c");

		for (cpu = 0; cpu < CPUS; cpu++) {
			on_cpu(cpu);
			add(&loaded, c, 1);
			check_equal(update(&loaded, MAP_SHARED, c, 0, 1, 1), 0);
		}
		if (i % 3 == 0)
			check_equal(count(loaded.maps[MAP_STATS], b), CPUS);
		drop("a/b/c");
		if (i % 2)
			check_equal(count(loaded.maps[MAP_STATS], b), CPUS);
		drop("a/b");
		check_equal(count(loaded.maps[MAP_STATS], a), CPUS * i);
		check_equal(count(loaded.maps[MAP_SHARED], a), CPUS * i);
	}
	/* once they are freed, too */
	sleep(2);
	check_equal(count(loaded.maps[MAP_STATS], a), CPUS * 200);
	unload(&loaded);
	drop("a");
}

/* A removed cgroup that is referred to can be updated, and read by programs. */
static void updates_after_removal(void)
{
	__u64 a = make("a"), b = make("a/b");
	struct loaded loaded = load(a, NULL);
	struct args args = { .cgroup = b, .value = 1, .times = 1 };
	total_t total;
	int i;

	check_equal(run(&loaded, "do_keep", &args), 0);
	drop("a/b");
	for (i = 1; i <= 10; i++) {
		check_equal(run(&loaded, "do_kept", &args), 0);
		check_equal(count(loaded.maps[MAP_STATS], a), i);
	}
	args.times = 0;
	check_equal(run(&loaded, "do_kept", &args), 0);
	check_equal(args.total[0], 10);
	check_equal(look_up(loaded.maps[MAP_STATS], b, total), -ENOENT);
	args.times = 1;
	check_equal(run(&loaded, "do_kept", &args), 0);
	check_equal(run(&loaded, "do_unkeep", &args), 0);
	sleep(2);
	check_equal(count(loaded.maps[MAP_STATS], a), 11);
	unload(&loaded);
	drop("a");
}

/* A cgroup that was removed before the map is made counts in its ancestors, too. */
static void removed_before_creation(void)
{
	__u64 a = make("a"), b = make("a/b");
	struct loaded keeper = load(a, NULL), loaded;
	struct args args = { .cgroup = b, .value = 1, .times = 1 };
	__u64 key;
	int map;

	check_equal(run(&keeper, "do_keep", &args), 0);
	drop("a/b");
	map = bpf_object__find_map_fd_by_name(keeper.object, "keeper");
	check(map >= 0);
	loaded = load_sharing(a, NULL, map);
	map = loaded.maps[MAP_STATS];
	check_equal(bpf_map_get_next_key(map, NULL, &key), 0);
	check_equal(key, a);
	check_equal(bpf_map_get_next_key(map, &key, &key), -ENOENT);
	check_equal(run(&loaded, "do_kept", &args), 0);
	check_equal(count(map, a), 1);
	check_equal(run(&loaded, "do_kept", &args), 0);
	check_equal(run(&loaded, "do_unkeep", &args), 0);
	sleep(2);
	check_equal(count(map, a), 2);
	unload(&loaded);
	unload(&keeper);
	drop("a");
}

static void initial_removed(void)
{
	__u64 a = make("a"), b = make("a/b"), key;
	struct loaded loaded = load(a, NULL);
	LIBBPF_OPTS(bpf_map_batch_opts, opts);
	total_t totals[4];
	__u64 keys[4];
	__u32 n = 4;

	add(&loaded, b, 1);
	drop("a/b");
	drop("a");
	check_equal(look_up(loaded.maps[MAP_STATS], a, totals[0]), -ENOENT);
	check_equal(bpf_map_get_next_key(loaded.maps[MAP_STATS], NULL, &key), -ENOENT);
	check_equal(bpf_map_lookup_batch(loaded.maps[MAP_STATS], NULL, &key, keys, totals, &n, &opts),
		    -ENOENT);
	check_equal(n, 0);
	check_equal(update(&loaded, MAP_STATS, a, 0, 1, 1), -ENOENT);
	sleep(1);
	make("a");
	check_equal(bpf_map_get_next_key(loaded.maps[MAP_STATS], NULL, &key), -ENOENT);
	drop("a");
	unload(&loaded);
}

/* The map is kept by its programs, of which one is attached. */
static void outlives_creator(void)
{
	__u64 a = make("a"), id;
	pid_t child;
	int pipes[2], status, fd;

	unlink(PIN);
	check(!pipe(pipes));
	child = fork();
	check(child >= 0);
	if (!child) {
		struct loaded loaded = load(a, "count_forks");
		struct bpf_link *link = attach(&loaded, "count_forks");
		struct bpf_map_info info = {};
		__u32 length = sizeof(info);

		check(!bpf_obj_get_info_by_fd(loaded.maps[MAP_STATS], &info, &length));
		id = info.id;
		check_equal(info.type, BPF_MAP_TYPE_CGROUP_STATS);
		check_equal(info.map_extra, a);
		check(!bpf_link__pin(link, PIN));
		check(write(pipes[1], &id, sizeof(id)) == sizeof(id));
		_exit(0);
	}
	/* Should the child fail, its end is the last one. */
	close(pipes[1]);
	check(read(pipes[0], &id, sizeof(id)) == sizeof(id));
	check(waitpid(child, &status, 0) == child && !status);
	make("a/b");
	child = fork();
	check(child >= 0);
	if (!child) {
		write_path(path("a/b/cgroup.procs"), "0");
		if (!(child = fork()))
			_exit(0);
		waitpid(child, &status, 0);
		_exit(0);
	}
	check(waitpid(child, &status, 0) == child && !status);
	fd = bpf_map_get_fd_by_id(id);
	check(fd >= 0);
	check_equal(count(fd, a), 1);
	close(fd);
	check(!unlink(PIN));
	for (;;) {
		fd = bpf_map_get_fd_by_id(id);
		if (fd < 0)
			break;
		close(fd);
		wait_a_little();
	}
	drop("a/b");
	drop("a");
}

/* ---- shapes ----------------------------------------------------------------- */

#define DEPTH 60

static void deep(void)
{
	__u64 ids[DEPTH];
	char *p = path("");
	struct loaded loaded = {};
	int i;

	for (i = 0; i < DEPTH; i++) {
		char *below;

		check(asprintf(&below, "%s/d", p) >= 0);
		check(!mkdir(below, 0755));
		ids[i] = id_of_path(below);
		free(p);
		p = below;
		/* half of them before the map is there */
		if (i == DEPTH / 2)
			loaded = load(ids[0], NULL);
	}
	for (i = 0; i < DEPTH; i++)
		add(&loaded, ids[i], 1);
	check_equal(count(loaded.maps[MAP_STATS], ids[0]), DEPTH);
	for (i = 0; i < DEPTH; i++)
		check_equal(count(loaded.maps[MAP_STATS], ids[i]), DEPTH - i);
	for (i = DEPTH - 1; i >= 0; i--) {
		check(!rmdir(p));
		*strrchr(p, '/') = '\0';
	}
	free(p);
	unload(&loaded);
}

#define WIDTH 1000

static int compare(const void *a, const void *b)
{
	__u64 x = *(const __u64 *)a, y = *(const __u64 *)b;

	return x < y ? -1 : x > y;
}

/* Many siblings; next key and batch, whole and in parts. */
static void wide(void)
{
	__u64 a = make("a"), *ids = calloc(WIDTH + 1, 8), *keys = calloc(WIDTH + 1, 8), key, next, in;
	struct loaded loaded = load(a, NULL);
	total_t *totals = calloc(WIDTH + 1, VALUE);
	LIBBPF_OPTS(bpf_map_batch_opts, opts);
	int map = loaded.maps[MAP_STATS], err, i;
	__u32 n, parts = 0, all = 0;

	ids[WIDTH] = a;
	for (i = 0; i < WIDTH; i++) {
		ids[i] = make("a/%d", i);
		add(&loaded, ids[i], ids[i]);
	}
	qsort(ids, WIDTH + 1, 8, compare);

	for (i = 0, err = bpf_map_get_next_key(map, NULL, &next); !err; i++) {
		check(i <= WIDTH);
		check_equal(next, ids[i]);
		key = next;
		err = bpf_map_get_next_key(map, &key, &next);
	}
	check_equal(err, -ENOENT);
	check_equal(i, WIDTH + 1);
	/* a key that is not there is a position */
	key = ids[3] - 1;
	check(!bpf_map_get_next_key(map, &key, &next));
	check_equal(next, ids[3]);

	n = WIDTH + 1;
	check_equal(bpf_map_lookup_batch(map, NULL, &in, keys, totals, &n, &opts), 0);
	check_equal(n, WIDTH + 1);
	for (i = 0; i <= WIDTH; i++) {
		check_equal(keys[i], ids[i]);
		if (keys[i] != a)
			check_equal(totals[i][0], keys[i]);
		check_equal(totals[i][0], count(map, keys[i]));
	}
	do {
		n = 37;
		err = bpf_map_lookup_batch(map, parts ? &in : NULL, &in, keys + all, totals + all, &n,
					   &opts);
		check(!err || err == -ENOENT);
		all += n;
		parts++;
		check(all <= WIDTH + 1);
	} while (!err);
	check_equal(all, WIDTH + 1);
	check(!memcmp(keys, ids, 8 * (WIDTH + 1)));
	check(parts > 10);

	for (i = 0; i < WIDTH; i++)
		drop("a/%d", i);
	check(!bpf_map_get_next_key(map, NULL, &next));
	check_equal(next, a);
	check_equal(bpf_map_get_next_key(map, &next, &next), -ENOENT);
	unload(&loaded);
	drop("a");
}

static void pinned_is_readable(void)
{
	__u64 a = make("a");
	struct loaded loaded = load(a, NULL);
	char expected[64], line[256] = "";
	FILE *f;

	unlink(PIN);
	add(&loaded, a, 42);
	check(!bpf_obj_pin(loaded.maps[MAP_STATS], PIN));
	f = fopen(PIN, "r");
	check(f);
	snprintf(expected, sizeof(expected), "%llu: ", a);
	while (fgets(line, sizeof(line), f) && strncmp(line, expected, strlen(expected)))
		;
	fclose(f);
	unlink(PIN);
	if (!strstr(line, "42"))
		fail("pinned map shows %s", line);
	unload(&loaded);
	drop("a");
}

/* ---- memory ------------------------------------------------------------------- */

static long long memlock(int map)
{
	char file[64];

	snprintf(file, sizeof(file), "/proc/self/fdinfo/%d", map);
	return read_number(file, "memlock:");
}

/* Entries are charged to the creator's memory cgroup, whoever makes the cgroups. */
static void memory_is_charged_and_returned(void)
{
	long long before, during, after;
	char *stat;
	__u64 a = make("a");
	int pipes[2][2], i, status;
	double end;
	pid_t child;
	char byte = 0;

	write_path(path("../cgroup.subtree_control"), "+memory");
	write_path(path("cgroup.subtree_control"), "+memory");
	make("owner");
	stat = path("owner/memory.stat");
	check(!pipe(pipes[0]) && !pipe(pipes[1]));
	child = fork();
	check(child >= 0);
	/* Whoever waits for the other one that failed finds no more writers. */
	close(pipes[!!child][1]);
	if (!child) {
		long long used;
		int fd;

		write_path(path("owner/cgroup.procs"), "0");
		check(read(pipes[0][0], &byte, 1) == 1);
		fd = new_map(a, 0, 128 * 8);
		check(fd >= 0);
		used = memlock(fd);
		check(write(pipes[1][1], &byte, 1) == 1);
		check(read(pipes[0][0], &byte, 1) == 1);
		check(memlock(fd) >= used + 50 * CPUS * 2048);
		_exit(0);
	}
	before = read_number(stat, "percpu");
	check(write(pipes[0][1], &byte, 1) == 1);
	check(read(pipes[1][0], &byte, 1) == 1);
	for (i = 0; i < 50; i++)
		make("a/%d", i);
	/* Small changes are shown late. */
	end = now() + 60;
	do {
		wait_a_little();
		during = read_number(stat, "percpu");
		if (now() > end)
			fail("percpu memory went from %lld to %lld only", before, during);
	} while (during < before + 50 * CPUS * 2048);
	check(write(pipes[0][1], &byte, 1) == 1);
	check(waitpid(child, &status, 0) == child && !status);
	end = now() + 60;
	do {
		wait_a_little();
		after = read_number(stat, "percpu");
		if (now() > end)
			fail("percpu memory went from %lld to %lld, and back to %lld", before, during,
			     after);
	} while (after > before);
	/* the cgroup itself can only be freed when nothing is charged to it */
	for (i = 0; i < 50; i++)
		drop("a/%d", i);
	drop("owner");
	drop("a");
	free(stat);
}

/* There is no room for an entry: the cgroup is not made, and nothing remains of it. */
static void memory_is_short(void)
{
	__u64 a = make("a");
	int pipes[2][2], i, made, status;
	pid_t child;
	char byte = 0, *p;

	write_path(path("../cgroup.subtree_control"), "+memory");
	write_path(path("cgroup.subtree_control"), "+memory");
	make("owner");
	write_path(path("owner/memory.swap.max"), "0");
	check(!pipe(pipes[0]) && !pipe(pipes[1]));
	child = fork();
	check(child >= 0);
	close(pipes[!!child][1]);
	if (!child) {
		char limit[32];
		int fd;

		write_path(path("owner/cgroup.procs"), "0");
		fd = new_map(a, 0, 128 * 8);
		check(fd >= 0);
		check(new_map(a, BPF_F_CGROUP_STATS_NO_PERCPU, 8) >= 0);
		p = path("owner/memory.current");
		snprintf(limit, sizeof(limit), "%lld", read_number(p, NULL) + (256 << 10));
		write_path(path("owner/memory.max"), limit);
		check(write(pipes[1][1], &byte, 1) == 1);
		check(read(pipes[0][0], &byte, 1) == 1);
		_exit(0);
	}
	check(read(pipes[1][0], &byte, 1) == 1);
	for (made = 0; made < 5000; made++) {
		p = path("a/%d", made);
		if (mkdir(p, 0755))
			break;
		free(p);
	}
	if (made == 5000)
		fail("5000 cgroups were made");
	check_equal(errno, ENOMEM);
	check(access(p, F_OK));
	printf("%d cgroups were made\n", made);
	check(write(pipes[0][1], &byte, 1) == 1);
	check(waitpid(child, &status, 0) == child);
	if (status)
		fail("the owner ended with status %#x", status);
	/* once the map is gone there are no entries to make */
	for (i = 0; mkdir(p, 0755); i++) {
		check(errno == ENOMEM && i < 500);
		wait_a_little();
	}
	check(!rmdir(p));
	for (i = 0; i < made; i++)
		drop("a/%d", i);
	drop("a");
	drop("owner");
}

/* ---- contexts ------------------------------------------------------------------- */

/* Programs on rstat's own tracepoints, with its locks held. */
static void rstat_tracepoints(void)
{
	__u64 a = make("a"), b = make("a/b");
	struct loaded loaded = load(a, "on_cpu_locked on_locked");
	struct bpf_link *links[2];
	struct globals *g;
	int i;

	set_globals(&loaded, b, 0);
	links[0] = attach(&loaded, "on_cpu_locked");
	links[1] = attach(&loaded, "on_locked");
	for (i = 0; i < 200; i++)
		count(loaded.maps[MAP_STATS], a);
	bpf_link__destroy(links[0]);
	bpf_link__destroy(links[1]);
	g = globals(&loaded);
	check(g->runs >= 200);
	check_equal(g->failures, 0);
	check_equal(count(loaded.maps[MAP_STATS], a), g->runs);
	unload(&loaded);
	drop("a/b");
	drop("a");
}

/* Cgroups that are freed meanwhile are updated in their last flushes, or not any more. */
static void updated_until_freed(void)
{
	__u64 a = make("a"), added = 0;
	struct loaded loaded = load(a, "on_unlock");
	struct bpf_link *link;
	int i;

	link = attach(&loaded, "on_unlock");
	for (i = 0; i < 200; i++) {
		add(&loaded, make("a/b"), 1);
		added++;
		drop("a/b");
	}
	/* for them to be freed */
	sleep(3);
	bpf_link__destroy(link);
	check(globals(&loaded)->runs > 200);
	check_equal(count(loaded.maps[MAP_STATS], a), added + globals(&loaded)->runs);
	unload(&loaded);
	drop("a");
}

/* NMI, which are sent to all cpus to have them print what they do. */
static void nmi(void)
{
	__u64 a = make("a"), b = make("a/b");
	struct loaded loaded = load(a, "on_nmi");
	struct bpf_link *link;
	struct globals *g;
	int fd, i;

	set_globals(&loaded, b, 0);
	link = attach(&loaded, "on_nmi");
	fd = open("/proc/sysrq-trigger", O_WRONLY);
	check(fd >= 0);
	for (i = 0; i < 5; i++) {
		check(write(fd, "l", 1) == 1);
		add(&loaded, b, 1);
	}
	close(fd);
	bpf_link__destroy(link);
	g = globals(&loaded);
	check(g->nmi_runs > 0);
	check_equal(g->failures, 0);
	check_equal(count(loaded.maps[MAP_STATS], a), g->runs + 5);
	unload(&loaded);
	drop("a/b");
	drop("a");
}

static size_t function_size(const char *name)
{
	unsigned long long start = 0, address;
	char line[256], symbol[128], type;
	size_t size = 0;
	FILE *f = fopen("/proc/kallsyms", "r");

	check(f);
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%llx %c %127s", &address, &type, symbol) != 3)
			continue;
		if (start && address > start && (!size || address - start < size))
			size = address - start;
		if (!start && !strcmp(symbol, name)) {
			start = address;
			rewind(f);
		}
	}
	fclose(f);
	return size;
}

/* Whether a kprobe is a jump by now. */
static bool is_optimized(void)
{
	FILE *f = fopen("/sys/kernel/debug/kprobes/list", "r");
	bool found = false;
	char line[512];

	if (!f)
		fail("kprobes/list: %m");
	while (fgets(line, sizeof(line), f))
		if (strstr(line, "[OPTIMIZED]"))
			found = true;
	fclose(f);
	return found;
}

/*
 * An update interrupted by another one at each of its instructions, in turn.
 * No lookup that comes after may miss either.
 */
static void interrupted_anywhere(void)
{
	static const char *const functions[] = {
		"cgroup_rstat_updated_nolock", "bpf_cgroup_stats_update",
		"cgroup_rstat_updated_nolock",
	};
	__u64 a = make("a"), b = make("a/b"), expected = 0;
	struct loaded loaded = load(a, "at_instruction");
	struct bpf_program *prog = bpf_object__find_program_by_name(loaded.object, "at_instruction");
	unsigned int f, probed = 0, optimized = 0;

	mount("debugfs", "/sys/kernel/debug", "debugfs", 0, NULL);
	write_path(path("a/b/cgroup.procs"), "0");
	set_globals(&loaded, b, getpid());
	for (f = 0; f < ARRAY_SIZE(functions); f++) {
		size_t offset, size = function_size(functions[f]);

		check(size > 0);
		for (offset = 0; offset < size; offset++) {
			LIBBPF_OPTS(bpf_kprobe_opts, opts, .offset = offset);
			struct bpf_link *link;
			__u64 runs = globals(&loaded)->runs;

			link = bpf_program__attach_kprobe_opts(prog, functions[f], &opts);
			if (!link)
				continue;	/* not an instruction's beginning */
			/*
			 * First by a breakpoint, which counts as NMI; after a
			 * while by a jump, where there is room for it.
			 */
			if (f == ARRAY_SIZE(functions) - 1) {
				usleep(300000);
				optimized += is_optimized();
			}
			/* once to be listed, and flushed, and once more when it is listed */
			add(&loaded, b, 1);
			expected += 1 + globals(&loaded)->runs - runs;
			check_equal(count(loaded.maps[MAP_STATS], a), expected);
			runs = globals(&loaded)->runs;
			add(&loaded, b, 1);
			add(&loaded, b, 1);
			bpf_link__destroy(link);
			expected += 2 + globals(&loaded)->runs - runs;
			check_equal(count(loaded.maps[MAP_STATS], b), expected);
			probed++;
		}
	}
	check_equal(globals(&loaded)->failures, 0);
	check(globals(&loaded)->runs > probed);
	check(optimized > 0);
	printf("%u instructions, %u by a jump, %llu interruptions\n", probed, optimized,
	       globals(&loaded)->runs);
	write_path(path("cgroup.procs"), "0");
	unload(&loaded);
	drop("a/b");
	drop("a");
}

/* ---- aggregators ---------------------------------------------------------------- */

static void see(struct loaded *loaded, __u64 cgroup, __u32 element, __u64 value)
{
	struct args args = { .cgroup = cgroup, .element = element, .value = value };

	check_equal(run(loaded, "do_see", &args), 0);
}

static struct loaded load_aggregator(__u64 initial)
{
	struct loaded loaded = {};
	char file[PATH_MAX + 24];
	int err;

	snprintf(file, sizeof(file), "%s/aggregator.bpf.o", folder);
	loaded.object = bpf_object__open_file(file, NULL);
	if (!loaded.object)
		fail("%s: %m", file);
	bpf_map__set_map_extra(bpf_object__find_map_by_name(loaded.object, "seen"), initial);
	err = bpf_object__load(loaded.object);
	if (err)
		fail("%s: load: %s", file, strerror(-err));
	loaded.maps[0] = bpf_object__find_map_fd_by_name(loaded.object, "seen");
	return loaded;
}

static struct bpf_link *attach_aggregator(struct loaded *loaded)
{
	struct bpf_map *map = bpf_object__find_map_by_name(loaded->object, "ops");
	struct bpf_link *link = bpf_map__attach_struct_ops(map);

	if (!link)
		fail("aggregator: attach: %m");
	return link;
}

static void aggregator(void)
{
	__u64 a = make("a"), b = make("a/b"), c = make("a/c"), d;
	struct loaded loaded = load_aggregator(a), second;
	struct args args = { .cgroup = b };
	struct bpf_link *link;
	total_t total;

	/* values wait for it ... */
	on_cpu(0);
	see(&loaded, b, 1, 1);
	see(&loaded, b, 2, 0x0500000000000001);
	on_cpu(CPUS - 1);
	see(&loaded, b, 1, 2);
	see(&loaded, b, 2, 0x0100000000000003);
	check_equal(look_up(loaded.maps[0], a, total), 0);
	check_equal(total[0], 4);
	check_equal(total[1], 0);
	/* ... and are merged when it is there */
	link = attach_aggregator(&loaded);
	see(&loaded, c, 1, 8);
	check_equal(look_up(loaded.maps[0], a, total), 0);
	check_equal(total[0], 5);
	check_equal(total[1], 11);
	check_equal(total[2], 0x0500000000000003);
	check_equal(look_up(loaded.maps[0], b, total), 0);
	check_equal(total[0], 4);
	check_equal(total[1], 3);
	check_equal(run(&loaded, "do_update_refused", &args), -EOPNOTSUPP);
	/* a name has one aggregator; maps that come later have it, too */
	second = load_aggregator(a);
	check(!bpf_map__attach_struct_ops(bpf_object__find_map_by_name(second.object, "ops")));
	see(&second, b, 1, 16);
	check_equal(look_up(second.maps[0], a, total), 0);
	check_equal(total[1], 16);
	/* of removed cgroups */
	d = make("a/c/d");
	see(&loaded, d, 1, 32);
	drop("a/c/d");
	drop("a/c");
	check_equal(look_up(loaded.maps[0], a, total), 0);
	check_equal(total[1], 43);
	check_equal(total[0], 6);
	/* replaced by another one */
	bpf_link__destroy(link);
	see(&loaded, b, 1, 64);
	check_equal(look_up(loaded.maps[0], a, total), 0);
	check_equal(total[1], 43);
	link = attach_aggregator(&second);
	check_equal(look_up(loaded.maps[0], a, total), 0);
	check_equal(total[1], 107);
	bpf_link__destroy(link);
	unload(&second);
	unload(&loaded);
	drop("a/b");
	drop("a");
}

/* ---- races ------------------------------------------------------------------------ */

static int churn_seconds(void)
{
	const char *text = getenv("CGSTATFS_CHURN_SECONDS");

	return text ? atoi(text) : 60;
}

struct litmus {
	struct loaded *loaded;
	__u64 cgroup;
	int cpu, map;
	volatile bool *stop;
	__u64 updates;
};

/* Whoever has updated must find it counted, while others flush. */
static void *litmus_updater(void *data)
{
	struct litmus *l = data;

	on_cpu(l->cpu);
	while (!*l->stop) {
		check_equal(update(l->loaded, l->map, l->cgroup, 0, 1, 1), 0);
		l->updates++;
		if (count(l->loaded->maps[l->map], l->cgroup) != l->updates)
			fail("cgroup %llu: %llu are counted, of %llu", l->cgroup,
			     count(l->loaded->maps[l->map], l->cgroup), l->updates);
	}
	return NULL;
}

static void *litmus_flusher(void *data)
{
	struct litmus *l = data;
	__u64 last = 0, n;

	while (!*l->stop) {
		n = count(l->loaded->maps[l->map], l->cgroup);
		if (n < last)
			fail("cgroup %llu went from %llu to %llu", l->cgroup, last, n);
		last = n;
	}
	return NULL;
}

static void litmus(int map)
{
	__u64 a = make("a"), b = make("a/b"), c = make("a/c"), sibling = make("a/b/s");
	struct loaded loaded = load(a, NULL);
	volatile bool stop = false;
	struct litmus l[] = {
		{ &loaded, b, 0, map, &stop, 0 }, { &loaded, c, CPUS - 1, map, &stop, 0 },
		{ &loaded, a, 0, map, &stop, 0 }, { &loaded, sibling, 0, map, &stop, 0 },
	};
	pthread_t threads[ARRAY_SIZE(l)];
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(l); i++)
		check(!pthread_create(&threads[i], NULL, i < 2 ? litmus_updater : litmus_flusher, &l[i]));
	sleep(churn_seconds() < 20 ? churn_seconds() : 20);
	stop = true;
	for (i = 0; i < ARRAY_SIZE(l); i++)
		pthread_join(threads[i], NULL);
	check_equal(count(loaded.maps[map], a), l[0].updates + l[1].updates);
	check_equal(count(loaded.maps[map], sibling), 0);
	printf("%llu updates, none missed\n", l[0].updates + l[1].updates);
	unload(&loaded);
	drop("a/b/s");
	drop("a/b");
	drop("a/c");
	drop("a");
}

static void update_against_flush(void)
{
	litmus(MAP_STATS);
}

static void update_against_flush_no_percpu(void)
{
	litmus(MAP_SHARED);
}

/* What goes on at once; each sleeps a little now and then for the others to get on. */
struct churn {
	struct loaded *loaded;
	__u64 initial;
	int number;
	volatile bool *stop;
	__u64 updates, rounds;
};

/* Cgroups come, are updated and go. */
static void *churn_cgroups(void *data)
{
	struct churn *c = data;

	while (!*c->stop) {
		__u64 x = make("a/%d", c->number), y = make("a/%d/y", c->number);

		on_cpu(c->rounds % CPUS);
		check_equal(update(c->loaded, MAP_STATS, x, 0, 1, 2), 0);
		check_equal(update(c->loaded, MAP_STATS, y, 0, 1, 3), 0);
		c->updates += 5;
		if (c->rounds % 4 == 0)
			check_equal(count(c->loaded->maps[MAP_STATS], x), 5);
		drop("a/%d/y", c->number);
		drop("a/%d", c->number);
		c->rounds++;
	}
	return NULL;
}

/* Maps come and go, with cgroups coming and going below. */
static void *churn_maps(void *data)
{
	struct churn *c = data;
	total_t total;

	while (!*c->stop) {
		int fd = new_map(c->initial, c->rounds % 2 ? BPF_F_CGROUP_STATS_NO_PERCPU : 0, VALUE);

		/* Closed ones count until RCU lets them be freed. */
		if (fd == -E2BIG) {
			wait_a_little();
			continue;
		}
		if (fd < 0)
			fail("no map: %s", strerror(-fd));
		check_equal(look_up(fd, c->initial, total), 0);
		check_equal(total[0], 0);
		close(fd);
		c->rounds++;
	}
	return NULL;
}

/* Maps whose initial cgroup comes and goes. */
static void *churn_initial(void *data)
{
	struct churn *c = data;

	while (!*c->stop) {
		__u64 id = make("a/%d", c->number);
		int fd = new_map(id, 0, VALUE);

		check(fd >= 0);
		make("a/%d/below", c->number);
		drop("a/%d/below", c->number);
		drop("a/%d", c->number);
		if (c->rounds % 2)
			check_equal(look_up(fd, id, (total_t){}), -ENOENT);
		close(fd);
		c->rounds++;
	}
	return NULL;
}

/* A map is made in the very moment in which its initial cgroup is removed. */
static void *churn_creation(void *data)
{
	struct churn *c = data;
	static volatile __u64 id;

	while (!*c->stop) {
		if (c->number % 2) {
			int fd = new_map(id, 0, 8);

			if (fd < 0 && fd != -ENOENT && fd != -E2BIG)
				fail("no map: %s", strerror(-fd));
			if (fd >= 0)
				close(fd);
		} else {
			id = make("a/races");
			usleep(c->rounds % 500);
			drop("a/races");
		}
		c->rounds++;
	}
	return NULL;
}

/* All ways to look up, from user space and from programs. */
static void *churn_lookups(void *data)
{
	struct churn *c = data;
	int map = c->loaded->maps[MAP_STATS], err;
	__u64 key, keys[16], last = 0;
	LIBBPF_OPTS(bpf_map_batch_opts, opts);
	total_t totals[16];

	while (!*c->stop) {
		struct args args = { .cgroup = c->initial };
		__u32 n = ARRAY_SIZE(keys);

		check_equal(run(c->loaded, "do_lookup", &args), 0);
		check(args.total[0] >= last);
		last = count(map, c->initial);
		check(last >= args.total[0]);
		for (err = bpf_map_get_next_key(map, NULL, &key); !err;
		     err = bpf_map_get_next_key(map, &key, &key)) {
			err = look_up(map, key, totals[0]);
			check(!err || err == -ENOENT);
		}
		check_equal(err, -ENOENT);
		err = bpf_map_lookup_batch(map, NULL, &key, keys, totals, &n, &opts);
		check(err == -ENOENT && n >= 1);
		c->rounds++;
	}
	return NULL;
}

static void churn(void)
{
	static void *(*const functions[])(void *) = {
		churn_cgroups, churn_cgroups, churn_maps, churn_initial,
		churn_creation, churn_creation, churn_lookups,
	};
	struct churn c[ARRAY_SIZE(functions)] = {};
	pthread_t threads[ARRAY_SIZE(functions)];
	__u64 a = make("a"), updates = 0;
	struct loaded loaded = load(a, NULL);
	volatile bool stop = false;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(c); i++) {
		c[i] = (struct churn) { &loaded, a, i, &stop, 0, 0 };
		check(!pthread_create(&threads[i], NULL, functions[i], &c[i]));
	}
	sleep(churn_seconds());
	stop = true;
	for (i = 0; i < ARRAY_SIZE(c); i++) {
		pthread_join(threads[i], NULL);
		updates += c[i].updates;
		printf("%u: %llu rounds\n", i, c[i].rounds);
	}
	check_equal(count(loaded.maps[MAP_STATS], a), updates);
	unload(&loaded);
	drop("a");
}

/* ------------------------------------------------------------------------------------- */

#define CASE(function) { #function, function }
static const struct {
	const char *name;
	void (*function)(void);
} cases[] = {
	CASE(creation_errors),
	CASE(creation_needs_capability),
	CASE(creation_in_namespace),
	CASE(creation_value_types),
	CASE(hierarchy),
	CASE(operations),
	CASE(no_hierarchy),
	CASE(several_cpus),
	CASE(array),
	CASE(array_without_end),
	CASE(lookup_by_program),
	CASE(forks),
	CASE(element_calls),
	CASE(many_maps),
	CASE(helpers),
	CASE(new_cgroups),
	CASE(removed_with_updates_pending),
	CASE(updates_after_removal),
	CASE(removed_before_creation),
	CASE(initial_removed),
	CASE(outlives_creator),
	CASE(deep),
	CASE(wide),
	CASE(pinned_is_readable),
	CASE(memory_is_charged_and_returned),
	CASE(memory_is_short),
	CASE(rstat_tracepoints),
	CASE(nmi),
	CASE(updated_until_freed),
	CASE(interrupted_anywhere),
	CASE(aggregator),
	CASE(update_against_flush),
	CASE(update_against_flush_no_percpu),
	CASE(churn),
};

int main(int argc, char **argv)
{
	char self[PATH_MAX];
	ssize_t length;
	unsigned int i;

	if (argc == 2 && !strcmp(argv[1], "--list")) {
		for (i = 0; i < ARRAY_SIZE(cases); i++)
			puts(cases[i].name);
		return 0;
	}
	if (argc != 3) {
		fprintf(stderr, "usage: stats_map --list | stats_map CASE CGROUP\n");
		return 2;
	}
	length = readlink("/proc/self/exe", self, sizeof(self) - 1);
	check(length > 0);
	self[length] = '\0';
	snprintf(folder, sizeof(folder), "%s", dirname(self));
	top = argv[2];
	libbpf_set_print(quiet);
	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		if (strcmp(cases[i].name, argv[1]))
			continue;
		cases[i].function();
		return 0;
	}
	fprintf(stderr, "%s: no such case\n", argv[1]);
	return 2;
}
