// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The floor of `physview file` in scripts/bench --peers: what the kernel needs
 * to count the cached pages of each file below a path. It opens each file,
 * calls cachestat() (mincore() before Linux 6.5), and closes it. Prints the
 * count.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <ftw.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_cachestat
#define SYS_cachestat 451
#endif

static uint64_t nr_cached;

static void count_by_mincore(int fd, off_t size)
{
	size_t nr_pages = ((size_t)size + 4095) / 4096;
	unsigned char *resident = malloc(nr_pages + 1);
	void *map = mmap(NULL, (size_t)size, PROT_READ, MAP_SHARED, fd, 0);

	if (map != MAP_FAILED && !mincore(map, (size_t)size, resident)) {
		for (size_t i = 0; i < nr_pages; i++)
			nr_cached += resident[i] & 1;
	}
	if (map != MAP_FAILED)
		munmap(map, (size_t)size);
	free(resident);
}

static int count(const char *path, const struct stat *info, int type,
		 struct FTW *where)
{
	uint64_t range[2] = { 0, 0 }, counts[5];
	int fd;

	(void)where;
	if (type != FTW_F)
		return 0;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	if (!syscall(SYS_cachestat, fd, range, counts, 0))
		nr_cached += counts[0];
	else
		count_by_mincore(fd, info->st_size);
	close(fd);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc != 2 || nftw(argv[1], count, 64, FTW_PHYS))
		return 1;
	printf("%lu\n", (unsigned long)nr_cached);
	return 0;
}
