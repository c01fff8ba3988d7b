// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Walks page tables by the BPF program. Tables are copied whole, many in one
 * run, and decoded here: no system call per page, and none per table.
 */
#include "bpf_walk.h"

#include <errno.h>
#include <string.h>

#include "x86_entry.h"

/* A table that changed while it was copied is read again, at most so often. */
#define MAX_TRIES 16

/* Decode the entry of a level: nothing, a page, or a page that is elsewhere. */
static void decode(const struct pv_bpf *bpf, uint64_t vaddr, uint64_t entry,
		   unsigned int shift, struct physicalview_page *page)
{
	*page = (struct physicalview_page){ .entry = entry,
					    .page_shift = shift };
	if (entry_is_none(entry)) {
		page->kind = PHYSICALVIEW_KIND_NONE;
	} else if (shift > PV_PAGE_SHIFT + 2 * PV_TABLE_SHIFT) {
		page->kind = PHYSICALVIEW_KIND_BAD;
	} else if (entry_is_page(entry, shift == PV_PAGE_SHIFT)) {
		page->kind = entry & X86_PRESENT ? PHYSICALVIEW_KIND_PRESENT
						 : PHYSICALVIEW_KIND_PROT_NONE;
		page->paddr = entry_paddr(entry, shift) |
			      (vaddr & ((UINT64_C(1) << shift) - 1));
	} else {
		unsigned int type = entry_swap_type(entry);
		uint64_t offset = entry_swap_offset(entry);

		page->kind = bpf->swap_kinds[type];
		if (page->kind == PHYSICALVIEW_KIND_MIGRATION ||
		    page->kind == PHYSICALVIEW_KIND_DEVICE)
			offset += (vaddr & ((UINT64_C(1) << shift) - 1)) >>
				  PV_PAGE_SHIFT;
		page->swap = type | offset << SWAP_TYPE_BITS;
	}
}

uint64_t pv_bpf_user_end(const struct pv_bpf *bpf)
{
	return (UINT64_C(1) << (shift_of(bpf, 0) + PV_TABLE_SHIFT - 1)) -
	       PV_PAGE;
}

/* The result for an address above user space. */
static const struct physicalview_page beyond = {
	.kind = PHYSICALVIEW_KIND_BEYOND,
	.page_shift = PV_PAGE_SHIFT,
};

static void request(struct pv_bpf *bpf, uint32_t i, uint64_t vaddr,
		    uint32_t nr_levels, bool copy)
{
	bpf->area->requests[i] = (struct bpf_walk_request){
		.vaddr = vaddr, .nr_levels = nr_levels, .copy = copy
	};
}

/*
 * Answer the first nr requests, and again those whose answer changed meanwhile.
 * Answers that changed each time keep their mark.
 */
static int answer_requests(struct pv_bpf *bpf, int fd, uint32_t nr)
{
	int error = pv_bpf_run(bpf, fd, 0, nr);

	for (uint32_t i = 0; i < nr; i++)
		for (int tries = 0; !error && tries < MAX_TRIES; tries++) {
			if (is_stable(&bpf->area->answers[i]))
				break;
			error = pv_bpf_run(bpf, fd, i, 1);
		}
	return error;
}

/* Decode the last entry of an answer, for one address. */
static void found(const struct pv_bpf *bpf,
		  const struct bpf_walk_answer *answer, uint64_t vaddr,
		  struct physicalview_page *page)
{
	uint32_t level = answer->nr_read - 1;

	decode(bpf, vaddr, answer->entry[level], shift_of(bpf, level), page);
	if (!is_stable(answer)) {
		page->kind = PV_KIND_UNSTABLE;
		page->paddr = page->swap = 0;
	}
}

/* Walk for one address and keep the entry of every level, as the module does.
 */
int pv_bpf_walk(struct pv_bpf *bpf, int fd, struct physicalview_walk *walk)
{
	const struct bpf_walk_answer *answer = &bpf->area->answers[0];
	const uint32_t skipped = PHYSICALVIEW_NR_LEVELS - bpf->nr_levels;
	int error;

	walk->nr_levels = 0;
	if (walk->vaddr >= pv_bpf_user_end(bpf)) {
		walk->page = beyond;
		return 0;
	}
	request(bpf, 0, walk->vaddr, bpf->nr_levels, false);
	error = answer_requests(bpf, fd, 1);
	if (error)
		return error;
	found(bpf, answer, walk->vaddr, &walk->page);
	for (uint32_t level = 0; level < answer->nr_read; level++) {
		struct physicalview_level *at =
			&walk->levels[walk->nr_levels++];

		*at = (struct physicalview_level){
			.address =
				answer->address[level] - bpf->area->direct_map,
			.entry = answer->entry[level],
			.shift = shift_of(bpf, level),
		};
		/* The second level is folded where there are four. */
		if (!level && skipped) {
			walk->levels[walk->nr_levels] = *at;
			walk->levels[walk->nr_levels].address = 0;
			walk->levels[walk->nr_levels++].flags =
				PHYSICALVIEW_LEVEL_FOLDED;
		}
	}
	if (walk->page.kind == PHYSICALVIEW_KIND_PRESENT ||
	    walk->page.kind == PHYSICALVIEW_KIND_PROT_NONE)
		walk->levels[walk->nr_levels - 1].flags |=
			PHYSICALVIEW_LEVEL_LEAF;
	return 0;
}

static uint64_t region_of(uint64_t vaddr)
{
	return vaddr >> (PV_PAGE_SHIFT + PV_TABLE_SHIFT);
}

/*
 * Ask for the first of some addresses, and for those after it that share its
 * lowest table. Returns how many addresses these are.
 */
static uint64_t request_pages(struct pv_bpf *bpf, uint32_t i,
			      const uint64_t *vaddrs, uint64_t nr)
{
	uint64_t nr_alike = 1;

	if (vaddrs[0] >= pv_bpf_user_end(bpf)) {
		request(bpf, i, 0, 0, false);
		return 1;
	}
	while (nr_alike < nr &&
	       region_of(vaddrs[nr_alike]) == region_of(vaddrs[0]))
		nr_alike++;
	/* For one address its entry is enough. */
	if (nr_alike == 1)
		request(bpf, i, vaddrs[0], bpf->nr_levels, false);
	else
		request(bpf, i, vaddrs[0], bpf->nr_levels - 1, true);
	return nr_alike;
}

/* Decode an answer for one of the addresses that share it. */
static void found_page(const struct pv_bpf *bpf, uint32_t i, uint64_t vaddr,
		       struct physicalview_page *page)
{
	const struct bpf_walk_answer *answer = &bpf->area->answers[i];

	if (!bpf->area->requests[i].nr_levels)
		*page = beyond;
	else if (has_table(answer))
		decode(bpf, vaddr,
		       bpf->area->tables[i][index_of(vaddr, PV_PAGE_SHIFT)],
		       PV_PAGE_SHIFT, page);
	else
		found(bpf, answer, vaddr, page);
}

/* Look addresses up, in any order; neighbours are the fastest. */
int pv_bpf_pages(struct pv_bpf *bpf, int fd, const uint64_t *vaddrs,
		 uint64_t nr, struct physicalview_page *pages)
{
	uint64_t firsts[BPF_WALK_REQUESTS + 1] = { 0 };

	while (firsts[0] < nr) {
		uint32_t nr_requests = 0;
		uint64_t at = firsts[0];
		int error;

		while (at < nr && nr_requests < BPF_WALK_REQUESTS) {
			at += request_pages(bpf, nr_requests, &vaddrs[at],
					    nr - at);
			firsts[++nr_requests] = at;
		}
		error = answer_requests(bpf, fd, nr_requests);
		if (error)
			return error;
		for (uint32_t i = 0; i < nr_requests; i++)
			for (uint64_t k = firsts[i]; k < firsts[i + 1]; k++)
				found_page(bpf, i, vaddrs[k], &pages[k]);
		firsts[0] = at;
	}
	return 0;
}

struct output {
	struct physicalview_extent *extents;
	uint64_t nr, room;
};

/* Add a page. Returns false when there is no room for it. */
static bool add_page(struct output *output,
		     const struct physicalview_page *page, uint64_t vaddr,
		     uint64_t length)
{
	bool has_page = page->kind == PHYSICALVIEW_KIND_PRESENT ||
			page->kind == PHYSICALVIEW_KIND_PROT_NONE;
	struct physicalview_extent *last =
		output->nr ? &output->extents[output->nr - 1] : NULL;

	if (page->kind == PHYSICALVIEW_KIND_NONE)
		return true;
	if (last && has_page && last->kind == page->kind &&
	    last->page_shift == page->page_shift &&
	    last->vaddr + last->length == vaddr &&
	    last->paddr + last->length == page->paddr) {
		last->length += length;
		return true;
	}
	if (output->nr == output->room)
		return false;
	output->extents[output->nr++] = (struct physicalview_extent){
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

/* Add the pages of a lowest table, from at to end. Returns where to continue.
 */
static uint64_t add_table(const struct pv_bpf *bpf, const __u64 *table,
			  uint64_t at, uint64_t end, struct output *output)
{
	struct physicalview_extent *last = NULL;
	struct physicalview_page page;
	uint64_t expected =
		0; /* the entry that would continue the last extent */

	for (; at < end; at += PV_PAGE) {
		uint64_t entry = table[index_of(at, PV_PAGE_SHIFT)];

		if (last && entry == expected) {
			last->length += PV_PAGE;
			expected += PV_PAGE;
			continue;
		}
		last = NULL;
		if (entry_is_none(entry))
			continue;
		decode(bpf, at, entry, PV_PAGE_SHIFT, &page);
		if (!add_page(output, &page, at, PV_PAGE))
			break;
		if (page.kind == PHYSICALVIEW_KIND_PRESENT) {
			last = &output->extents[output->nr - 1];
			expected = entry + PV_PAGE;
		}
	}
	return at;
}

/* Add what an entry of a level says of all that it reaches, up to end. */
static uint64_t add_span(struct output *output,
			 const struct physicalview_page *page,
			 unsigned int shift, uint64_t at, uint64_t end)
{
	uint64_t next = end_of(at, shift, end);

	return add_page(output, page, at, next - at) ? next : at;
}

static uint64_t add_entry(const struct pv_bpf *bpf, uint64_t entry,
			  unsigned int shift, uint64_t at, uint64_t end,
			  struct output *output)
{
	struct physicalview_page page;

	decode(bpf, at, entry, shift, &page);
	return add_span(output, &page, shift, at, end);
}

/* The same for an answer that ends above a table, or that is not stable. */
static uint64_t add_answer(const struct pv_bpf *bpf,
			   const struct bpf_walk_answer *answer, uint64_t at,
			   uint64_t end, struct output *output)
{
	struct physicalview_page page;

	found(bpf, answer, at, &page);
	return add_span(output, &page, shift_of(bpf, answer->nr_read - 1), at,
			end);
}

/*
 * Copy the table of a level that reaches an address, unless it was the last one
 * copied. Returns 1 if there is one; 0 if what is higher says all, in answer 0.
 */
int pv_bpf_copy_table(struct pv_bpf *bpf, int fd, uint64_t vaddr,
		      uint32_t level, struct pv_table *table)
{
	unsigned int span = shift_of(bpf, level) + PV_TABLE_SHIFT;
	int error;

	if (table->is_valid && vaddr >> span == table->start >> span)
		return 1;
	table->is_valid = false;
	request(bpf, 0, vaddr, level, true);
	error = answer_requests(bpf, fd, 1);
	if (error)
		return error;
	if (!has_table(&bpf->area->answers[0]))
		return 0;
	table->start = vaddr >> span << span;
	table->is_valid = true;
	memcpy(table->entries, bpf->area->tables[0], sizeof(table->entries));
	return 1;
}

/*
 * Ask for the lowest tables below the middle one from an address on, as many as
 * one run takes. *end is set to where these end.
 */
int pv_bpf_copy_lowest(struct pv_bpf *bpf, int fd, uint64_t at, uint64_t *end)
{
	unsigned int shift = shift_of(bpf, bpf->nr_levels - 2);
	uint64_t stop = end_of(at, shift + PV_TABLE_SHIFT, *end);
	uint32_t nr = 0;

	while (at < stop && nr < BPF_WALK_REQUESTS) {
		if (entry_is_table(bpf->middle.entries[index_of(at, shift)]))
			request(bpf, nr++, at, bpf->nr_levels - 1, true);
		at = end_of(at, shift, stop);
	}
	*end = at;
	return nr ? answer_requests(bpf, fd, nr) : 0;
}

/*
 * Add what lies below the middle table from at on, as far as one run reaches or
 * there is room. *next is where to continue. Returns 0 or -errno.
 */
static int add_middle(struct pv_bpf *bpf, int fd, uint64_t at, uint64_t end,
		      struct output *output, uint64_t *next)
{
	unsigned int shift = shift_of(bpf, bpf->nr_levels - 2);
	uint32_t i = 0;
	int error = pv_bpf_copy_lowest(bpf, fd, at, &end);

	if (error)
		return error;
	while (at < end) {
		uint64_t entry = bpf->middle.entries[index_of(at, shift)];
		uint64_t stop = end_of(at, shift, end);

		if (!entry_is_table(entry)) {
			at = add_entry(bpf, entry, shift, at, stop, output);
		} else {
			const struct bpf_walk_answer *answer =
				&bpf->area->answers[i];

			at = has_table(answer)
				     ? add_table(bpf, bpf->area->tables[i], at,
						 stop, output)
				     : add_answer(bpf, answer, at, stop,
						  output);
			i++;
		}
		if (at < stop)
			break;
	}
	*next = at;
	return 0;
}

/*
 * Copy the middle table that reaches an address, through the upper one. Returns
 * 1 if there is one. Returns 0 if what is higher says all: then this is added,
 * and *next is where to continue.
 */
static int find_middle(struct pv_bpf *bpf, int fd, uint64_t at, uint64_t end,
		       struct output *output, uint64_t *next)
{
	const uint32_t level = bpf->nr_levels - 2;
	unsigned int shift = shift_of(bpf, level - 1);
	int there = pv_bpf_copy_table(bpf, fd, at, level - 1, &bpf->upper);

	if (there > 0) {
		uint64_t entry = bpf->upper.entries[index_of(at, shift)];

		if (!entry_is_table(entry)) {
			*next = add_entry(bpf, entry, shift, at, end, output);
			return 0;
		}
		there = pv_bpf_copy_table(bpf, fd, at, level, &bpf->middle);
	}
	if (!there)
		*next = add_answer(bpf, &bpf->area->answers[0], at, end,
				   output);
	return there;
}

/*
 * All that lies from *at to end, as extents, until the room is full; *at is set
 * to where to continue. Returns how many there are, or -errno.
 */
int64_t pv_bpf_extents(struct pv_bpf *bpf, int fd, uint64_t *at, uint64_t end,
		       struct physicalview_extent *extents, uint64_t room)
{
	struct output output = { extents, 0, room };

	/* Tables that an earlier call copied are stale. */
	bpf->upper.is_valid = bpf->middle.is_valid = false;
	if (end > pv_bpf_user_end(bpf))
		end = pv_bpf_user_end(bpf);
	while (*at < end && output.nr < room) {
		uint64_t next = *at;
		int there = find_middle(bpf, fd, *at, end, &output, &next);

		if (there > 0)
			there = add_middle(bpf, fd, *at, end, &output, &next);
		if (there < 0)
			return there;
		*at = next;
	}
	return (int64_t)output.nr;
}
