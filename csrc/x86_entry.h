/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What an entry of x86-64's page tables says, decoded in user space as
 * csrc/kmod/walk.c does with the kernel's macros.
 *
 * Source: arch/x86/include/asm/pgtable_types.h, pgtable-invert.h, pgtable_64.h
 */
#ifndef PV_X86_ENTRY_H
#define PV_X86_ENTRY_H

#include <stdbool.h>
#include <stdint.h>

#if defined(__aarch64__)
#error "entries of arm64 are in arm64_entry.h; include table_entry.h"
#endif

#define X86_PRESENT (UINT64_C(1) << 0)
#define X86_PSE (UINT64_C(1) << 7)
#define X86_PROTNONE (UINT64_C(1) << 8)
#define X86_ACCESSED (UINT64_C(1) << 5)
#define X86_DIRTY (UINT64_C(1) << 6)
#define X86_SOFT_DIRTY (UINT64_C(1) << 11)
/*
 * From 6.6 on, a dirty page that is made read-only has its bit here. Before, a
 * page of persistent memory has this bit, and looks written.
 */
#define X86_SAVED_DIRTY (UINT64_C(1) << 58)
#define X86_ADDRESS UINT64_C(0x000ffffffffff000)
/* Accessed and dirty: some processors set them in an empty entry (erratum). */
#define X86_ERRATUM (UINT64_C(3) << 5)

static inline bool entry_is_none(uint64_t entry)
{
	return !(entry & ~X86_ERRATUM);
}

static inline bool entry_is_table(uint64_t entry)
{
	return (entry & (X86_PRESENT | X86_PSE)) == X86_PRESENT;
}

/* Whether the hardware finds a page or a table through the entry. */
static inline bool entry_is_present(uint64_t entry)
{
	return entry & X86_PRESENT;
}

/*
 * Whether the entry maps a page. Above the lowest level the size bit is enough:
 * while a huge page is split, its entry is not present for a moment.
 */
static inline bool entry_is_page(uint64_t entry, bool is_lowest)
{
	return entry & (X86_PRESENT | X86_PROTNONE | (is_lowest ? 0 : X86_PSE));
}

/* The frame. Entries that are not present have it inverted, against L1TF. */
static inline uint64_t entry_paddr(uint64_t entry, unsigned int shift)
{
	if (!(entry & X86_PRESENT))
		entry = ~entry;
	return entry & X86_ADDRESS & ~((UINT64_C(1) << shift) - 1);
}

/* The same for an entry of the lowest level that is present. */
static inline uint64_t entry_present_paddr(uint64_t entry)
{
	return entry & X86_ADDRESS;
}

/*
 * Whether the page was used through this entry since the bit was cleared. The
 * entry maps a page, perhaps one that faults (PROT_NONE).
 */
static inline bool entry_is_accessed(uint64_t entry)
{
	return entry & X86_ACCESSED;
}

/* The same for writing. */
static inline bool entry_is_dirty(uint64_t entry)
{
	return entry & (X86_DIRTY | X86_SAVED_DIRTY);
}

static inline bool entry_is_soft_dirty(uint64_t entry)
{
	return entry & X86_SOFT_DIRTY;
}

/* So many pages, as a shift, may have one accessed bit for all of them. */
static inline unsigned int entry_group_order(uint64_t entry)
{
	(void)entry;
	return 0;
}

static inline unsigned int entry_swap_type(uint64_t entry)
{
	return entry >> 59;
}

static inline uint64_t entry_swap_offset(uint64_t entry)
{
	return ~entry << 5 >> 14;
}

#endif
