// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Walks page tables by the BPF program. Tables are copied whole, many in one
 * run, and decoded here: no system call per page, and none per table.
 */
#include "bpf_walk.h"

#include <errno.h>
#include <string.h>

/* A table that changed while it was copied is read again, at most so often. */
#define MAX_TRIES 16

/* A pointer of arm64's kernel can have a tag above its address. */
#define ADDRESS_MASK ((UINT64_C(1) << 56) - 1)

/* Decode the entry of a level: nothing, a page, or a page that is elsewhere. */
void pv_bpf_decode(const struct pv_bpf *bpf, uint64_t vaddr, uint64_t entry,
		   unsigned int shift, struct physicalview_page *page)
{
	*page = (struct physicalview_page){ .entry = entry,
					    .page_shift = shift };
	if (entry_is_none(entry)) {
		page->kind = PHYSICALVIEW_KIND_NONE;
	} else if (shift > PV_PAGE_SHIFT + 2 * PV_TABLE_SHIFT) {
		page->kind = PHYSICALVIEW_KIND_BAD;
	} else if (entry_is_page(entry, shift == PV_PAGE_SHIFT)) {
		page->kind = entry_is_present(entry)
				     ? PHYSICALVIEW_KIND_PRESENT
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
	return bpf->user_end;
}

/* The result for an address above user space. */
struct physicalview_page pv_bpf_beyond(void)
{
	return (struct physicalview_page){
		.kind = PHYSICALVIEW_KIND_BEYOND,
		.page_shift = PV_PAGE_SHIFT,
	};
}

/*
 * Answer the first nr requests, and again those whose answer changed meanwhile.
 * Answers that changed each time keep their mark.
 */
int pv_bpf_answer(struct pv_bpf *bpf, int fd, uint32_t nr)
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
void pv_bpf_decode_last(const struct pv_bpf *bpf,
			const struct bpf_walk_answer *answer, uint64_t vaddr,
			struct physicalview_page *page)
{
	uint32_t level = answer->nr_read - 1;

	pv_bpf_decode(bpf, vaddr, answer->entry[level], shift_of(bpf, level),
		      page);
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
		walk->page = pv_bpf_beyond();
		return 0;
	}
	pv_bpf_request(bpf, 0, walk->vaddr, bpf->nr_levels, false);
	error = pv_bpf_answer(bpf, fd, 1);
	if (error)
		return error;
	pv_bpf_decode_last(bpf, answer, walk->vaddr, &walk->page);
	for (uint32_t level = 0; level < answer->nr_read; level++) {
		struct physicalview_level *at =
			&walk->levels[walk->nr_levels++];

		*at = (struct physicalview_level){
			.address = (answer->address[level] -
				    bpf->area->direct_map) &
				   ADDRESS_MASK,
			.entry = answer->entry[level],
			.shift = shift_of(bpf, level),
		};
		/* Where there are four, the second is folded, and so on. */
		for (uint32_t i = 0; !level && i < skipped; i++) {
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
		pv_bpf_decode(bpf, at, entry, PV_PAGE_SHIFT, &page);
		if (!add_page(output, &page, at, PV_PAGE))
			break;
		if (page.kind == PHYSICALVIEW_KIND_PRESENT) {
			last = &output->extents[output->nr - 1];
			expected = entry + PV_PAGE;
		}
	}
	return at;
}

/*
 * Add one entry for all that it reaches, up to the end. Returns where to
 * continue.
 */
static uint64_t add_entry(const struct pv_bpf *bpf,
			  const struct pv_found *found, struct output *output)
{
	struct physicalview_page page;

	pv_bpf_decode(bpf, found->start, found->entry, found->shift, &page);
	if (!found->is_stable) {
		page.kind = PV_KIND_UNSTABLE;
		page.paddr = page.swap = 0;
	}
	return add_page(output, &page, found->start, found->end - found->start)
		       ? found->end
		       : found->start;
}

/* Writes what a walk finds as extents. */
struct extents_visitor {
	struct pv_visitor visitor;
	const struct pv_bpf *bpf;
	struct output output;
};

static uint64_t visit_extents(struct pv_visitor *visitor,
			      const struct pv_found *found)
{
	struct extents_visitor *mine = (struct extents_visitor *)visitor;

	if (found->table)
		return add_table(mine->bpf, found->table, found->start,
				 found->end, &mine->output);
	return add_entry(mine->bpf, found, &mine->output);
}

static uint64_t room_for_extents(const struct pv_visitor *visitor)
{
	const struct output *output =
		&((const struct extents_visitor *)visitor)->output;

	return (output->room - output->nr) / BPF_WALK_ENTRIES;
}

/*
 * All that lies from *at to end, as extents, until the room is full; *at is set
 * to where to continue. Returns how many there are, or -errno.
 */
int64_t pv_bpf_extents(struct pv_bpf *bpf, int fd, uint64_t *at, uint64_t end,
		       struct physicalview_extent *extents, uint64_t room)
{
	struct extents_visitor mine = {
		.visitor = { visit_extents, room_for_extents, 0 },
		.bpf = bpf,
		.output = { extents, 0, room },
	};
	int error = pv_bpf_visit(bpf, fd, at, end, &mine.visitor);

	return error ? error : (int64_t)mine.output.nr;
}
