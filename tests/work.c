// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the tests count: tasks that do a known number of things in a cgroup.
 *
 *	work fork DIRECTORY N		join the cgroup, fork N tasks one after the other
 *	work churn DIRECTORY N NAME	N times: make a cgroup below, fork a task that
 *					joins it and forks one, remove the cgroup
 *	work pingpong DIRECTORY N NAME	join, take NAME as comm, stop; then N rounds
 *					of two tasks that wake each other, stop
 *	work touch DIRECTORY BYTES	join, touch so much memory once
 *	work touch_in_thread DIRECTORY BYTES
 *					the same in a thread, the main one having ended
 *	work write DIRECTORY FILE TEXT	join, write TEXT to FILE
 *	work update DIRECTORY MAP N FIRST
 *					join; update MAP of tests/bpf/properties.bpf.c
 *					with FIRST, FIRST + 1, ..., N times
 *	work interrupts DIRECTORY MAP N
 *					the same from 1 on, N times and on until it was
 *					hit by 50 timer interrupts, which update as
 *					well; print the last number
 *	work read DIRECTORY FILE	open, read and close FILE until killed; print a
 *					byte after the first time
 */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* See tests/bpf/properties.bpf.c. */
#define CALL 0x63677072
#define INTERRUPTS 0x100

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		die(path);
	close(fd);
}

static void join(const char *directory)
{
	char path[4096];

	snprintf(path, sizeof(path), "%s/cgroup.procs", directory);
	write_file(path, "0");
}

static void fork_one(void)
{
	pid_t pid = fork();

	if (pid < 0)
		die("fork");
	if (!pid)
		_exit(0);
	if (waitpid(pid, NULL, 0) != pid)
		die("waitpid");
}

static void churn(const char *directory, long n, const char *name)
{
	char path[4096];

	for (long i = 0; i < n; i++) {
		snprintf(path, sizeof(path), "%s/%s%ld", directory, name, i);
		if (mkdir(path, 0755))
			die(path);
		pid_t pid = fork();
		if (pid < 0)
			die("fork");
		if (!pid) {
			join(path);
			fork_one();
			_exit(0);
		}
		if (waitpid(pid, NULL, 0) != pid)
			die("waitpid");
		if (rmdir(path))
			die(path);
	}
}

static void bounce(int in, int out, long n)
{
	char byte = 0;

	for (long i = 0; i < n; i++)
		if (read(in, &byte, 1) != 1 || write(out, &byte, 1) != 1)
			die("pipe");
}

static void pingpong(long n, const char *name)
{
	int there[2], back[2], status;
	char byte = 0;

	prctl(PR_SET_NAME, name);
	if (pipe(there) || pipe(back))
		die("pipe");
	raise(SIGSTOP);
	pid_t pid = fork();
	if (!pid) {
		bounce(there[0], back[1], n);
		_exit(0);
	}
	for (long i = 0; i < n; i++)
		if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
			die("pipe");
	if (waitpid(pid, &status, 0) != pid || status)
		die("waitpid");
	raise(SIGSTOP);
}

static void touch(size_t bytes)
{
	char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		die("mmap");
	memset(memory, 1, bytes);
}

/* A zombie is what a main thread is that has ended before its process. */
static int main_thread_has_ended(void)
{
	char text[512] = "", *end;
	int fd = open("/proc/self/stat", O_RDONLY);

	if (fd < 0 || read(fd, text, sizeof(text) - 1) < 0)
		die("/proc/self/stat");
	close(fd);
	end = strrchr(text, ')');
	return end && end[2] == 'Z';
}

static void *touch_and_exit(void *bytes)
{
	while (!main_thread_has_ended())
		usleep(1000);
	/* For it to be switched away from, too. */
	usleep(100000);
	touch((size_t)bytes);
	exit(0);
}

static void touch_in_thread(size_t bytes)
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, touch_and_exit, (void *)bytes))
		die("pthread_create");
	pthread_exit(NULL);
}

static void update(long map, long n, long first)
{
	for (long i = 0; i < n; i++)
		prctl(CALL, map, first + i, 0, 0);
}

/* A machine that has much to do can take 1000 times as long to the next one as it is asked for. */
#define LEAST_INTERRUPTS 50

static volatile sig_atomic_t interrupts;

static void count_interrupt(int signal)
{
	(void)signal;
	interrupts++;
}

/* A timer that notifies nobody, or whose signal is ignored, is not kept going. */
static void update_with_interrupts(long map, long n)
{
	struct itimerspec every = { { 0, 100000 }, { 0, 100000 } };
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1 };
	timer_t timer;
	long last;

	signal(SIGUSR1, count_interrupt);

	prctl(CALL, INTERRUPTS | map, 1, 0, 0);
	/* The timer's interrupt comes to the cpu that we are on. */
	if (timer_create(CLOCK_MONOTONIC, &event, &timer) ||
	    timer_settime(timer, 0, &every, NULL))
		die("timer");
	for (last = 0; last < n || interrupts < LEAST_INTERRUPTS; last++)
		prctl(CALL, map, last + 1, 0, 0);
	timer_delete(timer);
	prctl(CALL, INTERRUPTS | map, 0, 0, 0);
	printf("%ld\n", last);
}

static void read_forever(const char *path)
{
	char buffer[4096];

	for (long i = 0;; i++) {
		int fd = open(path, O_RDONLY);

		if (fd < 0 || read(fd, buffer, sizeof(buffer)) < 0)
			die(path);
		close(fd);
		if (!i && write(STDOUT_FILENO, buffer, 1) != 1)
			die("stdout");
	}
}

int main(int argc, char **argv)
{
	if (argc < 4)
		return 2;
	if (!strcmp(argv[1], "churn")) {
		churn(argv[2], atol(argv[3]), argv[4]);
		return 0;
	}
	if (!strcmp(argv[1], "read"))
		read_forever(argv[3]);
	join(argv[2]);
	if (!strcmp(argv[1], "fork"))
		for (long i = atol(argv[3]); i > 0; i--)
			fork_one();
	else if (!strcmp(argv[1], "pingpong"))
		pingpong(atol(argv[3]), argv[4]);
	else if (!strcmp(argv[1], "update"))
		update(atol(argv[3]), atol(argv[4]), atol(argv[5]));
	else if (!strcmp(argv[1], "interrupts"))
		update_with_interrupts(atol(argv[3]), atol(argv[4]));
	else if (!strcmp(argv[1], "touch"))
		touch(atol(argv[3]));
	else if (!strcmp(argv[1], "touch_in_thread"))
		touch_in_thread(atol(argv[3]));
	else if (!strcmp(argv[1], "write"))
		write_file(argv[3], argv[4]);
	else
		return 2;
	return 0;
}
