// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What scripts/bench measures against: the plainest fast way to read a range
 * of a pagemap, big preads into one buffer, and nothing done with them.
 * For each line on stdin it reads the range once and prints the nanoseconds.
 *
 * Usage: readloop PAGEMAP FIRST_PAGE NR_PAGES
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static uint64_t buffer[65536];

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static int read_range(int fd, uint64_t page, uint64_t nr_pages)
{
	while (nr_pages) {
		size_t size = sizeof(buffer);
		ssize_t got;

		if (nr_pages * sizeof(*buffer) < size)
			size = nr_pages * sizeof(*buffer);
		got = pread(fd, buffer, size, (off_t)(page * sizeof(*buffer)));
		if (got <= 0)
			return -1;
		page += (uint64_t)got / sizeof(*buffer);
		nr_pages -= (uint64_t)got / sizeof(*buffer);
	}
	return 0;
}

int main(int argc, char **argv)
{
	int c;
	int fd = argc == 4 ? open(argv[1], O_RDONLY) : -1;

	if (fd < 0) {
		fprintf(stderr,
			"usage: readloop PAGEMAP FIRST_PAGE NR_PAGES\n");
		return 2;
	}
	while ((c = getchar()) != EOF) {
		int64_t start = now_ns();

		if (c != '\n')
			continue;
		if (read_range(fd, strtoull(argv[2], NULL, 0),
			       strtoull(argv[3], NULL, 0))) {
			perror(argv[1]);
			return 1;
		}
		printf("%" PRId64 "\n", now_ns() - start);
		fflush(stdout);
	}
	return 0;
}
