// SPDX-License-Identifier: GPL-2.0-only
/*
 * Open a file, read it to its end, close it, N times after a few to warm up;
 * print how many nanoseconds each took, and how many of them on the cpu.
 *
 *	read_file FILE N
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define WARM_UP 20

static void once(const char *path)
{
	static char buffer[65536];
	int fd = open(path, O_RDONLY);
	ssize_t got;

	if (fd < 0) {
		perror(path);
		exit(1);
	}
	while ((got = read(fd, buffer, sizeof(buffer))) > 0)
		;
	if (got < 0) {
		perror(path);
		exit(1);
	}
	close(fd);
}

static double now(clockid_t clock)
{
	struct timespec time;

	clock_gettime(clock, &time);
	return time.tv_sec * 1e9 + time.tv_nsec;
}

int main(int argc, char **argv)
{
	long count = argc == 3 ? atol(argv[2]) : 0;
	double begin, cpu;

	if (count < 1)
		return 2;
	for (int i = 0; i < WARM_UP; i++)
		once(argv[1]);
	begin = now(CLOCK_MONOTONIC);
	cpu = now(CLOCK_PROCESS_CPUTIME_ID);
	for (long i = 0; i < count; i++)
		once(argv[1]);
	printf("%.1f %.1f\n", (now(CLOCK_MONOTONIC) - begin) / count,
	       (now(CLOCK_PROCESS_CPUTIME_ID) - cpu) / count);
	return 0;
}
