// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Reads extents by the BPF walk, in the form of scan.c and with the same result
 * as pagemap's, but for the bits that only pagemap has.
 *
 * Some answers are not in the page tables, or only their kernel can read them.
 * They are taken from pagemap:
 *
 *  - special swap entries, such as markers and pages in migration: their
 *    numbers differ between kernels;
 *  - tables that did not stand still;
 *  - device mappings (VM_PFNMAP), of which pagemap shows nothing. A mapping
 *    that may be one is called doubtful: its first page is also read from
 *    pagemap. If pagemap does not show it, pagemap tells about the mapping.
 */
#include <errno.h>
#include <stdlib.h>

#include "bpf_walk.h"
#include "scan.h"

/* Whom to believe about the mapping that is read. */
enum belief { BELIEVE_TABLES, DOUBT, BELIEVE_PAGEMAP };

struct scan_visitor {
	struct pv_visitor visitor;
	struct scan *scan;
	const uint64_t *cuts;
	const uint8_t *doubts; /* for each cut: what begins there is doubtful */
	enum belief belief;
};

/* Whether what begins at the last cut is doubtful; and so is what is new. */
static enum belief first_belief(const struct scan_visitor *mine)
{
	if (mine->scan->cuts == mine->cuts)
		return DOUBT;
	return mine->doubts[mine->scan->cuts - mine->cuts - 1] ? DOUBT
							       : BELIEVE_TABLES;
}

/* Begin the mapping at an address. Returns where it ends, at most end. */
static uint64_t enter_mapping(struct scan_visitor *mine, uint64_t at,
			      uint64_t end)
{
	struct scan *scan = mine->scan;

	if (scan->cuts < scan->last_cut && *scan->cuts <= at) {
		pv_pass_cuts(scan, at);
		mine->belief = first_belief(mine);
	}
	return scan->cuts < scan->last_cut && *scan->cuts < end ? *scan->cuts
								: end;
}

/*
 * An entry of a lowest table in the format of pagemap. Returns false for one
 * that pagemap has to tell about.
 */
static bool convert_entry(uint64_t entry, uint64_t *converted)
{
	if (entry_is_none(entry)) {
		*converted = 0;
	} else if (entry_is_page(entry, true)) {
		*converted = PM_PRESENT |
			     entry_paddr(entry, PV_PAGE_SHIFT) >> PV_PAGE_SHIFT;
	} else {
		*converted = PM_SWAP | entry_swap_type(entry) |
			     entry_swap_offset(entry) << SWAP_TYPE_BITS;
		return pv_is_in_area(*converted);
	}
	return true;
}

/* The same for entries of a table. The usual case needs no branches. */
static bool convert(const __u64 *table, uint64_t nr, uint64_t *converted)
{
	uint64_t others = 0;

	for (uint64_t i = 0; i < nr; i++) {
		uint64_t entry = table[i], present = entry_is_present(entry);

		converted[i] = (present << PM_PRESENT_BIT) |
			       ((entry_present_paddr(entry) & -present) >>
				PV_PAGE_SHIFT);
		others |= entry & (present - 1);
	}
	if (entry_is_none(others))
		return true;
	for (uint64_t i = 0; i < nr; i++)
		if (!entry_is_present(table[i]) &&
		    !convert_entry(table[i], &converted[i]))
			return false;
	return true;
}

/* Find out by one of its pages whether pagemap shows a doubtful mapping. */
static int settle_doubt(struct scan_visitor *mine, uint64_t at,
			const uint64_t *entries, uint64_t nr)
{
	uint64_t entry;

	for (uint64_t i = 0; i < nr; i++) {
		int64_t got;

		if (!(entries[i] & PM_PRESENT))
			continue;
		got = pv_pagemap_read(mine->scan->fd, (at >> PV_PAGE_SHIFT) + i,
				      1, &entry);
		if (got <= 0)
			return got < 0 ? (int)got : -ESRCH;
		mine->belief =
			entry & PM_PRESENT ? BELIEVE_TABLES : BELIEVE_PAGEMAP;
		break;
	}
	return 0;
}

/* Add a huge page, or a part of it. Returns false if there is no room. */
static bool add_huge(struct scan *scan, uint64_t at, uint64_t entry,
		     uint64_t nr)
{
	if (at == scan->next_vaddr && entry == scan->next_entry &&
	    scan->step == 1) {
		scan->extents[scan->nr - 1].nr_pages += nr;
	} else {
		if (scan->nr == scan->room)
			return false;
		scan->extents[scan->nr++] = (struct pv_extent){ at, entry, nr };
	}
	scan->next_vaddr = at + (nr << PV_PAGE_SHIFT);
	scan->next_entry = entry + nr;
	scan->step = 1;
	return true;
}

/* Whether pagemap has to tell about a part of what was found. */
static bool needs_pagemap(struct scan_visitor *mine,
			  const struct pv_found *found, uint64_t at,
			  uint64_t nr)
{
	struct scan *scan = mine->scan;
	uint64_t pfn, within;

	if (!found->is_stable || mine->belief == BELIEVE_PAGEMAP)
		return true;
	if (found->table) {
		if (!convert(&found->table[index_of(at, PV_PAGE_SHIFT)], nr,
			     scan->chunk))
			return true;
	} else {
		if (!entry_is_page(found->entry, false))
			return true;
		within = at & ((UINT64_C(1) << found->shift) - 1);
		pfn = (entry_paddr(found->entry, found->shift) + within) >>
		      PV_PAGE_SHIFT;
		if (scan->zero_pfn - pfn < nr)
			return true;
		scan->chunk[0] = PM_PRESENT | pfn;
	}
	if (mine->belief == DOUBT)
		mine->visitor.error = settle_doubt(mine, at, scan->chunk,
						   found->table ? nr : 1);
	return mine->belief == BELIEVE_PAGEMAP;
}

static uint64_t visit_pages(struct pv_visitor *visitor,
			    const struct pv_found *found)
{
	struct scan_visitor *mine = (struct scan_visitor *)visitor;
	struct scan *scan = mine->scan;
	uint64_t at = found->start;

	while (at < found->end) {
		uint64_t stop = enter_mapping(mine, at, found->end);
		uint64_t nr = (stop - at) >> PV_PAGE_SHIFT;

		if (needs_pagemap(mine, found, at, nr)) {
			if (!visitor->error)
				visitor->error = pv_scan_range(scan, &at, stop);
		} else if (found->table) {
			at += pv_add_entries(scan, at, scan->chunk, nr)
			      << PV_PAGE_SHIFT;
		} else if (add_huge(scan, at, scan->chunk[0], nr)) {
			at = stop;
		}
		if (at < stop || visitor->error)
			break;
	}
	return at;
}

static uint64_t room_for_pages(const struct pv_visitor *visitor)
{
	const struct scan *scan = ((const struct scan_visitor *)visitor)->scan;

	return (scan->room - scan->nr) / BPF_WALK_ENTRIES;
}

/*
 * As pv_scan_extents(), by the BPF walk. doubts says for each cut whether the
 * mapping that begins there, or what is no mapping, may be a device's. It may
 * return no extents before the end is reached.
 */
int64_t pv_bpf_scan(struct pv_bpf *bpf, int fd, int how, uint64_t *at,
		    uint64_t end, const uint64_t *cuts, const uint8_t *doubts,
		    uint64_t nr_cuts, uint64_t zero_pfn,
		    struct pv_extent *extents, uint64_t room)
{
	struct scan *scan;
	struct scan_visitor mine = {
		.visitor = { visit_pages, room_for_pages, 0 },
		.cuts = cuts,
		.doubts = doubts,
	};
	uint64_t low = 0, high = nr_cuts; /* find the first cut after *at */
	int64_t ret;

	while (low < high) {
		uint64_t middle = low + (high - low) / 2;

		if (cuts[middle] <= *at)
			low = middle + 1;
		else
			high = middle;
	}
	scan = pv_scan_new(fd, PV_PAGE_SHIFT, how | PV_COMMON_BITS, cuts + low,
			   nr_cuts - low, zero_pfn, extents, room);
	if (!scan)
		return -ENOMEM;
	mine.scan = scan;
	mine.belief = first_belief(&mine);
	ret = pv_bpf_visit(bpf, fd, at, end, &mine.visitor);
	if (!ret)
		ret = (int64_t)scan->nr;
	free(scan);
	return ret;
}
