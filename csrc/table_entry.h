/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The entries of page tables of the machine that this is compiled for, by the
 * same names on each: x86_entry.h has them for x86-64, and here are those of
 * arm64. On any other machine the source bpf refuses before it uses them.
 */
#ifndef PV_TABLE_ENTRY_H
#define PV_TABLE_ENTRY_H

#include <stdbool.h>
#include <stdint.h>

#if defined(__aarch64__)

#include "arm64_entry.h"

/* The same in the whole machine. bpf_load.c fills it in. */
extern struct arm64_format pv_arm64;

#define PV_PAGE_SHIFT (pv_arm64.page_shift)
#define PV_PAGE (UINT64_C(1) << PV_PAGE_SHIFT)

/* For the program: which entries lead to a table, and to which. */
#define PV_TABLE_MASK ARM64_TABLE
#define PV_TABLE_VALUE ARM64_TABLE
#define PV_FRAME_MASK arm64_table_address(PV_PAGE_SHIFT)
/* Without LPA2 an entry that leads to a table has zeros here. */
#define PV_HIGH_MASK (PV_PAGE_SHIFT == 16 ? ARM64_HIGH_64K : ARM64_HIGH_LPA2)
#define PV_HIGH_SHIFT                                                          \
	(PV_PAGE_SHIFT == 16 ? ARM64_HIGH_64K_SHIFT : ARM64_HIGH_LPA2_SHIFT)

/* Before, the type of a swap entry was one bit further down. */
#define PV_NEEDS_5_19 true
/* Whether userfaultfd protects pages from writing, before 6.4. */
#define PV_OLD_UFFD_WP false

/* User space has a root table of its own, of which it has all. */
#define PV_KERNEL_BITS 0
#define PV_USER_GAP 0
/* ARM64_MEMSTART_ALIGN: arch/arm64/mm/init.c */
#define PV_DIRECT_MAP_STEP (UINT64_C(1) << (PV_PAGE_SHIFT == 16 ? 29 : 30))

static inline bool entry_find_format(uint64_t present, uint64_t paddr,
				     uint64_t prot_none)
{
	return arm64_find_format(&pv_arm64, PV_PAGE_SHIFT, present, paddr,
				 prot_none);
}

static inline bool entry_is_none(uint64_t entry)
{
	return arm64_is_none(entry);
}

static inline bool entry_is_table(uint64_t entry)
{
	return arm64_is_table(entry);
}

static inline bool entry_is_present(uint64_t entry)
{
	return arm64_is_present(entry);
}

static inline bool entry_is_page(uint64_t entry, bool is_lowest)
{
	return arm64_is_page(&pv_arm64, entry, is_lowest);
}

static inline uint64_t entry_paddr(uint64_t entry, unsigned int shift)
{
	return arm64_paddr(&pv_arm64, entry, shift);
}

static inline uint64_t entry_present_paddr(uint64_t entry)
{
	return arm64_paddr(&pv_arm64, entry, PV_PAGE_SHIFT);
}

static inline bool entry_is_accessed(uint64_t entry)
{
	return arm64_is_accessed(entry);
}

static inline bool entry_is_dirty(uint64_t entry)
{
	return arm64_is_dirty(entry);
}

/* Linux has no soft-dirty bits here. */
static inline bool entry_is_soft_dirty(uint64_t entry)
{
	(void)entry;
	return false;
}

static inline unsigned int entry_group_order(uint64_t entry)
{
	return arm64_group_order(&pv_arm64, entry);
}

static inline unsigned int entry_swap_type(uint64_t entry)
{
	return arm64_swap_type(&pv_arm64, entry);
}

static inline uint64_t entry_swap_offset(uint64_t entry)
{
	return arm64_swap_offset(&pv_arm64, entry);
}

#else

#include "x86_entry.h"

#define PV_PAGE_SHIFT 12
#define PV_PAGE (UINT64_C(1) << PV_PAGE_SHIFT)

#define PV_TABLE_MASK (X86_PRESENT | X86_PSE)
#define PV_TABLE_VALUE X86_PRESENT
#define PV_FRAME_MASK X86_ADDRESS
#define PV_HIGH_MASK 0
#define PV_HIGH_SHIFT 0

#define PV_NEEDS_5_19 false
#define PV_OLD_UFFD_WP true

/* The upper half of the root table is the kernel's. */
#define PV_KERNEL_BITS 1
#define PV_USER_GAP PV_PAGE /* TASK_SIZE_MAX */
#define PV_DIRECT_MAP_STEP (UINT64_C(1) << 30)

/* All entries of x86-64 have one format. */
static inline bool entry_find_format(uint64_t present, uint64_t paddr,
				     uint64_t prot_none)
{
	(void)present;
	(void)paddr;
	(void)prot_none;
	return false;
}

#endif

/* Log2 of the entries of a table, which is as large as a page. */
#define PV_TABLE_SHIFT (PV_PAGE_SHIFT - 3)

#endif
