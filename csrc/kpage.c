// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Reads what the kernel tells about frames. /proc/kpageflags, kpagecount and
 * kpagecgroup have one u64 per frame number.
 * Format: Documentation/admin-guide/mm/pagemap.rst, fs/proc/page.c.
 */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "kpage.h"
#include "runs.h"

/* To read one more frame costs a fifth of a system call. */
#define SHORT_GAP 4

/* Slots in the table of counted values: a power of two. */
#define NR_SLOTS 4096

/* The state of one count. Too large for a stack: see struct pv_reader. */
struct pv_counter {
	struct pv_reader reader;
	uint64_t nr_other; /* frames whose value has no slot */
	uint64_t nr_used;
	struct pv_count *last; /* the slot of the last frame */
	struct pv_count slots[NR_SLOTS];
};

static void start_reading(struct pv_reader *reader, int fd,
			  const struct pv_frames *runs, uint64_t nr_runs)
{
	reader->fd = fd;
	reader->runs = runs;
	reader->nr_runs = nr_runs;
	reader->chunk_first = reader->chunk_nr = 0;
}

/*
 * Return the values of frame pfn, in run at, and of the frames after it that
 * the reader already holds: *nr values, none past the run. Returns NULL with
 * *nr as 0 if pfn is past the last frame, and NULL with *nr as -errno after an
 * error.
 */
static const uint64_t *values_of(struct pv_reader *reader, uint64_t at,
				 uint64_t pfn, int64_t *nr)
{
	uint64_t end = reader->runs[at].pfn + reader->runs[at].nr;
	uint64_t offset = pfn - reader->chunk_first;

	if (offset >= reader->chunk_nr) {
		uint64_t stop = end;
		int64_t got;

		while (at + 1 < reader->nr_runs &&
		       stop - pfn < PV_READER_CHUNK &&
		       reader->runs[at + 1].pfn - stop <= SHORT_GAP) {
			at++;
			stop = reader->runs[at].pfn + reader->runs[at].nr;
		}
		if (stop - pfn > PV_READER_CHUNK)
			stop = pfn + PV_READER_CHUNK;
		got = pv_pagemap_read(reader->fd, pfn, stop - pfn,
				      reader->chunk);
		reader->chunk_first = pfn;
		reader->chunk_nr = got > 0 ? (uint64_t)got : 0;
		offset = 0;
		if (got <= 0) {
			*nr = got;
			return NULL;
		}
	}
	*nr = (int64_t)(reader->chunk_nr - offset);
	if ((uint64_t)*nr > end - pfn)
		*nr = (int64_t)(end - pfn);
	return reader->chunk + offset;
}

/* Find the slot of a value, or the empty slot where it belongs. */
static struct pv_count *slot_of(struct pv_count *slots, uint64_t value)
{
	uint64_t i = (value * UINT64_C(0x9e3779b97f4a7c15)) >> 52;

	while (slots[i].nr && slots[i].value != value)
		i = (i + 1) & (NR_SLOTS - 1);
	return &slots[i];
}

/* Count frames with one value. */
void pv_counter_add(struct pv_counter *counter, uint64_t value, uint64_t nr)
{
	struct pv_count *slot = counter->last;

	if (!slot->nr || slot->value != value)
		slot = slot_of(counter->slots, value);
	counter->last = slot;
	if (!slot->nr) {
		if (counter->nr_used == NR_SLOTS / 2) {
			counter->nr_other += nr;
			return;
		}
		counter->nr_used++;
		slot->value = value;
	}
	slot->nr += nr;
}

/* Count the frames of runs by the values that the file has. 0 or -errno. */
int64_t pv_counter_read(struct pv_counter *counter, int fd,
			const struct pv_frames *runs, uint64_t nr_runs)
{
	start_reading(&counter->reader, fd, runs, nr_runs);
	for (uint64_t at = 0; at < nr_runs; at++) {
		uint64_t pfn = runs[at].pfn, end = pfn + runs[at].nr;

		while (pfn < end) {
			int64_t nr;
			const uint64_t *values =
				values_of(&counter->reader, at, pfn, &nr);

			if (nr < 0)
				return nr;
			if (!values) {
				counter->nr_other += end - pfn;
				break;
			}
			for (int64_t i = 0, next; i < nr; i = next) {
				for (next = i + 1; next < nr; next++)
					if (values[next] != values[i])
						break;
				pv_counter_add(counter, values[i],
					       (uint64_t)(next - i));
			}
			pfn += (uint64_t)nr;
		}
	}
	return 0;
}

/* Begin to count; NULL without memory. */
struct pv_counter *pv_counter_start(void)
{
	struct pv_counter *counter = calloc(1, sizeof(*counter));

	if (counter)
		counter->last = &counter->slots[0];
	return counter;
}

/*
 * Write the counts, at most room, and free the counter. Returns how many there
 * are.
 */
int64_t pv_counter_end(struct pv_counter *counter, struct pv_count *counts,
		       uint64_t room)
{
	uint64_t nr_other = counter->nr_other, nr_out = 0;

	for (uint64_t i = 0; i < NR_SLOTS; i++) {
		if (counter->slots[i].nr && nr_out < room)
			counts[nr_out++] = counter->slots[i];
		else
			nr_other += counter->slots[i].nr;
	}
	free(counter);
	if (nr_other && nr_out < room)
		counts[nr_out++] = (struct pv_count){ PV_NO_ENTRY, nr_other };
	return (int64_t)nr_out;
}

/*
 * Count the frames of runs by their value. Frames past the last frame count as
 * PV_NO_ENTRY, and so do frames whose values find no room. Returns how many
 * values there are, at most room, or -errno.
 */
int64_t pv_count_values(int fd, const struct pv_frames *runs, uint64_t nr_runs,
			struct pv_count *counts, uint64_t room)
{
	struct pv_counter *counter = pv_counter_start();
	int64_t error;

	if (!counter)
		return -ENOMEM;
	error = pv_counter_read(counter, fd, runs, nr_runs);
	if (error) {
		free(counter);
		return error;
	}
	return pv_counter_end(counter, counts, room);
}

/*
 * Find places of blocks that may be free as a whole. Place i begins at frame
 * first + i * nr. Each step-th frame of a free block, the last one too, has the
 * flags free, and the first frame may have others beside. heads[i] becomes the
 * flags of the first frame; 0 if the place is no free block. Returns 0 or
 * -errno.
 */
int64_t pv_probe_blocks(int fd, uint64_t first, uint64_t nr, uint64_t nr_places,
			uint64_t step, uint64_t free, uint64_t *heads)
{
	for (uint64_t i = 0; i < nr_places; i++) {
		uint64_t start = first + i * nr, head, value = free;
		int64_t got = pv_pagemap_read(fd, start, 1, &head);

		for (uint64_t at = step;
		     got == 1 && head & free && value == free && at <= nr;
		     at += step)
			got = pv_pagemap_read(
				fd, start + (at < nr ? at : nr - 1), 1, &value);
		if (got < 0)
			return got;
		heads[i] = got == 1 && head & free && value == free ? head : 0;
	}
	return 0;
}

/* As pv_split_by_value(), with a reader that was started. */
static int64_t split_runs(struct pv_reader *reader, uint64_t *at, uint64_t *pfn,
			  struct pv_piece *pieces, uint64_t room)
{
	const struct pv_frames *runs = reader->runs;
	uint64_t nr_out = 0;

	for (; *at < reader->nr_runs; ++*at, *pfn = 0) {
		uint64_t end = runs[*at].pfn + runs[*at].nr;
		struct pv_piece *piece = NULL; /* this run's last piece */

		if (*pfn < runs[*at].pfn)
			*pfn = runs[*at].pfn;
		while (*pfn < end) {
			static const uint64_t none = PV_NO_ENTRY;
			int64_t nr;
			const uint64_t *values =
				values_of(reader, *at, *pfn, &nr);
			uint64_t each = 1;

			if (nr < 0)
				return nr;
			if (!values) {
				values = &none;
				nr = 1;
				each = end - *pfn;
			}
			for (int64_t i = 0; i < nr; i++, *pfn += each) {
				if (piece && piece->value == values[i]) {
					piece->nr += each;
					continue;
				}
				if (nr_out == room)
					return (int64_t)nr_out;
				piece = &pieces[nr_out++];
				*piece = (struct pv_piece){ *at, *pfn, each,
							    values[i] };
			}
		}
	}
	return (int64_t)nr_out;
}

/*
 * Split runs where the value changes, into pieces of contiguous frames with one
 * value, in the order of the runs. *at and *pfn say where to begin, and
 * afterwards where to continue. All is done when *at is nr_runs. Frames past
 * the last frame have PV_NO_ENTRY. Returns how many pieces there are, or
 * -errno.
 */
int64_t pv_split_by_value(int fd, const struct pv_frames *runs,
			  uint64_t nr_runs, uint64_t *at, uint64_t *pfn,
			  struct pv_piece *pieces, uint64_t room)
{
	struct pv_reader *reader = malloc(sizeof(*reader));
	int64_t nr_out;

	if (!reader)
		return -ENOMEM;
	start_reading(reader, fd, runs, nr_runs);
	nr_out = split_runs(reader, at, pfn, pieces, room);
	free(reader);
	return nr_out;
}

/*
 * Read the value of each frame of runs. The values of run i begin at
 * values[places[i]]. Frames past the last frame get PV_NO_ENTRY. The reader is
 * a buffer that the caller provides. Returns 0 or -errno.
 */
int64_t pv_read_values(struct pv_reader *reader, int fd,
		       const struct pv_frames *runs, uint64_t nr_runs,
		       const uint64_t *places, uint64_t *values)
{
	start_reading(reader, fd, runs, nr_runs);
	for (uint64_t at = 0; at < nr_runs; at++) {
		uint64_t pfn = runs[at].pfn, end = pfn + runs[at].nr;
		uint64_t *to = values + places[at];

		while (pfn < end) {
			int64_t nr;
			const uint64_t *from = values_of(reader, at, pfn, &nr);

			if (nr < 0)
				return nr;
			if (!from) {
				for (; pfn < end; pfn++)
					*to++ = PV_NO_ENTRY;
				break;
			}
			memcpy(to, from, (size_t)nr * sizeof(*to));
			to += nr;
			pfn += (uint64_t)nr;
		}
	}
	return 0;
}
