// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Bulk reading of /proc/PID/pagemap, and its decoding.
 * Format: Documentation/admin-guide/mm/pagemap.rst, fs/proc/task_mmu.c.
 */
#include <errno.h>
#include <unistd.h>

#include "physview.h"

/*
 * Entries in one pread(). The kernel copies out 512 at a time, so that more
 * saves only system calls; with this many, those are few, and the entries are
 * still in a cache of the core when pv_decode() comes for them.
 */
#define CHUNK 8192

/*
 * Read the entries of nr_pages pages. Returns how many there were: fewer than
 * asked means the end of the user address space, or an address space that is
 * gone.
 */
int64_t pv_pagemap_read(int fd, uint64_t first_page, uint64_t nr_pages,
			uint64_t *entries)
{
	const size_t size = sizeof(*entries);
	uint64_t done = 0;

	while (done < nr_pages) {
		ssize_t got =
			pread(fd, entries + done, (nr_pages - done) * size,
			      (off_t)((first_page + done) * size));

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -errno;
		if (got == 0)
			break;
		/* The kernel hands out whole entries only. */
		done += (uint64_t)got / size;
	}
	return (int64_t)done;
}

/*
 * Physical addresses out of entries. A frame number of 0 is no address: that
 * is how the kernel hides it from those without CAP_SYS_ADMIN. Masks instead
 * of branches, so that compilers make vector instructions of it.
 */
void pv_decode(unsigned int page_shift, const uint64_t *vaddrs, uint64_t nr,
	       const uint64_t *entries, uint64_t *paddrs)
{
	const uint64_t in_page = (UINT64_C(1) << page_shift) - 1;

	for (uint64_t i = 0; i < nr; i++) {
		uint64_t pfn = entries[i] & PM_PFRAME_MASK;
		uint64_t present = entries[i] >> PM_PRESENT_BIT;
		uint64_t known = -(present & ((pfn | -pfn) >> 63));
		uint64_t paddr = (pfn << page_shift) | (vaddrs[i] & in_page);

		paddrs[i] = paddr | ~known; /* PV_NO_PADDR is all ones */
	}
}

/* How many of the addresses, from the first, lie on pages in a row. */
static uint64_t run_length(unsigned int page_shift, const uint64_t *vaddrs,
			   uint64_t nr)
{
	const uint64_t first = vaddrs[0] >> page_shift;
	uint64_t astray = 0;
	uint64_t i;

	if (nr > CHUNK)
		nr = CHUNK;
	/* The usual case, without a branch for each: all of them. */
	for (i = 0; i < nr; i++)
		astray |= (vaddrs[i] >> page_shift) ^ (first + i);
	if (!astray)
		return nr;
	for (i = 1; vaddrs[i] >> page_shift == first + i; i++)
		;
	return i;
}

/*
 * The entry and the physical address of each of nr virtual addresses, in any
 * order; pages in a row are read in one call. PV_NO_ENTRY and PV_NO_PADDR
 * stand where there is none. Returns how many addresses had no entry, or
 * -errno.
 */
int64_t pv_translate(int fd, unsigned int page_shift, const uint64_t *vaddrs,
		     uint64_t nr, uint64_t *entries, uint64_t *paddrs)
{
	int64_t without = 0;

	while (nr) {
		uint64_t run = run_length(page_shift, vaddrs, nr);
		int64_t got = pv_pagemap_read(fd, vaddrs[0] >> page_shift, run,
					      entries);

		if (got < 0)
			return got;
		pv_decode(page_shift, vaddrs, (uint64_t)got, entries, paddrs);
		for (uint64_t i = (uint64_t)got; i < run; i++) {
			entries[i] = PV_NO_ENTRY;
			paddrs[i] = PV_NO_PADDR;
		}
		without += (int64_t)run - got;
		vaddrs += run;
		entries += run;
		paddrs += run;
		nr -= run;
	}
	return without;
}
