/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the peers in this folder share: a function that reads a range, and a
 * clock.
 */
#ifndef READ_RANGE_H
#define READ_RANGE_H

#include <stdint.h>
#include <time.h>
#include <unistd.h>

static __thread uint64_t buffer[65536];

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

#endif
