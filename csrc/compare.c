// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Both witnesses' answers for pages in a row: those that agree are counted,
 * the others handed back. Nearly all pages agree, in nearly every process.
 */
#include "physview.h"

#include "kmod/uapi/physicalview.h"

/* What both know of a page; the rest of an entry is pagemap's own business. */
#define COMMON (PM_PRESENT | PM_SWAP | PM_PFRAME_MASK)

struct row {
	const uint64_t *entries;
	uint64_t vaddr;
	unsigned int page_shift;
	uint64_t *left, nr_left;
};

static void leave(struct row *row, uint64_t i)
{
	row->left[row->nr_left++] = row->vaddr + (i << row->page_shift);
}

static void agree(struct row *row, uint64_t i, struct pv_agreed *agreed)
{
	if (agreed->nr < PV_NR_FIRST)
		agreed->first[agreed->nr] = row->vaddr + (i << row->page_shift);
	agreed->nr++;
}

/* The walk found nothing from page i to end. */
static void empty(struct row *row, uint64_t i, uint64_t end)
{
	for (; i < end; i++) {
		if (row->entries[i] & (PM_PRESENT | PM_SWAP))
			leave(row, i);
	}
}

/*
 * The walk found pages from i to end, the first of which has this entry in
 * pagemap's form; step leads from one to the next.
 */
static void expect(struct row *row, uint64_t i, uint64_t end, uint64_t entry,
		   uint64_t step, struct pv_agreed *agreed)
{
	for (; i < end; i++, entry += step) {
		if ((row->entries[i] ^ entry) & COMMON)
			leave(row, i);
		else
			agree(row, i, agreed);
	}
}

/* The same for frames in a row, one of which may be the zero page. */
static void expect_frames(struct row *row, uint64_t i, uint64_t end,
			  uint64_t pfn, uint64_t zero_pfn,
			  struct pv_agreed *agreed)
{
	struct pv_agreed *frames = &agreed[PV_AGREED_FRAME];
	uint64_t at = i + (zero_pfn - pfn);

	if (zero_pfn >= pfn && at < end) {
		expect(row, i, at, PM_PRESENT | pfn, 1, frames);
		expect(row, at, at + 1, PM_PRESENT | zero_pfn, 1,
		       &agreed[PV_AGREED_ZERO]);
		i = at + 1;
		pfn = zero_pfn + 1;
	}
	expect(row, i, end, PM_PRESENT | pfn, 1, frames);
}

/*
 * Of nr_pages pages from vaddr on pagemap has these entries, and the walk found
 * these extents. Adds to agreed[PV_NR_AGREED] what both
 * say alike, and returns how many pages are left over, their addresses in left.
 */
int64_t pv_agree(unsigned int page_shift, uint64_t vaddr, uint64_t nr_pages,
		 const uint64_t *entries,
		 const struct physicalview_extent *extents, uint64_t nr_extents,
		 uint64_t zero_pfn, struct pv_agreed *agreed, uint64_t *left)
{
	struct row row = { entries, vaddr, page_shift, left, 0 };
	uint64_t at = 0;

	for (uint64_t e = 0; e < nr_extents; e++) {
		const struct physicalview_extent *extent = &extents[e];
		uint64_t i = (extent->vaddr - vaddr) >> page_shift;
		uint64_t end = i + (extent->length >> page_shift);

		empty(&row, at, i);
		switch (extent->kind) {
		case PHYSICALVIEW_KIND_PRESENT:
		case PHYSICALVIEW_KIND_PROT_NONE:
			expect_frames(&row, i, end, extent->paddr >> page_shift,
				      zero_pfn, agreed);
			break;
		case PHYSICALVIEW_KIND_SWAP:
			expect(&row, i, end, PM_SWAP | extent->swap,
			       SWAP_SLOT_STEP, &agreed[PV_AGREED_SWAP]);
			break;
		default:
			for (; i < end; i++)
				leave(&row, i);
		}
		at = end;
	}
	empty(&row, at, nr_pages);
	return (int64_t)row.nr_left;
}
