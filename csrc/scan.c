// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Whole address spaces as extents: pages in a row whose pagemap entries go on
 * in a row, too.
 *
 * Two ways to find the pages. PAGEMAP_SCAN (Linux 6.7) jumps over what is
 * empty, but over memory that is full it costs half a reading again; plain
 * reading costs little over short holes and a lot over long ones. So reading
 * goes on while it finds pages, and the scan is asked where it does not.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/ioctl.h>

#include "physview.h"

/* Entries in one read: see pagemap.c. */
#define CHUNK 8192

/*
 * With more regions than this in one call, walk_end can stay behind the last
 * of them (seen on 6.18).
 */
#define NR_REGIONS 512

/* Holes that are cheaper read over than jumped over: a system call's worth. */
#define SHORT_HOLE 64

/* A scan that finds so many pages has found memory that is full. */
#define MANY_PAGES 4096

/* include/uapi/linux/fs.h, which older systems have without these */
struct page_region {
	uint64_t start;
	uint64_t end;
	uint64_t categories;
};

struct pm_scan_arg {
	uint64_t size;
	uint64_t flags;
	uint64_t start;
	uint64_t end;
	uint64_t walk_end;
	uint64_t vec;
	uint64_t vec_len;
	uint64_t max_pages;
	uint64_t category_inverted;
	uint64_t category_mask;
	uint64_t category_anyof_mask;
	uint64_t return_mask;
};

#define PAGEMAP_SCAN _IOWR('f', 16, struct pm_scan_arg)
#define PAGE_IS_PRESENT (1 << 3)
#define PAGE_IS_SWAPPED (1 << 4)

/*
 * What is being made in one call of pv_scan_extents(). Too large for a stack,
 * which may be 64 KiB (ulimit -s).
 */
struct scan {
	int fd;
	unsigned int page_shift;
	const uint64_t *cuts, *last_cut; /* those not yet passed */
	struct pv_extent *extents;
	uint64_t nr, room;
	uint64_t next_vaddr, next_entry; /* how the last extent would go on */
	uint64_t zero_pfn;
	struct page_region regions[NR_REGIONS];
	uint64_t chunk[CHUNK];
};

/* No extent lies in two mappings: the one that ends before vaddr is done. */
static void pass_cuts(struct scan *scan, uint64_t vaddr)
{
	while (scan->cuts < scan->last_cut && *scan->cuts <= vaddr)
		scan->cuts++;
	scan->next_vaddr = 0;
}

/* Add pages in a row. Returns for how many there was room. */
static uint64_t add_chunk(struct scan *scan, uint64_t vaddr, uint64_t nr,
			  uint64_t *nr_populated)
{
	const uint64_t page_size = UINT64_C(1) << scan->page_shift;

	for (uint64_t i = 0; i < nr; i++, vaddr += page_size) {
		uint64_t entry = scan->chunk[i];

		if (!(entry & (PM_PRESENT | PM_SWAP)))
			continue;
		if (scan->cuts < scan->last_cut && *scan->cuts <= vaddr)
			pass_cuts(scan, vaddr);
		if (vaddr == scan->next_vaddr && entry == scan->next_entry) {
			scan->extents[scan->nr - 1].nr_pages++;
		} else {
			if (scan->nr == scan->room)
				return i;
			scan->extents[scan->nr++] =
				(struct pv_extent){ vaddr, entry, 1 };
		}
		scan->next_vaddr = vaddr + page_size;
		scan->next_entry = entry + pv_step_of(entry, scan->zero_pfn);
		++*nr_populated;
	}
	return nr;
}

/*
 * Read from *at to end, and leave *at where there was no more room. Returns 0
 * or -errno; -ESRCH if the address space has ended before.
 */
static int read_range(struct scan *scan, uint64_t *at, uint64_t end,
		      uint64_t *nr_populated)
{
	while (*at < end) {
		uint64_t nr = (end - *at) >> scan->page_shift;
		uint64_t added;
		int64_t got;

		if (nr > CHUNK)
			nr = CHUNK;
		got = pv_pagemap_read(scan->fd, *at >> scan->page_shift, nr,
				      scan->chunk);
		if (got < 0)
			return (int)got;
		if ((uint64_t)got < nr)
			return -ESRCH;
		added = add_chunk(scan, *at, nr, nr_populated);
		*at += added << scan->page_shift;
		if (added < nr)
			break;
	}
	return 0;
}

/* Ask the scan for the next pages and read only these. As read_range(). */
static int jump(struct scan *scan, uint64_t *at, uint64_t end, bool *is_full)
{
	struct page_region *regions = scan->regions;
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.start = *at,
		.end = end,
		.vec = (uintptr_t)regions,
		.vec_len = NR_REGIONS,
		.max_pages = MANY_PAGES,
		.category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
	};
	const uint64_t short_hole = (uint64_t)SHORT_HOLE << scan->page_shift;
	uint64_t nr_populated = 0;
	int nr;

	do
		nr = ioctl(scan->fd, PAGEMAP_SCAN, &arg);
	while (nr < 0 && errno == EINTR);
	if (nr < 0)
		return -errno;
	if (!nr) {
		/* An address space that has ended looks empty to the scan. */
		int64_t got = pv_pagemap_read(scan->fd, *at >> scan->page_shift,
					      1, scan->chunk);

		if (got <= 0)
			return got < 0 ? (int)got : -ESRCH;
	}
	for (int i = 0; i < nr; i++) {
		uint64_t stop = regions[i].end;
		int ret;

		*at = regions[i].start;
		while (i + 1 < nr && regions[i + 1].start - stop <= short_hole)
			stop = regions[++i].end;
		ret = read_range(scan, at, stop, &nr_populated);
		if (ret || *at < stop)
			return ret;
	}
	if (arg.walk_end > *at)
		*at = arg.walk_end;
	*is_full = nr_populated >= MANY_PAGES && nr <= NR_REGIONS / 8;
	return 0;
}

/* Read or jump from *at on, until end or until there is no more room. */
static int scan_range(struct scan *scan, bool use_scan, uint64_t *at,
		      uint64_t end)
{
	const uint64_t chunk_size = (uint64_t)CHUNK << scan->page_shift;
	bool is_full = !use_scan;

	while (*at < end && scan->nr < scan->room) {
		uint64_t nr_populated = 0, start = *at;
		int ret;

		if (is_full) {
			uint64_t stop = end - start > chunk_size
						? start + chunk_size
						: end;

			ret = read_range(scan, at, stop, &nr_populated);
			is_full = !use_scan || 2 * nr_populated >=
						       (*at - start) >>
						       scan->page_shift;
		} else {
			ret = jump(scan, at, end, &is_full);
		}
		if (ret)
			return ret;
	}
	return 0;
}

/*
 * The extents of [*at, end), in order, as many as there is room for; *at is
 * left where to go on. cuts are addresses at which mappings begin, sorted.
 * use_scan is whether the kernel has PAGEMAP_SCAN and it is to be used;
 * zero_pfn the zero page's frame, 0 if it is not known. Returns how many
 * extents there are, or -errno; -ESRCH if the address space is gone.
 */
int64_t pv_scan_extents(int fd, unsigned int page_shift, int use_scan,
			uint64_t *at, uint64_t end, const uint64_t *cuts,
			uint64_t nr_cuts, uint64_t zero_pfn,
			struct pv_extent *extents, uint64_t room)
{
	struct scan *scan = malloc(sizeof(*scan));
	int64_t ret;

	if (!scan)
		return -ENOMEM;
	scan->fd = fd;
	scan->page_shift = page_shift;
	scan->cuts = cuts;
	scan->last_cut = cuts + nr_cuts;
	scan->extents = extents;
	scan->nr = 0;
	scan->room = room;
	scan->next_vaddr = scan->next_entry = 0;
	scan->zero_pfn = zero_pfn;
	ret = scan_range(scan, use_scan, at, end);
	if (!ret)
		ret = (int64_t)scan->nr;
	free(scan);
	return ret;
}
