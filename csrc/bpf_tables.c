// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Counts the page tables of a process, and how full they are. The BPF program
 * copies every table whole, in as many parts of 4 KiB as it has. So the cost
 * depends on the number of tables only, not on the size of the address space.
 * The walk then goes through the tables above the lowest part by part.
 */
#include "bpf_walk.h"

#include <errno.h>
#include <stddef.h>

/* After so many steps, each of up to 256 tables, a call returns to its caller,
 * who may be interrupted. */
#define MAX_STEPS 64

/* The largest page has 64 KiB, and a table is as large. */
_Static_assert(PV_HUGE_PAGES >= 1 << (16 - 3),
	       "there is room for a table's entries");

/* The latest part of a level's table. The lowest level has none: its tables
 * come in bulk. */
static struct pv_table *table_of(struct pv_bpf *bpf, uint32_t level)
{
	return &bpf->above[level];
}

/* Which of filled[] counts a table: 0, 1, 2-7, 8-63, 64-, half full, full. */
static unsigned int bucket_of(uint64_t nr_filled)
{
	const uint64_t all = UINT64_C(1) << PV_TABLE_SHIFT;
	const uint64_t least[PV_NR_FILLED] = { 0, 1, 2, 8, 64, all / 2, all };
	unsigned int bucket = PV_NR_FILLED - 1;

	while (nr_filled < least[bucket])
		bucket--;
	return bucket;
}

/* What an entry is for. */
static enum pv_entry_use use_of(const struct pv_bpf *bpf, uint64_t entry,
				bool is_lowest)
{
	if (entry_is_none(entry))
		return PV_ENTRY_EMPTY;
	if (!is_lowest && entry_is_table(entry))
		return PV_ENTRY_TABLE;
	if (entry_is_page(entry, is_lowest))
		return PV_ENTRY_PAGE;
	if (bpf->swap_kinds[entry_swap_type(entry)] == PHYSICALVIEW_KIND_SWAP)
		return PV_ENTRY_SWAP;
	return PV_ENTRY_SPECIAL;
}

/* Count an entry that is not empty. */
static void count_entry(const struct pv_bpf *bpf, uint64_t entry,
			bool is_lowest, struct pv_level_tables *level)
{
	switch (use_of(bpf, entry, is_lowest)) {
	case PV_ENTRY_EMPTY:
		break;
	case PV_ENTRY_TABLE:
		level->nr_to_table++;
		break;
	case PV_ENTRY_PAGE:
		level->nr_pages++;
		break;
	case PV_ENTRY_SWAP:
		level->nr_swapped++;
		break;
	case PV_ENTRY_SPECIAL:
		level->nr_special++;
		break;
	}
}

/* How many entries for user space a table of a level has. */
static uint32_t entries_of(const struct pv_bpf *bpf, uint32_t level)
{
	/* arm64 has a root of its own for user space, which may be small. The
	 * rest of x86's root is the kernel's. */
	if (!level)
		return ((pv_bpf_user_end(bpf) - 1) >> shift_of(bpf, 0)) + 1;
	return 1U << PV_TABLE_SHIFT;
}

static uint32_t parts_for(uint32_t nr_entries)
{
	return (nr_entries + BPF_WALK_ENTRIES - 1) >> PV_PART_SHIFT;
}

/* Ask for the first parts of the table of a level on the way to an address. */
static void request_parts(struct pv_bpf *bpf, uint32_t first, uint64_t vaddr,
			  uint32_t level, uint32_t nr_parts)
{
	struct bpf_walk_area *area = bpf->area;

	for (uint32_t i = 0; i < nr_parts; i++) {
		pv_bpf_request(bpf, first + i, vaddr, level, true);
		area->requests[first + i].offset = i * sizeof(area->tables[0]);
	}
}

/* The first answer that has no good copy of a part; NULL if there is none. */
static const struct bpf_walk_answer *
missed_part(const struct pv_bpf *bpf, uint32_t first, uint32_t nr_parts)
{
	for (uint32_t i = first; i < first + nr_parts; i++)
		if (!has_table(&bpf->area->answers[i]))
			return &bpf->area->answers[i];
	return NULL;
}

/* An entry of a table of a level whose parts were copied, from first on. */
static uint64_t entry_of(const struct pv_bpf *bpf, uint32_t first,
			 uint32_t level, uint32_t i)
{
	const struct bpf_walk_area *area = bpf->area;

	/* A root table that is smaller than a part begins somewhere in it. */
	if (!level)
		i += area->pgd % sizeof(area->tables[0]) / sizeof(__u64);
	return area->tables[first + (i >> PV_PART_SHIFT)]
			   [i & (BPF_WALK_ENTRIES - 1)];
}

/*
 * Count a table, whose parts were copied, and its entries. Returns how many
 * entries are not empty.
 */
static uint64_t count_table(const struct pv_bpf *bpf, uint32_t first,
			    uint32_t level, struct pv_tables *tables)
{
	struct pv_level_tables *counts = &tables->levels[level];
	const uint32_t nr = entries_of(bpf, level);
	uint64_t nr_filled = 0;

	for (uint32_t i = 0; i < nr; i++) {
		uint64_t entry = entry_of(bpf, first, level, i);

		if (entry_is_none(entry))
			continue;
		nr_filled++;
		count_entry(bpf, entry, level == bpf->nr_levels - 1, counts);
	}
	counts->nr_tables++;
	counts->filled[bucket_of(nr_filled)]++;
	return nr_filled;
}

/* Note the frame that an entry of the second lowest level names, if any. */
static void note_huge(const struct pv_bpf *bpf, uint64_t entry,
		      unsigned int shift, struct pv_tables *tables)
{
	uint64_t pfn;

	if (entry_is_none(entry) || entry_is_table(entry))
		return;
	if (entry_is_page(entry, false))
		pfn = entry_paddr(entry, shift) >> PV_PAGE_SHIFT;
	else if (bpf->swap_kinds[entry_swap_type(entry)] ==
		 PHYSICALVIEW_KIND_MIGRATION)
		pfn = entry_swap_offset(entry);
	else
		return;
	tables->huge[tables->nr_huge++] = (struct pv_frames){ pfn, 1 };
}

/* Where the table of a level is that answer 0 leads to. */
static uint64_t table_paddr(const struct bpf_walk_area *area, uint32_t level)
{
	uint64_t entry = area->answers[0].entry[level - 1];

	return (entry & area->frame_mask) | (entry & area->high_mask)
						    << area->high_shift;
}

/* Count a table above the lowest level, whose parts are in the first answers.
 */
static void count_copied(const struct pv_bpf *bpf, uint32_t level,
			 struct pv_tables *tables)
{
	const struct bpf_walk_area *area = bpf->area;
	uint64_t nr_to_table = tables->levels[level].nr_to_table;
	uint64_t nr_filled = count_table(bpf, 0, level, tables);

	if (!level)
		tables->root = area->pgd - area->direct_map;
	if (level != bpf->nr_levels - 2)
		return;
	for (uint32_t i = 0; i < entries_of(bpf, level); i++)
		note_huge(bpf, entry_of(bpf, 0, level, i), shift_of(bpf, level),
			  tables);
	/* The root is never shared: it belongs to one address space. */
	if (level && tables->levels[level].nr_to_table == nr_to_table)
		tables->leaf_tables[tables->nr_leaf_tables++] =
			(struct pv_leaf_table){
				.vaddr = tables->at,
				.paddr = table_paddr(area, level),
				.nr_filled = nr_filled,
			};
}

/* Count a table that was not copied. */
static void count_missed(const struct bpf_walk_answer *answer,
			 struct pv_level_tables *level)
{
	if (is_stable(answer))
		level->nr_gone++;
	else
		level->nr_unstable++;
}

/*
 * Ask for the lowest tables below a part of a middle one from an address on, as
 * many as one run takes. *end is set to where these end.
 */
static int copy_lowest(struct pv_bpf *bpf, int fd,
		       const struct pv_table *middle, uint64_t at,
		       uint64_t *end)
{
	const uint32_t lowest = bpf->nr_levels - 1;
	const uint32_t nr_parts = parts_for(entries_of(bpf, lowest));
	unsigned int shift = shift_of(bpf, lowest - 1);
	uint64_t stop = end_of(at, shift + PV_PART_SHIFT, *end);
	uint32_t nr = 0;

	while (at < stop && nr + nr_parts <= BPF_WALK_REQUESTS) {
		if (entry_is_table(middle->entries[index_of(at, shift)])) {
			request_parts(bpf, nr, at, lowest, nr_parts);
			nr += nr_parts;
		}
		at = end_of(at, shift, stop);
	}
	*end = at;
	return nr ? pv_bpf_answer(bpf, fd, nr) : 0;
}

/* Count the lowest tables from tables->at on, as many as one run takes. */
static int count_lowest(struct pv_bpf *bpf, int fd, struct pv_tables *tables,
			uint64_t end)
{
	const uint32_t level = bpf->nr_levels - 1;
	const struct pv_table *middle = table_of(bpf, level - 1);
	const uint32_t nr_parts = parts_for(entries_of(bpf, level));
	unsigned int shift = shift_of(bpf, level - 1);
	uint64_t at = tables->at;
	uint32_t nr = 0;
	int error = copy_lowest(bpf, fd, middle, at, &end);

	if (error)
		return error;
	for (; at < end; at = end_of(at, shift, end)) {
		const struct bpf_walk_answer *missed;

		if (!entry_is_table(middle->entries[index_of(at, shift)]))
			continue;
		missed = missed_part(bpf, nr, nr_parts);
		if (missed)
			count_missed(missed, &tables->levels[level]);
		else
			count_table(bpf, nr, level, tables);
		nr += nr_parts;
	}
	tables->at = end;
	return 0;
}

/*
 * Copy the part of the table of a level that reaches tables->at. If it is the
 * table's first part, count the whole table. Returns 1 if there is one.
 */
static int find_table(struct pv_bpf *bpf, int fd, uint32_t level,
		      struct pv_tables *tables)
{
	const uint32_t nr_parts = parts_for(entries_of(bpf, level));
	struct pv_table *part = table_of(bpf, level);
	unsigned int span = shift_of(bpf, level) + PV_TABLE_SHIFT;
	bool is_first = !(tables->at & ((UINT64_C(1) << span) - 1));
	const struct bpf_walk_answer *missed;
	int there, error;

	if (is_first)
		part->is_valid = false;
	there = pv_bpf_copy_table(bpf, fd, tables->at, level, part);
	if (there < 0 || !is_first)
		return there;
	if (there && nr_parts > 1) {
		request_parts(bpf, 0, tables->at, level, nr_parts);
		error = pv_bpf_answer(bpf, fd, nr_parts);
		if (error)
			return error;
	}
	missed = missed_part(bpf, 0, there ? nr_parts : 1);
	if (missed)
		count_missed(missed, &tables->levels[level]);
	else
		count_copied(bpf, level, tables);
	return there;
}

/*
 * The first address from at on for which a part of a table has an entry that
 * leads to a table, or where the part ends.
 */
static uint64_t next_table(const struct pv_table *table, unsigned int shift,
			   uint64_t at, uint64_t end)
{
	uint64_t stop = end_of(at, shift + PV_PART_SHIFT, end);

	while (at < stop &&
	       !entry_is_table(table->entries[index_of(at, shift)]))
		at = end_of(at, shift, stop);
	return at;
}

/* Go down to the lowest tables at tables->at, count all on the way, and go on.
 */
static int step(struct pv_bpf *bpf, int fd, struct pv_tables *tables,
		uint64_t end)
{
	for (uint32_t level = 0; level < bpf->nr_levels - 1; level++) {
		unsigned int shift = shift_of(bpf, level);
		uint64_t stop = end_of(tables->at, shift + PV_PART_SHIFT, end);
		int there = find_table(bpf, fd, level, tables);

		if (there < 0)
			return there;
		if (!there && !level)
			return -EIO;
		if (there)
			tables->at = next_table(table_of(bpf, level), shift,
						tables->at, end);
		else
			tables->at =
				end_of(tables->at, shift + PV_TABLE_SHIFT, end);
		if (tables->at >= stop)
			return 0;
	}
	return count_lowest(bpf, fd, tables, end);
}

/*
 * Count the tables from tables->at on. All is done when tables->at is the end
 * of user space. Returns 0 or -errno.
 */
int pv_bpf_tables(struct pv_bpf *bpf, int fd, struct pv_tables *tables)
{
	const uint64_t end = pv_bpf_user_end(bpf);

	/* Tables that an earlier call copied are stale. */
	for (uint32_t level = 0; level < bpf->nr_levels - 1; level++)
		table_of(bpf, level)->is_valid = false;
	tables->nr_leaf_tables = tables->nr_huge = 0;
	for (int steps = 0; steps < MAX_STEPS && tables->at < end; steps++) {
		int error;

		if (tables->nr_leaf_tables == PV_LEAF_TABLES ||
		    tables->nr_huge > PV_HUGE_PAGES - (1U << PV_TABLE_SHIFT))
			break;
		error = step(bpf, fd, tables, end);
		if (error)
			return error;
	}
	return 0;
}

/*
 * Copy the table of a level on the way to an address: its first nr entries, and
 * what each is for. Returns 1; 0 if there is no such table, or if it changed
 * during each of several readings; or -errno.
 */
int pv_bpf_table(struct pv_bpf *bpf, int fd, uint64_t vaddr, uint32_t level,
		 uint32_t nr, uint64_t *entries, uint8_t *uses)
{
	const uint32_t nr_parts = parts_for(nr);
	const bool is_lowest = level == bpf->nr_levels - 1;
	int error;

	if (level >= bpf->nr_levels || !nr || nr > 1U << PV_TABLE_SHIFT)
		return -EINVAL;
	request_parts(bpf, 0, vaddr, level, nr_parts);
	error = pv_bpf_answer(bpf, fd, nr_parts);
	if (error)
		return error;
	if (missed_part(bpf, 0, nr_parts))
		return 0;
	for (uint32_t i = 0; i < nr; i++) {
		entries[i] = entry_of(bpf, 0, level, i);
		uses[i] = use_of(bpf, entries[i], is_lowest);
	}
	return 1;
}
