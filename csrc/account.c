// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Sums over the extents of a mapping: how much of it there is, how far it is
 * in a row, and how its large folios are mapped. What tools/mm/thpmaps gives
 * per page, given here over runs (runs.c).
 */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "runs.h"

/* Blocks of which it is known that they are in no large folio: a power of 2. */
#define NR_BLOCKS 512

/*
 * Frames whose flags are to be read, up to a number of pages, and what reading
 * them takes. Too large for a stack, which may be 64 KiB (ulimit -s): each call
 * allocates its own, because several threads can be in one.
 */
struct pending {
	uint64_t nr, nr_values;
	uint64_t known[NR_BLOCKS]; /* blocks without large folios, plus 1 */
	struct placed {
		struct pv_frames frames;
		uint64_t place; /* of its values */
		uint64_t vpn;
	} placed[PV_ACCOUNT_PAGES], sorted[PV_ACCOUNT_PAGES];
	struct pv_frames runs[PV_ACCOUNT_PAGES];
	uint64_t places[PV_ACCOUNT_PAGES], values[PV_ACCOUNT_PAGES];
	struct pv_reader reader;
};

static struct pending *new_pending(void)
{
	struct pending *pending = malloc(sizeof(*pending));

	if (!pending)
		return NULL;
	/* Only what is read before it is written: the rest stays untouched. */
	pending->nr = pending->nr_values = 0;
	memset(pending->known, 0, sizeof(pending->known));
	return pending;
}

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

		if (!pv_has_frame(extents[i].entry) || pfn == zero_pfn)
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

/*
 * Read the flags of frames that were put by, in the order of the frames, and
 * add them in their own.
 */
static int64_t flush(struct pv_account *account, struct pending *pending)
{
	struct placed *sorted = pending->sorted;
	struct pv_frames *runs = pending->runs;
	uint64_t *places = pending->places, *values = pending->values;
	uint64_t nr = pending->nr;
	int64_t ret;

	memcpy(sorted, pending->placed, nr * sizeof(*sorted));
	for (uint64_t i = 1; i < nr; i++) {
		if (by_pfn(&sorted[i - 1], &sorted[i]) > 0) {
			qsort(sorted, nr, sizeof(*sorted), by_pfn);
			break;
		}
	}
	for (uint64_t i = 0; i < nr; i++) {
		runs[i] = sorted[i].frames;
		places[i] = sorted[i].place;
	}
	ret = pv_read_values(&pending->reader, account->flags_fd, runs, nr,
			     places, values);
	for (uint64_t i = 0; i < nr && ret >= 0; i++) {
		const struct placed *placed = &pending->placed[i];

		ret = pv_add_flags(account, placed->vpn, placed->frames.pfn,
				   placed->frames.nr, values + placed->place);
	}
	pending->nr = pending->nr_values = 0;
	return ret;
}

/* Put frames by, whose flags are to be read. */
static int64_t put_by(struct pv_account *account, struct pending *pending,
		      uint64_t vpn, uint64_t pfn, uint64_t nr)
{
	while (nr) {
		uint64_t now = PV_ACCOUNT_PAGES - pending->nr_values;

		if (now > nr)
			now = nr;
		pending->placed[pending->nr++] = (struct placed){
			{ pfn, now }, pending->nr_values, vpn
		};
		pending->nr_values += now;
		vpn += now;
		pfn += now;
		nr -= now;
		if (pending->nr_values == PV_ACCOUNT_PAGES) {
			int64_t ret = flush(account, pending);

			if (ret < 0)
				return ret;
		}
	}
	return 0;
}

/*
 * Anonymous for certain: a frame that is mapped once has a page behind it,
 * while without that bit it may be a device's.
 */
static int is_anonymous(const struct pv_extent *extent)
{
	return extent->entry & PM_MMAP_EXCLUSIVE && !(extent->entry & PM_FILE);
}

/*
 * Put by those anonymous frames that may be in a large folio. Folios are
 * aligned to their size; so where one frame of a block that is not larger than
 * the smallest folio is in none, no other anonymous frame of it is, and one
 * flag tells of all of them.
 */
static int64_t put_large_by(struct pv_account *account, struct pending *pending,
			    uint64_t vpn, uint64_t pfn, uint64_t nr)
{
	while (nr) {
		uint64_t block = pfn >> account->anon_shift;
		uint64_t now = ((block + 1) << account->anon_shift) - pfn;
		uint64_t *slot = &pending->known[block % NR_BLOCKS];

		if (now > nr)
			now = nr;
		if (*slot != block + 1) {
			uint64_t value = 0;
			int64_t ret = pv_pagemap_read(account->flags_fd, pfn, 1,
						      &value);

			if (ret >= 0 && value & (KPF_THP | KPF_HUGE))
				ret = put_by(account, pending, vpn, pfn, now);
			else
				*slot = block + 1;
			if (ret < 0)
				return ret;
		}
		vpn += now;
		pfn += now;
		nr -= now;
	}
	return 0;
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
	else if (pv_is_in_area(value))
		sums->nr_swapped += extent->nr_pages;
	else
		sums->nr_special += extent->nr_pages;
}

/* Put by the frames of an extent, of which folios may have to be known. */
static int64_t put_extent_by(struct pv_account *account,
			     struct pending *pending,
			     const struct pv_extent *extent)
{
	uint64_t vpn = extent->vaddr >> account->page_shift;
	uint64_t pfn = extent->entry & PM_PFRAME_MASK;

	if (account->anon_shift && is_anonymous(extent))
		return put_large_by(account, pending, vpn, pfn,
				    extent->nr_pages);
	return put_by(account, pending, vpn, pfn, extent->nr_pages);
}

/*
 * Add the extents that begin below end, in address order. Returns how many
 * these are, or -errno. pv_account_end() must follow the last of a mapping, or
 * of a part pv_account_join().
 */
int64_t pv_account(struct pv_account *account, const struct pv_extent *extents,
		   uint64_t nr, uint64_t end)
{
	struct pending *pending = NULL; /* allocated for the first frame */
	struct pv_sums *sums = &account->sums;
	int64_t ret = 0;
	uint64_t i;

	for (i = 0; i < nr && extents[i].vaddr < end && ret >= 0; i++) {
		const struct pv_extent *extent = &extents[i];
		uint64_t pfn = extent->entry & PM_PFRAME_MASK;
		uint64_t nr_pages = extent->nr_pages;

		if (extent->entry & PM_PRESENT) {
			sums->nr_present += nr_pages;
			if (extent->entry & PM_MMAP_EXCLUSIVE)
				sums->nr_exclusive += nr_pages;
		}
		if (!pv_has_frame(extent->entry)) {
			add_other(sums, extent);
			continue;
		}
		if (pfn == account->zero_pfn) {
			sums->nr_zero += nr_pages;
			continue;
		}
		pv_add_frames(account, extent->vaddr >> account->page_shift,
			      pfn, nr_pages);
		if (account->flags_fd < 0)
			continue;
		if (!pending)
			pending = new_pending();
		ret = pending ? put_extent_by(account, pending, extent)
			      : -ENOMEM;
	}
	if (pending && pending->nr && ret >= 0)
		ret = flush(account, pending);
	free(pending);
	return ret < 0 ? ret : (int64_t)i;
}
