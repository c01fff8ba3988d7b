/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The core's interface, read twice: by the C compiler (through physview.h)
 * and by cffi (through build_ffi.py). So it is plain declarations only: no
 * preprocessor, no kernel types.
 */

/* One of memview2's addresses. */
struct pv_probe {
	char label[16];
	uint64_t vaddr;
};

/* Called while the probed memory is alive; what it returns is handed on. */
typedef int pv_visit_fn(void *arg, const struct pv_probe *probes, int nr);

/* probes.c */
int pv_visit_probes(pv_visit_fn *visit, void *arg);
uint64_t pv_sizeof_probe(void);

/* pagemap.c */
int64_t pv_pagemap_read(int fd, uint64_t first_page, uint64_t nr_pages,
			uint64_t *entries);
int64_t pv_translate(int fd, unsigned int page_shift, const uint64_t *vaddrs,
		     uint64_t nr, uint64_t *entries, uint64_t *paddrs);
void pv_decode(unsigned int page_shift, const uint64_t *vaddrs, uint64_t nr,
	       const uint64_t *entries, uint64_t *paddrs);

/* scan.c */

/*
 * Pages in a row whose entries go on in a row: frame after frame, swap slot
 * after swap slot, or all alike where an entry names neither, and where it is
 * the zero page.
 */
struct pv_extent {
	uint64_t vaddr;
	uint64_t entry; /* pagemap's, of the first page */
	uint64_t nr_pages;
};

int64_t pv_scan_extents(int fd, unsigned int page_shift, int use_scan,
			uint64_t *at, uint64_t end, const uint64_t *cuts,
			uint64_t nr_cuts, uint64_t zero_pfn,
			struct pv_extent *extents, uint64_t room);

/* kpage.c */

/* Frames in a row. */
struct pv_frames {
	uint64_t pfn;
	uint64_t nr;
};

/* How many frames have a value. */
struct pv_count {
	uint64_t value;
	uint64_t nr;
};

/* Frames in a row with one value, within a run. */
struct pv_piece {
	uint64_t run; /* the index of the run */
	uint64_t pfn;
	uint64_t nr;
	uint64_t value;
};

int64_t pv_count_values(int fd, const struct pv_frames *runs, uint64_t nr_runs,
			struct pv_count *counts, uint64_t room);
int64_t pv_split_by_value(int fd, const struct pv_frames *runs,
			  uint64_t nr_runs, uint64_t *at, uint64_t *pfn,
			  struct pv_piece *pieces, uint64_t room);

/* account.c, runs.c */
enum { PV_NR_ORDERS = 20, PV_NR_NODES = 64, PV_ACCOUNT_PAGES = 8192 };
enum { PV_ANON, PV_FILE, PV_NR_KINDS };

/* What a mapping has of pages, in base pages. Only uint64_t: they are added. */
struct pv_sums {
	uint64_t nr_present;   /* all of them, also zero pages and hugetlb */
	uint64_t nr_hidden;    /* present, frame not told */
	uint64_t nr_exclusive; /* certainly mapped once */
	uint64_t nr_zero;
	uint64_t nr_hugetlb; /* found in the flags */
	uint64_t nr_swapped;
	uint64_t nr_swap_hidden; /* a swap entry of whatever kind */
	uint64_t nr_special;	 /* guards, markers, migration and the like */
	uint64_t nr_extents;	 /* frames in a row, whatever their flags */
	/* in aligned blocks of 2^i pages, in a row in both spaces */
	uint64_t contiguous[20];
	/* the same, each block within one large folio */
	uint64_t in_folio[2][20];
	/* in large folios of 2^i pages, mapped whole and in a row */
	uint64_t aligned[2][20];
	uint64_t unaligned[2][20];
	uint64_t partial[2]; /* in large folios that are mapped otherwise */
	uint64_t nodes[64];
};

/* Pages in a row that may go on in the next extent. */
struct pv_run {
	uint64_t vpn;
	uint64_t pfn;
	uint64_t nr; /* 0: none */
};

/* Pages in a row within one large folio. */
struct pv_folio {
	struct pv_run run;
	int has_head; /* the first of them is the folio's */
	int kind;
	int whole; /* the last of them is the folio's */
};

struct pv_account {
	/* in: */
	unsigned int page_shift;
	int flags_fd; /* of kpageflags; -1: without folios */
	uint64_t zero_pfn;
	/* large folios of anonymous memory have at least 2^n pages; 0: unknown
	 */
	unsigned int anon_shift;
	int is_part;		      /* to be joined with what comes before */
	const uint8_t *node_of_block; /* or NULL */
	uint64_t nr_blocks;
	unsigned int block_shift; /* frames in a block of memory, as a shift */
	/* out: */
	struct pv_sums sums;
	struct pv_run largest;
	/* within: what may go on, and of a part what may have begun before it
	 */
	struct pv_run run, first_run;
	struct pv_folio folio, first_folio;
};

int64_t pv_account(struct pv_account *account, const struct pv_extent *extents,
		   uint64_t nr, uint64_t end);
int64_t pv_account_join(struct pv_account *account,
			const struct pv_account *part);
int64_t pv_account_end(struct pv_account *account);
uint64_t pv_frames_of(const struct pv_extent *extents, uint64_t nr,
		      uint64_t zero_pfn, struct pv_frames *frames);

/* filecache.c */
int64_t pv_cached_pages(int fd, int pagemap_fd, unsigned int page_shift,
			uint64_t offset, uint64_t nr_pages, uint8_t *resident,
			uint64_t *entries, uint64_t *nr_read);
int pv_is_hugetlbfs(int fd);
int pv_cachestat(int fd, uint64_t *counts);

/* process.c */
int pv_same_mm(int one, int other);

/* compare.c */
enum { PV_AGREED_FRAME, PV_AGREED_ZERO, PV_AGREED_SWAP, PV_NR_AGREED };
enum { PV_NR_FIRST = 4 };

/* Pages of which both witnesses say the same, and the first few of them. */
struct pv_agreed {
	uint64_t nr;
	uint64_t first[4];
};

struct physicalview_extent; /* kmod/uapi/physicalview.h */

int64_t pv_agree(unsigned int page_shift, uint64_t vaddr, uint64_t nr_pages,
		 const uint64_t *entries,
		 const struct physicalview_extent *extents, uint64_t nr_extents,
		 uint64_t zero_pfn, struct pv_agreed *agreed, uint64_t *left);
