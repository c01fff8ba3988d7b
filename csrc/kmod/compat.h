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

/*
 * Whether the hardware finds a page through the entry of a page that Linux
 * calls present: PROT_NONE and NUMA-hint pages keep their frame, but fault.
 */
#if defined(CONFIG_X86)
#define physicalview_hw_present(entry) ((entry) & _PAGE_PRESENT)
#elif defined(CONFIG_ARM64)
#define physicalview_hw_present(entry) ((entry) & PTE_VALID)
#else
#error "physicalview knows the page tables of x86-64 and arm64"
#endif

/* Levels of page tables that the hardware walks. */
#if defined(CONFIG_X86)
#define physicalview_nr_levels() (pgtable_l5_enabled() ? 5 : 4)
#else
#define physicalview_nr_levels() CONFIG_PGTABLE_LEVELS
#endif

/* Only where huge pages migrate whole can a PMD be a swap entry. */
#ifdef CONFIG_ARCH_ENABLE_THP_MIGRATION
#define physicalview_pmd_swap(pmd) __pmd_to_swp_entry(pmd)
#else
#define physicalview_pmd_swap(pmd) ((swp_entry_t){ pmd_val(pmd) })
#endif

#endif
