// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Holds csrc/x86_entry.h and csrc/arm64_entry.h against the macros of a
 * kernel's own headers. tests/test_entry_macros.py builds this for several
 * kernels, and nothing of it ever runs: the compiler works out each comparison,
 * and a comparison that fails, or that is not constant, is an error.
 *
 * entries.h, which the test makes, has VARIANT_* options and CHECK_ALL, which
 * calls a function for many entries. The configuration of a kernel can be
 * changed there: other page sizes.
 */
#include "entries.h"

#ifdef CONFIG_X86
/* Reading an entry would be a call, and the mask of addresses a variable. */
#undef CONFIG_PARAVIRT_XXL
#undef CONFIG_DYNAMIC_PHYSICAL_MASK
#undef CONFIG_ARCH_HAS_LAZY_MMU_MODE
#endif

#include <linux/module.h>

#ifdef CONFIG_ARM64
/* The kernel finds out at boot whether it uses LPA2. */
#include <asm/pgtable-prot.h>
#undef PTE_MAYBE_SHARED
#define PTE_MAYBE_SHARED (VARIANT_LPA2 ? 0 : PTE_SHARED)
#endif

#include <linux/pgtable.h>
#include <linux/swap.h>
#include <linux/swapops.h>

/* A function that is called is not worked out. */
#undef inline
#define inline inline __attribute__((always_inline))
#ifdef CONFIG_ARM64
#include "arm64_entry.h"
#else
#include "x86_entry.h"
#endif

#define SAME(ours, theirs)                                                     \
	compiletime_assert((u64)(ours) == (u64)(theirs),                       \
			   "differs from the kernel's macros: " #ours)

#ifdef CONFIG_ARM64

/*
 * Without LPA2 these are zero. With pages of 64 KiB, or in kernels for
 * addresses of 48 bits, the kernel's masks have them or not.
 */
#if defined(CONFIG_ARM64_PA_BITS_52) && !defined(CONFIG_ARM64_64K_PAGES)
#define RESERVED 0
#else
#define RESERVED (UINT64_C(3) << 48)
#endif

static const u64 known_paddr = UINT64_C(0x12345) << PAGE_SHIFT;

/* The format that arm64_find_format() finds by entries that the kernel makes.
 */
static __always_inline struct arm64_format found_format(void)
{
	u64 readable = _PAGE_READONLY & ~(VARIANT_LPA2 ? PTE_SHARED : 0);
	u64 none = pgprot_val(PAGE_NONE) & ~(VARIANT_LPA2 ? PTE_SHARED : 0);
	pte_t present = pfn_pte(known_paddr >> PAGE_SHIFT, __pgprot(readable));
	pte_t prot_none = pfn_pte(7, __pgprot(none));
	struct arm64_format format = { 0 };

	SAME(arm64_find_format(&format, PAGE_SHIFT, pte_val(present),
			       known_paddr, pte_val(prot_none)),
	     true);
	SAME(arm64_is_page(&format, pte_val(prot_none), true), true);
	SAME(arm64_is_present(pte_val(prot_none)), false);
	SAME(arm64_is_present(pte_val(present)), true);
	SAME(arm64_paddr(&format, pte_val(present), PAGE_SHIFT), known_paddr);
	return format;
}

/* An entry that leads to a table at an address, as the program follows it. */
static __always_inline void check_table(u64 paddr)
{
	u64 entry = __phys_to_pmd_val(paddr) | PMD_TYPE_TABLE;
	u64 high = PAGE_SHIFT == 16 ? ARM64_HIGH_64K : ARM64_HIGH_LPA2;
	int shift =
		PAGE_SHIFT == 16 ? ARM64_HIGH_64K_SHIFT : ARM64_HIGH_LPA2_SHIFT;

	SAME(arm64_is_table(entry), true);
	SAME((entry & arm64_table_address(PAGE_SHIFT)) | (entry & high)
								 << shift,
	     paddr);
}

/* By itself: with these in check(), the compiler proves less of the rest. */
static __always_inline void check_uses(u64 word)
{
	const struct arm64_format format = found_format();
	u64 entry = word & ~RESERVED;
	pte_t pte = __pte(entry);

	SAME(arm64_is_accessed(entry), !!pte_young(pte));
	SAME(arm64_is_dirty(entry), !!pte_dirty(pte));
	if (pte_present(pte) && entry & PTE_VALID && entry & PTE_CONT)
		SAME(arm64_group_order(&format, entry),
		     CONT_PTE_SHIFT - PAGE_SHIFT);
}

static __always_inline void check(u64 word)
{
	const struct arm64_format format = found_format();
	u64 entry = word & ~RESERVED;
	pte_t pte = __pte(entry);
	pmd_t pmd = __pmd(entry);
	swp_entry_t swap = __pte_to_swp_entry(pte);

	SAME(arm64_is_none(entry), pte_none(pte));
	SAME(arm64_is_none(entry), pmd_none(pmd));
	SAME(arm64_is_page(&format, entry, true), pte_present(pte));
	SAME(arm64_is_table(entry), pmd_table(pmd));
	SAME(arm64_is_page(&format, entry, false) && !arm64_is_table(entry),
	     pmd_leaf(pmd));
	SAME(arm64_is_present(entry), entry & PTE_VALID);
	SAME(arm64_paddr(&format, entry, PAGE_SHIFT) >> PAGE_SHIFT,
	     pte_pfn(pte));
	SAME(arm64_paddr(&format, entry, PMD_SHIFT) >> PAGE_SHIFT,
	     pmd_pfn(pmd));
	SAME(arm64_swap_type(&format, entry), __swp_type(swap));
	SAME(arm64_swap_offset(&format, entry), __swp_offset(swap));
	check_table(word & (UINT64_C(1) << CONFIG_ARM64_PA_BITS) -
				   (UINT64_C(1) << PAGE_SHIFT));
}

#else

static __always_inline void check(u64 entry)
{
	pte_t pte = native_make_pte(entry);
	pmd_t pmd = native_make_pmd(entry);
	swp_entry_t swap = __pte_to_swp_entry(pte);

	SAME(entry_is_none(entry), pte_none(pte));
	SAME(entry_is_page(entry, true), !!pte_present(pte));
	SAME(entry_is_page(entry, false), !!pmd_present(pmd));
	SAME(entry_is_present(entry), entry & _PAGE_PRESENT);
	SAME(entry_is_accessed(entry), !!pte_young(pte));
#ifdef _PAGE_SAVED_DIRTY /* since 6.6 */
	SAME(entry_is_dirty(entry), !!pte_dirty(pte));
#else
	SAME(entry_is_dirty(entry & ~X86_SAVED_DIRTY), !!pte_dirty(pte));
#endif
	SAME(entry_is_soft_dirty(entry), !!pte_soft_dirty(pte));
	SAME(entry_is_table(entry),
	     (pmd_flags(pmd) & (_PAGE_PRESENT | _PAGE_PSE)) == _PAGE_PRESENT);
	if (pte_present(pte))
		SAME(entry_paddr(entry, PAGE_SHIFT) >> PAGE_SHIFT,
		     pte_pfn(pte));
	if (entry & _PAGE_PSE) {
		SAME(entry_paddr(entry, PMD_SHIFT) >> PAGE_SHIFT, pmd_pfn(pmd));
		SAME(entry_paddr(entry, PUD_SHIFT) >> PAGE_SHIFT,
		     pud_pfn(native_make_pud(entry)));
	}
	SAME(entry_swap_type(entry), __swp_type(swap));
	SAME(entry_swap_offset(entry), __swp_offset(swap));
}

#endif

void check_all(void);
void check_all(void)
{
	CHECK_ALL(check);
}

#ifdef CONFIG_ARM64
void check_all_uses(void);
void check_all_uses(void)
{
	CHECK_ALL(check_uses);
}
#endif

MODULE_LICENSE("GPL");
