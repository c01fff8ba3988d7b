// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Which pages of a file are in the page cache, and in which frames. A frame
 * can be seen only of a page that is mapped: so cached pages are mapped here
 * for a moment, and none that is not cached.
 * Source: mm/mincore.c, mm/filemap.c, Documentation/admin-guide/mm/pagemap.rst
 */
#define _GNU_SOURCE /* RUSAGE_THREAD */
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "physview.h"

/* The kernel maps cached neighbours too, so many pages (fault_around_bytes). */
#define NR_AROUND 16

/* The kernel's sigset_t, not the C library's. */
#define KERNEL_SIGSET_SIZE 8

/* The same number on every architecture; older headers have no name for it. */
#ifndef SYS_cachestat
#define SYS_cachestat 451
#endif

/*
 * Have a page mapped, without being killed by SIGBUS where the file has been
 * cut short meanwhile: the kernel reads it on our behalf, and then refuses the
 * call for its first argument. MADV_POPULATE_READ and process_vm_readv() would
 * not do: they count as an access, and make pages active that are not.
 */
static void touch(const char *address)
{
	syscall(SYS_rt_sigprocmask, ~0, address, NULL, KERNEL_SIGSET_SIZE);
}

static bool has_frame(uint64_t entry)
{
	return entry & PM_PRESENT;
}

/* Map what is resident and read its pagemap. Returns 0 or -errno. */
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
	/* What was not mapped with its neighbours. */
	for (uint64_t i = 0; i < nr_pages; i++) {
		if (!resident[i] || has_frame(entries[i]))
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
 * Tell of nr_pages pages of a file, from a byte offset on that is a multiple
 * of the page size, whether they are cached: resident has 1 or 0 for each.
 * With a descriptor of this process's own pagemap, entries has the entry of
 * each; pagemap_fd -1 does without. *nr_read grows by the pages that left the
 * cache between being seen and being mapped, and that were read back in.
 * Nothing stays mapped. Returns how many pages are resident, or -errno.
 *
 * Whoever neither owns the file nor may write to it is told that all pages
 * are resident (Linux 5.2, 134fca9063ad): not to be asked on his behalf.
 */
int64_t pv_cached_pages(int fd, int pagemap_fd, unsigned int page_shift,
			uint64_t offset, uint64_t nr_pages, uint8_t *resident,
			uint64_t *entries, uint64_t *nr_read)
{
	size_t size = nr_pages << page_shift;
	uint64_t before, nr_resident = 0;
	char *map;
	int ret;

	map = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, (off_t)offset);
	if (map == MAP_FAILED)
		return -errno;
	/* No readahead. */
	madvise(map, size, MADV_RANDOM);
	ret = mincore(map, size, resident) ? -errno : 0;
	for (uint64_t i = 0; !ret && i < nr_pages; i++) {
		resident[i] &= 1; /* the other bits are reserved */
		nr_resident += resident[i];
	}
	if (nr_resident && pagemap_fd >= 0) {
		before = nr_major_faults();
		ret = read_entries(pagemap_fd, page_shift, map, nr_pages,
				   resident, entries);
		*nr_read += nr_major_faults() - before;
	}
	/*
	 * That pages were mapped here is no sign of being used. MADV_RANDOM
	 * says so, too, but before Linux 6.3 (8788f6781486) only this one did.
	 */
	madvise(map, size, MADV_SEQUENTIAL);
	munmap(map, size);
	return ret ? ret : (int64_t)nr_resident;
}

/* include/uapi/linux/magic.h */
#define HUGETLBFS_MAGIC 0x958458f6

/* Whether a file is of hugetlbfs: 0, 1, or -errno. */
int pv_is_hugetlbfs(int fd)
{
	struct statfs info;

	if (fstatfs(fd, &info))
		return -errno;
	return (uint32_t)info.f_type == HUGETLBFS_MAGIC;
}

/*
 * cachestat(2), Linux 6.5 (cf264e1329fb): counts has the pages of a file that
 * are cached, dirty, under writeback, evicted and recently evicted. Returns 0
 * or -errno.
 */
int pv_cachestat(int fd, uint64_t *counts)
{
	struct {
		uint64_t offset, len;
	} all = { 0, 0 };

	return syscall(SYS_cachestat, fd, &all, counts, 0) ? -errno : 0;
}
