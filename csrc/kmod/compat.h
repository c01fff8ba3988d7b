/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What differs between kernels and between architectures. Everything else of
 * the module is the same source on all of them.
 */
#ifndef PHYSICALVIEW_COMPAT_H
#define PHYSICALVIEW_COMPAT_H

#include <linux/pgtable.h>
#include <linux/swap.h>
#include <linux/swapops.h>

#if defined(CONFIG_X86)

/*
 * Whether the hardware finds a page through the entry of a page that Linux
 * calls present: PROT_NONE and NUMA-hint pages keep their frame, but fault.
 */
#define physicalview_hw_present(entry) ((entry) & _PAGE_PRESENT)

/* The first address that is no user's, whatever a process is given of them. */
#define physicalview_user_end() TASK_SIZE_MAX

/*
 * Whether a PUD maps a page of 1 GiB. pud_present() knows P only, and in some
 * kernels pud_leaf(), too, though a hugetlb page can be PROT_NONE; hugetlb and
 * pagemap ask pte_present().
 */
static inline bool physicalview_pud_is_page(pud_t pud)
{
	return pte_present(__pte(pud_val(pud))) && (pud_val(pud) & _PAGE_PSE);
}

/* Levels of page tables that the hardware walks, and those it has not. */
#define physicalview_nr_levels() (pgtable_l5_enabled() ? 5 : 4)
#define physicalview_pgd_folded() false
#define physicalview_p4d_folded() (!pgtable_l5_enabled())
#define physicalview_pud_folded() false

#elif defined(CONFIG_ARM64)

#define physicalview_hw_present(entry) ((entry) & PTE_VALID)

/* Present comes before leaf: what is not present has no such bit. */
static inline bool physicalview_pud_is_page(pud_t pud)
{
	return pud_present(pud) && pud_leaf(pud);
}

/*
 * TASK_SIZE_MAX is what the kernel was built for. On a processor with fewer
 * bits the tables have no entries for the rest: it would wrap around.
 */
#define physicalview_user_end() TASK_SIZE_64

/*
 * Built for 52 bits of address (LPA2, 6.9), the kernel finds out at boot
 * whether the processor has the topmost level. If not, the root is the table
 * of the next lower one: what is left out is the PGD, while x86 leaves out the
 * P4D below its root.
 */
#ifdef CONFIG_ARM64_LPA2
#define physicalview_pgd_folded()                                              \
	(CONFIG_PGTABLE_LEVELS > 4 ? !pgtable_l5_enabled()                     \
				   : !pgtable_l4_enabled())
#else
#define physicalview_pgd_folded() false
#endif
#define physicalview_p4d_folded() (CONFIG_PGTABLE_LEVELS < 5)
#define physicalview_pud_folded() (CONFIG_PGTABLE_LEVELS < 4)
#define physicalview_nr_levels()                                               \
	(CONFIG_PGTABLE_LEVELS - physicalview_pgd_folded())

#else
#error "physicalview knows the page tables of x86-64 and arm64"
#endif

/* Only where huge pages migrate whole can a PMD be a swap entry. */
#ifdef CONFIG_ARCH_ENABLE_THP_MIGRATION
#define physicalview_pmd_swap(pmd) __pmd_to_swp_entry(pmd)
#else
#define physicalview_pmd_swap(pmd) ((swp_entry_t){ pmd_val(pmd) })
#endif

#endif
