// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Finds which pages of a file are in the page cache, and in which frames. The
 * frame can be read only while the page is mapped. So the cached pages, and no
 * others, are mapped here for a moment.
 * Source: mm/mincore.c, mm/filemap.c, Documentation/admin-guide/mm/pagemap.rst
 */
#define _GNU_SOURCE /* RUSAGE_THREAD */
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "filecache.h"

/* A fault also maps cached neighbours: so many pages (fault_around_bytes). */
#define NR_AROUND 16

/* Size of the kernel's sigset_t, which differs from the C library's. */
#define KERNEL_SIGSET_SIZE 8

/* All architectures have the same number. Older headers lack the name. */
#ifndef SYS_cachestat
#define SYS_cachestat 451
#endif

/*
 * Make the kernel map a page. An access by this process could end it by
 * SIGBUS, because another process may have truncated the file. Here the kernel
 * reads the page for us, and then refuses the call for its first argument.
 * MADV_POPULATE_READ and process_vm_readv() cannot be used: they count as an
 * access, which makes inactive pages active.
 */
static void touch(const char *address)
{
	syscall(SYS_rt_sigprocmask, ~0, address, NULL, KERNEL_SIGSET_SIZE);
}

static bool is_present(uint64_t entry)
{
	return entry & PM_PRESENT;
}

/* Map the resident pages and read their entries. Returns 0 or -errno. */
static int read_entries(int pagemap_fd, unsigned int page_shift,
			const char *map, uint64_t nr_pages,
			const uint8_t *resident, uint64_t *entries)
{
	uint64_t first = (uintptr_t)map >> page_shift;
	uint64_t last_block = UINT64_MAX;
	int64_t got;

	for (uint64_t i = 0; i < nr_pages; i++) {
		if (!resident[i] || (first + i) / NR_AROUND == last_block)
			continue;
		last_block = (first + i) / NR_AROUND;
		touch(map + (i << page_shift));
	}
	got = pv_pagemap_read(pagemap_fd, first, nr_pages, entries);
	if (got < 0)
		return (int)got;
	/* Map the pages that were not mapped with their neighbours. */
	for (uint64_t i = 0; i < nr_pages; i++) {
		if (!resident[i] || is_present(entries[i]))
			continue;
		touch(map + (i << page_shift));
		got = pv_pagemap_read(pagemap_fd, first + i, 1, &entries[i]);
		if (got < 0)
			return (int)got;
	}
	return 0;
}

static uint64_t nr_major_faults(void)
{
	struct rusage usage;

	if (getrusage(RUSAGE_THREAD, &usage))
		return 0;
	return (uint64_t)usage.ru_majflt;
}

/*
 * Find which of nr_pages pages of a file are cached. resident gets 1 or 0 per
 * page. If pagemap_fd is a descriptor of this process's own pagemap, entries
 * gets the entry of each resident page; -1 means that entries are not needed. A
 * page may be evicted after it was found and before it is mapped; mapping then
 * reads it from the disk, and *nr_read counts it. Nothing stays mapped. Returns
 * how many pages are resident, or -errno.
 *
 * The kernel tells a user who neither owns the file nor may write to it that
 * all pages are resident (Linux 5.2, 134fca9063ad). So do not call this for
 * such a user.
 */
int64_t pv_cached_pages(int fd, int pagemap_fd, unsigned int page_shift,
			uint64_t first_page, uint64_t nr_pages,
			uint8_t *resident, uint64_t *entries, uint64_t *nr_read)
{
	size_t size = nr_pages << page_shift;
	uint64_t before, nr_resident = 0;
	char *map;
	int ret;

	map = mmap(NULL, size, PROT_READ, MAP_SHARED, fd,
		   (off_t)(first_page << page_shift));
	if (map == MAP_FAILED)
		return -errno;
	/* Without this, mapping a page would start readahead. */
	madvise(map, size, MADV_RANDOM);
	ret = mincore(map, size, resident) ? -errno : 0;
	for (uint64_t i = 0; !ret && i < nr_pages; i++) {
		resident[i] &= 1; /* The other bits are reserved. */
		nr_resident += resident[i];
	}
	if (nr_resident && pagemap_fd >= 0) {
		before = nr_major_faults();
		ret = read_entries(pagemap_fd, page_shift, map, nr_pages,
				   resident, entries);
		*nr_read += nr_major_faults() - before;
	}
	/*
	 * The kernel must not take this mapping as a use of the pages.
	 * MADV_RANDOM prevents that since Linux 6.3 (8788f6781486), and
	 * MADV_SEQUENTIAL prevented it before.
	 */
	madvise(map, size, MADV_SEQUENTIAL);
	munmap(map, size);
	return ret ? ret : (int64_t)nr_resident;
}

/* How far after the end of a file no page of its can be: 1 GiB. */
#define FAR_BYTES (UINT64_C(1) << 30)

/*
 * Ask mincore() of a page far after the end of a file, which cannot be there.
 * The kernel tells a user who neither owns the file (nor has CAP_FOWNER) nor
 * may write to it that all pages are resident (Linux 5.2, 134fca9063ad). So
 * this tells, better than the rules of all versions of the kernel, whether
 * mincore() tells this process the truth. Returns 1 or 0.
 */
int pv_may_ask_mincore(int fd, unsigned int page_shift, uint64_t size_bytes)
{
	size_t page_size = (size_t)1 << page_shift;
	unsigned char resident = 0;
	uint64_t offset;
	char *map;
	int ret;

	if (size_bytes > INT64_MAX - 2 * FAR_BYTES)
		offset = INT64_MAX & ~(uint64_t)(page_size - 1);
	else
		offset = (size_bytes + FAR_BYTES) & ~(uint64_t)(page_size - 1);
	map = mmap(NULL, page_size, PROT_READ, MAP_SHARED, fd, (off_t)offset);
	if (map == MAP_FAILED) /* the file system has no offsets that high */
		return 1;
	ret = mincore(map, page_size, &resident);
	munmap(map, page_size);
	return ret || !(resident & 1);
}

/*
 * Call cachestat(2), Linux 6.5 (cf264e1329fb), for pages of a file. The call
 * maps nothing, and its cost grows with the pages that are or were cached, not
 * with the file. Folios may reach beyond the end of a file, so end_page is the
 * end of the file at most.
 * Returns 0 or -errno.
 */
int pv_cachestat(int fd, unsigned int page_shift, uint64_t first_page,
		 uint64_t end_page, struct pv_cachestat *counts)
{
	struct {
		uint64_t offset, len;
	} range = { first_page << page_shift, (end_page - first_page)
						      << page_shift };

	return syscall(SYS_cachestat, fd, &range, counts, 0) ? -errno : 0;
}
