// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Sums over the extents of a mapping: how many pages are present, how
 * contiguous they are, and how large folios are mapped. tools/mm/thpmaps
 * examines page by page; this file examines runs (runs.c).
 */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "runs.h"

/* Slots for blocks that are known to have no large folio: a power of 2. */
#define NR_BLOCKS 512

/*
 * Frames whose flags have yet to be read, at most PV_ACCOUNT_PAGES of them, and
 * the buffers to read them. This struct is too large for a stack, which may
 * have 64 KiB (ulimit -s). Several threads call pv_account() at a time, so each
 * call allocates its own.
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
	/* All other members are written before they are read. */
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

/* Bits that one pass of sort_frames() sorts by. */
#define DIGIT_BITS 11
#define NR_DIGITS (1 << DIGIT_BITS)

/* Sort by pfn: a radix sort, which takes a tenth of the time of qsort(). */
static void sort_frames(struct pv_frames *frames, uint64_t nr)
{
	struct pv_frames *other = malloc(nr * sizeof(*other)), *from = frames;
	uint64_t *places = malloc((NR_DIGITS + 1) * sizeof(*places));
	struct pv_frames *to = other;
	uint64_t all = 0;

	if (!other || !places) {
		free(other);
		free(places);
		qsort(frames, nr, sizeof(*frames), by_pfn);
		return;
	}
	for (uint64_t i = 0; i < nr; i++)
		all |= frames[i].pfn;
	for (unsigned int shift = 0; shift < 64 && all >> shift;
	     shift += DIGIT_BITS) {
		struct pv_frames *last = from;

		memset(places, 0, (NR_DIGITS + 1) * sizeof(*places));
		for (uint64_t i = 0; i < nr; i++)
			places[(from[i].pfn >> shift & (NR_DIGITS - 1)) + 1]++;
		for (int i = 0; i < NR_DIGITS; i++)
			places[i + 1] += places[i];
		for (uint64_t i = 0; i < nr; i++) {
			uint64_t digit = from[i].pfn >> shift & (NR_DIGITS - 1);

			to[places[digit]++] = from[i];
		}
		from = to;
		to = last;
	}
	if (from != frames)
		memcpy(frames, from, nr * sizeof(*frames));
	free(other);
	free(places);
}

/*
 * Write the frames of extents, sorted, without those of the zero page. Returns
 * how many runs there are.
 */
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
		sort_frames(frames, nr_out);
	return nr_out;
}

/*
 * Read the flags of the pending frames, in the order of the frames. Then add
 * the flags in the order of the pages.
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

/* Make frames pending: flush() reads their flags. */
static int64_t add_pending(struct pv_account *account, struct pending *pending,
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
 * Whether the frames are certainly anonymous. A frame with PM_MMAP_EXCLUSIVE is
 * a page of RAM. A frame without this bit may also belong to a device.
 */
static int is_anonymous(const struct pv_extent *extent)
{
	return extent->entry & PM_MMAP_EXCLUSIVE && !(extent->entry & PM_FILE);
}

/*
 * Make those anonymous frames pending that may be in a large folio. A folio is
 * aligned to its size, and a block here is not larger than the smallest large
 * folio. So if one anonymous frame of a block is in no large folio, no other
 * anonymous frame of the block is, and the flags of one frame suffice.
 */
static int64_t add_large_pending(struct pv_account *account,
				 struct pending *pending, uint64_t vpn,
				 uint64_t pfn, uint64_t nr)
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
				ret = add_pending(account, pending, vpn, pfn,
						  now);
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

/* Add an extent that names no frames. */
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

/* Make the frames of an extent pending, unless they are in no large folio. */
static int64_t add_extent_pending(struct pv_account *account,
				  struct pending *pending,
				  const struct pv_extent *extent)
{
	uint64_t vpn = extent->vaddr >> account->page_shift;
	uint64_t pfn = extent->entry & PM_PFRAME_MASK;

	if (account->anon_shift && is_anonymous(extent))
		return add_large_pending(account, pending, vpn, pfn,
					 extent->nr_pages);
	return add_pending(account, pending, vpn, pfn, extent->nr_pages);
}

/* The flags of a frame; KPF_NOPAGE where there is no such frame. */
static int64_t flags_of(const struct pv_account *account, uint64_t pfn,
			uint64_t *flags)
{
	int64_t got = pv_pagemap_read(account->flags_fd, pfn, 1, flags);

	if (!got || *flags == PV_NO_ENTRY)
		*flags = KPF_NOPAGE;
	return got < 0 ? got : 0;
}

/*
 * Whether the frames of an extent are a device's, such as those of a file on a
 * DAX file system, or of memory on a graphics card. Before Linux 6.15 Rss
 * counts none of these. A page that pagemap calls neither a file's nor
 * exclusive is anonymous or a device's; a shared mapping has no anonymous
 * pages.
 */
static int64_t is_device(const struct pv_account *account,
			 const struct pv_extent *extent)
{
	uint64_t flags;
	int64_t ret;

	if (!account->is_file || extent->entry & (PM_FILE | PM_MMAP_EXCLUSIVE))
		return 0;
	if (account->is_shared)
		return 1;
	if (account->flags_fd < 0)
		return 0;
	ret = flags_of(account, extent->entry & PM_PFRAME_MASK, &flags);
	return ret < 0 ? ret : !!(flags & KPF_NOPAGE);
}

/*
 * The length of the first piece of contiguous frames that are all, or none, in
 * huge zero pages. *is_zero says which.
 */
static int64_t zero_piece(struct pv_account *account, uint64_t vpn,
			  uint64_t pfn, uint64_t nr, int *is_zero)
{
	uint64_t huge = UINT64_C(1) << account->huge_order, done;

	*is_zero = 0;
	if (!account->huge_order || account->flags_fd < 0)
		return (int64_t)nr;
	/* The zero page is mapped whole, at an aligned address. */
	done = -vpn & (huge - 1);
	if (done || (vpn ^ pfn) & (huge - 1)) {
		uint64_t same = !((vpn ^ pfn) & (huge - 1));

		return (int64_t)(same && done < nr ? done : nr);
	}
	for (; done + huge <= nr; done += huge) {
		uint64_t flags;
		int64_t ret = flags_of(account, pfn + done, &flags);

		if (ret < 0)
			return ret;
		if (!(flags & KPF_ZERO_PAGE))
			continue;
		if (done)
			return (int64_t)done;
		*is_zero = 1;
		return (int64_t)huge;
	}
	return (int64_t)nr;
}

/* Add contiguous frames of RAM. */
static int64_t add_ram(struct pv_account *account, struct pending **pending,
		       const struct pv_extent *extent)
{
	struct pv_extent piece = *extent;
	uint64_t left = extent->nr_pages;

	while (left) {
		uint64_t vpn = piece.vaddr >> account->page_shift;
		uint64_t pfn = piece.entry & PM_PFRAME_MASK;
		int is_zero;
		int64_t nr = zero_piece(account, vpn, pfn, left, &is_zero);
		int64_t ret = 0;

		if (nr < 0)
			return nr;
		piece.nr_pages = (uint64_t)nr;
		if (is_zero) {
			account->sums.nr_zero += piece.nr_pages;
			/* Old kernels give its pages the bits of a file's. */
			if (piece.entry & PM_FILE)
				account->sums.nr_file -= piece.nr_pages;
			if (piece.entry & PM_MMAP_EXCLUSIVE)
				account->sums.nr_exclusive -= piece.nr_pages;
		} else {
			pv_add_frames(account, vpn, pfn, piece.nr_pages);
			if (account->flags_fd >= 0) {
				if (!*pending)
					*pending = new_pending();
				ret = *pending ? add_extent_pending(account,
								    *pending,
								    &piece)
					       : -ENOMEM;
			}
		}
		if (ret < 0)
			return ret;
		piece.vaddr += piece.nr_pages << account->page_shift;
		piece.entry += piece.nr_pages;
		left -= piece.nr_pages;
	}
	return 0;
}

static int64_t add_frames(struct pv_account *account, struct pending **pending,
			  const struct pv_extent *extent)
{
	int64_t device = is_device(account, extent);

	if (device < 0)
		return device;
	if (device) {
		account->sums.nr_device += extent->nr_pages;
		return 0;
	}
	return add_ram(account, pending, extent);
}

/*
 * Add the extents that begin below end, in address order. Returns how many
 * there were, or -errno. After the last extent of a mapping call
 * pv_account_end(). After the last extent of a part call pv_account_join().
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
			if (extent->entry & PM_FILE)
				sums->nr_file += nr_pages;
		}
		if (!pv_has_frame(extent->entry))
			add_other(sums, extent);
		else if (pfn == account->zero_pfn)
			sums->nr_zero += nr_pages;
		else
			ret = add_frames(account, &pending, extent);
	}
	if (pending && pending->nr && ret >= 0)
		ret = flush(account, pending);
	free(pending);
	return ret < 0 ? ret : (int64_t)i;
}
