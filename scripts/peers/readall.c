// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The peer of owners in scripts/bench. It reads the pagemaps of all processes,
 * where something is mapped, by large preads into one buffer, and ignores what
 * it read. For each line on stdin it reads once, and prints the nanoseconds.
 */
#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "read_range.h"

static void read_process(const char *pid, long page_size)
{
	char path[64], *line = NULL;
	uint64_t start, end;
	size_t room = 0;
	FILE *maps;
	int fd;

	snprintf(path, sizeof(path), "/proc/%.20s/pagemap", pid);
	fd = open(path, O_RDONLY);
	snprintf(path, sizeof(path), "/proc/%.20s/maps", pid);
	maps = fd < 0 ? NULL : fopen(path, "r");
	while (maps && getline(&line, &room, maps) > 0) {
		if (sscanf(line, "%" SCNx64 "-%" SCNx64, &start, &end) != 2)
			continue;
		read_range(fd, start / page_size, (end - start) / page_size);
	}
	free(line);
	if (maps)
		fclose(maps);
	if (fd >= 0)
		close(fd);
}

int main(void)
{
	long page_size = sysconf(_SC_PAGESIZE);
	int c;

	while ((c = getchar()) != EOF) {
		int64_t start = now_ns();
		struct dirent *entry;
		DIR *proc;

		if (c != '\n')
			continue;
		proc = opendir("/proc");
		while (proc && (entry = readdir(proc))) {
			if (isdigit((unsigned char)entry->d_name[0]))
				read_process(entry->d_name, page_size);
		}
		if (proc)
			closedir(proc);
		printf("%" PRId64 "\n", now_ns() - start);
		fflush(stdout);
	}
	return 0;
}
