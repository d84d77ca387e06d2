// SPDX-License-Identifier: GPL-2.0-only
/*
 * Open a file, read it to its end, close it, N times after a few to warm up;
 * print how many nanoseconds each took.
 *
 *	read_file FILE N
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

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

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1e9 + time.tv_nsec;
}

int main(int argc, char **argv)
{
	long count = argc == 3 ? atol(argv[2]) : 0;
	double begin;

	if (count < 1)
		return 2;
	for (int i = 0; i < 20; i++)
		once(argv[1]);
	begin = now();
	for (long i = 0; i < count; i++)
		once(argv[1]);
	printf("%.1f\n", (now() - begin) / count);
	return 0;
}
