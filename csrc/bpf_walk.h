/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What csrc/bpf_*.c share, and Python does not see. */
#ifndef PV_BPF_WALK_H
#define PV_BPF_WALK_H

#include <stdbool.h>

#include "physview.h"

#include "bpf/walk.h"
#include "kmod/uapi/physicalview.h"
#include "table_entry.h"

/* Log2 of BPF_WALK_ENTRIES. A table of 4 KiB has one part. */
#define PV_PART_SHIFT 9

/* Not in the page tables: an answer that never stood still. model.PageKind */
#define PV_KIND_UNSTABLE 10

/* A copy of one part of a table, and the first address that it reaches. */
struct pv_table {
	bool is_valid;
	uint64_t start;
	__u64 entries[BPF_WALK_ENTRIES];
};

/*
 * A middle table has the entries that lead to lowest tables. Where there is
 * none, the entry above says all, and span is what that entry reaches.
 */
struct pv_middle {
	uint64_t start, end;
	bool is_table, is_stable;
	unsigned int shift;
	uint64_t entry;
	__u64 entries[BPF_WALK_ENTRIES];
};

enum { PV_NR_MIDDLES = 64 };

/*
 * A description of a frame (struct page). Bit 0 of word 1 is set in tail pages.
 * Other members are in other places, or in other structures that lie in the
 * same words.
 */
struct pv_page {
	uint64_t words[6]; /* flags, tail, ... */
	int32_t mapcount;  /* or page_type */
	int32_t refcount;
	uint64_t memcg;
};

/*
 * How this kernel describes a frame: where members are, and which bits mean
 * what. From the kernel's BTF.
 */
struct pv_page_layout {
	bool is_known;
	uint32_t size;
	uint32_t mapping, private; /* in bytes, as those below */
	uint32_t file_mapping, mapping_pages, pages_head;
	uint64_t
		flags_mask; /* what of flags is flags: above is the zone etc. */
	uint64_t head_flag, reserved_flag, lru_flag;
	uint64_t hwpoison_flag;		/* 0 if this kernel has none */
	uint32_t type_mask, buddy_type; /* page_type of a free block */
	bool has_folio_mapcount; /* the first tail tells if a folio is mapped */
};

/* One at a time: a thread that walks has its own. */
struct pv_bpf {
	int map_fd, program_fd;
	uint32_t nr_levels;
	uint64_t user_end; /* no address from there on is walked */
	struct bpf_walk_area *area;
	uint8_t swap_kinds[1 << SWAP_TYPE_BITS];
	struct pv_page_layout page;
	uint64_t vmemmap; /* the description of frame 0; 0: not known */
	uint64_t zero_pfn;
	struct pv_table above[BPF_WALK_LEVELS]; /* one for each higher level */
	struct pv_middle middles[PV_NR_MIDDLES];
};

/*
 * What a walk finds from start to end: a lowest table, or one entry that is
 * higher, or that was not stable.
 */
struct pv_found {
	uint64_t start, end;
	const __u64 *table; /* of all that the table reaches; or NULL: */
	uint64_t entry;
	unsigned int shift; /* of what the entry reaches */
	bool is_stable;
};

/* Who looks at what a walk of a range finds. */
struct pv_visitor {
	/*
	 * Returns the end of what was found; or, if there is no room for more,
	 * the address where to continue.
	 */
	uint64_t (*visit)(struct pv_visitor *visitor,
			  const struct pv_found *found);
	/* For so many tables there is certainly room. */
	uint64_t (*room)(const struct pv_visitor *visitor);
	int error; /* set by visit() to end the walk */
};

/* Entries of a level are of pieces of memory of 2 to the power of this. */
static inline unsigned int shift_of(const struct pv_bpf *bpf, uint32_t level)
{
	return bpf->area->shifts[level];
}

static inline uint32_t index_of(uint64_t vaddr, unsigned int shift)
{
	return vaddr >> shift & (BPF_WALK_ENTRIES - 1);
}

/* Where the entry of a level that reaches an address ends, but no later than
 * end. */
static inline uint64_t end_of(uint64_t vaddr, unsigned int shift, uint64_t end)
{
	uint64_t next = (vaddr | ((UINT64_C(1) << shift) - 1)) + 1;

	return next < end ? next : end;
}

static inline bool is_stable(const struct bpf_walk_answer *answer)
{
	return !(answer->state & (BPF_WALK_UNSTABLE | BPF_WALK_FAULT));
}

/* Whether there is a good copy of the table that a request asks for. */
static inline bool has_table(const struct bpf_walk_answer *answer)
{
	return answer->state == BPF_WALK_COPIED;
}

/*
 * Ask for the entries of the first levels on the way to an address, and perhaps
 * for the part of the next table that reaches the address.
 */
static inline void pv_bpf_request(struct pv_bpf *bpf, uint32_t i,
				  uint64_t vaddr, uint32_t nr_levels, bool copy)
{
	struct bpf_walk_request *request = &bpf->area->requests[i];
	uint64_t index;

	*request = (struct bpf_walk_request){ .vaddr = vaddr,
					      .nr_levels = nr_levels };
	if (!copy)
		return;
	request->copy = true;
	if (PV_TABLE_SHIFT == PV_PART_SHIFT)
		return;
	index = vaddr >> shift_of(bpf, nr_levels) & bpf->area->index_mask;
	request->offset = (__u16)(index >> PV_PART_SHIFT << PV_PART_SHIFT) *
			  sizeof(bpf->area->tables[i][0]);
}

/* Log2 of what one part of a lowest table reaches. */
static inline unsigned int part_reach(void)
{
	return PV_PAGE_SHIFT + PV_PART_SHIFT;
}

/* bpf_load.c, bpf_types.c */
int pv_bpf_find_types(struct pv_bpf *bpf);
int pv_bpf_run_program(struct pv_bpf *bpf, int fd, uint32_t first, uint32_t nr);
int pv_bpf_run(struct pv_bpf *bpf, int fd, uint32_t first, uint32_t nr);
int64_t pv_own_frame(int pagemap_fd, const void *page);

/* bpf_frames.c */
void pv_bpf_request_frames(struct pv_bpf *bpf, uint32_t i, uint64_t pfn,
			   uint32_t nr);
const struct pv_page *pv_bpf_frame(const struct pv_bpf *bpf, uint32_t i,
				   uint32_t nr);

/* bpf_range.c */
int pv_bpf_copy_table(struct pv_bpf *bpf, int fd, uint64_t vaddr,
		      uint32_t level, struct pv_table *table);
int pv_bpf_visit(struct pv_bpf *bpf, int fd, uint64_t *at, uint64_t end,
		 struct pv_visitor *visitor);

/* bpf_walk.c */
int pv_bpf_answer(struct pv_bpf *bpf, int fd, uint32_t nr);
void pv_bpf_decode(const struct pv_bpf *bpf, uint64_t vaddr, uint64_t entry,
		   unsigned int shift, struct physicalview_page *page);
void pv_bpf_decode_last(const struct pv_bpf *bpf,
			const struct bpf_walk_answer *answer, uint64_t vaddr,
			struct physicalview_page *page);
struct physicalview_page pv_bpf_beyond(void);

#endif
