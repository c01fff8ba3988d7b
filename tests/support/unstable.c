// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The core's walk by BPF with a program whose every answer below the root table
 * is unstable, which no real process brings about on demand. What the core says
 * of this process must then be what pagemap says. Prints how many pages it
 * compared, and how often the program was run.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "bpf_walk.h"

#define NR_PAGES 1500
#define ROOM 4096

static int nr_runs;

/* In place of csrc/bpf_load.c. */
int pv_bpf_run(struct pv_bpf *bpf, int fd, uint32_t first, uint32_t nr)
{
	(void)fd;
	nr_runs++;
	for (uint32_t i = first; i < first + nr; i++) {
		struct bpf_walk_answer *answer = &bpf->area->answers[i];

		memset(answer, 0, sizeof(*answer));
		if (!bpf->area->requests[i].nr_levels &&
		    bpf->area->requests[i].copy) {
			answer->state = BPF_WALK_COPIED;
			for (int k = 0; k < BPF_WALK_ENTRIES; k++)
				bpf->area->tables[i][k] = PV_TABLE_VALUE;
		} else {
			answer->nr_read = 1;
			answer->entry[0] = PV_TABLE_VALUE;
			answer->state = BPF_WALK_UNSTABLE;
		}
	}
	return 0;
}

static void require(int holds, const char *what)
{
	if (holds)
		return;
	fprintf(stderr, "%s\n", what);
	exit(1);
}

int main(void)
{
	static struct pv_extent expected[ROOM], found[ROOM];
	static uint64_t vaddrs[NR_PAGES], entries[2][NR_PAGES];
	static uint64_t paddrs[2][NR_PAGES];
	static struct bpf_walk_area area = {
		.shifts = { 39, 30, 21, 12 },
		.index_mask = BPF_WALK_ENTRIES - 1,
	};
	static struct pv_bpf bpf = {
		.nr_levels = 4,
		.user_end = (UINT64_C(1) << 47) - 4096,
		.area = &area,
	};
	const int how = PV_COMMON_BITS;
	const uint64_t bits = PM_PRESENT | PM_SWAP | PM_PFRAME_MASK;
	char *pages = mmap(NULL, NR_PAGES * PV_PAGE, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = open("/proc/self/pagemap", O_RDONLY);
	uint64_t at, end, cut = (uintptr_t)pages;
	const uint8_t doubt = 0;
	int64_t nr, nr_found;

	require(pages != MAP_FAILED && fd >= 0, "cannot begin");
	for (int i = 0; i < NR_PAGES; i++) {
		vaddrs[i] = cut + i * PV_PAGE;
		if (i % 3)
			pages[i * PV_PAGE] = 1;
	}
	at = cut;
	end = cut + NR_PAGES * PV_PAGE;
	nr = pv_scan_extents(fd, PV_PAGE_SHIFT, how, &at, end, &cut, 1, 0,
			     expected, ROOM);
	at = cut;
	nr_found = pv_bpf_scan(&bpf, fd, how, &at, end, &cut, &doubt, 1, 0,
			       found, ROOM);
	require(nr > 0 && nr == nr_found && at == end, "other extents");
	require(!memcmp(expected, found, nr * sizeof(*found)), "they differ");
	require(!pv_translate(fd, PV_PAGE_SHIFT, vaddrs, NR_PAGES, entries[0],
			      paddrs[0]),
		"no entries");
	require(!pv_bpf_translate(&bpf, fd, vaddrs, NR_PAGES, entries[1],
				  paddrs[1]),
		"no entries by BPF");
	for (int i = 0; i < NR_PAGES; i++)
		require((entries[0][i] & bits) == entries[1][i] &&
				paddrs[0][i] == paddrs[1][i],
			"translations differ");
	printf("%d %d\n", NR_PAGES, nr_runs);
	return 0;
}
