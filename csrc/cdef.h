/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The core's interface, read twice: by the C compiler (through physview.h)
 * and by cffi (through build_ffi.py). So it is plain declarations only: no
 * preprocessor, no kernel types.
 */

/* One of memview2's addresses. */
struct pv_probe {
	char label[16];
	uint64_t vaddr;
};

/* Called while the probed memory is alive; what it returns is handed on. */
typedef int pv_visit_fn(void *arg, const struct pv_probe *probes, int nr);

/* probes.c */
int pv_visit_probes(pv_visit_fn *visit, void *arg);
uint64_t pv_sizeof_probe(void);

/* pagemap.c */
int64_t pv_pagemap_read(int fd, uint64_t first_page, uint64_t nr_pages,
			uint64_t *entries);
int64_t pv_translate(int fd, unsigned int page_shift, const uint64_t *vaddrs,
		     uint64_t nr, uint64_t *entries, uint64_t *paddrs);
void pv_decode(unsigned int page_shift, const uint64_t *vaddrs, uint64_t nr,
	       const uint64_t *entries, uint64_t *paddrs);

/* compare.c */
enum { PV_AGREED_FRAME, PV_AGREED_ZERO, PV_AGREED_SWAP, PV_NR_AGREED };
enum { PV_NR_FIRST = 4 };

/* Pages of which both witnesses say the same, and the first few of them. */
struct pv_agreed {
	uint64_t nr;
	uint64_t first[4];
};

struct physicalview_extent; /* kmod/uapi/physicalview.h */

int64_t pv_agree(unsigned int page_shift, uint64_t vaddr, uint64_t nr_pages,
		 const uint64_t *entries,
		 const struct physicalview_extent *extents, uint64_t nr_extents,
		 uint64_t zero_pfn, struct pv_agreed *agreed, uint64_t *left);
