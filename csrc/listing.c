// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Lists pages of a process, or frames, as rows of text: looks up what the
 * kernel says about the frames, chooses pages by their flags, and joins pages
 * that are alike.
 */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "listing.h"

/* Pages that are looked up at a time. */
#define CHUNK 16384

#define RADIX_BITS 11
#define RADIX (1 << RADIX_BITS)

/* Pages of one extent. The values of the first are at values[place]. */
struct part {
	uint64_t vaddr, entry, nr, step, vma, place;
	bool has_frame;
};

struct key {
	uint64_t pfn;
	uint64_t part;
};

struct state {
	struct pv_row row; /* which the next page may continue */
	uint64_t nr_parts;
	struct part parts[CHUNK];
	struct key keys[2][CHUNK];
	uint32_t begin[RADIX + 1]; /* of the keys with each digit */
	struct pv_frames runs[CHUNK];
	uint64_t places[CHUNK];
	uint64_t flags[CHUNK], mapcounts[CHUNK], cgroups[CHUNK];
	struct pv_reader reader;
};

/* Find the mapping of a page. Addresses only increase from call to call. */
static bool find_vma(struct pv_listing *listing, uint64_t vaddr)
{
	const uint64_t *vmas = listing->vmas;

	while (listing->at_vma < listing->nr_vmas &&
	       vmas[2 * listing->at_vma + 1] <= vaddr)
		listing->at_vma++;
	return listing->at_vma < listing->nr_vmas &&
	       vmas[2 * listing->at_vma] <= vaddr;
}

/*
 * Take up to CHUNK pages. *at and *offset, in pages, are where to begin, and
 * then where to continue.
 */
static void take_parts(struct pv_listing *listing, struct state *state,
		       const struct pv_extent *extents, uint64_t nr,
		       uint64_t *at, uint64_t *offset)
{
	const bool only_frames = listing->how & PV_LIST_FRAMES;
	uint64_t left = CHUNK, place = 0;

	state->nr_parts = 0;
	while (*at < nr && left) {
		const struct pv_extent *extent = &extents[*at];
		struct part *part = &state->parts[state->nr_parts];
		uint64_t nr_pages = extent->nr_pages - *offset;

		if (nr_pages > left)
			nr_pages = left;
		part->has_frame = only_frames || pv_has_frame(extent->entry);
		part->step = only_frames ? 1
					 : pv_step_of(extent->entry,
						      listing->zero_pfn);
		part->vaddr = extent->vaddr + (*offset << listing->page_shift);
		part->entry = extent->entry + *offset * part->step;
		part->nr = nr_pages;
		part->place = place;
		*offset += nr_pages;
		if (*offset == extent->nr_pages) {
			++*at;
			*offset = 0;
		}
		/* Some are mapped after the list of mappings was read. */
		if (!only_frames && !find_vma(listing, part->vaddr))
			continue;
		part->vma = listing->at_vma;
		if (part->has_frame)
			place += part->step ? nr_pages : 1;
		left -= nr_pages;
		state->nr_parts++;
	}
}

/* Sort by frame number, so that neighbours are read by one system call. */
static struct key *sort(struct state *state, uint64_t nr)
{
	struct key *from = state->keys[0], *to = state->keys[1], *swap;
	uint64_t bits = 0, disorder = 0;
	uint32_t *begin = state->begin;

	for (uint64_t i = 0; i < nr; i++) {
		bits |= from[i].pfn;
		disorder |= i && from[i].pfn < from[i - 1].pfn;
	}
	for (unsigned int shift = 0; disorder && shift < 64 && bits >> shift;
	     shift += RADIX_BITS) {
		memset(begin, 0, sizeof(state->begin));
		for (uint64_t i = 0; i < nr; i++)
			begin[((from[i].pfn >> shift) & (RADIX - 1)) + 1]++;
		for (int i = 0; i < RADIX; i++)
			begin[i + 1] += begin[i];
		for (uint64_t i = 0; i < nr; i++)
			to[begin[(from[i].pfn >> shift) & (RADIX - 1)]++] =
				from[i];
		swap = from;
		from = to;
		to = swap;
	}
	return from;
}

static int64_t look_up(struct pv_listing *listing, struct state *state)
{
	const int fds[] = { listing->flags_fd, listing->mapcount_fd,
			    listing->cgroup_fd };
	uint64_t *values[] = { state->flags, state->mapcounts, state->cgroups };
	const struct key *keys;
	uint64_t nr = 0;

	for (uint64_t i = 0; i < state->nr_parts; i++) {
		const struct part *part = &state->parts[i];

		if (part->has_frame)
			state->keys[0][nr++] =
				(struct key){ part->entry & PM_PFRAME_MASK, i };
	}
	keys = sort(state, nr);
	for (uint64_t i = 0; i < nr; i++) {
		const struct part *part = &state->parts[keys[i].part];

		state->runs[i].pfn = keys[i].pfn;
		state->runs[i].nr = part->step ? part->nr : 1;
		state->places[i] = part->place;
	}
	for (int i = 0; i < 3; i++) {
		int64_t ret;

		if (fds[i] < 0)
			continue;
		ret = pv_read_values(&state->reader, fds[i], state->runs, nr,
				     state->places, values[i]);
		if (ret < 0)
			return ret;
	}
	return 0;
}

static bool is_chosen(const struct pv_listing *listing, uint64_t flags)
{
	for (uint64_t i = 0; i < listing->nr_tests; i++) {
		const struct pv_test *test = &listing->tests[i];
		uint64_t found = flags & test->mask;

		if (test->bits == PV_NO_ENTRY && test->mask != PV_NO_ENTRY
			    ? !found
			    : found != test->bits)
			return false;
	}
	return true;
}

/* Make the row of one page. Returns whether the tests choose it. */
static bool make_row(const struct pv_listing *listing,
		     const struct state *state, const struct part *part,
		     uint64_t nth, struct pv_row *row)
{
	uint64_t place = part->place + (part->step ? nth : 0);
	uint64_t pfn, flags = PV_NO_ENTRY;

	row->vaddr = part->vaddr + (nth << listing->page_shift);
	row->nr = 1;
	row->entry = part->entry + nth * part->step;
	row->step = part->step;
	row->vma = part->vma;
	row->has_frame = part->has_frame;
	row->mapcount = row->cgroup = PV_NO_ENTRY;
	row->node = -1;
	if (part->has_frame) {
		pfn = row->entry & PM_PFRAME_MASK;
		if (listing->flags_fd >= 0)
			flags = state->flags[place];
		if (flags != PV_NO_ENTRY)
			flags &= ~listing->cleared;
		if (listing->mapcount_fd >= 0)
			row->mapcount = state->mapcounts[place];
		if (listing->cgroup_fd >= 0)
			row->cgroup = state->cgroups[place];
		if (listing->node_of_block &&
		    pfn >> listing->block_shift < listing->nr_blocks)
			row->node =
				listing->node_of_block[pfn >>
						       listing->block_shift];
		if (row->node == PV_NO_NODE)
			row->node = -1;
	}
	row->flags =
		pv_shown_flags(flags, row->entry, listing->how & PV_LIST_RAW);
	if (!listing->nr_tests)
		return true;
	if (flags == PV_NO_ENTRY && !(listing->how & PV_LIST_ALL_PAGES))
		return false;
	return is_chosen(listing, row->flags == PV_NO_ENTRY ? 0 : row->flags);
}

/* Whether a row continues the one before, so that both are one extent. */
static bool continues(const struct pv_listing *listing,
		      const struct pv_row *one, const struct pv_row *next)
{
	return one->nr &&
	       one->vaddr + (one->nr << listing->page_shift) == next->vaddr &&
	       one->entry + one->nr * one->step == next->entry &&
	       one->step == next->step && one->vma == next->vma &&
	       one->flags == next->flags && one->mapcount == next->mapcount &&
	       one->cgroup == next->cgroup && one->node == next->node;
}

static int list_part(struct pv_listing *listing, struct state *state,
		     const struct part *part)
{
	struct pv_row *held = &state->row;

	for (uint64_t i = 0; i < part->nr; i++) {
		struct pv_row row;

		if (!make_row(listing, state, part, i, &row))
			continue;
		if (!(listing->how & PV_LIST_EACH) &&
		    continues(listing, held, &row)) {
			held->nr++;
			continue;
		}
		if (held->nr && pv_write_row(listing, held) < 0)
			return -ENOMEM;
		*held = row;
	}
	return 0;
}

/*
 * List pages, in address order: from page *offset of extent *at on, which say
 * where to continue afterwards. listing->text has the rows that are complete.
 * The listing begins with zeros where it is internal. Call it until *at is nr;
 * after the last extent, and after an error, call pv_list_end(). Returns 0 or
 * -errno.
 */
int64_t pv_list(struct pv_listing *listing, const struct pv_extent *extents,
		uint64_t nr, uint64_t *at, uint64_t *offset)
{
	struct state *state = listing->state;
	int64_t ret;

	if (!state) {
		state = malloc(sizeof(*state));
		if (!state)
			return -ENOMEM;
		listing->state = state;
		listing->last_vma = PV_NO_ENTRY;
		state->row.nr = 0;
	}
	listing->nr_text = 0;
	take_parts(listing, state, extents, nr, at, offset);
	ret = look_up(listing, state);
	for (uint64_t i = 0; i < state->nr_parts && !ret; i++)
		ret = list_part(listing, state, &state->parts[i]);
	return ret;
}

/*
 * Write the last row, and free all but the text, which the caller frees by a
 * second call. Returns 0 or -errno.
 */
int64_t pv_list_end(struct pv_listing *listing)
{
	struct state *state = listing->state;
	int64_t ret = 0;

	listing->nr_text = 0;
	if (state) {
		if (state->row.nr)
			ret = pv_write_row(listing, &state->row);
		free(state);
		listing->state = NULL;
	} else {
		free(listing->text);
		listing->text = NULL;
		listing->room = 0;
	}
	return ret;
}
