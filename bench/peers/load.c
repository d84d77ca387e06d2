// SPDX-License-Identifier: GPL-2.0-only
/*
 * What collectors hook into, over and over; prints the nanoseconds of cpu time
 * that each took.
 *
 *	load exec N		fork a task that executes this program, and wait for it
 *	load pingpong N		two tasks of one cpu that wake each other, there and back
 *	load syscalls N		the shortest system call there is
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void exec_one(void)
{
	pid_t pid = fork();

	if (pid < 0)
		die("fork");
	if (!pid) {
		execl("/proc/self/exe", "load", "nothing", NULL);
		_exit(1);
	}
	if (waitpid(pid, NULL, 0) != pid)
		die("waitpid");
}

static void execs(long count)
{
	for (long i = 0; i < count; i++)
		exec_one();
}

static int there[2], back[2];
static clockid_t partner;

/* The other one, which echoes until it hears no more. */
static void begin_pingpong(void)
{
	char byte;
	pid_t pid;

	if (pipe(there) || pipe(back))
		die("pipe");
	pid = fork();
	if (pid < 0)
		die("fork");
	if (pid) {
		clock_getcpuclockid(pid, &partner);
		return;
	}
	close(there[1]);
	while (read(there[0], &byte, 1) == 1 && write(back[1], &byte, 1) == 1)
		;
	_exit(0);
}

static void pingpong(long count)
{
	char byte = 0;

	for (long i = 0; i < count; i++)
		if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
			die("pingpong");
}

static void syscalls(long count)
{
	for (long i = 0; i < count; i++)
		syscall(SYS_getppid);
}

static double seconds(clockid_t clock)
{
	struct timespec time;

	clock_gettime(clock, &time);
	return time.tv_sec + time.tv_nsec * 1e-9;
}

/* The time of all tasks of this load: others on the machine are not in it. */
static double taken(void)
{
	struct rusage children;
	double sum = seconds(CLOCK_PROCESS_CPUTIME_ID);

	getrusage(RUSAGE_CHILDREN, &children);
	sum += children.ru_utime.tv_sec + children.ru_stime.tv_sec;
	sum += 1e-6 * (children.ru_utime.tv_usec + children.ru_stime.tv_usec);
	return partner ? sum + seconds(partner) : sum;
}

int main(int argc, char **argv)
{
	void (*load)(long) = NULL;
	long count = argc == 3 ? atol(argv[2]) : 0;
	double begin;

	if (argc == 2)
		return 0;
	if (count > 0 && !strcmp(argv[1], "exec"))
		load = execs;
	else if (count > 0 && !strcmp(argv[1], "pingpong"))
		load = pingpong;
	else if (count > 0 && !strcmp(argv[1], "syscalls"))
		load = syscalls;
	if (!load)
		return 2;
	if (load == pingpong)
		begin_pingpong();
	load(count / 10);
	begin = taken();
	load(count);
	printf("%.1f\n", (taken() - begin) * 1e9 / count);
	return 0;
}
