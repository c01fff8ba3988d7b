/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The core's interface for files and their page cache. See cdef.h. */

/* filesystems.c */

/* How the files of a file system use the page cache. */
enum {
	PV_FS_PAGED,   /* each file has pages of its own */
	PV_FS_STACKED, /* another file has the pages */
	PV_FS_PASSING, /* sometimes another file has the pages */
	PV_FS_VIRTUAL, /* no file has pages */
	PV_FS_HUGETLB, /* the kernel does not tell */
	PV_FS_UNKNOWN  /* never map a file of it */
};

int pv_file_system(int fd, uint32_t device_major, uint64_t *type);

/* filecount.c */
enum { PV_FILE_WINDOW = 4096 };

/* Why a file could not be counted. */
enum {
	PV_FILE_FINE,
	PV_FILE_CANNOT_OPEN,
	PV_FILE_NO_FILE,  /* neither a regular file nor a block device */
	PV_FILE_NO_PAGES, /* its file system has no page cache */
	PV_FILE_HUGETLB,  /* it is in hugetlbfs */
	PV_FILE_DENIED,	  /* the kernel does not tell this user */
	PV_FILE_CANNOT_MAP,
	PV_FILE_LARGE /* to be continued by pv_file_continue() */
};

/* Which counts of a file are known, and what else there is to say: bits. */
enum {
	PV_KNOWS_CACHESTAT = 1, /* dirty, writeback, evicted, recent */
	PV_KNOWS_FRAMES = 2,	/* dirty to runs */
	PV_SKIPPED_HOLES = 4	/* pages in holes were not looked for */
};

/* What to find out about files. */
struct pv_file_query {
	unsigned int page_shift;
	int pagemap_fd;	   /* of this process; -1: frames are not needed */
	int kpageflags_fd; /* -1: frames are not needed */
	int no_cachestat;  /* not 0: do as on a kernel without it */
	int needs_runs;	   /* not 0: pv_file_continue() gives the runs */
	uint64_t first_page;
	uint64_t end_page; /* UINT64_MAX: up to the end of the file */
};

/* Cached pages, contiguous in the file and in physical memory, with flags. */
struct pv_cached_run {
	uint64_t page;
	uint64_t pfn; /* 0: not known */
	uint64_t nr;
	uint64_t flags; /* PV_NO_ENTRY: not known */
};

/* What is known of the cached pages of a file. Python reads it as u64s. */
struct pv_file {
	uint64_t problem; /* PV_FILE_… */
	uint64_t code;	  /* errno, where a system call failed */
	uint64_t device, inode;
	uint64_t nr_links;
	uint64_t mode;
	uint64_t fs_type;
	uint64_t known; /* bits: PV_KNOWS_… */
	/* The counts, in the order of CachedFile. */
	uint64_t size_bytes;
	uint64_t nr_pages; /* in the range */
	uint64_t nr_holes;
	uint64_t nr_cached;
	uint64_t nr_dirty;
	uint64_t nr_writeback;
	uint64_t nr_mapped;
	uint64_t nr_active;
	uint64_t nr_large;
	uint64_t nr_runs;
	uint64_t nr_read;
	uint64_t nr_evicted;
	uint64_t nr_recently_evicted;
	/* internal: */
	uint64_t at, end;	      /* pages that are left to look at */
	uint64_t next_page, next_pfn; /* what would continue the last run */
	uint64_t fs_kind;
	uint64_t has_cachestat;
};

void pv_file_begin(const struct pv_file_query *query, int fd,
		   struct pv_file *file);
int64_t pv_file_continue(const struct pv_file_query *query, int fd,
			 struct pv_file *file, struct pv_cached_run *runs);
int pv_open_in_root(int root_fd, const char *path);
int pv_count_files(const struct pv_file_query *query, int dir_fd,
		   const char *names, uint64_t nr, struct pv_file *files);
