// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Walks page tables by the BPF program. Tables are copied whole, many in one
 * run, and decoded here: no system call per page, and none per table.
 */
#include "bpf_walk.h"

#include <errno.h>
#include <string.h>

#include "x86_entry.h"

/* So many times a table is read again that changed while it was copied. */
#define MAX_TRIES 16

/* What is called none, a page or swap at one level. */
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

static unsigned int shift_of(const struct pv_bpf *bpf, uint32_t level)
{
	return bpf->area->shifts[level];
}

static uint64_t user_end(const struct pv_bpf *bpf)
{
	return (UINT64_C(1) << (shift_of(bpf, 0) + PV_TABLE_SHIFT - 1)) -
	       PV_PAGE;
}

uint64_t pv_bpf_user_end(const struct pv_bpf *bpf)
{
	return user_end(bpf);
}

static void request(struct pv_bpf *bpf, uint32_t i, uint64_t vaddr,
		    uint32_t nr_levels, bool copy)
{
	bpf->area->requests[i] = (struct bpf_walk_request){
		.vaddr = vaddr, .nr_levels = nr_levels, .copy = copy
	};
}

static bool is_stable(const struct bpf_walk_answer *answer)
{
	return !(answer->state & (BPF_WALK_UNSTABLE | BPF_WALK_FAULT));
}

/*
 * Run the first nr requests, and again those whose answer changed meanwhile.
 * Answers that never stood still keep their mark.
 */
static int run_stable(struct pv_bpf *bpf, int fd, uint32_t nr)
{
	struct bpf_walk_area *area = bpf->area;
	int error = pv_bpf_run(bpf, fd, nr);

	for (uint32_t i = 0; !error && i < nr; i++) {
		struct bpf_walk_request first = area->requests[0];
		struct bpf_walk_answer answer = area->answers[0];

		if (is_stable(&area->answers[i]))
			continue;
		/* Slot 0 is where one request alone goes; keep what is there.
		 */
		if (i)
			memcpy(bpf->saved, area->tables[0], sizeof(bpf->saved));
		for (int tries = 0; !error && tries < MAX_TRIES; tries++) {
			area->requests[0] = area->requests[i];
			error = pv_bpf_run(bpf, fd, 1);
			if (is_stable(&area->answers[0]))
				break;
		}
		if (i) {
			area->answers[i] = area->answers[0];
			memcpy(area->tables[i], area->tables[0],
			       sizeof(area->tables[i]));
			memcpy(area->tables[0], bpf->saved, sizeof(bpf->saved));
			area->answers[0] = answer;
			area->requests[0] = first;
		}
	}
	return error;
}

/* What the last entry of an answer says of an address. */
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

/* One address, every level: as the module's WALK. */
int pv_bpf_walk(struct pv_bpf *bpf, int fd, struct physicalview_walk *walk)
{
	const struct bpf_walk_answer *answer = &bpf->area->answers[0];
	const uint32_t skipped = PHYSICALVIEW_NR_LEVELS - bpf->nr_levels;
	int error;

	walk->nr_levels = 0;
	if (walk->vaddr >= user_end(bpf)) {
		walk->page = (struct physicalview_page){
			.kind = PHYSICALVIEW_KIND_BEYOND,
			.page_shift = PV_PAGE_SHIFT
		};
		return 0;
	}
	request(bpf, 0, walk->vaddr, bpf->nr_levels, false);
	error = run_stable(bpf, fd, 1);
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

static uint32_t index_of(uint64_t vaddr, unsigned int shift)
{
	return vaddr >> shift & (BPF_WALK_ENTRIES - 1);
}

/* Addresses in any order; neighbours that share a lowest table take one copy of
 * it. */
int pv_bpf_pages(struct pv_bpf *bpf, int fd, const uint64_t *vaddrs,
		 uint64_t nr, struct physicalview_page *pages)
{
	uint64_t firsts[BPF_WALK_REQUESTS + 1];
	uint64_t at = 0;

	while (at < nr) {
		uint32_t nr_requests = 0;
		uint64_t i = at;
		int error;

		while (i < nr && nr_requests < BPF_WALK_REQUESTS) {
			uint64_t first = i;

			if (vaddrs[i] >= user_end(bpf)) {
				request(bpf, nr_requests, 0, 0, false);
				i++;
			} else {
				while (i < nr &&
				       region_of(vaddrs[i]) ==
					       region_of(vaddrs[first]))
					i++;
				if (i - first > 1)
					request(bpf, nr_requests, vaddrs[first],
						bpf->nr_levels - 1, true);
				else
					request(bpf, nr_requests, vaddrs[first],
						bpf->nr_levels, false);
			}
			firsts[nr_requests++] = first;
		}
		firsts[nr_requests] = i;
		error = run_stable(bpf, fd, nr_requests);
		if (error)
			return error;
		for (uint32_t r = 0; r < nr_requests; r++) {
			const struct bpf_walk_answer *answer =
				&bpf->area->answers[r];

			for (uint64_t k = firsts[r]; k < firsts[r + 1]; k++) {
				if (!bpf->area->requests[r].nr_levels)
					pages[k] = (struct physicalview_page){
						.kind = PHYSICALVIEW_KIND_BEYOND,
						.page_shift = PV_PAGE_SHIFT
					};
				else if (is_stable(answer) &&
					 answer->state & BPF_WALK_COPIED)
					decode(bpf, vaddrs[k],
					       bpf->area->tables[r][index_of(
						       vaddrs[k],
						       PV_PAGE_SHIFT)],
					       PV_PAGE_SHIFT, &pages[k]);
				else
					found(bpf, answer, vaddrs[k],
					      &pages[k]);
			}
		}
		at = i;
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

/* Add what a lowest table holds from at to end; returns where to go on. */
static uint64_t add_table(const struct pv_bpf *bpf, const __u64 *table,
			  uint64_t at, uint64_t end, struct output *output)
{
	struct physicalview_extent *last = NULL;
	struct physicalview_page page;
	uint64_t expected = 0; /* the entry if the last extent goes on */

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

/* Where the entry of a level that reaches an address ends, but no later than
 * end. */
static uint64_t end_of(uint64_t vaddr, unsigned int shift, uint64_t end)
{
	uint64_t next = (vaddr | ((UINT64_C(1) << shift) - 1)) + 1;

	return next < end ? next : end;
}

/* Add what an entry above the lowest level says of all that it reaches. */
static uint64_t add_entry(const struct pv_bpf *bpf, uint64_t entry,
			  unsigned int shift, uint64_t at, uint64_t end,
			  struct output *output)
{
	uint64_t next = end_of(at, shift, end);
	struct physicalview_page page;

	decode(bpf, at, entry, shift, &page);
	return add_page(output, &page, at, next - at) ? next : at;
}

/* The same of an answer that never stood still, or that ends above a table. */
static uint64_t add_answer(const struct pv_bpf *bpf,
			   const struct bpf_walk_answer *answer, uint64_t at,
			   uint64_t end, struct output *output)
{
	unsigned int shift = shift_of(bpf, answer->nr_read - 1);
	struct physicalview_page page;
	uint64_t next;

	if (is_stable(answer))
		return add_entry(bpf, answer->entry[answer->nr_read - 1], shift,
				 at, end, output);
	found(bpf, answer, at, &page);
	next = end_of(at, shift, end);
	return add_page(output, &page, at, next - at) ? next : at;
}

/*
 * Copy the table of a level that reaches an address, unless it was the last one
 * copied. Returns 1 if there is one; 0 if what is higher says all, in answer 0.
 */
static int copy_table(struct pv_bpf *bpf, int fd, uint64_t vaddr,
		      uint32_t level, struct pv_table *table)
{
	unsigned int span = shift_of(bpf, level) + PV_TABLE_SHIFT;
	int error;

	if (table->is_valid && vaddr >> span == table->start >> span)
		return 1;
	table->is_valid = false;
	request(bpf, 0, vaddr, level, true);
	error = run_stable(bpf, fd, 1);
	if (error)
		return error;
	if (!is_stable(&bpf->area->answers[0]) ||
	    !(bpf->area->answers[0].state & BPF_WALK_COPIED))
		return 0;
	table->start = vaddr >> span << span;
	table->is_valid = true;
	memcpy(table->entries, bpf->area->tables[0], sizeof(table->entries));
	return 1;
}

/*
 * Ask for lowest tables from an address on, as many as one run takes; *end is
 * set to where what was asked for ends.
 */
static int copy_lowest(struct pv_bpf *bpf, int fd,
		       const struct pv_table *middle, uint64_t at,
		       uint64_t *end)
{
	unsigned int shift = shift_of(bpf, bpf->nr_levels - 2);
	uint64_t stop = end_of(at, shift + PV_TABLE_SHIFT, *end);
	uint32_t nr = 0;

	while (at < stop && nr < BPF_WALK_REQUESTS) {
		if (entry_is_table(middle->entries[index_of(at, shift)]))
			request(bpf, nr++, at, bpf->nr_levels - 1, true);
		at = end_of(at, shift, stop);
	}
	*end = at;
	return nr ? run_stable(bpf, fd, nr) : 0;
}

/*
 * Add all that lies in a range whose middle table (of 1 GiB) is there. Returns
 * where to go on, which is before end if the room is full.
 */
static int add_middle(struct pv_bpf *bpf, int fd, const struct pv_table *middle,
		      uint64_t *at, uint64_t end, struct output *output)
{
	unsigned int shift = shift_of(bpf, bpf->nr_levels - 2);
	uint32_t nr = 0;
	int error = copy_lowest(bpf, fd, middle, *at, &end);

	if (error)
		return error;
	while (*at < end) {
		uint64_t entry = middle->entries[index_of(*at, shift)];
		uint64_t stop = end_of(*at, shift, end), next;

		if (!entry_is_table(entry)) {
			next = add_entry(bpf, entry, shift, *at, stop, output);
		} else {
			const struct bpf_walk_answer *answer =
				&bpf->area->answers[nr];

			if (is_stable(answer) &&
			    answer->state & BPF_WALK_COPIED)
				next = add_table(bpf, bpf->area->tables[nr],
						 *at, stop, output);
			else
				next = add_answer(bpf, answer, *at, stop,
						  output);
			nr++;
		}
		*at = next;
		if (next < stop)
			return 1;
	}
	return 0;
}

/*
 * All that lies from *at to end, as extents, until the room is full; *at is set
 * to where to go on. Returns how many there are, or -errno.
 */
int64_t pv_bpf_extents(struct pv_bpf *bpf, int fd, uint64_t *at, uint64_t end,
		       struct physicalview_extent *extents, uint64_t room)
{
	struct output output = { extents, 0, room };
	struct pv_table *upper = &bpf->upper, *middle = &bpf->middle;
	const uint32_t middle_level = bpf->nr_levels - 2;

	/* What was copied in an earlier call is old. */
	upper->is_valid = middle->is_valid = false;
	if (end > user_end(bpf))
		end = user_end(bpf);
	while (*at < end) {
		unsigned int shift = shift_of(bpf, middle_level - 1);
		uint64_t entry, next;
		int there = copy_table(bpf, fd, *at, middle_level - 1, upper);

		if (there < 0)
			return there;
		if (!there) {
			next = add_answer(bpf, &bpf->area->answers[0], *at, end,
					  &output);
			if (next == *at)
				break;
			*at = next;
			continue;
		}
		entry = upper->entries[index_of(*at, shift)];
		if (!entry_is_table(entry)) {
			next = add_entry(bpf, entry, shift, *at, end, &output);
			if (next == *at)
				break;
			*at = next;
			continue;
		}
		there = copy_table(bpf, fd, *at, middle_level, middle);
		if (there < 0)
			return there;
		if (!there) {
			next = add_answer(bpf, &bpf->area->answers[0], *at, end,
					  &output);
			if (next == *at)
				break;
			*at = next;
			continue;
		}
		there = add_middle(bpf, fd, middle, at, end, &output);
		if (there < 0)
			return there;
		if (there)
			break;
	}
	return (int64_t)output.nr;
}
