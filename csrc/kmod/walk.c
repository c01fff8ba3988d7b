// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Reading page tables, as the processor does: one entry at each level leads to
 * the next lower table, until an entry maps a page or is empty.
 *
 * The caller holds the mmap lock for reading. That alone does not keep the
 * tables: munmap() downgrades to the same lock while it frees them, khugepaged
 * retracts tables (6.6), and 7.0 reclaims empty ones. All of these wait until
 * no processor that may be reading still has interrupts off, as they must for
 * the lockless part of get_user_pages_fast(). So interrupts are off from the
 * first entry to the last, and every entry is read once, into a local: it can
 * change at any time, and what was decided must be what is used.
 */
#include <linux/io.h>
#include <linux/irqflags.h>
#include <linux/mm.h>
#include <linux/pgtable.h>
#include <linux/swap.h>
#include <linux/swapops.h>

#include "compat.h"
#include "walk.h"

static bool has_page(u32 kind)
{
	return kind == PHYSICALVIEW_KIND_PRESENT ||
	       kind == PHYSICALVIEW_KIND_PROT_NONE;
}

/* What an entry says that is neither empty nor a page: see linux/swap.h. */
static u32 swap_kind(unsigned int type)
{
	if (type < MAX_SWAPFILES)
		return PHYSICALVIEW_KIND_SWAP;
#ifdef CONFIG_MEMORY_FAILURE
	if (type == SWP_HWPOISON)
		return PHYSICALVIEW_KIND_HWPOISON;
#endif
#ifdef CONFIG_MIGRATION
	if (type >= SWP_MIGRATION_READ && type <= SWP_MIGRATION_WRITE)
		return PHYSICALVIEW_KIND_MIGRATION;
#endif
#ifdef SWP_PTE_MARKER /* 5.19 */
	if (type == SWP_PTE_MARKER)
		return PHYSICALVIEW_KIND_MARKER;
#endif
#ifdef SWP_SWAPIN_ERROR /* 5.19 to 6.3; a marker since */
	if (type == SWP_SWAPIN_ERROR)
		return PHYSICALVIEW_KIND_MARKER;
#endif
#ifdef CONFIG_DEVICE_PRIVATE
	return PHYSICALVIEW_KIND_DEVICE;
#else
	return PHYSICALVIEW_KIND_BAD;
#endif
}

/* The entry of some level decides: there is nothing. */
static void found_nothing(struct physicalview_page *page, u32 kind, u64 entry,
			  unsigned int shift)
{
	page->kind = kind;
	page->entry = entry;
	page->page_shift = shift;
	page->paddr = 0;
	page->swap = 0;
}

/* The same for an entry that leads nowhere: it is empty, or broken. */
static pte_t *leads_nowhere(struct physicalview_page *page, bool none,
			    u64 entry, unsigned int shift)
{
	found_nothing(page,
		      none ? PHYSICALVIEW_KIND_NONE : PHYSICALVIEW_KIND_BAD,
		      entry, shift);
	return NULL;
}

/* The entry of some level decides: there is a page of this size. */
static void found_page(struct physicalview_page *page, u64 vaddr, u64 entry,
		       u64 pfn, unsigned int shift)
{
	page->kind = physicalview_hw_present(entry)
			     ? PHYSICALVIEW_KIND_PRESENT
			     : PHYSICALVIEW_KIND_PROT_NONE;
	page->entry = entry;
	page->page_shift = shift;
	page->paddr = (pfn << PAGE_SHIFT) | (vaddr & ((1ULL << shift) - 1));
	page->swap = 0;
}

/*
 * The entry of some level decides: the page is somewhere else. Each small page
 * of a huge one has a swap offset of its own, as in pagemap.
 */
static void found_swap(struct physicalview_page *page, u64 vaddr, u64 entry,
		       swp_entry_t arch, unsigned int shift)
{
	u64 offset = __swp_offset(arch);

	page->kind = swap_kind(__swp_type(arch));
	if (page->kind == PHYSICALVIEW_KIND_MIGRATION ||
	    page->kind == PHYSICALVIEW_KIND_DEVICE)
		offset += (vaddr & ((1ULL << shift) - 1)) >> PAGE_SHIFT;
	page->entry = entry;
	page->page_shift = shift;
	page->paddr = 0;
	page->swap = __swp_type(arch) | offset << MAX_SWAPFILES_SHIFT;
}

/* Keep what was read at one level, for WALK. */
static void note(struct physicalview_walk *walk, unsigned int level,
		 const void *address, u64 entry, unsigned int shift,
		 bool folded)
{
	struct physicalview_level *at;

	if (!walk)
		return;
	at = &walk->levels[level];
	/* A folded level has no entry: its pointer leads to our own copy. */
	at->address = folded ? 0 : virt_to_phys((void *)address);
	at->entry = entry;
	at->shift = shift;
	at->flags = folded ? PHYSICALVIEW_LEVEL_FOLDED : 0;
	walk->nr_levels = level + 1;
}

static void note_leaf(struct physicalview_walk *walk)
{
	if (walk)
		walk->levels[walk->nr_levels - 1].flags |=
			PHYSICALVIEW_LEVEL_LEAF;
}

/*
 * Go down to the lowest table. Returns the address of the page's entry there,
 * or NULL when a higher entry already says all, which then is in page.
 */
static pte_t *walk_to_pte(struct mm_struct *mm, u64 vaddr,
			  struct physicalview_page *page,
			  struct physicalview_walk *walk)
{
	pgd_t *pgdp, pgd;
	p4d_t *p4dp, p4d;
	pud_t *pudp, pud;
	pmd_t *pmdp, pmd;

	if (vaddr >= physicalview_user_end()) {
		found_nothing(page, PHYSICALVIEW_KIND_BEYOND, 0, PAGE_SHIFT);
		return NULL;
	}

	pgdp = pgd_offset(mm, vaddr);
	pgd = READ_ONCE(*pgdp);
	note(walk, PHYSICALVIEW_PGD, pgdp, pgd_val(pgd), PGDIR_SHIFT,
	     physicalview_pgd_folded());
	if (pgd_none(pgd) || pgd_bad(pgd))
		return leads_nowhere(page, pgd_none(pgd), pgd_val(pgd),
				     PGDIR_SHIFT);

	p4dp = p4d_offset_lockless(pgdp, pgd, vaddr);
	p4d = READ_ONCE(*p4dp);
	note(walk, PHYSICALVIEW_P4D, p4dp, p4d_val(p4d), P4D_SHIFT,
	     physicalview_p4d_folded());
	if (p4d_none(p4d) || p4d_bad(p4d))
		return leads_nowhere(page, p4d_none(p4d), p4d_val(p4d),
				     P4D_SHIFT);

	pudp = pud_offset_lockless(p4dp, p4d, vaddr);
	pud = READ_ONCE(*pudp);
	note(walk, PHYSICALVIEW_PUD, pudp, pud_val(pud), PUD_SHIFT,
	     physicalview_pud_folded());
	if (physicalview_pud_is_page(pud)) {
		found_page(page, vaddr, pud_val(pud), pud_pfn(pud), PUD_SHIFT);
		note_leaf(walk);
		return NULL;
	}
	/* A hugetlb page in migration, or a broken one. */
	if (!pud_none(pud) && !pud_present(pud)) {
		found_swap(page, vaddr, pud_val(pud),
			   __pte_to_swp_entry(__pte(pud_val(pud))), PUD_SHIFT);
		return NULL;
	}
	if (pud_none(pud) || pud_bad(pud))
		return leads_nowhere(page, pud_none(pud), pud_val(pud),
				     PUD_SHIFT);

	pmdp = pmd_offset_lockless(pudp, pud, vaddr);
	pmd = READ_ONCE(*pmdp);
	note(walk, PHYSICALVIEW_PMD, pmdp, pmd_val(pmd), PMD_SHIFT, false);
	/* Present comes before leaf: what is not present has no such bit. */
	if (pmd_present(pmd) && pmd_leaf(pmd)) {
		found_page(page, vaddr, pmd_val(pmd), pmd_pfn(pmd), PMD_SHIFT);
		note_leaf(walk);
		return NULL;
	}
	if (!pmd_none(pmd) && !pmd_present(pmd)) {
		found_swap(page, vaddr, pmd_val(pmd),
			   physicalview_pmd_swap(pmd), PMD_SHIFT);
		return NULL;
	}
	if (pmd_none(pmd) || pmd_bad(pmd))
		return leads_nowhere(page, pmd_none(pmd), pmd_val(pmd),
				     PMD_SHIFT);

	/* The copy again: the table must be the one that was looked at. */
	return pte_offset_kernel(&pmd, vaddr);
}

/* What an entry of the lowest level says. */
static void found_pte(struct physicalview_page *page, u64 vaddr, pte_t pte)
{
	if (pte_present(pte))
		/* Not from the bits: x86 stores some frames inverted. */
		found_page(page, vaddr, pte_val(pte), pte_pfn(pte), PAGE_SHIFT);
	else if (pte_none(pte))
		found_nothing(page, PHYSICALVIEW_KIND_NONE, pte_val(pte),
			      PAGE_SHIFT);
	else
		found_swap(page, vaddr, pte_val(pte), __pte_to_swp_entry(pte),
			   PAGE_SHIFT);
}

/**
 * physicalview_walk_levels - look one address up and keep every level
 * @mm: address space, its mmap lock held for reading
 * @walk: walk->vaddr is the address; the rest is filled in
 */
void physicalview_walk_levels(struct mm_struct *mm,
			      struct physicalview_walk *walk)
{
	unsigned long flags;
	pte_t *ptep, pte;

	local_irq_save(flags);
	ptep = walk_to_pte(mm, walk->vaddr, &walk->page, walk);
	if (ptep) {
		pte = READ_ONCE(*ptep);
		note(walk, PHYSICALVIEW_PTE, ptep, pte_val(pte), PAGE_SHIFT,
		     false);
		found_pte(&walk->page, walk->vaddr, pte);
		if (pte_present(pte))
			note_leaf(walk);
	}
	local_irq_restore(flags);
}

/**
 * physicalview_walk_pages - look addresses up
 * @mm: address space, its mmap lock held for reading
 * @vaddrs: addresses
 * @pages: what is found at each
 * @nr: how many; interrupts are off until all are done
 */
void physicalview_walk_pages(struct mm_struct *mm, const u64 *vaddrs,
			     struct physicalview_page *pages, u32 nr)
{
	unsigned long flags;
	pte_t *table = NULL;
	u64 reach = 0;
	u32 i;

	local_irq_save(flags);
	for (i = 0; i < nr; i++) {
		u64 vaddr = vaddrs[i];

		/* Neighbours share a table, which stays while we are here. */
		if (!table || vaddr >> PMD_SHIFT != reach) {
			table = walk_to_pte(mm, vaddr, &pages[i], NULL);
			if (!table)
				continue;
			table -= pte_index(vaddr);
			reach = vaddr >> PMD_SHIFT;
		}
		found_pte(&pages[i], vaddr, READ_ONCE(table[pte_index(vaddr)]));
	}
	local_irq_restore(flags);
}

/* Add a page to the extents. Returns false when there is no room for it. */
static bool add_page(struct physicalview_extents *extents,
		     const struct physicalview_page *page, u64 vaddr,
		     u64 length)
{
	struct physicalview_extent *last;

	if (page->kind == PHYSICALVIEW_KIND_NONE)
		return true;
	if (extents->nr) {
		last = &extents->at[extents->nr - 1];
		if (has_page(page->kind) && last->kind == page->kind &&
		    last->page_shift == page->page_shift &&
		    last->vaddr + last->length == vaddr &&
		    last->paddr + last->length == page->paddr) {
			last->length += length;
			return true;
		}
	}
	if (extents->nr == extents->room)
		return false;
	extents->at[extents->nr++] = (struct physicalview_extent){
		.vaddr = vaddr,
		.paddr = page->paddr,
		.length = length,
		.entry = page->entry,
		.swap = page->swap,
		.kind = page->kind,
		.page_shift = page->page_shift,
	};
	return true;
}

/*
 * Add what a lowest table holds from vaddr to end. Returns where to go on: end,
 * or the first page for which there was no room.
 */
static u64 add_ptes(const pte_t *ptep, u64 vaddr, u64 end,
		    struct physicalview_extents *extents)
{
	struct physicalview_extent *last = NULL;
	struct physicalview_page page;
	/* What the entry is if the last extent goes on here, all bits alike. */
	u64 expected = 0;

	for (; vaddr < end; vaddr += PAGE_SIZE, ptep++) {
		pte_t pte = READ_ONCE(*ptep);

		if (last && pte_val(pte) == expected) {
			last->length += PAGE_SIZE;
			expected += PAGE_SIZE;
			continue;
		}
		last = NULL;
		if (pte_none(pte))
			continue;
		found_pte(&page, vaddr, pte);
		if (!add_page(extents, &page, vaddr, PAGE_SIZE))
			break;
		if (page.kind == PHYSICALVIEW_KIND_PRESENT) {
			last = &extents->at[extents->nr - 1];
			expected = pte_val(pte) + PAGE_SIZE;
		}
	}
	return vaddr;
}

/**
 * physicalview_walk_table - look a range up, as far as one lowest table reaches
 * @mm: address space, its mmap lock held for reading
 * @start: first address, page-aligned
 * @end: first address after the range, page-aligned, a user address
 * @extents: what is found is added here
 *
 * Interrupts are off for at most one table's 512 entries.
 *
 * Return: where to go on; that is start if there was no room for the first
 * page.
 */
u64 physicalview_walk_table(struct mm_struct *mm, u64 start, u64 end,
			    struct physicalview_extents *extents)
{
	struct physicalview_page page;
	unsigned long flags;
	pte_t *ptep;
	u64 next;

	local_irq_save(flags);
	ptep = walk_to_pte(mm, start, &page, NULL);
	if (ptep) {
		next = min(end, (start | (PMD_SIZE - 1)) + 1);
		next = add_ptes(ptep, start, next, extents);
	} else {
		next = min(end, (start | ((1ULL << page.page_shift) - 1)) + 1);
		if (!add_page(extents, &page, start, next - start))
			next = start;
	}
	local_irq_restore(flags);
	return next;
}
