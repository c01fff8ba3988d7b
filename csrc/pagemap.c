// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Reads /proc/PID/pagemap in bulk, and decodes its entries.
 * Format: Documentation/admin-guide/mm/pagemap.rst, fs/proc/task_mmu.c.
 */
#include <errno.h>
#include <unistd.h>

#include "physview.h"

/*
 * Entries in one pread(). The kernel copies 512 entries at a time, so a larger
 * read only saves system calls. With this size system calls are few, and the
 * entries are still in the processor's cache when pv_decode() reads them.
 */
#define CHUNK 8192

/*
 * Read the entries of nr_pages pages. Returns how many entries there were, or
 * -errno. Fewer than nr_pages means that the user address space ends there, or
 * that the address space is gone.
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
		/* The kernel returns whole entries only. */
		done += (uint64_t)got / size;
	}
	return (int64_t)done;
}

/*
 * Make physical addresses from entries. A frame number of 0 gives no address:
 * the kernel shows 0 to a process without CAP_SYS_ADMIN. The code has masks
 * and no branches, so that compilers use vector instructions.
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

/* How many of the addresses, from the first on, lie on contiguous pages. */
static uint64_t run_length(unsigned int page_shift, const uint64_t *vaddrs,
			   uint64_t nr)
{
	const uint64_t first = vaddrs[0] >> page_shift;
	uint64_t astray = 0;
	uint64_t i;

	if (nr > CHUNK)
		nr = CHUNK;
	/* The usual case is all of them. It needs no branch per address. */
	for (i = 0; i < nr; i++)
		astray |= (vaddrs[i] >> page_shift) ^ (first + i);
	if (!astray)
		return nr;
	for (i = 1; vaddrs[i] >> page_shift == first + i; i++)
		;
	return i;
}

/*
 * Write the entry and the physical address of each of nr virtual addresses,
 * which may be in any order. Contiguous pages are read in one call. Where there
 * is no entry or no address, PV_NO_ENTRY and PV_NO_PADDR are written. Returns
 * how many addresses had no entry, or -errno.
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
