// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The peer in scripts/bench that reads a range of a pagemap in the simplest
 * fast way: by large preads into one buffer. It ignores what it read. For each
 * line on stdin it reads the range once, and prints the nanoseconds.
 *
 * Usage: readloop PAGEMAP FIRST_PAGE NR_PAGES NR_THREADS
 */
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "read_range.h"

#define MAX_THREADS 64

struct part {
	int fd;
	uint64_t first, nr_pages;
};

static void *read_part(void *argument)
{
	const struct part *part = argument;

	if (read_range(part->fd, part->first, part->nr_pages)) {
		perror("pagemap");
		exit(1);
	}
	return NULL;
}

static void read_all(int fd, uint64_t first, uint64_t nr_pages, int nr_threads)
{
	struct part parts[MAX_THREADS];
	pthread_t threads[MAX_THREADS];

	for (int i = 0; i < nr_threads; i++) {
		uint64_t from = nr_pages * i / nr_threads;
		uint64_t to = nr_pages * (i + 1) / nr_threads;

		parts[i] = (struct part){ fd, first + from, to - from };
		/* This thread reads the last part. */
		if (i == nr_threads - 1)
			read_part(&parts[i]);
		else if (pthread_create(&threads[i], NULL, read_part,
					&parts[i]))
			exit(1);
	}
	for (int i = 0; i < nr_threads - 1; i++)
		pthread_join(threads[i], NULL);
}

int main(int argc, char **argv)
{
	int c;
	int fd = argc == 5 ? open(argv[1], O_RDONLY) : -1;
	int nr_threads = argc == 5 ? atoi(argv[4]) : 0;

	if (fd < 0 || nr_threads < 1 || nr_threads > MAX_THREADS) {
		fprintf(stderr, "usage: readloop PAGEMAP FIRST_PAGE NR_PAGES "
				"NR_THREADS\n");
		return 2;
	}
	while ((c = getchar()) != EOF) {
		int64_t start = now_ns();

		if (c != '\n')
			continue;
		read_all(fd, strtoull(argv[2], NULL, 0),
			 strtoull(argv[3], NULL, 0), nr_threads);
		printf("%" PRId64 "\n", now_ns() - start);
		fflush(stdout);
	}
	return 0;
}
