/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the readers of extents share: scan.c by pagemap, bpf_scan.c by BPF. */
#ifndef SCAN_H
#define SCAN_H

#include <stdbool.h>

#include "physview.h"

/* Entries in one read. For the choice see pagemap.c. */
#define PV_SCAN_CHUNK 8192

/*
 * Regions in one call of PAGEMAP_SCAN. With more, walk_end can be before the
 * end of the last region (seen on 6.18).
 */
#define PV_SCAN_REGIONS 512

/* Source: include/uapi/linux/fs.h. The headers of older systems lack this. */
struct page_region {
	uint64_t start;
	uint64_t end;
	uint64_t categories;
};

/*
 * The state of one call that reads extents. It is too large for a stack, which
 * may have 64 KiB (ulimit -s).
 */
struct scan {
	int fd;
	unsigned int page_shift;
	bool use_scan;
	uint64_t bits;			 /* of an entry that are kept */
	const uint64_t *cuts, *last_cut; /* the cuts that are still ahead */
	struct pv_extent *extents;
	uint64_t nr, room;
	/* the page that would continue the last extent, and that extent's step
	 */
	uint64_t next_vaddr, next_entry, step;
	uint64_t zero_pfn;
	struct page_region regions[PV_SCAN_REGIONS];
	uint64_t chunk[PV_SCAN_CHUNK];
};

struct scan *pv_scan_new(int fd, unsigned int page_shift, int how,
			 const uint64_t *cuts, uint64_t nr_cuts,
			 uint64_t zero_pfn, struct pv_extent *extents,
			 uint64_t room);
void pv_pass_cuts(struct scan *scan, uint64_t vaddr);
uint64_t pv_add_entries(struct scan *scan, uint64_t vaddr,
			const uint64_t *entries, uint64_t nr);
int pv_scan_range(struct scan *scan, uint64_t *at, uint64_t end);

#endif
