/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What an entry of a pagemap means, and which entry the next page of an extent
 * has. The same rules in Python are in physview/entry_rules.py;
 * tests/test_entry_rules.py compares the two.
 * Format: Documentation/admin-guide/mm/pagemap.rst, include/linux/swapops.h.
 */
#ifndef ENTRY_H
#define ENTRY_H

#include <stdbool.h>
#include <stdint.h>

/* The frame number, or a swap entry's type and, above it, offset. */
#define PM_PFRAME_MASK ((UINT64_C(1) << 55) - 1)
#define PM_MMAP_EXCLUSIVE (UINT64_C(1) << 56)
#define PM_GUARD (UINT64_C(1) << 58)
#define PM_FILE (UINT64_C(1) << 61)
#define PM_SWAP (UINT64_C(1) << 62)
#define PM_PRESENT_BIT 63
#define PM_PRESENT (UINT64_C(1) << PM_PRESENT_BIT)

/* The bits that every source knows. Only pagemap knows the others. */
#define PM_COMMON (PM_PRESENT | PM_SWAP | PM_GUARD | PM_PFRAME_MASK)

#define SWAP_TYPE_BITS 5
#define SWAP_TYPE_MASK ((UINT64_C(1) << SWAP_TYPE_BITS) - 1)
#define SWAP_SLOT_STEP (UINT64_C(1) << SWAP_TYPE_BITS)

/* The type of a swap area is below this: see physview/entry_rules.py. */
#define MIN_SPECIAL_SWAP_TYPE 22
#define PTE_MARKER_SWAP_TYPE 31

/* Whether the entry names a frame. The kernel hides the number as 0. */
static inline bool pv_has_frame(uint64_t entry)
{
	return entry & PM_PRESENT && entry & PM_PFRAME_MASK;
}

/* Whether a swap slot, or the entry's, lies in a swap area. */
static inline bool pv_is_in_area(uint64_t slot)
{
	return (slot & SWAP_TYPE_MASK) < MIN_SPECIAL_SWAP_TYPE;
}

/*
 * How the entry changes from one page of an extent to the next: frames follow
 * each other, and swap slots do. The zero page, hidden frames and slots, guards
 * and markers have the same entry in all pages of an extent. So pages whose
 * steps differ are never in one extent. The entry is that of a page that is
 * present or has a swap entry.
 */
static inline uint64_t pv_step_of(uint64_t entry, uint64_t zero_pfn)
{
	uint64_t value = entry & PM_PFRAME_MASK;

	if (entry & PM_PRESENT)
		return value && value != zero_pfn;
	if (entry & PM_GUARD || !value ||
	    (entry & SWAP_TYPE_MASK) == PTE_MARKER_SWAP_TYPE)
		return 0;
	return SWAP_SLOT_STEP;
}

#endif
