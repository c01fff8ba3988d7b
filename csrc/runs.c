// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Collects pages, which come in address order, into runs of contiguous frames
 * and into folios. Joins the result of one part of a mapping with the result of
 * the part before.
 */
#include <stddef.h>

#include "runs.h"

/* Count the pages that are in aligned blocks, in both address spaces. */
static void add_blocks(uint64_t *by_order, const struct pv_run *run)
{
	for (int order = 1; order < PV_NR_ORDERS; order++) {
		uint64_t mask = (UINT64_C(1) << order) - 1;
		uint64_t first = (run->vpn + mask) & ~mask;
		uint64_t last = (run->vpn + run->nr) & ~mask;

		if ((run->vpn ^ run->pfn) & mask || first >= last)
			break;
		by_order[order] += last - first;
	}
}

/* Whether this page follows the run, in both address spaces. */
static int continues(const struct pv_run *run, uint64_t vpn, uint64_t pfn)
{
	return run->nr && run->vpn + run->nr == vpn &&
	       run->pfn + run->nr == pfn;
}

static void end_run(struct pv_account *account)
{
	struct pv_run *run = &account->run;

	if (!run->nr)
		return;
	if (account->is_part && !account->first_run.nr) {
		account->first_run = *run;
	} else {
		account->sums.nr_extents++;
		if (run->nr > account->largest.nr)
			account->largest = *run;
		add_blocks(account->sums.contiguous, run);
	}
	run->nr = 0;
}

/*
 * No more pages of this folio come. whole: the last page is also the folio's
 * last page.
 */
static void end_folio(struct pv_account *account, int whole)
{
	struct pv_sums *sums = &account->sums;
	struct pv_folio *folio = &account->folio;
	uint64_t nr = folio->run.nr;

	if (!nr)
		return;
	folio->whole = whole;
	if (account->is_part && !account->first_folio.run.nr) {
		account->first_folio = *folio;
		folio->run.nr = 0;
		return;
	}
	add_blocks(sums->in_folio[folio->kind], &folio->run);
	if (whole && folio->has_head) {
		int order = 63 - __builtin_clzll(nr);

		if (order >= PV_NR_ORDERS)
			order = PV_NR_ORDERS - 1;
		if (folio->run.vpn & (nr - 1))
			sums->unaligned[folio->kind][order] += nr;
		else
			sums->aligned[folio->kind][order] += nr;
	} else {
		sums->partial[folio->kind] += nr;
	}
	folio->run.nr = 0;
}

/*
 * As end_folio(), where the frame that follows is not mapped: its flags tell
 * whether it belongs to the folio.
 */
static int64_t break_folio(struct pv_account *account)
{
	const struct pv_run *run = &account->folio.run;
	uint64_t next = 0;
	int64_t got;

	if (!run->nr)
		return 0;
	got = pv_pagemap_read(account->flags_fd, run->pfn + run->nr, 1, &next);
	if (got < 0)
		return got;
	end_folio(account, !got || !(next & KPF_COMPOUND_TAIL));
	return 0;
}

/* Add pages of one folio: a new folio, or more pages of the last one. */
static int64_t add_folio(struct pv_account *account,
			 const struct pv_folio *more)
{
	struct pv_folio *folio = &account->folio;

	if (!continues(&folio->run, more->run.vpn, more->run.pfn)) {
		int64_t ret = break_folio(account);

		if (ret < 0)
			return ret;
	} else if (more->has_head) {
		end_folio(account, 1);
	}
	if (folio->run.nr)
		folio->run.nr += more->run.nr;
	else
		*folio = *more;
	return 0;
}

/* Add contiguous pages with their flags. */
int64_t pv_add_flags(struct pv_account *account, uint64_t vpn, uint64_t pfn,
		     uint64_t nr, const uint64_t *values)
{
	struct pv_sums *sums = &account->sums;

	for (uint64_t i = 0; i < nr; i++, vpn++, pfn++) {
		uint64_t value = values[i] == PV_NO_ENTRY ? 0 : values[i];
		int64_t ret;

		if (value & KPF_HUGE)
			sums->nr_hugetlb++;
		if (value & KPF_ZERO_PAGE)
			sums->nr_zero++;
		if (value & KPF_THP && !(value & KPF_ZERO_PAGE)) {
			struct pv_folio page = {
				.run = { vpn, pfn, 1 },
				.has_head = !!(value & KPF_COMPOUND_HEAD),
				.kind = value & KPF_ANON ? PV_ANON : PV_FILE,
			};

			ret = add_folio(account, &page);
		} else {
			ret = break_folio(account);
		}
		if (ret < 0)
			return ret;
	}
	return 0;
}

static void add_run(struct pv_account *account, const struct pv_run *more)
{
	struct pv_run *run = &account->run;

	if (continues(run, more->vpn, more->pfn)) {
		run->nr += more->nr;
		return;
	}
	end_run(account);
	*run = *more;
}

static void add_nodes(struct pv_account *account, uint64_t pfn, uint64_t nr)
{
	while (nr) {
		uint64_t block = pfn >> account->block_shift;
		uint64_t left = ((block + 1) << account->block_shift) - pfn;

		if (left > nr)
			left = nr;
		if (block < account->nr_blocks &&
		    account->node_of_block[block] < PV_NR_NODES)
			account->sums.nodes[account->node_of_block[block]] +=
				left;
		pfn += left;
		nr -= left;
	}
}

/* Add contiguous frames, whatever their flags. */
void pv_add_frames(struct pv_account *account, uint64_t vpn, uint64_t pfn,
		   uint64_t nr)
{
	struct pv_run run = { vpn, pfn, nr };

	add_run(account, &run);
	if (account->node_of_block)
		add_nodes(account, pfn, nr);
}

static void add_sums(struct pv_sums *sums, const struct pv_sums *more)
{
	uint64_t *to = (uint64_t *)sums;
	const uint64_t *from = (const uint64_t *)more;

	for (size_t i = 0; i < sizeof(*sums) / sizeof(*to); i++)
		to[i] += from[i];
}

/*
 * Add the next part of the same mapping, as if its extents had been added here.
 * The part kept the runs and folios at its borders apart; they are joined now.
 * Returns 0 or -errno.
 */
int64_t pv_account_join(struct pv_account *account,
			const struct pv_account *part)
{
	if (part->first_run.nr) {
		add_run(account, &part->first_run);
		end_run(account);
	}
	if (part->run.nr)
		add_run(account, &part->run);
	if (part->first_folio.run.nr) {
		int64_t ret = add_folio(account, &part->first_folio);

		if (ret < 0)
			return ret;
		end_folio(account, part->first_folio.whole);
	}
	if (part->folio.run.nr) {
		int64_t ret = add_folio(account, &part->folio);

		if (ret < 0)
			return ret;
	}
	if (part->largest.nr > account->largest.nr)
		account->largest = part->largest;
	add_sums(&account->sums, &part->sums);
	return 0;
}

/* No more extents of this mapping come, so complete the sums. */
int64_t pv_account_end(struct pv_account *account)
{
	end_run(account);
	return break_folio(account);
}
