// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Walks all page tables of a range by the BPF program, level by level. Each run
 * of the program copies many tables. What they say is visited in the order of
 * the addresses.
 *
 * Two levels are copied in rounds: first some middle tables, then the lowest
 * tables below them. The few tables above are copied one by one. A table that
 * is larger than 4 KiB is copied in parts; a part is called a table here.
 */
#include "bpf_walk.h"

#include <errno.h>
#include <string.h>

/*
 * A call ends after so many lowest tables, if not before. So the caller can
 * react to a signal: these tables reach 16 GiB and take some milliseconds.
 */
#define MAX_TABLES 8192

/* Middle tables in the first round. A round with few lowest tables doubles it.
 */
#define FIRST_MIDDLES 4

/* The tables that one round copies: lowest tables from at to end. */
struct round {
	uint64_t at, end;
	uint32_t nr_middles;
	uint32_t nr_lowest;
	bool is_cut; /* there are more lowest tables than the round takes */
};

/* Keep the copy that answers a request, which is of a table of a level. */
static void keep_table(const struct pv_bpf *bpf, uint32_t i, uint32_t level,
		       __u64 *entries)
{
	const size_t size = sizeof(bpf->area->tables[i]);
	/* A root table that is smaller than a part begins somewhere in it. */
	size_t begin = level ? 0 : bpf->area->pgd % size;

	memcpy(entries, (const char *)bpf->area->tables[i] + begin,
	       size - begin);
}

/*
 * Copy the part of the table of a level that reaches an address, unless it was
 * the last one copied. Returns 1 if there is one; 0 if what is higher says all,
 * in answer 0.
 */
int pv_bpf_copy_table(struct pv_bpf *bpf, int fd, uint64_t vaddr,
		      uint32_t level, struct pv_table *table)
{
	unsigned int span = shift_of(bpf, level) + PV_PART_SHIFT;
	int error;

	if (table->is_valid && vaddr >> span == table->start >> span)
		return 1;
	table->is_valid = false;
	pv_bpf_request(bpf, 0, vaddr, level, true);
	error = pv_bpf_answer(bpf, fd, 1);
	if (error)
		return error;
	if (!has_table(&bpf->area->answers[0]))
		return level ? 0 : -EFAULT;
	table->start = vaddr >> span << span;
	table->is_valid = true;
	keep_table(bpf, 0, level, table->entries);
	return 1;
}

/* Keep the last entry that was read in place of a table. */
static void keep_last(const struct pv_bpf *bpf,
		      const struct bpf_walk_answer *answer,
		      struct pv_middle *middle)
{
	uint32_t level = answer->nr_read - 1;

	middle->is_table = false;
	middle->is_stable = is_stable(answer);
	middle->shift = shift_of(bpf, level);
	middle->entry = answer->entry[level];
}

/*
 * Look from an address for the next middle table, or for an entry above which
 * says all. Returns 1 with the part of the range that it reaches in *middle, 0
 * if there is none up to the end, or -errno.
 */
static int find_middle(struct pv_bpf *bpf, int fd, uint64_t at, uint64_t end,
		       struct pv_middle *middle)
{
	const uint32_t above = bpf->nr_levels - 2;
	const unsigned int reach = shift_of(bpf, above) + PV_PART_SHIFT;
	uint32_t level = 0;

	if (!above && at < end) { /* the middle table is the root */
		*middle = (struct pv_middle){ .start = at,
					      .end = end_of(at, reach, end),
					      .is_table = true };
		return 1;
	}
	while (at < end) {
		struct pv_table *table = &bpf->above[level];
		unsigned int shift = shift_of(bpf, level);
		int there = pv_bpf_copy_table(bpf, fd, at, level, table);
		uint64_t entry;

		if (there < 0)
			return there;
		middle->start = at;
		middle->end = end_of(at, shift, end);
		if (!there) {
			keep_last(bpf, &bpf->area->answers[0], middle);
			return 1;
		}
		entry = table->entries[index_of(at, shift)];
		if (entry_is_none(entry)) {
			at = middle->end;
			level = 0;
		} else if (entry_is_table(entry) && level + 1 < above) {
			level++;
		} else {
			middle->is_table = entry_is_table(entry);
			middle->is_stable = true;
			middle->shift = shift;
			middle->entry = entry;
			if (middle->is_table)
				middle->end = end_of(at, reach, middle->end);
			return 1;
		}
	}
	return 0;
}

/* Copy the next middle tables, at most max of them, in one run. */
static int copy_middles(struct pv_bpf *bpf, int fd, uint32_t max, uint64_t end,
			struct round *round)
{
	uint64_t at = round->at;
	uint32_t nr = 0, nr_asked = 0;
	int ret;

	round->end = end;
	for (; nr < max; nr++) {
		ret = find_middle(bpf, fd, at, end, &bpf->middles[nr]);
		if (ret < 0)
			return ret;
		if (!ret)
			break;
		at = bpf->middles[nr].end;
	}
	if (nr == max)
		round->end = at;
	round->nr_middles = nr;
	for (uint32_t i = 0; i < nr; i++)
		if (bpf->middles[i].is_table)
			pv_bpf_request(bpf, nr_asked++, bpf->middles[i].start,
				       bpf->nr_levels - 2, true);
	ret = nr_asked ? pv_bpf_answer(bpf, fd, nr_asked) : 0;
	if (ret)
		return ret;
	nr_asked = 0;
	for (uint32_t i = 0; i < nr; i++) {
		struct pv_middle *middle = &bpf->middles[i];

		if (!middle->is_table)
			continue;
		if (has_table(&bpf->area->answers[nr_asked]))
			keep_table(bpf, nr_asked, bpf->nr_levels - 2,
				   middle->entries);
		else if (!bpf->area->answers[nr_asked].nr_read)
			return -EFAULT; /* the root is always there */
		else
			keep_last(bpf, &bpf->area->answers[nr_asked], middle);
		nr_asked++;
	}
	return 0;
}

/* Copy the lowest tables below the middle ones, at most max, in one run. */
static int copy_lowest(struct pv_bpf *bpf, int fd, uint32_t max,
		       struct round *round)
{
	const unsigned int shift = shift_of(bpf, bpf->nr_levels - 2);
	uint32_t nr = 0;

	round->is_cut = false;
	for (uint32_t i = 0; i < round->nr_middles; i++) {
		const struct pv_middle *middle = &bpf->middles[i];
		uint64_t at = middle->start;

		while (middle->is_table && at < middle->end) {
			if (!entry_is_table(
				    middle->entries[index_of(at, shift)])) {
				at = end_of(at, shift, middle->end);
				continue;
			}
			if (nr == max) {
				round->end = at;
				round->is_cut = true;
				goto full;
			}
			pv_bpf_request(bpf, nr++, at, bpf->nr_levels - 1, true);
			at = end_of(at, part_reach(), middle->end);
		}
	}
full:
	round->nr_lowest = nr;
	return nr ? pv_bpf_answer(bpf, fd, nr) : 0;
}

/* What the last entry of an answer says. */
static void find_last(const struct pv_bpf *bpf,
		      const struct bpf_walk_answer *answer,
		      struct pv_found *found)
{
	uint32_t level = answer->nr_read - 1;

	found->entry = answer->entry[level];
	found->shift = shift_of(bpf, level);
	found->is_stable = is_stable(answer);
}

/*
 * Visit what lies below a middle table. *i is the number of the next lowest
 * table. Returns where to continue.
 */
static uint64_t visit_middle(struct pv_bpf *bpf, const struct pv_middle *middle,
			     uint64_t end, uint32_t *i,
			     struct pv_visitor *visitor)
{
	const unsigned int shift = shift_of(bpf, bpf->nr_levels - 2);
	uint64_t at = middle->start, next;

	for (; at < end; at = next) {
		uint64_t entry = middle->entries[index_of(at, shift)];
		bool leads_on = entry_is_table(entry);
		struct pv_found found = {
			.start = at,
			.end = end_of(at, leads_on ? part_reach() : shift, end),
			.entry = entry,
			.shift = shift,
			.is_stable = true,
		};

		next = found.end;
		if (entry_is_none(entry))
			continue;
		if (leads_on) {
			const struct bpf_walk_answer *answer =
				&bpf->area->answers[*i];

			if (has_table(answer))
				found.table = bpf->area->tables[*i];
			else
				find_last(bpf, answer, &found);
			++*i;
		}
		next = visitor->visit(visitor, &found);
		if (next < found.end || visitor->error)
			return next;
	}
	return at;
}

/* Visit what a round found, in the order of the addresses. */
static uint64_t visit_round(struct pv_bpf *bpf, const struct round *round,
			    struct pv_visitor *visitor)
{
	uint32_t nr_visited = 0;

	for (uint32_t i = 0; i < round->nr_middles; i++) {
		const struct pv_middle *middle = &bpf->middles[i];
		uint64_t end =
			middle->end < round->end ? middle->end : round->end;
		uint64_t next;

		if (middle->start >= round->end)
			break;
		if (middle->is_table) {
			next = visit_middle(bpf, middle, end, &nr_visited,
					    visitor);
		} else {
			const struct pv_found found = {
				.start = middle->start,
				.end = end,
				.entry = middle->entry,
				.shift = middle->shift,
				.is_stable = middle->is_stable,
			};

			next = visitor->visit(visitor, &found);
		}
		if (next < end || visitor->error)
			return next;
	}
	return round->end;
}

/*
 * Visit all that lies from *at to end, until the visitor has no more room, or
 * MAX_TABLES were visited. *at is set to where to continue. Returns 0 or
 * -errno; -ESRCH if the address space is gone.
 */
int pv_bpf_visit(struct pv_bpf *bpf, int fd, uint64_t *at, uint64_t end,
		 struct pv_visitor *visitor)
{
	uint32_t nr_tables = 0, nr_middles = FIRST_MIDDLES;
	int error;

	/* Tables that an earlier call copied are stale. */
	for (uint32_t level = 0; level < BPF_WALK_LEVELS; level++)
		bpf->above[level].is_valid = false;
	if (end > pv_bpf_user_end(bpf))
		end = pv_bpf_user_end(bpf);
	while (*at < end && nr_tables < MAX_TABLES) {
		uint64_t max = visitor->room(visitor);
		struct round round = { .at = *at };

		max = max > BPF_WALK_REQUESTS ? BPF_WALK_REQUESTS : max;
		error = copy_middles(bpf, fd, nr_middles, end, &round);
		if (!error)
			error = copy_lowest(bpf, fd, max ? (uint32_t)max : 1,
					    &round);
		if (error)
			return error;
		nr_tables += round.nr_lowest;
		*at = visit_round(bpf, &round, visitor);
		if (visitor->error)
			return visitor->error;
		if (*at < round.end)
			break;
		if (round.is_cut)
			nr_middles = FIRST_MIDDLES;
		else if (nr_middles < PV_NR_MIDDLES)
			nr_middles *= 2;
	}
	return 0;
}
