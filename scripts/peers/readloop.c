// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The peer in scripts/bench that reads a range of a pagemap in the simplest
 * fast way: by large preads into one buffer. It ignores what it read. For each
 * line on stdin it reads the range once, and prints the nanoseconds.
 *
 * Usage: readloop PAGEMAP FIRST_PAGE NR_PAGES
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "read_range.h"

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
