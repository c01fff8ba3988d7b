/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How the kernel describes frames (struct page), from its BTF. */
#ifndef PV_BPF_PAGE_H
#define PV_BPF_PAGE_H

#include "bpf_walk.h"
#include "btf.h"

enum { PV_NR_PAGE_MEMBERS = 12, PV_NR_PAGE_FLAGS = 5 };

/* What was found so far. Each number is one higher: 0 is not found. */
struct pv_page_search {
	uint32_t size;
	uint64_t members[PV_NR_PAGE_MEMBERS];
	uint64_t flags[PV_NR_PAGE_FLAGS];
	uint64_t buddy_type;
	bool has_types; /* the kernel has an enum of all values of page_type */
};

void pv_page_search(struct pv_page_search *search, const struct btf *btf,
		    uint32_t id);
struct pv_page_layout pv_page_layout(const struct pv_page_search *search);

#endif
