/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What csrc/listing.c and csrc/listing_text.c share: the rows of a listing of
 * pages or frames.
 */
#ifndef LISTING_H
#define LISTING_H

#include <stdbool.h>

#include "runs.h"

/* The node of a block of memory that has none: see sources/numa.py. */
#define PV_NO_NODE 255

/* A row of a listing. A value that was not looked up is PV_NO_ENTRY. */
struct pv_row {
	uint64_t vaddr;
	uint64_t nr; /* pages; 0: there is no row */
	uint64_t entry;
	uint64_t step;	/* of the entry, from page to page */
	uint64_t flags; /* as they are shown */
	uint64_t mapcount;
	uint64_t cgroup;
	uint64_t vma;
	int node; /* -1: unknown */
	bool has_frame;
};

/* Flags that are not shown by default: see physview/sources/page_flags.py. */
uint64_t pv_shown_flags(uint64_t flags, uint64_t entry, bool raw);

/* Add the text of a row. Returns 0 or -ENOMEM. */
int pv_write_row(struct pv_listing *listing, const struct pv_row *row);

#endif
