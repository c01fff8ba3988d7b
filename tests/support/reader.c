// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * An independent reader of pagemap, with which tests compare physview. For each
 * address, one per line on stdin, it prints the physical address or "-". Its
 * only source is the kernel's documentation; it shares no code with physview.
 *
 * Usage: reader PID <addresses
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	long page = sysconf(_SC_PAGESIZE);
	uint64_t vaddr, entry;
	char path[64];
	int fd;

	if (argc != 2)
		return 2;
	snprintf(path, sizeof(path), "/proc/%s/pagemap", argv[1]);
	fd = open(path, O_RDONLY);
	if (fd < 0) {
		perror(path);
		return 1;
	}
	while (scanf("%" SCNx64, &vaddr) == 1) {
		entry = 0;
		if (lseek(fd, (off_t)(vaddr / page * 8), SEEK_SET) < 0 ||
		    read(fd, &entry, sizeof(entry)) < 0) {
			perror(path);
			return 1;
		}
		if (entry >> 63 && (entry << 9) >> 9)
			printf("0x%" PRIx64 "\n",
			       ((entry << 9) >> 9) * page + vaddr % page);
		else
			puts("-");
	}
	return 0;
}
