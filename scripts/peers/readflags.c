// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The floor of `physview pages` and `physview frames` in scripts/bench --peers:
 * what the kernel needs to tell the flags of frames. With a pid it reads the
 * process's pagemap, and the flags of its frames, contiguous frames at once.
 * Without one it reads the flags of all frames. Prints how many it read.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define CHUNK 4096
#define PRESENT (UINT64_C(1) << 63)
#define PFN ((UINT64_C(1) << 55) - 1)

static uint64_t entries[CHUNK], flags[CHUNK], nr_read;

static void read_flags(int fd, uint64_t pfn, uint64_t nr)
{
	ssize_t got = pread(fd, flags, nr * 8, (off_t)(pfn * 8));

	if (got > 0)
		nr_read += (uint64_t)got / 8;
}

static void read_pages(int pagemap, int kpageflags, uint64_t page, uint64_t end)
{
	for (; page < end; page += CHUNK) {
		uint64_t nr = end - page < CHUNK ? end - page : CHUNK, run = 0;
		ssize_t got =
			pread(pagemap, entries, nr * 8, (off_t)(page * 8));

		if (got <= 0)
			return;
		for (uint64_t i = 0; i < (uint64_t)got / 8;
		     i += run ? run : 1) {
			for (run = 0; i + run < (uint64_t)got / 8; run++) {
				if (!(entries[i + run] & PRESENT) ||
				    (entries[i + run] & PFN) !=
					    (entries[i] & PFN) + run)
					break;
			}
			if (run)
				read_flags(kpageflags, entries[i] & PFN, run);
		}
	}
}

int main(int argc, char **argv)
{
	int kpageflags = open("/proc/kpageflags", O_RDONLY), pagemap;
	char path[64], line[8192];
	uint64_t start, end;
	FILE *maps;

	if (kpageflags < 0)
		return 1;
	if (argc < 2) {
		uint64_t before;

		do {
			before = nr_read;
			read_flags(kpageflags, nr_read, CHUNK);
		} while (nr_read > before);
		printf("%" PRIu64 "\n", nr_read);
		return 0;
	}
	snprintf(path, sizeof(path), "/proc/%d/pagemap", atoi(argv[1]));
	pagemap = open(path, O_RDONLY);
	snprintf(path, sizeof(path), "/proc/%d/maps", atoi(argv[1]));
	maps = fopen(path, "r");
	if (pagemap < 0 || !maps)
		return 1;
	while (fgets(line, sizeof(line), maps)) {
		if (sscanf(line, "%" SCNx64 "-%" SCNx64, &start, &end) == 2 &&
		    end < UINT64_C(1) << 63)
			read_pages(pagemap, kpageflags, start / 4096,
				   end / 4096);
	}
	printf("%" PRIu64 "\n", nr_read);
	return 0;
}
