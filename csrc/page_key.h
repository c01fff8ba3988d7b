/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Keys of frames. The flags in /proc/kpageflags are a function of what the
 * kernel's descriptions of frames say (struct page): see page_key.c. Two frames
 * with the same key have the same flags.
 */
#ifndef PV_PAGE_KEY_H
#define PV_PAGE_KEY_H

#include <string.h>

#include "bpf_walk.h"

enum { PV_KEY_WORDS = 10 };

/* In word 0 of a key, above the flags. */
#define PV_KEY_MAPPING_SHIFT 48
#define PV_KEY_UNREFERENCED (UINT64_C(1) << 50)
#define PV_KEY_TAIL (UINT64_C(1) << 51)
#define PV_KEY_IN_FREE_BLOCK (UINT64_C(1) << 52)

/*
 * Words 0 and 1 are of the frame itself. The others are 0, or, of a compound
 * page, what its first two descriptions say.
 */
struct pv_page_key {
	uint64_t words[PV_KEY_WORDS];
};

/* What is known of the frames so far. All zeros at the beginning. */
struct pv_page_scan {
	uint64_t next;	/* the frame after the last */
	uint64_t start; /* all frames since then were seen */
	/* the last free block; end is 0 if there was none */
	uint64_t free_start, free_end;
	/* the last compound page; tail is 0 if it is left out */
	uint64_t head, tail;
	struct pv_page_key key; /* of the last frame */
	uint64_t base;		/* the frame that is looked at with it */
	/* in: */
	const struct pv_page_layout *layout;
	uint64_t vmemmap;
	uint64_t zero_pfn;
	unsigned int max_order; /* of free blocks; 0: not known */
};

static inline bool pv_same_key(const struct pv_page_key *one,
			       const struct pv_page_key *other)
{
	if (one->words[0] != other->words[0] ||
	    one->words[1] != other->words[1] ||
	    one->words[2] != other->words[2])
		return false;
	/* Word 2 has the flag of a head, or there is no compound page. */
	return !one->words[2] || !memcmp(one, other, sizeof(*one));
}

bool pv_page_key(struct pv_page_scan *scan, uint64_t pfn,
		 const struct pv_page *page, const struct pv_page *next);
bool pv_page_has_key(const struct pv_page_scan *scan,
		     const struct pv_page_key *key, uint64_t pfn, uint64_t base,
		     const struct pv_page *page, const struct pv_page *of_base);

#endif
