// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Reduces a frame to a key, which holds everything on which the frame's value
 * in /proc/kpageflags depends. The key gives no flag a name: the kernel is
 * asked for the flags of a few frames with this key (bpf_flags.c). So this need
 * not know how a kernel makes flags, only what it looks at. Since Linux 5.17
 * that is (stable_page_flags() in fs/proc/page.c):
 *
 * - the flags of the frame's description, the lowest bits of mapping, mapcount
 *   or the type in its place, and whether the reference count is 0;
 * - of a compound page, the same of its head, and the description after the
 *   head, which has the order, the map counts, and whether it is hugetlb's;
 * - whether the frame is in a free block, which only the block's first frame
 *   tells;
 * - whether it is a zero page, which only its number tells; whether its memory
 *   is offline, and whether its description is shared with others.
 *
 * Frames for which the last point matters have no key, and so have frames with
 * something unusual: the kernel is asked for each.
 */
#include "page_key.h"

#include <string.h>

/* A huge zero page has so many frames on x86-64, and begins at a multiple. */
#define HUGE_FRAMES 512

#define MAPPING_BITS 3
#define MAPPING_ANON 1

static uint64_t flags_of(const struct pv_page_scan *scan,
			 const struct pv_page *page)
{
	const uint64_t mapping =
		page->words[scan->layout->mapping / sizeof(uint64_t)];

	return (page->words[0] & scan->layout->flags_mask) |
	       (mapping & MAPPING_BITS) << PV_KEY_MAPPING_SHIFT |
	       (page->refcount ? 0 : PV_KEY_UNREFERENCED);
}

/* A map count counts as 0, "mapped"; any other number is kept. */
static uint64_t mapcount_of(const struct pv_page *page)
{
	return page->mapcount >= 0 ? 0 : (uint32_t)page->mapcount;
}

static bool is_tail(const struct pv_page *page)
{
	return page->words[1] & 1;
}

static bool is_unusual(const struct pv_page_scan *scan,
		       const struct pv_page *page)
{
	return page->words[0] &
	       (scan->layout->reserved_flag | scan->layout->hwpoison_flag);
}

/* The number of frames of the free block that begins here; 0: none does. */
static uint64_t free_block(const struct pv_page_scan *scan, uint64_t pfn,
			   const struct pv_page *page)
{
	const uint64_t order =
		page->words[scan->layout->private / sizeof(uint64_t)];

	if (((uint32_t)page->mapcount & scan->layout->type_mask) !=
	    scan->layout->buddy_type)
		return 0;
	if (order > scan->max_order || pfn & ((UINT64_C(1) << order) - 1))
		return 0;
	return UINT64_C(1) << order;
}

/*
 * Whether a head is that of the tail after it. Linux 7.1 has a mask instead of
 * the head's address. With hugetlb, a description can be a copy of a head's.
 */
static bool is_head(const struct pv_page_scan *scan, uint64_t pfn,
		    const struct pv_page *next)
{
	const uint64_t head = scan->vmemmap + pfn * sizeof(*next);
	const uint64_t tail = next->words[1];

	return is_tail(next) &&
	       (tail == (head | 1) ||
		(tail > head && ((head + sizeof(*next)) & tail) == head));
}

/* Fill in what a key has of the compound page. Returns false without a key. */
static bool set_compound(struct pv_page_key *key,
			 const struct pv_page_scan *scan, uint64_t pfn,
			 const struct pv_page *head, const struct pv_page *next)
{
	const uint64_t flags = flags_of(scan, head);
	const bool is_anon = flags >> PV_KEY_MAPPING_SHIFT & MAPPING_ANON;

	if (!scan->layout->has_folio_mapcount || !next || is_tail(head) ||
	    !(flags & scan->layout->head_flag) || is_unusual(scan, head) ||
	    is_unusual(scan, next) || !is_head(scan, pfn, next))
		return false;
	/* It may be the huge zero page, which nothing but its number tells. */
	if (!(pfn % HUGE_FRAMES) && !is_anon &&
	    !(flags & scan->layout->lru_flag))
		return false;
	key->words[2] = flags;
	key->words[3] = mapcount_of(head);
	key->words[4] = flags_of(scan, next);
	memcpy(&key->words[5], &next->words[2], 4 * sizeof(uint64_t));
	key->words[9] = (uint32_t)next->mapcount;
	return true;
}

static void forget(struct pv_page_scan *scan, uint64_t pfn)
{
	scan->start = pfn;
	scan->free_end = scan->tail = 0;
}

/* Note the free block that begins here, if one does. */
static bool note_free_block(struct pv_page_scan *scan, uint64_t pfn,
			    const struct pv_page *page)
{
	const uint64_t nr = free_block(scan, pfn, page);

	if (!nr)
		return false;
	scan->free_start = pfn;
	scan->free_end = pfn + nr;
	return true;
}

static bool key_of_single(struct pv_page_scan *scan, uint64_t pfn,
			  const struct pv_page *page, bool is_free_block)
{
	uint64_t flags = flags_of(scan, page), mapcount = mapcount_of(page);
	struct pv_page_key *key = &scan->key;

	if (!is_free_block && !page->refcount) {
		const uint64_t block = UINT64_C(1) << scan->max_order;

		if (pfn < scan->free_end)
			flags |= PV_KEY_IN_FREE_BLOCK;
		else if (!scan->max_order || (pfn & -block) < scan->start)
			return false; /* a free block may begin before */
	}
	scan->base = flags & PV_KEY_IN_FREE_BLOCK ? scan->free_start : pfn;
	if (key->words[2])
		*key = (struct pv_page_key){ 0 };
	key->words[0] = flags;
	key->words[1] = mapcount;
	return true;
}

static bool key_of_compound(struct pv_page_scan *scan, uint64_t pfn,
			    const struct pv_page *page,
			    const struct pv_page *next)
{
	if (!is_tail(page)) {
		if (!set_compound(&scan->key, scan, pfn, page, next))
			return false;
		scan->head = pfn;
		scan->tail = next->words[1];
	} else if (!scan->tail || page->words[1] != scan->tail) {
		scan->tail = 0;
		return false;
	}
	scan->base = scan->head;
	scan->key.words[0] =
		flags_of(scan, page) | (is_tail(page) ? PV_KEY_TAIL : 0);
	scan->key.words[1] = mapcount_of(page);
	return true;
}

/*
 * Find the key of a frame, the frame that must be looked at with it, and write
 * both to scan. next is the description after it, or NULL if that is not there.
 * Frames come in ascending order, as far as they are contiguous. Returns false
 * if the frame has no key.
 */
bool pv_page_key(struct pv_page_scan *scan, uint64_t pfn,
		 const struct pv_page *page, const struct pv_page *next)
{
	const bool is_compound =
		is_tail(page) || page->words[0] & scan->layout->head_flag;
	bool is_free_block;

	if (pfn != scan->next)
		forget(scan, pfn);
	scan->next = pfn + 1;
	if (!is_tail(page))
		scan->tail = 0;
	/* A broken frame can be the first of a free block. */
	is_free_block = !is_compound && note_free_block(scan, pfn, page);
	if (is_unusual(scan, page) || pfn == scan->zero_pfn)
		return false;
	return is_compound ? key_of_compound(scan, pfn, page, next)
			   : key_of_single(scan, pfn, page, is_free_block);
}

/*
 * Whether a frame has a key still. of_base are the two descriptions from base
 * on; NULL if base is the frame itself.
 */
bool pv_page_has_key(const struct pv_page_scan *scan,
		     const struct pv_page_key *key, uint64_t pfn, uint64_t base,
		     const struct pv_page *page, const struct pv_page *of_base)
{
	struct pv_page_key now = { { flags_of(scan, page),
				     mapcount_of(page) } };

	if (key->words[0] & PV_KEY_IN_FREE_BLOCK) {
		if (is_tail(page) ||
		    pfn >= base + free_block(scan, base, of_base))
			return false;
		now.words[0] |= PV_KEY_IN_FREE_BLOCK;
	} else if (key->words[2]) {
		if (pfn != base) {
			if (!is_tail(page) ||
			    page->words[1] != of_base[1].words[1])
				return false;
			now.words[0] |= PV_KEY_TAIL;
		}
		if (!set_compound(&now, scan, base, of_base, of_base + 1))
			return false;
	} else if (is_tail(page)) {
		return false;
	}
	return !is_unusual(scan, page) && !memcmp(&now, key, sizeof(now));
}
