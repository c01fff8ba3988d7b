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
