// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Sums over the extents of a mapping: how much of it there is, how far it is
 * in a row, and how its large folios are mapped. What tools/mm/thpmaps gives
 * per page, given here over runs.
 */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "physview.h"

/* Below this a type is a swap area: see model.py. */
#define MIN_SPECIAL_SWAP_TYPE 22

/* include/uapi/linux/kernel-page-flags.h */
#define KPF_ANON (UINT64_C(1) << 12)
#define KPF_COMPOUND_HEAD (UINT64_C(1) << 15)
#define KPF_COMPOUND_TAIL (UINT64_C(1) << 16)
#define KPF_HUGE (UINT64_C(1) << 17)
#define KPF_THP (UINT64_C(1) << 22)
#define KPF_ZERO_PAGE (UINT64_C(1) << 24)

#define NR_NODES 64

static int has_frames(const struct pv_extent *extent)
{
	return extent->entry & PM_PRESENT && extent->entry & PM_PFRAME_MASK;
}

/* A frame's number, how many follow, and where they belong. */
struct placed {
	struct pv_frames frames;
	uint64_t place;
};

static int by_pfn(const void *one, const void *other)
{
	uint64_t a = ((const struct pv_frames *)one)->pfn;
	uint64_t b = ((const struct pv_frames *)other)->pfn;

	return (a > b) - (a < b);
}

/* The frames of extents, sorted; the zero page only once for each extent. */
uint64_t pv_frames_of(const struct pv_extent *extents, uint64_t nr,
		      uint64_t zero_pfn, struct pv_frames *frames)
{
	uint64_t nr_out = 0;
	int in_order = 1;

	for (uint64_t i = 0; i < nr; i++) {
		uint64_t pfn = extents[i].entry & PM_PFRAME_MASK;

		if (!has_frames(&extents[i]) || pfn == zero_pfn)
			continue;
		if (nr_out && frames[nr_out - 1].pfn > pfn)
			in_order = 0;
		frames[nr_out++] =
			(struct pv_frames){ pfn, extents[i].nr_pages };
	}
	if (!in_order)
		qsort(frames, nr_out, sizeof(*frames), by_pfn);
	return nr_out;
}

/* Pages in aligned blocks of each size, where both addresses allow it. */
static void add_blocks(uint64_t *by_order, const struct pv_run *run)
{
	for (int order = 1; order < PV_NR_ORDERS; order++) {
		uint64_t mask = (UINT64_C(1) << order) - 1;
		uint64_t first = (run->vpn + mask) & ~mask;
		uint64_t last = (run->vpn + run->nr) & ~mask;

		if ((run->vpn ^ run->pfn) & mask || first >= last)
			break;
		by_order[order] += last - first;
	}
}

static void end_run(struct pv_account *account)
{
	struct pv_sums *sums = &account->sums;
	struct pv_run *run = &account->run;

	if (!run->nr)
		return;
	sums->nr_extents++;
	if (run->nr > sums->largest) {
		sums->largest = run->nr;
		sums->largest_vaddr = run->vpn << account->page_shift;
		sums->largest_pfn = run->pfn;
	}
	add_blocks(sums->contiguous, run);
	run->nr = 0;
}

/* The folio's pages end here; whole: its own end is here, too. */
static void end_folio(struct pv_account *account, int whole)
{
	struct pv_sums *sums = &account->sums;
	struct pv_run *folio = &account->folio;

	if (!folio->nr)
		return;
	add_blocks(sums->in_folio[account->kind], folio);
	if (whole && account->has_head) {
		int order = 63 - __builtin_clzll(folio->nr);

		if (order >= PV_NR_ORDERS)
			order = PV_NR_ORDERS - 1;
		if (folio->vpn & (folio->nr - 1))
			sums->unaligned[account->kind][order] += folio->nr;
		else
			sums->aligned[account->kind][order] += folio->nr;
	} else {
		sums->partial[account->kind] += folio->nr;
	}
	folio->nr = 0;
}

/* As end_folio(), where what follows the folio's last frame is not mapped. */
static int64_t break_folio(struct pv_account *account)
{
	const struct pv_run *folio = &account->folio;
	uint64_t next = 0;
	int64_t got;

	if (!folio->nr)
		return 0;
	got = pv_pagemap_read(account->flags_fd, folio->pfn + folio->nr, 1,
			      &next);
	if (got < 0)
		return got;
	end_folio(account, !got || !(next & KPF_COMPOUND_TAIL));
	return 0;
}

/* Add pages in a row, whose flags are told. */
static int64_t add_flags(struct pv_account *account, uint64_t vpn, uint64_t pfn,
			 uint64_t nr, const uint64_t *values)
{
	struct pv_sums *sums = &account->sums;
	struct pv_run *folio = &account->folio;

	for (uint64_t i = 0; i < nr; i++, vpn++, pfn++) {
		int goes_on = folio->nr && folio->vpn + folio->nr == vpn &&
			      folio->pfn + folio->nr == pfn;
		uint64_t value = values[i];
		int64_t ret;

		if (value == PV_NO_ENTRY)
			value = 0;
		if (value & KPF_HUGE)
			sums->nr_hugetlb++;
		if (value & KPF_ZERO_PAGE)
			sums->nr_zero++;
		if (!(value & KPF_THP) || value & KPF_ZERO_PAGE) {
			ret = break_folio(account);
			if (ret < 0)
				return ret;
			continue;
		}
		if (!goes_on) {
			ret = break_folio(account);
			if (ret < 0)
				return ret;
		} else if (value & KPF_COMPOUND_HEAD) {
			end_folio(account, 1);
		}
		if (!folio->nr) {
			*folio = (struct pv_run){ vpn, pfn, 0 };
			account->has_head = !!(value & KPF_COMPOUND_HEAD);
			account->kind = value & KPF_ANON ? PV_ANON : PV_FILE;
		}
		folio->nr++;
	}
	return 0;
}

static void add_nodes(struct pv_account *account, uint64_t pfn, uint64_t nr)
{
	while (nr) {
		uint64_t block = pfn >> account->block_shift;
		uint64_t left = ((block + 1) << account->block_shift) - pfn;

		if (left > nr)
			left = nr;
		if (block < account->nr_blocks &&
		    account->node_of_block[block] < NR_NODES)
			account->sums.nodes[account->node_of_block[block]] +=
				left;
		pfn += left;
		nr -= left;
	}
}

static void add_frames(struct pv_account *account, uint64_t vpn, uint64_t pfn,
		       uint64_t nr)
{
	struct pv_run *run = &account->run;

	if (!run->nr || run->vpn + run->nr != vpn ||
	    run->pfn + run->nr != pfn) {
		end_run(account);
		*run = (struct pv_run){ vpn, pfn, 0 };
	}
	run->nr += nr;
	if (account->node_of_block)
		add_nodes(account, pfn, nr);
}

/*
 * Read the flags of pages that were put by, in the order of their frames, and
 * add them in their own.
 */
static int64_t flush(struct pv_account *account, const struct placed *placed,
		     const uint64_t *vpns, uint64_t nr)
{
	struct placed sorted[PV_ACCOUNT_PAGES];
	int64_t ret;

	memcpy(sorted, placed, nr * sizeof(*placed));
	for (uint64_t i = 1; i < nr; i++) {
		if (by_pfn(&sorted[i - 1], &sorted[i]) > 0) {
			qsort(sorted, nr, sizeof(*sorted), by_pfn);
			break;
		}
	}
	for (uint64_t i = 0; i < nr; i++) {
		account->runs[i] = sorted[i].frames;
		account->places[i] = sorted[i].place;
	}
	ret = pv_read_values(account->flags_fd, account->runs, nr,
			     account->places, account->values);
	for (uint64_t i = 0; i < nr && ret >= 0; i++)
		ret = add_flags(account, vpns[i], placed[i].frames.pfn,
				placed[i].frames.nr,
				account->values + placed[i].place);
	return ret;
}

/* Add what has no frame. */
static void add_other(struct pv_sums *sums, const struct pv_extent *extent)
{
	uint64_t value = extent->entry & PM_PFRAME_MASK;

	if (extent->entry & PM_PRESENT)
		sums->nr_hidden += extent->nr_pages;
	else if (extent->entry & PM_GUARD)
		sums->nr_special += extent->nr_pages;
	else if (!value)
		sums->nr_swap_hidden += extent->nr_pages;
	else if ((value & SWAP_TYPE_MASK) < MIN_SPECIAL_SWAP_TYPE)
		sums->nr_swapped += extent->nr_pages;
	else
		sums->nr_special += extent->nr_pages;
}

/*
 * Add the extents that begin below end, in address order. Returns how many
 * these are, or -errno. pv_account_end() must follow the last of a mapping.
 */
int64_t pv_account(struct pv_account *account, const struct pv_extent *extents,
		   uint64_t nr, uint64_t end)
{
	struct placed placed[PV_ACCOUNT_PAGES];
	uint64_t vpns[PV_ACCOUNT_PAGES];
	struct pv_sums *sums = &account->sums;
	uint64_t nr_placed = 0, nr_values = 0, i;

	for (i = 0; i < nr && extents[i].vaddr < end; i++) {
		const struct pv_extent *extent = &extents[i];
		uint64_t vpn = extent->vaddr >> account->page_shift;
		uint64_t pfn = extent->entry & PM_PFRAME_MASK;
		uint64_t left = extent->nr_pages;

		if (extent->entry & PM_PRESENT) {
			sums->nr_present += left;
			if (extent->entry & PM_MMAP_EXCLUSIVE)
				sums->nr_exclusive += left;
		}
		if (!has_frames(extent)) {
			add_other(sums, extent);
			continue;
		}
		if (pfn == account->zero_pfn) {
			sums->nr_zero += left;
			continue;
		}
		add_frames(account, vpn, pfn, left);
		if (account->flags_fd < 0)
			continue;
		while (left) {
			uint64_t now = PV_ACCOUNT_PAGES - nr_values;

			if (now > left)
				now = left;
			vpns[nr_placed] = vpn;
			placed[nr_placed++] =
				(struct placed){ { pfn, now }, nr_values };
			nr_values += now;
			vpn += now;
			pfn += now;
			left -= now;
			if (nr_values == PV_ACCOUNT_PAGES) {
				int64_t ret =
					flush(account, placed, vpns, nr_placed);

				if (ret < 0)
					return ret;
				nr_placed = nr_values = 0;
			}
		}
	}
	if (nr_placed) {
		int64_t ret = flush(account, placed, vpns, nr_placed);

		if (ret < 0)
			return ret;
	}
	return (int64_t)i;
}

/* No more extents come of this mapping: the sums are whole. */
int64_t pv_account_end(struct pv_account *account)
{
	end_run(account);
	return break_folio(account);
}
