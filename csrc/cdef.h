/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The core's interface. The C compiler reads it (through physview.h), and so
 * does cffi (through build_ffi.py). So it has plain declarations only: no
 * preprocessor directives, no kernel types.
 */

/* One of the addresses that memview2 reports. */
struct pv_probe {
	char label[16];
	uint64_t vaddr;
};

/*
 * Called while the memory of the probes exists. pv_visit_probes() returns what
 * this function returns.
 */
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
 * Contiguous pages whose entries follow each other: contiguous frames,
 * contiguous swap slots, or equal entries. Equal entries are those of the zero
 * page, and those that name neither a frame nor a swap slot. See entry.h.
 */
struct pv_extent {
	uint64_t vaddr;
	uint64_t entry; /* of the first page, from pagemap */
	uint64_t nr_pages;
};

/* How to read extents: bits. */
enum { PV_USE_SCAN = 1, PV_COMMON_BITS = 2 };

/* Contiguous frames. */
struct pv_frames {
	uint64_t pfn;
	uint64_t nr;
};

int64_t pv_scan_extents(int fd, unsigned int page_shift, int how, uint64_t *at,
			uint64_t end, const uint64_t *cuts, uint64_t nr_cuts,
			uint64_t zero_pfn, struct pv_extent *extents,
			uint64_t room);

/* bpf_load.c, bpf_walk.c, bpf_scan.c, bpf_find.c */

/* At what loading the BPF program failed. */
enum {
	PV_BPF_MAP,
	PV_BPF_TYPES,
	PV_BPF_PROGRAM,
	PV_BPF_DIRECT_MAP,
	PV_BPF_CHECK
};

struct pv_bpf;
struct physicalview_walk;
struct physicalview_page;
struct physicalview_extent;

int pv_bpf_open(struct pv_bpf **opened, const struct pv_bpf *like, int *stage,
		char *log, uint32_t log_bytes);
void pv_bpf_close(struct pv_bpf *bpf);
uint64_t pv_bpf_user_end(const struct pv_bpf *bpf);
int pv_bpf_walk(struct pv_bpf *bpf, int fd, struct physicalview_walk *walk);
int pv_bpf_pages(struct pv_bpf *bpf, int fd, const uint64_t *vaddrs,
		 uint64_t nr, struct physicalview_page *pages);
int64_t pv_bpf_extents(struct pv_bpf *bpf, int fd, uint64_t *at, uint64_t end,
		       struct physicalview_extent *extents, uint64_t room);
int64_t pv_bpf_translate(struct pv_bpf *bpf, int fd, const uint64_t *vaddrs,
			 uint64_t nr, uint64_t *entries, uint64_t *paddrs);
int64_t pv_bpf_scan(struct pv_bpf *bpf, int fd, int how, uint64_t *at,
		    uint64_t end, const uint64_t *cuts, const uint8_t *doubts,
		    uint64_t nr_cuts, uint64_t zero_pfn,
		    struct pv_extent *extents, uint64_t room);

/* Where a process maps some of the frames that are searched for. */
struct pv_place {
	int64_t error;	     /* -errno, or 0 */
	uint64_t start, end; /* all of them lie in between; both 0: none */
};

void pv_bpf_find(struct pv_bpf *bpf, const int32_t *pids, uint64_t nr_pids,
		 const struct pv_frames *runs, uint64_t nr_runs,
		 struct pv_place *places);

/* bpf_tables.c */
enum { PV_NR_LEVELS = 5, PV_NR_FILLED = 7 };
enum { PV_LEAF_TABLES = 64, PV_HUGE_PAGES = 8192 };

/* The page tables of one level, and their entries. */
struct pv_level_tables {
	uint64_t nr_tables;
	uint64_t nr_unstable; /* left out: changed while they were copied */
	uint64_t nr_gone;     /* left out: removed before they were copied */
	uint64_t nr_to_table; /* entries that lead to a table of the next level
			       */
	uint64_t nr_pages;    /* entries that map a page */
	uint64_t nr_swapped;
	uint64_t nr_special; /* guards, markers, migration and similar */
	/* tables by the number of entries that are not empty */
	uint64_t filled[7];
};

/* A table of the second lowest level that leads to no table. */
struct pv_leaf_table {
	uint64_t vaddr; /* the first address that it reaches */
	uint64_t paddr;
	uint64_t nr_filled;
};

/* What is known of a process's page tables. Begins as zeros. */
struct pv_tables {
	struct pv_level_tables levels[5]; /* from the root down */
	uint64_t root;			  /* physical address of the root */
	uint64_t at; /* where to continue: the tables up to here are counted */
	/* What the last call found. */
	uint64_t nr_leaf_tables;
	uint64_t nr_huge;
	struct pv_leaf_table leaf_tables[64];
	/* frames that entries of the second lowest level name */
	struct pv_frames huge[8192];
};

int pv_bpf_tables(struct pv_bpf *bpf, int fd, struct pv_tables *tables);

/* What an entry of a page table is for. sources/table_geometry.py */
enum pv_entry_use {
	PV_ENTRY_EMPTY,
	PV_ENTRY_TABLE, /* leads to a table of the next level */
	PV_ENTRY_PAGE,
	PV_ENTRY_SWAP,
	PV_ENTRY_SPECIAL, /* guards, markers, migration and similar */
};

int pv_bpf_table(struct pv_bpf *bpf, int fd, uint64_t vaddr, uint32_t level,
		 uint32_t nr, uint64_t *entries, uint8_t *uses);

/* bpf_bits.c */

/* Whose bit "written" is: the hardware's, or Linux's soft-dirty bit. */
enum { PV_DIRTY_BIT, PV_SOFT_DIRTY_BIT };

/*
 * The bits of 512 pages that one piece of a lowest table maps, or of one huge
 * page; a page's bit is at its place. shift is of what one bit is for. A piece
 * of which nothing is known has is_unstable.
 */
struct pv_bits {
	uint64_t vaddr; /* of the first page */
	uint32_t shift;
	uint32_t is_unstable;
	uint64_t present[8];
	uint64_t accessed[8];
	uint64_t written[8];
};

int64_t pv_bpf_bits(struct pv_bpf *bpf, int fd, int which, uint64_t *at,
		    uint64_t end, struct pv_bits *bits, uint64_t room);

/* kpage.c */

/* How many frames have this value. */
struct pv_count {
	uint64_t value;
	uint64_t nr;
};

/* Contiguous frames with one value, within a run. */
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
int64_t pv_probe_blocks(int fd, uint64_t first, uint64_t nr, uint64_t nr_places,
			uint64_t step, uint64_t free, uint64_t *heads);

/* bpf_frames.c, bpf_flags.c */
int pv_bpf_find_frames(struct pv_bpf *bpf);
int64_t pv_bpf_count(struct pv_bpf *bpf, int fd, const struct pv_frames *runs,
		     uint64_t nr_runs, unsigned int max_order,
		     struct pv_count *counts, uint64_t room,
		     uint64_t *nr_by_key);

/* listing.c, listing_text.c */

/* What to list, and how: bits. */
enum {
	PV_LIST_EACH = 1,  /* a row per page, not per extent */
	PV_LIST_RAW = 2,   /* all flags, with those of pagemap */
	PV_LIST_FLAGS = 4, /* columns */
	PV_LIST_MAPCOUNT = 8,
	PV_LIST_CGROUP = 16,
	PV_LIST_NODE = 32,
	PV_LIST_CSV = 64,     /* formats; else a table */
	PV_LIST_JSON = 128,   /* for frames only */
	PV_LIST_FRAMES = 256, /* frames, not pages of a process */
	PV_LIST_ALL_PAGES =
		512 /* the tests choose pages without a frame, too */
};

/* A condition: (flags & mask) == bits; PV_NO_ENTRY as bits: any of mask. */
struct pv_test {
	uint64_t mask;
	uint64_t bits;
};

/* Strings one after the other; string i ends before ends[i]. */
struct pv_strings {
	const char *text;
	const uint64_t *ends;
};

struct pv_listing {
	/* in: */
	unsigned int page_shift;
	int how;
	int flags_fd; /* of kpageflags; -1: not looked up; so for the others */
	int mapcount_fd;
	int cgroup_fd;
	uint64_t cleared; /* flags that the kernel tells wrongly */
	uint64_t zero_pfn;
	const uint8_t *node_of_block; /* or NULL */
	uint64_t nr_blocks;
	unsigned int block_shift;
	const struct pv_test *tests;
	uint64_t nr_tests;
	/* start and end of each mapping, in address order, and its text */
	const uint64_t *vmas;
	uint64_t nr_vmas;
	struct pv_strings vma_texts;
	/* inodes of cgroups, sorted, and their names */
	const uint64_t *inodes;
	uint64_t nr_inodes;
	struct pv_strings cgroup_names;
	/* out: the text, which the next call overwrites */
	char *text;
	uint64_t nr_text;
	/* internal: */
	uint64_t room;
	uint64_t at_vma;
	uint64_t last_vma; /* whose heading was written */
	int has_json;	   /* an object was written before */
	void *state;
};

int64_t pv_list(struct pv_listing *listing, const struct pv_extent *extents,
		uint64_t nr, uint64_t *at, uint64_t *offset);
int64_t pv_list_end(struct pv_listing *listing);

/* account.c, runs.c */
enum { PV_NR_ORDERS = 20, PV_NR_NODES = 64, PV_ACCOUNT_PAGES = 8192 };
enum { PV_ANON, PV_FILE, PV_NR_KINDS };

/*
 * Counts of a mapping's base pages. All members are uint64_t, because runs.c
 * adds two of these structs member by member.
 */
struct pv_sums {
	uint64_t nr_present;   /* with zero pages and hugetlb */
	uint64_t nr_hidden;    /* present, with a hidden frame number */
	uint64_t nr_exclusive; /* certainly mapped only once */
	uint64_t nr_zero;
	uint64_t nr_hugetlb; /* according to the flags */
	uint64_t nr_swapped;
	uint64_t nr_swap_hidden; /* a hidden swap entry, of any kind */
	uint64_t nr_special;	 /* guards, markers, migration and similar */
	uint64_t nr_device;	 /* present, but no RAM that Rss counts */
	uint64_t nr_file;	 /* of a file or shared memory */
	uint64_t nr_extents;	 /* runs of contiguous frames */
	/* in aligned blocks of 2^i pages, contiguous in both address spaces */
	uint64_t contiguous[20];
	/* the same, each block within one large folio */
	uint64_t in_folio[2][20];
	/* in large folios of 2^i pages, mapped whole and contiguously */
	uint64_t aligned[2][20];
	uint64_t unaligned[2][20];
	uint64_t partial[2]; /* in large folios that are mapped otherwise */
	uint64_t nodes[64];
};

/* Contiguous pages, which the next extent may continue. */
struct pv_run {
	uint64_t vpn;
	uint64_t pfn;
	uint64_t nr; /* 0: none */
};

/* Contiguous pages within one large folio. */
struct pv_folio {
	struct pv_run run;
	int has_head; /* the first page is also the folio's first page */
	int kind;
	int whole; /* the last page is also the folio's last page */
};

struct pv_account {
	/* in: */
	unsigned int page_shift;
	int flags_fd; /* of kpageflags; -1: do not examine folios */
	uint64_t zero_pfn;
	/* 2^n is the size of the smallest large anonymous folio; 0: unknown */
	unsigned int anon_shift;
	/* 2^n pages are a huge page, which may be the zero page; 0: unknown */
	unsigned int huge_order;
	int is_part;		      /* will be joined with the part before */
	int is_shared;		      /* a mapping that no anonymous page has */
	int is_file;		      /* a mapping of a file, or of a device */
	const uint8_t *node_of_block; /* or NULL */
	uint64_t nr_blocks;
	unsigned int block_shift; /* frames in a block of memory, as a shift */
	/* out: */
	int is_used; /* an account of pv_join_parts() */
	struct pv_sums sums;
	struct pv_run largest;
	/*
	 * internal: the last run and folio, which may continue. For a part
	 * also the first run and folio, which may continue the part before.
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

/* smaps.c */

/* The columns of pv_parse_mappings(); after them one for each name. */
enum {
	PV_MAP_START,
	PV_MAP_END,
	PV_MAP_PERMS, /* four letters, the first in the lowest byte */
	PV_MAP_OFFSET,
	PV_MAP_DEVICE, /* major number << 32 | minor number */
	PV_MAP_INODE,
	PV_MAP_NAME, /* where the name is in the text */
	PV_MAP_NAME_LENGTH,
	PV_MAP_FLAGS, /* where the value of VmFlags is in the text */
	PV_MAP_FLAGS_LENGTH,
	PV_MAP_SIZES
};
enum { PV_SMAPS_NAME = 24 };

int64_t pv_read_more(int fd, char *buffer, uint64_t room);
int64_t pv_parse_mappings(const char *text, uint64_t length, int is_last,
			  uint64_t last_end, const char *names,
			  uint64_t nr_names, uint64_t *columns, uint64_t stride,
			  uint64_t *used);

/* mappings.c */

/* The columns of pv_account_columns(), in base pages if nothing else is said.
 */
enum {
	PV_OF_PRESENT,
	PV_OF_HIDDEN,
	PV_OF_EXCLUSIVE,
	PV_OF_ZERO,
	PV_OF_HUGETLB,
	PV_OF_SWAPPED,
	PV_OF_SPECIAL,
	PV_OF_DEVICE,
	PV_OF_FILE,
	PV_OF_EXTENTS, /* a number */
	PV_OF_LARGEST,
	PV_OF_LARGEST_VPN, /* a page number */
	PV_OF_LARGEST_PFN, /* a frame number */
	PV_OF_BLOCKS,	   /* in contiguous blocks of 64 KiB */
	PV_OF_HUGE_BLOCKS, /* in contiguous blocks of a huge page's size */
	PV_OF_FOLIOS,	   /* in large folios */
	PV_NR_OF
};

int64_t pv_account_parts(const struct pv_account *like,
			 const struct pv_extent *extents, uint64_t nr,
			 uint64_t *done, const uint64_t *starts,
			 const uint64_t *ends, const uint64_t *perms,
			 const uint64_t *inodes, uint64_t nr_vmas,
			 uint64_t *which, struct pv_account *parts,
			 uint64_t room);
int64_t pv_join_parts(const struct pv_account *like,
		      struct pv_account *accounts, const uint64_t *which,
		      const struct pv_account *parts, uint64_t nr);
int64_t pv_end_accounts(struct pv_account *accounts, uint64_t nr,
			unsigned int huge_order, uint64_t *columns,
			struct pv_sums *total);

/* process.c */
int pv_order_of_mm(int one, int other);

/* compare.c */
enum { PV_AGREED_FRAME, PV_AGREED_ZERO, PV_AGREED_SWAP, PV_NR_AGREED };
enum { PV_NR_FIRST = 4 };

/* Pages on which both sources agree, and the addresses of the first few. */
struct pv_agreed {
	uint64_t nr;
	uint64_t first[4];
};

struct physicalview_extent; /* kmod/uapi/physicalview.h */

int64_t pv_agree(unsigned int page_shift, uint64_t vaddr, uint64_t nr_pages,
		 const uint64_t *entries,
		 const struct physicalview_extent *extents, uint64_t nr_extents,
		 uint64_t zero_pfn, struct pv_agreed *agreed, uint64_t *left);
