// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Looks at the pages of a file in windows: which are cached, in which frames,
 * and with which flags. Only windows with cached pages are looked at, so the
 * cost does not grow with the empty parts of a file.
 * Source: cachestat(2), lseek(2), fs/proc/page.c
 */
#define _GNU_SOURCE /* SEEK_DATA */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "filecache.h"

/* Without cachestat(), more holes than this are not looked at: 64 GiB. */
#define MOST_HOLES_BYTES (UINT64_C(64) << 30)

/* A step to the next cached page grows and shrinks by this factor. */
#define STEP 8

/* include/uapi/linux/kernel-page-flags.h */
#define KPF_DIRTY (UINT64_C(1) << 4)
#define KPF_ACTIVE (UINT64_C(1) << 6)
#define KPF_WRITEBACK (UINT64_C(1) << 8)
#define KPF_MMAP (UINT64_C(1) << 11)

/* Move file->at to the next window that has cached pages: by cachestat(). */
static uint64_t next_cached(const struct pv_file_query *query, int fd,
			    struct pv_file *file)
{
	uint64_t step = PV_FILE_WINDOW;

	/* pv_file_begin() has asked about these. */
	if (file->nr_pages <= PV_FILE_WINDOW)
		return file->end - file->at;
	while (file->at < file->end) {
		struct pv_cachestat counts;
		uint64_t left = file->end - file->at;
		uint64_t nr = step < left ? step : left;

		if (pv_cachestat(fd, query->page_shift, file->at, file->at + nr,
				 &counts))
			return nr < PV_FILE_WINDOW ? nr : PV_FILE_WINDOW;
		if (!counts.nr_cached) {
			file->at += nr;
			if (step < UINT64_MAX / STEP)
				step *= STEP;
		} else if (nr <= PV_FILE_WINDOW) {
			return nr;
		} else {
			step = nr / STEP;
			if (step < PV_FILE_WINDOW)
				step = PV_FILE_WINDOW;
		}
	}
	return 0;
}

/* The same, by the file's holes, if the holes are too large to look at. */
static uint64_t next_with_data(const struct pv_file_query *query, int fd,
			       struct pv_file *file)
{
	unsigned int shift = query->page_shift;
	uint64_t nr = file->end - file->at;
	off_t data, hole;

	if (nr > PV_FILE_WINDOW)
		nr = PV_FILE_WINDOW;
	if (file->nr_holes < MOST_HOLES_BYTES >> shift)
		return nr;
	file->known |= PV_SKIPPED_HOLES;
	data = lseek(fd, (off_t)(file->at << shift), SEEK_DATA);
	if (data < 0 || (uint64_t)data >> shift >= file->end) {
		file->at = file->end;
		return 0;
	}
	file->at = (uint64_t)data >> shift;
	nr = file->end - file->at;
	hole = lseek(fd, data, SEEK_HOLE);
	if (hole > data && (((uint64_t)hole - 1) >> shift) + 1 - file->at < nr)
		nr = (((uint64_t)hole - 1) >> shift) + 1 - file->at;
	return nr < PV_FILE_WINDOW ? nr : PV_FILE_WINDOW;
}

/* Make runs of the resident pages of a window. Returns how many. */
static uint64_t find_runs(struct pv_file_scratch *scratch, uint64_t first_page,
			  uint64_t nr_pages, bool has_frames,
			  struct pv_cached_run *runs)
{
	struct pv_cached_run *run = NULL;
	uint64_t nr_runs = 0;

	for (uint64_t i = 0; i < nr_pages; i++) {
		uint64_t entry = has_frames ? scratch->entries[i] : 0;
		uint64_t pfn = pv_has_frame(entry) ? entry & PM_PFRAME_MASK : 0;

		if (!scratch->resident[i]) {
			run = NULL;
			continue;
		}
		if (run && (run->pfn ? pfn == run->pfn + run->nr : !pfn)) {
			run->nr++;
			continue;
		}
		run = &runs[nr_runs++];
		*run = (struct pv_cached_run){ first_page + i, pfn, 1,
					       PV_NO_ENTRY };
	}
	return nr_runs;
}

/*
 * Read the flags of the frames of runs, and split runs where the flags change.
 * The file is not mapped here any more, so the flag mmap means: mapped by
 * another process. Returns the number of runs, or -errno.
 */
static int64_t add_flags(int kpageflags_fd, struct pv_file_scratch *scratch,
			 struct pv_cached_run *runs, uint64_t nr_runs,
			 struct pv_cached_run *split)
{
	uint64_t nr_known = 0, nr_values = 0, nr_split = 0, at = 0;
	int64_t ret;

	for (uint64_t i = 0; i < nr_runs; i++) {
		if (!runs[i].pfn)
			continue;
		scratch->frames[nr_known] =
			(struct pv_frames){ runs[i].pfn, runs[i].nr };
		scratch->places[nr_known++] = nr_values;
		nr_values += runs[i].nr;
	}
	ret = pv_read_values(&scratch->reader, kpageflags_fd, scratch->frames,
			     nr_known, scratch->places, scratch->values);
	if (ret)
		return ret;
	for (uint64_t i = 0; i < nr_runs; i++) {
		struct pv_cached_run *piece = &split[nr_split++];

		*piece = runs[i];
		if (!runs[i].pfn)
			continue;
		piece->flags = scratch->values[at];
		piece->nr = 0;
		for (uint64_t done = 0; done < runs[i].nr; done++, at++) {
			if (scratch->values[at] != piece->flags) {
				piece = &split[nr_split++];
				*piece = (struct pv_cached_run){
					runs[i].page + done, runs[i].pfn + done,
					0, scratch->values[at]
				};
			}
			piece->nr++;
		}
	}
	return (int64_t)nr_split;
}

static void add_run(struct pv_file *file, const struct pv_cached_run *run)
{
	file->nr_cached += run->nr;
	if (run->flags == PV_NO_ENTRY)
		return;
	file->known |= PV_KNOWS_FRAMES;
	if (run->flags & KPF_DIRTY)
		file->nr_dirty += run->nr;
	if (run->flags & KPF_WRITEBACK)
		file->nr_writeback += run->nr;
	if (run->flags & KPF_MMAP)
		file->nr_mapped += run->nr;
	if (run->flags & KPF_ACTIVE)
		file->nr_active += run->nr;
	if (run->flags & (KPF_THP | KPF_HUGE))
		file->nr_large += run->nr;
	if (run->page != file->next_page || run->pfn != file->next_pfn)
		file->nr_runs++;
	file->next_page = run->page + run->nr;
	file->next_pfn = run->pfn + run->nr;
}

/* Look at nr pages from file->at on. Returns the number of runs, or -1. */
static int64_t look_at_window(const struct pv_file_query *query, int fd,
			      struct pv_file *file, uint64_t nr,
			      struct pv_file_scratch *scratch,
			      struct pv_cached_run *runs)
{
	bool has_frames = pv_wants_frames(query);
	uint64_t nr_runs;
	int64_t ret;

	ret = pv_cached_pages(fd, has_frames ? query->pagemap_fd : -1,
			      query->page_shift, file->at, nr,
			      scratch->resident, scratch->entries,
			      &file->nr_read);
	if (ret < 0) {
		pv_file_fail(file, PV_FILE_CANNOT_MAP, (int)-ret);
		return -1;
	}
	if (!ret)
		return 0;
	if (!has_frames)
		return (int64_t)find_runs(scratch, file->at, nr, false, runs);
	nr_runs = find_runs(scratch, file->at, nr, true, scratch->runs);
	ret = add_flags(query->kpageflags_fd, scratch, scratch->runs, nr_runs,
			runs);
	if (ret < 0)
		pv_file_fail(file, PV_FILE_CANNOT_OPEN, (int)-ret);
	return ret < 0 ? -1 : ret;
}

/* As pv_file_continue(), with memory of the caller's. */
int64_t pv_file_next(const struct pv_file_query *query, int fd,
		     struct pv_file *file, struct pv_file_scratch *scratch,
		     struct pv_cached_run *runs)
{
	while (file->at < file->end) {
		uint64_t nr = file->has_cachestat
				      ? next_cached(query, fd, file)
				      : next_with_data(query, fd, file);
		int64_t nr_runs;

		if (!nr)
			break;
		nr_runs = look_at_window(query, fd, file, nr, scratch, runs);
		if (nr_runs < 0)
			return -1;
		file->at += nr;
		for (int64_t i = 0; i < nr_runs; i++)
			add_run(file, &runs[i]);
		if (nr_runs)
			return nr_runs;
	}
	if (pv_wants_frames(query) && !file->nr_cached)
		file->known |= PV_KNOWS_FRAMES;
	else if (pv_wants_frames(query) && !(file->known & PV_KNOWS_FRAMES))
		file->known = 0; /* all pages were evicted meanwhile */
	return 0;
}

/*
 * Look at the next window of a file that has cached pages, and add to the
 * counts. runs has room for PV_FILE_WINDOW runs. Returns how many there are: 0
 * when all is done, -1 if file->problem tells why it failed, or -ENOMEM.
 */
int64_t pv_file_continue(const struct pv_file_query *query, int fd,
			 struct pv_file *file, struct pv_cached_run *runs)
{
	struct pv_file_scratch *scratch = malloc(sizeof(*scratch));
	int64_t ret;

	if (!scratch)
		return -ENOMEM;
	ret = pv_file_next(query, fd, file, scratch, runs);
	free(scratch);
	return ret;
}
