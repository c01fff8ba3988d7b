// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Compares what two sources, pagemap and the module's walk, tell about
 * contiguous pages. Pages on which they agree are counted; the others are
 * returned. In nearly every process the sources agree on nearly all pages.
 */
#include "physview.h"

#include "kmod/uapi/physicalview.h"

/* What both sources tell about a page. Only pagemap has the other bits. */
#define COMMON (PM_PRESENT | PM_SWAP | PM_PFRAME_MASK)

struct pages {
	const uint64_t *entries;
	uint64_t vaddr;
	unsigned int page_shift;
	uint64_t *left, nr_left;
};

static void leave(struct pages *pages, uint64_t i)
{
	pages->left[pages->nr_left++] = pages->vaddr + (i << pages->page_shift);
}

static void agree(struct pages *pages, uint64_t i, struct pv_agreed *agreed)
{
	if (agreed->nr < PV_NR_FIRST)
		agreed->first[agreed->nr] =
			pages->vaddr + (i << pages->page_shift);
	agreed->nr++;
}

/* The walk found no pages from page i to end. */
static void empty(struct pages *pages, uint64_t i, uint64_t end)
{
	for (; i < end; i++) {
		if (pages->entries[i] & (PM_PRESENT | PM_SWAP))
			leave(pages, i);
	}
}

/*
 * The walk found pages from i to end. entry is the first page's entry in the
 * format of pagemap. step is the difference to the next page's entry.
 */
static void expect(struct pages *pages, uint64_t i, uint64_t end,
		   uint64_t entry, uint64_t step, struct pv_agreed *agreed)
{
	for (; i < end; i++, entry += step) {
		if ((pages->entries[i] ^ entry) & COMMON)
			leave(pages, i);
		else
			agree(pages, i, agreed);
	}
}

/* As expect(), for contiguous frames. The zero page may be one of them. */
static void expect_frames(struct pages *pages, uint64_t i, uint64_t end,
			  uint64_t pfn, uint64_t zero_pfn,
			  struct pv_agreed *agreed)
{
	struct pv_agreed *frames = &agreed[PV_AGREED_FRAME];
	uint64_t at = i + (zero_pfn - pfn);

	if (zero_pfn >= pfn && at < end) {
		expect(pages, i, at, PM_PRESENT | pfn, 1, frames);
		expect(pages, at, at + 1, PM_PRESENT | zero_pfn, 1,
		       &agreed[PV_AGREED_ZERO]);
		i = at + 1;
		pfn = zero_pfn + 1;
	}
	expect(pages, i, end, PM_PRESENT | pfn, 1, frames);
}

/*
 * Compare nr_pages pages from vaddr on: entries are what pagemap has, extents
 * what the walk found. Adds the pages on which both agree to
 * agreed[PV_NR_AGREED]. Writes the addresses of the other pages to left, and
 * returns how many there are.
 */
int64_t pv_agree(unsigned int page_shift, uint64_t vaddr, uint64_t nr_pages,
		 const uint64_t *entries,
		 const struct physicalview_extent *extents, uint64_t nr_extents,
		 uint64_t zero_pfn, struct pv_agreed *agreed, uint64_t *left)
{
	struct pages pages = { entries, vaddr, page_shift, left, 0 };
	uint64_t at = 0;

	for (uint64_t e = 0; e < nr_extents; e++) {
		const struct physicalview_extent *extent = &extents[e];
		uint64_t i = (extent->vaddr - vaddr) >> page_shift;
		uint64_t end = i + (extent->length >> page_shift);

		empty(&pages, at, i);
		switch (extent->kind) {
		case PHYSICALVIEW_KIND_PRESENT:
		case PHYSICALVIEW_KIND_PROT_NONE:
			expect_frames(&pages, i, end,
				      extent->paddr >> page_shift, zero_pfn,
				      agreed);
			break;
		case PHYSICALVIEW_KIND_SWAP:
			expect(&pages, i, end, PM_SWAP | extent->swap,
			       SWAP_SLOT_STEP, &agreed[PV_AGREED_SWAP]);
			break;
		default:
			for (; i < end; i++)
				leave(&pages, i);
		}
		at = end;
	}
	empty(&pages, at, nr_pages);
	return (int64_t)pages.nr_left;
}
