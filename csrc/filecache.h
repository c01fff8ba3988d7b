/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What filecache.c, filecount.c, filewindows.c and filesystems.c share. */
#ifndef FILECACHE_H
#define FILECACHE_H

#include "runs.h"

/* The counts of cachestat(2), in its order. */
struct pv_cachestat {
	uint64_t nr_cached;
	uint64_t nr_dirty;
	uint64_t nr_writeback;
	uint64_t nr_evicted;
	uint64_t nr_recently_evicted;
};

/* What one window needs. Too large for a stack. */
struct pv_file_scratch {
	uint8_t resident[PV_FILE_WINDOW];
	uint64_t entries[PV_FILE_WINDOW];
	uint64_t values[PV_FILE_WINDOW];
	uint64_t places[PV_FILE_WINDOW];
	struct pv_frames frames[PV_FILE_WINDOW];
	struct pv_cached_run runs[PV_FILE_WINDOW];
	struct pv_reader reader;
};

/* Whether frames, and what depends on them, are to be found out. */
static inline bool pv_wants_frames(const struct pv_file_query *query)
{
	return query->pagemap_fd >= 0 && query->kpageflags_fd >= 0;
}

static inline void pv_file_fail(struct pv_file *file, uint64_t problem,
				int code)
{
	file->problem = problem;
	file->code = (uint64_t)code;
	file->at = file->end = 0;
}

int pv_cachestat(int fd, unsigned int page_shift, uint64_t first_page,
		 uint64_t end_page, struct pv_cachestat *counts);
int64_t pv_cached_pages(int fd, int pagemap_fd, unsigned int page_shift,
			uint64_t first_page, uint64_t nr_pages,
			uint8_t *resident, uint64_t *entries,
			uint64_t *nr_read);
int64_t pv_file_next(const struct pv_file_query *query, int fd,
		     struct pv_file *file, struct pv_file_scratch *scratch,
		     struct pv_cached_run *runs);
int pv_may_ask_mincore(int fd, unsigned int page_shift, uint64_t size_bytes);

#endif
