// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Reads address spaces as extents: contiguous pages whose pagemap entries
 * follow each other (see entry.h).
 *
 * There are two ways to find the pages. PAGEMAP_SCAN (Linux 6.7) jumps over
 * holes, but where all pages are present it adds half the cost of reading.
 * Plain reading costs little over short holes and a lot over long ones. So the
 * core reads while it finds pages, and scans where it finds none.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/ioctl.h>

#include "scan.h"

#define CHUNK PV_SCAN_CHUNK
#define NR_REGIONS PV_SCAN_REGIONS

/* To read over a hole of so many pages costs less than a system call. */
#define SHORT_HOLE 64

/* Where a scan finds so many pages, nearly all pages are present. */
#define MANY_PAGES 4096

/* Source: include/uapi/linux/fs.h. The headers of older systems lack this. */
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

/* A mapping begins at or before vaddr. No extent may lie in two mappings. */
void pv_pass_cuts(struct scan *scan, uint64_t vaddr)
{
	while (scan->cuts < scan->last_cut && *scan->cuts <= vaddr)
		scan->cuts++;
	scan->next_vaddr = 0;
}

/*
 * Add contiguous pages, all in one mapping. Returns for how many of them there
 * was room.
 */
uint64_t pv_add_entries(struct scan *scan, uint64_t vaddr,
			const uint64_t *entries, uint64_t nr)
{
	const uint64_t page_size = UINT64_C(1) << scan->page_shift;
	const struct pv_extent *end = scan->extents + scan->room;
	struct pv_extent *next = scan->extents + scan->nr;
	uint64_t next_vaddr = scan->next_vaddr, step = scan->step;
	uint64_t next_entry = scan->next_entry, i;

	for (i = 0; i < nr; i++, vaddr += page_size) {
		uint64_t entry = entries[i], step_here;

		if (!(entry & (PM_PRESENT | PM_SWAP)))
			continue;
		step_here = pv_step_of(entry, scan->zero_pfn);
		/* The zero page's frame continues no run of other frames. */
		if (vaddr == next_vaddr && entry == next_entry &&
		    step_here == step) {
			next[-1].nr_pages++;
		} else {
			if (next == end)
				break;
			*next++ = (struct pv_extent){ vaddr, entry, 1 };
		}
		next_vaddr = vaddr + page_size;
		next_entry = entry + step_here;
		step = step_here;
	}
	scan->nr = (uint64_t)(next - scan->extents);
	scan->next_vaddr = next_vaddr;
	scan->next_entry = next_entry;
	scan->step = step;
	return i;
}

/* Add the pages of a chunk. Returns for how many of them there was room. */
static uint64_t add_chunk(struct scan *scan, uint64_t vaddr, uint64_t nr,
			  uint64_t *nr_populated)
{
	uint64_t done = 0;

	for (uint64_t i = 0; i < nr; i++) {
		*nr_populated += !!(scan->chunk[i] & (PM_PRESENT | PM_SWAP));
		scan->chunk[i] &= scan->bits;
	}
	while (done < nr) {
		uint64_t at = vaddr + (done << scan->page_shift), added;
		uint64_t stop = nr;

		if (scan->cuts < scan->last_cut && *scan->cuts <= at)
			pv_pass_cuts(scan, at);
		if (scan->cuts < scan->last_cut &&
		    (*scan->cuts - vaddr) >> scan->page_shift < nr)
			stop = (*scan->cuts - vaddr) >> scan->page_shift;
		added = pv_add_entries(scan, at, scan->chunk + done,
				       stop - done);
		done += added;
		if (done < stop)
			break;
	}
	return done;
}

/*
 * Read from *at to end. If there is no more room, *at is where to continue.
 * Returns 0 or -errno; -ESRCH if the address space is gone.
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

/* Scan for the next pages and read only these. Returns as read_range(). */
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
		/* In an address space that is gone, the scan finds nothing. */
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

/* Read or jump from *at on, to end or until there is no more room. */
int pv_scan_range(struct scan *scan, uint64_t *at, uint64_t end)
{
	const uint64_t chunk_size = (uint64_t)CHUNK << scan->page_shift;
	bool is_full = !scan->use_scan;

	while (*at < end && scan->nr < scan->room) {
		uint64_t nr_populated = 0, start = *at;
		int ret;

		if (is_full) {
			uint64_t stop = end - start > chunk_size
						? start + chunk_size
						: end;

			ret = read_range(scan, at, stop, &nr_populated);
			is_full = !scan->use_scan || 2 * nr_populated >=
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

/* The state of a call that is to read extents. NULL if memory is short. */
struct scan *pv_scan_new(int fd, unsigned int page_shift, int how,
			 const uint64_t *cuts, uint64_t nr_cuts,
			 uint64_t zero_pfn, struct pv_extent *extents,
			 uint64_t room)
{
	struct scan *scan = malloc(sizeof(*scan));

	if (!scan)
		return NULL;
	scan->fd = fd;
	scan->page_shift = page_shift;
	scan->use_scan = how & PV_USE_SCAN;
	scan->bits = how & PV_COMMON_BITS ? PM_COMMON : UINT64_MAX;
	scan->cuts = cuts;
	scan->last_cut = cuts + nr_cuts;
	scan->extents = extents;
	scan->nr = 0;
	scan->room = room;
	scan->next_vaddr = scan->next_entry = scan->step = 0;
	scan->zero_pfn = zero_pfn;
	return scan;
}

/*
 * Read the extents of [*at, end), in address order, as many as there is room
 * for. Afterwards *at is the address where to continue. cuts are the sorted
 * addresses at which mappings begin. With PV_USE_SCAN it uses PAGEMAP_SCAN,
 * which the kernel must have; with PV_COMMON_BITS it keeps only the bits of
 * entries that all sources know. zero_pfn is the zero page's frame; 0 if it is
 * not known. Returns how many extents there are, or -errno; -ESRCH if the
 * address space is gone: the process has exited or runs another program.
 */
int64_t pv_scan_extents(int fd, unsigned int page_shift, int how, uint64_t *at,
			uint64_t end, const uint64_t *cuts, uint64_t nr_cuts,
			uint64_t zero_pfn, struct pv_extent *extents,
			uint64_t room)
{
	struct scan *scan = pv_scan_new(fd, page_shift, how, cuts, nr_cuts,
					zero_pfn, extents, room);
	int64_t ret;

	if (!scan)
		return -ENOMEM;
	ret = pv_scan_range(scan, at, end);
	if (!ret)
		ret = (int64_t)scan->nr;
	free(scan);
	return ret;
}
