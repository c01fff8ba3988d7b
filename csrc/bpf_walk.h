/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What csrc/bpf_*.c share, and Python does not see. */
#ifndef PV_BPF_WALK_H
#define PV_BPF_WALK_H

#include <stdbool.h>

#include "physview.h"

#include "bpf/walk.h"

/* x86-64: arch/x86/include/asm/pgtable_types.h, page_64_types.h */
#define PV_PAGE_SHIFT 12
#define PV_PAGE (UINT64_C(1) << PV_PAGE_SHIFT)
#define PV_TABLE_SHIFT 9
#define PV_FRAME_MASK UINT64_C(0x000ffffffffff000)
/* Present, and no page itself (PS). */
#define PV_TABLE_MASK UINT64_C(0x81)
#define PV_TABLE_VALUE UINT64_C(0x01)
#define PV_DIRECT_MAP_STEP (UINT64_C(1) << 30)
#define PV_DIRECT_MAP_LOWEST UINT64_C(0xff11000000000000)

/* Not in the page tables: an answer that never stood still. model.PageKind */
#define PV_KIND_UNSTABLE 10

/* A copy of one table, and the first address that it reaches. */
struct pv_table {
	bool is_valid;
	uint64_t start;
	uint64_t entries[BPF_WALK_ENTRIES];
};

/* One at a time: a thread that walks has its own. */
struct pv_bpf {
	int map_fd, program_fd;
	uint32_t nr_levels;
	struct bpf_walk_area *area;
	uint8_t swap_kinds[1 << SWAP_TYPE_BITS];
	struct pv_table upper, middle;
};

int pv_bpf_find_types(struct pv_bpf *bpf);
int pv_bpf_run(struct pv_bpf *bpf, int fd, uint32_t first, uint32_t nr);

#endif
