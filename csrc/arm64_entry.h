/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What an entry of arm64's page tables says, decoded in user space as
 * csrc/kmod/walk.c does with the kernel's macros. x86_entry.h is the same for
 * x86-64.
 *
 * Entries differ with the page size, the processor and the kernel. struct
 * arm64_format says how, and arm64_find_format() finds it by two entries of
 * known pages.
 *
 * Source: arch/arm64/include/asm/pgtable-hwdef.h, pgtable-prot.h, pgtable.h
 */
#ifndef PV_ARM64_ENTRY_H
#define PV_ARM64_ENTRY_H

#include <stdbool.h>
#include <stdint.h>

#define ARM64_VALID (UINT64_C(1) << 0)
/* An entry that leads to a table. The same bits mean a page, but lowest down.
 */
#define ARM64_TABLE UINT64_C(3)
/*
 * A page that faults. Until 6.9 it has a bit of its own, and a huge page that
 * is being split has another. From 6.10 on both have the bit "not global".
 */
#define ARM64_PRESENT_INVALID (UINT64_C(1) << 11)
#define ARM64_OLD_PROT_NONE (UINT64_C(1) << 58)
#define ARM64_OLD_HUGE_INVALID (UINT64_C(1) << 59)

/* Address bits 51 to 48 are in these bits if pages have 64 KiB... */
#define ARM64_HIGH_64K UINT64_C(0xf000)
#define ARM64_HIGH_64K_SHIFT 36
/* ...and bits 51 and 50 in these, with LPA2. They are the shareability else. */
#define ARM64_HIGH_LPA2 UINT64_C(0x300)
#define ARM64_HIGH_LPA2_SHIFT 42

#define ARM64_READ_ONLY (UINT64_C(1) << 7)
#define ARM64_ACCESSED (UINT64_C(1) << 10)
#define ARM64_WRITABLE (UINT64_C(1) << 51) /* DBM */
#define ARM64_CONTIGUOUS (UINT64_C(1) << 52)
#define ARM64_DIRTY (UINT64_C(1) << 55)

#define ARM64_SWAP_TYPES 32
#define ARM64_SWAP_OFFSET_BITS 50

struct arm64_format {
	uint64_t address; /* the bits that are an address where they stand */
	uint64_t high;	  /* the bits that are the address's highest */
	uint64_t page;	  /* any of these bits: a page, at the lowest level */
	uint64_t huge;	  /* the same at the levels above */
	unsigned int page_shift;
	unsigned int high_shift;
	unsigned int swap_type_shift, swap_offset_shift;
};

/* The address bits of an entry that leads to a table. */
static inline uint64_t arm64_table_address(unsigned int page_shift)
{
	uint64_t end = UINT64_C(1) << (page_shift == 16 ? 48 : 50);

	return end - (UINT64_C(1) << page_shift);
}

/*
 * Find the format by the entry of a page, at a known address, and the entry of
 * a page of PROT_NONE. Returns false if they have no format that is known here.
 */
static inline bool arm64_find_format(struct arm64_format *format,
				     unsigned int page_shift, uint64_t present,
				     uint64_t paddr, uint64_t prot_none)
{
	bool is_old = prot_none & ARM64_OLD_PROT_NONE;
	struct arm64_format found;
	bool has_lpa2;

	if (!(present & ARM64_VALID) || prot_none & ARM64_VALID ||
	    !(prot_none & (ARM64_OLD_PROT_NONE | ARM64_PRESENT_INVALID)))
		return false;
	/* Without LPA2 Linux has both bits set, and no address reaches 2^48. */
	has_lpa2 = page_shift != 16 &&
		   (present & ARM64_HIGH_LPA2) << ARM64_HIGH_LPA2_SHIFT ==
			   paddr >> 50 << 50;
	found = (struct arm64_format){
		.address = arm64_table_address(page_shift),
		.page = ARM64_VALID |
			(is_old ? ARM64_OLD_PROT_NONE : ARM64_PRESENT_INVALID),
		.page_shift = page_shift,
		.swap_type_shift = is_old ? 3 : 6,
		.swap_offset_shift = is_old ? 8 : 12,
	};
	found.huge = found.page | (is_old ? ARM64_OLD_HUGE_INVALID : 0);
	if (page_shift == 16) {
		found.high = ARM64_HIGH_64K;
		found.high_shift = ARM64_HIGH_64K_SHIFT;
	} else if (has_lpa2) {
		found.high = ARM64_HIGH_LPA2;
		found.high_shift = ARM64_HIGH_LPA2_SHIFT;
	}
	/* At once: another thread may read it, and finds the same values. */
	*format = found;
	return true;
}

static inline bool arm64_is_none(uint64_t entry)
{
	return !entry;
}

/* Above the lowest level only. */
static inline bool arm64_is_table(uint64_t entry)
{
	return (entry & ARM64_TABLE) == ARM64_TABLE;
}

/* Whether the hardware finds a page or a table through the entry. */
static inline bool arm64_is_present(uint64_t entry)
{
	return entry & ARM64_VALID;
}

static inline bool arm64_is_page(const struct arm64_format *format,
				 uint64_t entry, bool is_lowest)
{
	return entry & (is_lowest ? format->page : format->huge);
}

static inline uint64_t arm64_paddr(const struct arm64_format *format,
				   uint64_t entry, unsigned int shift)
{
	uint64_t paddr = (entry & format->address) |
			 (entry & format->high) << format->high_shift;

	return paddr & ~((UINT64_C(1) << shift) - 1);
}

static inline bool arm64_is_accessed(uint64_t entry)
{
	return entry & ARM64_ACCESSED;
}

/* Linux's bit, or a writable page that the hardware made really so. */
static inline bool arm64_is_dirty(uint64_t entry)
{
	return entry & ARM64_DIRTY ||
	       ((entry & ARM64_WRITABLE) && !(entry & ARM64_READ_ONLY));
}

/*
 * Of contiguous pages the hardware may set the bit of any one. As a shift: 64
 * KiB, or 2 MiB with larger pages (CONT_PTE_SHIFT).
 */
static inline unsigned int arm64_group_order(const struct arm64_format *format,
					     uint64_t entry)
{
	if (!(entry & ARM64_VALID) || !(entry & ARM64_CONTIGUOUS))
		return 0;
	return format->page_shift == 12 ? 4 : format->page_shift == 14 ? 7 : 5;
}

static inline unsigned int arm64_swap_type(const struct arm64_format *format,
					   uint64_t entry)
{
	return entry >> format->swap_type_shift & (ARM64_SWAP_TYPES - 1);
}

static inline uint64_t arm64_swap_offset(const struct arm64_format *format,
					 uint64_t entry)
{
	return entry >> format->swap_offset_shift &
	       ((UINT64_C(1) << ARM64_SWAP_OFFSET_BITS) - 1);
}

#endif
