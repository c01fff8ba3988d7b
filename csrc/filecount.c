// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Counts the cached pages of files. cachestat() tells how many there are, and
 * maps nothing. Where it does not tell, and where frames are needed, the file
 * is looked at in windows (filecache.c). Only windows with cached pages are
 * looked at, so the cost does not grow with the empty parts of a file.
 * Source: cachestat(2), mincore(2), statx(2), lseek(2)
 */
#define _GNU_SOURCE /* AT_EMPTY_PATH */
#include <errno.h>
#ifdef __GLIBC__
#include <sys/stat.h>
#else
#include <linux/stat.h> /* musl's struct statx is as young as its statx() */
#endif
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "filecache.h"

/* Cached pages that pv_count_files() looks at in one file, and in one go. */
#define LARGE_NR_PAGES (4 * PV_FILE_WINDOW)

/* include/uapi/linux/stat.h */
#define ATTRIBUTE_DAX 0x00200000

static bool needs_windows(const struct pv_file_query *query)
{
	return query->needs_runs || pv_wants_frames(query);
}

/* Read what stat() tells. Returns whether the file can have cached pages. */
static bool read_stat(int fd, struct pv_file *file)
{
	struct statx info;
	int kind;

	/* musl has statx() since 1.2.5 only. */
	if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS,
		    &info)) {
		pv_file_fail(file, PV_FILE_CANNOT_OPEN, errno);
		return false;
	}
	file->device = makedev(info.stx_dev_major, info.stx_dev_minor);
	file->inode = info.stx_ino;
	file->nr_links = info.stx_nlink;
	file->mode = info.stx_mode;
	file->size_bytes = info.stx_size;
	if (S_ISBLK(info.stx_mode)) {
		off_t size = lseek(fd, 0, SEEK_END);

		file->size_bytes = size > 0 ? (uint64_t)size : 0;
		file->fs_kind = PV_FS_PAGED;
		return true;
	}
	if (!S_ISREG(info.stx_mode)) {
		pv_file_fail(file, PV_FILE_NO_FILE, 0);
		return false;
	}
	kind = pv_file_system(fd, info.stx_dev_major, &file->fs_type);
	file->fs_kind = (uint64_t)kind;
	if (kind < 0)
		pv_file_fail(file, PV_FILE_CANNOT_OPEN, -kind);
	else if (kind == PV_FS_HUGETLB)
		pv_file_fail(file, PV_FILE_HUGETLB, 0);
	else if (kind == PV_FS_VIRTUAL || info.stx_attributes & ATTRIBUTE_DAX)
		pv_file_fail(file, PV_FILE_NO_PAGES, 0);
	/* A file whose blocks are all there has no holes: see nr_holes(). */
	else if (info.stx_blocks * 512 < info.stx_size)
		file->nr_holes = 1;
	return file->problem == PV_FILE_FINE;
}

/* Count the pages of a range that are entirely in holes. */
static uint64_t nr_holes(int fd, unsigned int page_shift, uint64_t first_page,
			 uint64_t end_page, uint64_t size_bytes)
{
	uint64_t page_size = UINT64_C(1) << page_shift;
	uint64_t at = first_page << page_shift;
	uint64_t end = end_page << page_shift, nr = 0;

	if (end > INT64_MAX)
		end = INT64_MAX & ~(page_size - 1);
	while (at < end && at < size_bytes) {
		off_t hole, data = lseek(fd, (off_t)at, SEEK_DATA);
		uint64_t stop = end, start;

		/* ENXIO: no data is left. Any other error: no answer. */
		if (data < 0 && errno != ENXIO)
			return nr;
		if (data >= 0 && (uint64_t)data < end)
			stop = (uint64_t)data;
		start = (at + page_size - 1) >> page_shift;
		if (stop >> page_shift > start)
			nr += (stop >> page_shift) - start;
		if (data < 0 || (uint64_t)data >= end)
			break;
		hole = lseek(fd, data, SEEK_HOLE);
		if (hole <= data) /* truncated meanwhile */
			break;
		at = (uint64_t)hole;
	}
	return nr;
}

/* Ask cachestat(). Returns 0, or -errno if it does not tell. */
static int ask_cachestat(const struct pv_file_query *query, int fd,
			 struct pv_file *file)
{
	struct pv_cachestat counts;
	int ret;

	if (query->no_cachestat || file->fs_kind == PV_FS_STACKED)
		return -ENOSYS;
	ret = pv_cachestat(fd, query->page_shift, file->at, file->end, &counts);
	if (ret)
		return ret;
	if (file->fs_kind == PV_FS_PASSING && !counts.nr_cached)
		return -ENOSYS;
	file->known |= PV_KNOWS_CACHESTAT;
	file->has_cachestat = 1;
	file->nr_cached = counts.nr_cached;
	file->nr_dirty = counts.nr_dirty;
	file->nr_writeback = counts.nr_writeback;
	file->nr_evicted = counts.nr_evicted;
	file->nr_recently_evicted = counts.nr_recently_evicted;
	return 0;
}

/*
 * Begin to count an open file. The counts that cost little are known
 * afterwards. If file->at is below file->end, pv_file_continue() has to find
 * the others. The struct is filled with zeros before.
 */
void pv_file_begin(const struct pv_file_query *query, int fd,
		   struct pv_file *file)
{
	uint64_t page_size = UINT64_C(1) << query->page_shift;
	int ret;

	memset(file, 0, sizeof(*file));
	if (!read_stat(fd, file))
		return;
	file->end = file->size_bytes >> query->page_shift;
	file->end += !!(file->size_bytes & (page_size - 1));
	if (file->end > query->end_page)
		file->end = query->end_page;
	file->at = query->first_page;
	if (file->at > file->end)
		file->at = file->end;
	file->nr_pages = file->end - file->at;
	if (!file->nr_pages) {
		file->known = PV_KNOWS_CACHESTAT | PV_KNOWS_FRAMES;
		return;
	}
	if (file->nr_holes)
		file->nr_holes = nr_holes(fd, query->page_shift, file->at,
					  file->end, file->size_bytes);
	ret = ask_cachestat(query, fd, file);
	if (ret == -EPERM || ret == -EACCES)
		return pv_file_fail(file, PV_FILE_DENIED, -ret);
	if (!ret && (!needs_windows(query) || !file->nr_cached)) {
		if (pv_wants_frames(query))
			file->known |= PV_KNOWS_FRAMES;
		file->at = file->end;
		return;
	}
	if (file->fs_kind == PV_FS_UNKNOWN) {
		if (ret)
			pv_file_fail(file, PV_FILE_NO_PAGES, 0);
		else
			file->at = file->end;
		return;
	}
	/* If all pages are cached, a lie of mincore() would be the truth. */
	if (file->nr_cached != file->nr_pages &&
	    !pv_may_ask_mincore(fd, query->page_shift, file->size_bytes))
		pv_file_fail(file, PV_FILE_DENIED, EPERM);
	/* The windows add up to these. */
	file->nr_cached = 0;
	if (pv_wants_frames(query))
		file->nr_dirty = file->nr_writeback = 0;
}

static void count_file(const struct pv_file_query *query, int fd,
		       struct pv_file *file, struct pv_file_scratch *scratch,
		       struct pv_cached_run *runs)
{
	pv_file_begin(query, fd, file);
	if (file->problem || file->at == file->end)
		return;
	if (file->end - file->at > LARGE_NR_PAGES) {
		file->problem = PV_FILE_LARGE;
		return;
	}
	while (pv_file_next(query, fd, file, scratch, runs) > 0)
		;
}

/* include/uapi/linux/openat2.h, Linux 5.6 */
#define RESOLVE_NO_MAGICLINKS 0x02
#define RESOLVE_IN_ROOT 0x10

#ifndef SYS_openat2
#define SYS_openat2 437
#endif

/*
 * Find a file as a process with another root folder does: an absolute link, and
 * "..", do not lead out of the root. The file is not opened for reading:
 * O_PATH. Returns the descriptor or -errno.
 */
int pv_open_in_root(int root_fd, const char *path)
{
	struct {
		uint64_t flags, mode, resolve;
	} how = { O_PATH | O_CLOEXEC, 0,
		  RESOLVE_NO_MAGICLINKS | RESOLVE_IN_ROOT };
	long fd = syscall(SYS_openat2, root_fd, path, &how, sizeof(how));

	return fd < 0 ? -errno : (int)fd;
}

/*
 * Count the files of a folder. names has nr names, each with a 0 at its end.
 * Links are not followed, and no file of another kind is waited for. A file
 * with many cached pages gets the problem PV_FILE_LARGE if they have to be
 * looked at one by one: the caller does that, so that it can be interrupted.
 * Returns 0 or -ENOMEM.
 */
int pv_count_files(const struct pv_file_query *query, int dir_fd,
		   const char *names, uint64_t nr, struct pv_file *files)
{
	struct pv_file_scratch *scratch = malloc(sizeof(*scratch));
	struct pv_cached_run *runs = malloc(sizeof(*runs) * PV_FILE_WINDOW);

	for (uint64_t i = 0; scratch && runs && i < nr; i++) {
		int fd = openat(dir_fd, names,
				O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY |
					O_CLOEXEC);

		if (fd < 0) {
			memset(&files[i], 0, sizeof(files[i]));
			pv_file_fail(&files[i], PV_FILE_CANNOT_OPEN, errno);
		} else {
			count_file(query, fd, &files[i], scratch, runs);
			close(fd);
		}
		names += strlen(names) + 1;
	}
	nr = scratch && runs;
	free(scratch);
	free(runs);
	return nr ? 0 : -ENOMEM;
}
