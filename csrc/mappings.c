// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Accounts (account.c) for many mappings at once: a process can have 60,000 of
 * them, each with a page or two.
 */
#include <stddef.h>
#include <string.h>

#include "runs.h"

/* An account with the inputs of another one. */
static void begin(struct pv_account *account, const struct pv_account *like)
{
	memcpy(account, like, offsetof(struct pv_account, is_used));
	memset(&account->is_used, 0,
	       sizeof(*account) - offsetof(struct pv_account, is_used));
	account->is_used = 1;
}

/* The index of the mapping that has vaddr, or of the next one. */
static uint64_t find(const uint64_t *ends, uint64_t nr_vmas, uint64_t vaddr)
{
	uint64_t low = 0, high = nr_vmas;

	while (low < high) {
		uint64_t middle = (low + high) / 2;

		if (ends[middle] <= vaddr)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/*
 * Account for extents, as a part of each mapping that has some of them. *done
 * is the number of extents that are accounted for; call again if it is less
 * than nr. Returns how many parts there are, at most room, or -errno.
 */
int64_t pv_account_parts(const struct pv_account *like,
			 const struct pv_extent *extents, uint64_t nr,
			 uint64_t *done, const uint64_t *starts,
			 const uint64_t *ends, const uint64_t *perms,
			 const uint64_t *inodes, uint64_t nr_vmas,
			 uint64_t *which, struct pv_account *parts,
			 uint64_t room)
{
	uint64_t nr_parts = 0, at = nr_vmas;

	while (*done < nr && nr_parts < room) {
		const struct pv_extent *first = extents + *done;
		struct pv_account *part = parts + nr_parts;
		int64_t got;

		if (at < nr_vmas && first->vaddr >= ends[at])
			at++;
		if (at >= nr_vmas || first->vaddr >= ends[at])
			at = find(ends, nr_vmas, first->vaddr);
		if (at == nr_vmas || first->vaddr < starts[at]) {
			++*done; /* mapped since the mappings were read */
			continue;
		}
		begin(part, like);
		part->is_part = 1;
		part->is_shared = perms[at] >> 24 == 's';
		part->is_file = inodes[at] != 0;
		got = pv_account(part, first, nr - *done, ends[at]);
		if (got < 0)
			return got;
		which[nr_parts++] = at;
		*done += (uint64_t)got;
	}
	return (int64_t)nr_parts;
}

/*
 * Join parts, which come in address order, with the accounts of their mappings.
 * An account that has no part yet has is_used == 0.
 */
int64_t pv_join_parts(const struct pv_account *like,
		      struct pv_account *accounts, const uint64_t *which,
		      const struct pv_account *parts, uint64_t nr)
{
	for (uint64_t i = 0; i < nr; i++) {
		struct pv_account *account = accounts + which[i];
		int64_t ret;

		if (!account->is_used)
			begin(account, like);
		ret = pv_account_join(account, parts + i);
		if (ret < 0)
			return ret;
	}
	return 0;
}

static void add(uint64_t *to, const uint64_t *from, size_t bytes)
{
	for (size_t i = 0; i < bytes / sizeof(*to); i++)
		to[i] += from[i];
}

static uint64_t in_folios(const struct pv_sums *sums)
{
	uint64_t nr = 0;

	for (int kind = 0; kind < PV_NR_KINDS; kind++) {
		nr += sums->partial[kind];
		for (int order = 0; order < PV_NR_ORDERS; order++)
			nr += sums->aligned[kind][order] +
			      sums->unaligned[kind][order];
	}
	return nr;
}

/*
 * Complete the accounts of nr mappings, write PV_NR_OF columns of nr values,
 * and add all sums to total. Returns 0 or -errno.
 */
int64_t pv_end_accounts(struct pv_account *accounts, uint64_t nr,
			unsigned int huge_order, uint64_t *columns,
			struct pv_sums *total)
{
	memset(columns, 0, PV_NR_OF * nr * sizeof(*columns));
	for (uint64_t i = 0; i < nr; i++, columns++) {
		struct pv_account *account = accounts + i;
		const struct pv_sums *sums = &account->sums;
		unsigned int order_64k = 16 - account->page_shift;
		int64_t ret;

		if (!account->is_used)
			continue;
		ret = pv_account_end(account);
		if (ret < 0)
			return ret;
		add((uint64_t *)total, (const uint64_t *)sums, sizeof(*sums));
		columns[PV_OF_PRESENT * nr] = sums->nr_present;
		columns[PV_OF_HIDDEN * nr] = sums->nr_hidden;
		columns[PV_OF_EXCLUSIVE * nr] = sums->nr_exclusive;
		columns[PV_OF_ZERO * nr] = sums->nr_zero;
		columns[PV_OF_HUGETLB * nr] = sums->nr_hugetlb;
		columns[PV_OF_SWAPPED * nr] =
			sums->nr_swapped + sums->nr_swap_hidden;
		columns[PV_OF_SPECIAL * nr] = sums->nr_special;
		columns[PV_OF_DEVICE * nr] = sums->nr_device;
		columns[PV_OF_FILE * nr] = sums->nr_file;
		columns[PV_OF_EXTENTS * nr] = sums->nr_extents;
		columns[PV_OF_LARGEST * nr] = account->largest.nr;
		columns[PV_OF_LARGEST_VPN * nr] = account->largest.vpn;
		columns[PV_OF_LARGEST_PFN * nr] = account->largest.pfn;
		columns[PV_OF_BLOCKS * nr] =
			account->page_shift < 16 ? sums->contiguous[order_64k]
						 : 0;
		columns[PV_OF_HUGE_BLOCKS * nr] =
			huge_order && huge_order < PV_NR_ORDERS
				? sums->contiguous[huge_order]
				: 0;
		columns[PV_OF_FOLIOS * nr] = in_folios(sums);
	}
	return 0;
}
