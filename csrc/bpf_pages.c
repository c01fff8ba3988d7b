// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Looks addresses up by the BPF walk, in any order. Addresses that share a
 * lowest table share one copy of it.
 */
#include <errno.h>

#include "bpf_walk.h"

static uint64_t region_of(uint64_t vaddr)
{
	return vaddr >> part_reach();
}

/*
 * Ask for the first of some addresses, and for those after it that share its
 * part of a lowest table. Returns how many addresses these are.
 */
static uint64_t request_pages(struct pv_bpf *bpf, uint32_t i,
			      const uint64_t *vaddrs, uint64_t nr)
{
	uint64_t nr_alike = 1;

	if (vaddrs[0] >= pv_bpf_user_end(bpf)) {
		pv_bpf_request(bpf, i, 0, 0, false);
		return 1;
	}
	while (nr_alike < nr &&
	       region_of(vaddrs[nr_alike]) == region_of(vaddrs[0]))
		nr_alike++;
	/* For one address its entry is enough. */
	if (nr_alike == 1)
		pv_bpf_request(bpf, i, vaddrs[0], bpf->nr_levels, false);
	else
		pv_bpf_request(bpf, i, vaddrs[0], bpf->nr_levels - 1, true);
	return nr_alike;
}

/* Decode an answer for one of the addresses that share it. */
static void found_page(const struct pv_bpf *bpf, uint32_t i, uint64_t vaddr,
		       struct physicalview_page *page)
{
	const struct bpf_walk_answer *answer = &bpf->area->answers[i];

	if (!bpf->area->requests[i].nr_levels)
		*page = pv_bpf_beyond();
	else if (has_table(answer))
		pv_bpf_decode(
			bpf, vaddr,
			bpf->area->tables[i][index_of(vaddr, PV_PAGE_SHIFT)],
			PV_PAGE_SHIFT, page);
	else
		pv_bpf_decode_last(bpf, answer, vaddr, page);
}

/*
 * Ask for the addresses from firsts[0] on, as many as one run takes. Request i
 * is about those from firsts[i] to firsts[i + 1].
 */
static int ask_for_pages(struct pv_bpf *bpf, int fd, const uint64_t *vaddrs,
			 uint64_t nr, uint64_t *firsts, uint32_t *nr_requests)
{
	uint64_t at = firsts[0];

	*nr_requests = 0;
	while (at < nr && *nr_requests < BPF_WALK_REQUESTS) {
		at += request_pages(bpf, *nr_requests, &vaddrs[at], nr - at);
		firsts[++*nr_requests] = at;
	}
	return pv_bpf_answer(bpf, fd, *nr_requests);
}

/* Look addresses up, in any order; neighbours are the fastest. */
int pv_bpf_pages(struct pv_bpf *bpf, int fd, const uint64_t *vaddrs,
		 uint64_t nr, struct physicalview_page *pages)
{
	uint64_t firsts[BPF_WALK_REQUESTS + 1] = { 0 };

	while (firsts[0] < nr) {
		uint32_t nr_requests;
		int error = ask_for_pages(bpf, fd, vaddrs, nr, firsts,
					  &nr_requests);

		if (error)
			return error;
		for (uint32_t i = 0; i < nr_requests; i++)
			for (uint64_t k = firsts[i]; k < firsts[i + 1]; k++)
				found_page(bpf, i, vaddrs[k], &pages[k]);
		firsts[0] = firsts[nr_requests];
	}
	return 0;
}

/* What was found at addresses, in the format of pagemap. */
struct columns {
	const uint64_t *vaddrs;
	uint64_t *entries, *paddrs;
	int64_t without; /* addresses without an entry */
};

/*
 * Write what is at an address whose answer is not just a page: also ask pagemap
 * if the answer changed all the time. Returns 0 or -errno; -EBADMSG if the page
 * tables have an invalid entry.
 */
static int write_other(const struct pv_bpf *bpf, int fd, uint32_t i, uint64_t k,
		       struct columns *columns)
{
	uint64_t *entry = &columns->entries[k], *paddr = &columns->paddrs[k];
	struct physicalview_page page;
	int64_t without;

	found_page(bpf, i, columns->vaddrs[k], &page);
	*entry = 0;
	*paddr = PV_NO_PADDR;
	switch (page.kind) {
	case PHYSICALVIEW_KIND_NONE:
		break;
	case PHYSICALVIEW_KIND_PRESENT:
	case PHYSICALVIEW_KIND_PROT_NONE:
		*entry = PM_PRESENT | page.paddr >> PV_PAGE_SHIFT;
		*paddr = page.paddr;
		break;
	case PHYSICALVIEW_KIND_BEYOND:
		*entry = PV_NO_ENTRY;
		columns->without++;
		break;
	case PHYSICALVIEW_KIND_BAD:
		return -EBADMSG;
	case PV_KIND_UNSTABLE:
		without = pv_translate(fd, PV_PAGE_SHIFT, &columns->vaddrs[k],
				       1, entry, paddr);
		if (without < 0)
			return (int)without;
		columns->without += without;
		if (!without)
			*entry &= PM_PRESENT | PM_SWAP | PM_PFRAME_MASK;
		break;
	default:
		*entry = PM_SWAP | page.swap;
	}
	return 0;
}

/* Write what is at the addresses from k to end, which share an answer. */
static int write_columns(const struct pv_bpf *bpf, int fd, uint32_t i,
			 uint64_t k, uint64_t end, struct columns *columns)
{
	const bool is_table = bpf->area->requests[i].copy &&
			      has_table(&bpf->area->answers[i]);

	for (; k < end; k++) {
		uint64_t vaddr = columns->vaddrs[k], entry = 0;
		int error;

		if (is_table)
			entry = bpf->area->tables[i][index_of(vaddr,
							      PV_PAGE_SHIFT)];
		if (entry_is_present(entry)) {
			uint64_t paddr = entry_present_paddr(entry);

			columns->entries[k] =
				PM_PRESENT | paddr >> PV_PAGE_SHIFT;
			columns->paddrs[k] = paddr | (vaddr & (PV_PAGE - 1));
			continue;
		}
		error = write_other(bpf, fd, i, k, columns);
		if (error)
			return error;
	}
	return 0;
}

/*
 * As pv_translate(), by the BPF walk: only the bits that a walk finds. -EBADMSG
 * if the page tables have an invalid entry.
 */
int64_t pv_bpf_translate(struct pv_bpf *bpf, int fd, const uint64_t *vaddrs,
			 uint64_t nr, uint64_t *entries, uint64_t *paddrs)
{
	struct columns columns = { vaddrs, entries, paddrs, 0 };
	uint64_t firsts[BPF_WALK_REQUESTS + 1] = { 0 };

	while (firsts[0] < nr) {
		uint32_t nr_requests;
		int error = ask_for_pages(bpf, fd, vaddrs, nr, firsts,
					  &nr_requests);

		for (uint32_t i = 0; !error && i < nr_requests; i++)
			error = write_columns(bpf, fd, i, firsts[i],
					      firsts[i + 1], &columns);
		if (error)
			return error;
		firsts[0] = firsts[nr_requests];
	}
	return columns.without;
}
