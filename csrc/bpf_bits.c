// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Reads the accessed and the dirty bits of all pages of a process by the BPF
 * walk. Nothing is written: neither bits nor tables.
 *
 * What is returned grows with the populated tables: 208 bytes for a lowest
 * table, which itself takes 4 KiB, and for a huge page.
 */
#include "bpf_walk.h"

struct bits_visitor {
	struct pv_visitor visitor;
	struct pv_bits *bits;
	uint64_t nr, room;
	bool soft_dirty;
};

static bool is_written(const struct bits_visitor *mine, uint64_t entry)
{
	return mine->soft_dirty ? entry_is_soft_dirty(entry)
				: entry_is_dirty(entry);
}

/* Give every page of a contiguous group the bit that any of them has. */
static void spread(struct pv_bits *bits, uint64_t first, uint64_t nr)
{
	bool any = false;

	for (uint64_t i = first; i < first + nr; i++)
		any |= bits->accessed[i / 64] >> i % 64 & 1;
	for (uint64_t i = first; any && i < first + nr; i++)
		bits->accessed[i / 64] |=
			bits->present[i / 64] & UINT64_C(1) << i % 64;
}

/* The bits of a part of a lowest table. Returns whether it maps any page. */
static bool read_table(const struct bits_visitor *mine,
		       const struct pv_found *found, struct pv_bits *bits)
{
	const unsigned int reach = part_reach();
	uint64_t first = index_of(found->start, PV_PAGE_SHIFT);
	uint64_t nr = (found->end - found->start) >> PV_PAGE_SHIFT;
	bool any = false;

	*bits = (struct pv_bits){
		.vaddr = found->start >> reach << reach,
		.shift = PV_PAGE_SHIFT,
	};
	for (uint64_t i = first; i < first + nr; i++) {
		uint64_t entry = found->table[i], bit = UINT64_C(1) << i % 64;
		bool is_page = entry_is_page(entry, true);

		any |= is_page;
		bits->present[i / 64] |= is_page ? bit : 0;
		bits->accessed[i / 64] |=
			is_page && entry_is_accessed(entry) ? bit : 0;
		bits->written[i / 64] |=
			is_page && is_written(mine, entry) ? bit : 0;
	}
	for (uint64_t i = first; any && i < first + nr; i++) {
		unsigned int order = entry_group_order(found->table[i]);

		if (order && !(i & ((UINT64_C(1) << order) - 1)) &&
		    i + (UINT64_C(1) << order) <= first + nr)
			spread(bits, i, UINT64_C(1) << order);
	}
	return any;
}

/* The bits of one entry for more. Returns whether it says anything. */
static bool read_entry(const struct bits_visitor *mine,
		       const struct pv_found *found, struct pv_bits *bits)
{
	*bits = (struct pv_bits){
		.vaddr = found->start >> found->shift << found->shift,
		.shift = found->shift,
		.is_unstable = !found->is_stable,
	};
	if (!found->is_stable)
		return true;
	if (!entry_is_page(found->entry, found->shift == PV_PAGE_SHIFT))
		return false;
	bits->present[0] = 1;
	bits->accessed[0] = entry_is_accessed(found->entry);
	bits->written[0] = is_written(mine, found->entry);
	return true;
}

static uint64_t visit_bits(struct pv_visitor *visitor,
			   const struct pv_found *found)
{
	struct bits_visitor *mine = (struct bits_visitor *)visitor;
	struct pv_bits *bits = &mine->bits[mine->nr];

	if (mine->nr == mine->room)
		return found->start;
	mine->nr += found->table ? read_table(mine, found, bits)
				 : read_entry(mine, found, bits);
	return found->end;
}

static uint64_t room_for_bits(const struct pv_visitor *visitor)
{
	const struct bits_visitor *mine = (const struct bits_visitor *)visitor;

	return mine->room - mine->nr;
}

/*
 * The bits of all pages from *at to end, until the room is full; *at is set to
 * where to continue. which is PV_DIRTY_BIT or PV_SOFT_DIRTY_BIT. Returns how
 * many there are, or -errno; it may be none before the end is reached.
 */
int64_t pv_bpf_bits(struct pv_bpf *bpf, int fd, int which, uint64_t *at,
		    uint64_t end, struct pv_bits *bits, uint64_t room)
{
	struct bits_visitor mine = {
		.visitor = { visit_bits, room_for_bits, 0 },
		.bits = bits,
		.room = room,
		.soft_dirty = which == PV_SOFT_DIRTY_BIT,
	};
	int error = pv_bpf_visit(bpf, fd, at, end, &mine.visitor);

	return error ? error : (int64_t)mine.nr;
}
