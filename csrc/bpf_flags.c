// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Counts frames by their value in /proc/kpageflags, but has the kernel make few
 * of these values. The BPF program copies the kernel's descriptions of frames.
 * Each frame gets a key (page_key.c); frames with the same key have the same
 * value. The kernel is asked for the values of a few frames of each key. If
 * they differ, or if these frames changed meanwhile, or if a frame has no key,
 * the kernel is asked for every frame.
 */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "kpage.h"
#include "page_key.h"

/* Frames between two questions. */
#define UNIT 65536
/* Descriptions in one part of a table, and parts in one run of the program. */
#define PART (BPF_WALK_ENTRIES * sizeof(__u64) / (sizeof(struct pv_page)))
#define PARTS 64

#define NR_KEYS 1024
#define NR_SLOTS 4096 /* a power of two */
#define NO_KEY UINT32_MAX

/* For fewer frames it is cheaper to ask for each. */
#define MIN_FRAMES 48
#define NR_SAMPLES 3
/* So many of them must not have changed. */
#define MIN_SAMPLES 2

/* include/uapi/linux/kernel-page-flags.h */
#define KPF_BUDDY (UINT64_C(1) << 10)
#define KPF_NOPAGE (UINT64_C(1) << 20)

/*
 * Memory is online in pieces of 2^15 frames or more (SECTION_SIZE_BITS). Frames
 * of sections from the last one on have no key.
 */
#define SECTION_SHIFT 15
#define NR_SECTIONS (1 << 17)

/* Contiguous frames with one key. */
struct piece {
	uint64_t pfn;
	uint64_t base; /* see struct pv_page_scan; the piece is of one base, or
			  each frame is its own */
	uint32_t nr;
	uint32_t key;
};

/* A frame whose value the kernel is asked for. */
struct sample {
	uint64_t pfn, base, value;
};

struct known_key {
	struct pv_page_key key;
	uint64_t nr;
	uint32_t nr_pieces;
	uint32_t pieces[NR_SAMPLES]; /* the first, any, and the last */
	struct sample samples[NR_SAMPLES];
	uint32_t nr_good; /* samples that did not change */
	bool is_answered, has_other;
	uint64_t value;
};

struct unit {
	struct pv_bpf *bpf;
	int fd;
	struct pv_counter *counter;
	struct pv_page_scan scan;
	uint64_t nr_by_key; /* frames for which the kernel was not asked */
	uint32_t random;
	uint32_t nr_frames, nr_pieces, nr_keys;
	uint16_t slots[NR_SLOTS]; /* number of a key + 1; 0: empty */
	uint8_t is_online[NR_SECTIONS];
	struct known_key keys[NR_KEYS];
	struct piece pieces[UNIT];
	struct pv_frames others[UNIT];
};

static uint32_t random_below(struct unit *unit, uint64_t limit)
{
	unit->random ^= unit->random << 13;
	unit->random ^= unit->random >> 17;
	unit->random ^= unit->random << 5;
	return unit->random % (uint32_t)limit;
}

static uint32_t hash_of(const struct pv_page_key *key)
{
	const int nr = key->words[2] ? PV_KEY_WORDS : 2;
	uint64_t hash = 0;

	for (int i = 0; i < nr; i++)
		hash = (hash ^ key->words[i]) * UINT64_C(0x9e3779b97f4a7c15);
	return (uint32_t)(hash >> 40) & (NR_SLOTS - 1);
}

/* The number of a key, which may be new; NO_KEY if there is no room for it. */
static uint32_t number_of(struct unit *unit, const struct pv_page_key *key)
{
	uint32_t at = hash_of(key);

	for (; unit->slots[at]; at = (at + 1) & (NR_SLOTS - 1))
		if (pv_same_key(&unit->keys[unit->slots[at] - 1].key, key))
			return unit->slots[at] - 1u;
	if (unit->nr_keys == NR_KEYS)
		return NO_KEY;
	unit->keys[unit->nr_keys] = (struct known_key){ .key = *key };
	unit->slots[at] = (uint16_t)++unit->nr_keys;
	return unit->nr_keys - 1;
}

static void add_piece(struct unit *unit, uint64_t pfn, uint64_t base,
		      uint32_t nr, uint32_t number)
{
	const uint32_t at = unit->nr_pieces++;
	struct known_key *key;

	unit->pieces[at] = (struct piece){ pfn, base, nr, number };
	if (number == NO_KEY)
		return;
	key = &unit->keys[number];
	if (!key->nr_pieces++)
		key->pieces[0] = key->pieces[1] = at;
	else if (!random_below(unit, key->nr_pieces))
		key->pieces[1] = at;
	key->pieces[2] = at;
}

/* Whether a frame with a key continues a piece with the same key. */
static bool continues(const struct piece *last, uint64_t pfn, uint64_t base)
{
	return last->pfn + last->nr == pfn &&
	       (base == last->base || (base == pfn && last->base == last->pfn));
}

static void add_frame(struct unit *unit, uint64_t pfn,
		      const struct pv_page *page, const struct pv_page *next)
{
	struct piece *last =
		unit->nr_pieces ? &unit->pieces[unit->nr_pieces - 1] : NULL;
	const struct pv_page_key *key = &unit->scan.key;

	unit->nr_frames++;
	if (!pv_page_key(&unit->scan, pfn, page, next)) {
		if (last && last->key == NO_KEY && continues(last, pfn, pfn))
			last->nr++;
		else
			add_piece(unit, pfn, pfn, 1, NO_KEY);
	} else if (last && last->key != NO_KEY &&
		   pv_same_key(&unit->keys[last->key].key, key)) {
		if (continues(last, pfn, unit->scan.base))
			last->nr++;
		else
			add_piece(unit, pfn, unit->scan.base, 1, last->key);
	} else {
		add_piece(unit, pfn, unit->scan.base, 1, number_of(unit, key));
	}
}

/* Choose the frames of a key for which the kernel is asked. */
static void choose_samples(struct unit *unit, struct known_key *key)
{
	for (int i = 0; i < NR_SAMPLES; i++) {
		const struct piece *piece = &unit->pieces[key->pieces[i]];
		uint32_t offset = i == 0   ? 0
				  : i == 1 ? random_below(unit, piece->nr)
					   : piece->nr - 1;

		key->samples[i] = (struct sample){
			.pfn = piece->pfn + offset,
			.base = piece->base == piece->pfn ? piece->pfn + offset
							  : piece->base,
		};
	}
}

/* Ask the kernel for one value. PV_NO_ENTRY if there is none. */
static uint64_t value_of(struct unit *unit, uint64_t pfn)
{
	uint64_t value;

	return pv_pagemap_read(unit->fd, pfn, 1, &value) == 1 ? value
							      : PV_NO_ENTRY;
}

/* Note what a sample tells, if it has its key still. */
static void note_sample(struct known_key *key, const struct sample *sample)
{
	if (key->nr_good++ && sample->value != key->value)
		key->has_other = true;
	key->value = sample->value;
}

/* See which samples of some keys have their key still. */
static int check_samples(struct unit *unit, uint32_t first, uint32_t end)
{
	struct pv_bpf *bpf = unit->bpf;
	uint32_t nr = 0;
	int error;

	for (uint32_t k = first; k < end; k++)
		for (int i = 0; i < NR_SAMPLES; i++) {
			const struct sample *sample = &unit->keys[k].samples[i];

			pv_bpf_request_frames(bpf, nr++, sample->pfn, 1);
			pv_bpf_request_frames(bpf, nr++, sample->base, 2);
		}
	error = pv_bpf_run_program(bpf, unit->fd, 0, nr);
	if (error)
		return error;
	nr = 0;
	for (uint32_t k = first; k < end; k++)
		for (int i = 0; i < NR_SAMPLES; i++, nr += 2) {
			struct known_key *key = &unit->keys[k];
			const struct sample *sample = &key->samples[i];
			const struct pv_page *page = pv_bpf_frame(bpf, nr, 0),
					     *base = pv_bpf_frame(bpf, nr + 1,
								  0);

			if (key->is_answered && page && base &&
			    pv_page_has_key(&unit->scan, &key->key, sample->pfn,
					    sample->base, page, base))
				note_sample(key, sample);
		}
	return 0;
}

/* Whether a value may be that of frames with this key. */
static bool is_sound(const struct known_key *key)
{
	const uint64_t flags = key->key.words[0];

	if (key->value == PV_NO_ENTRY || key->value & KPF_NOPAGE)
		return false;
	if (flags & PV_KEY_IN_FREE_BLOCK)
		return key->value & KPF_BUDDY;
	/* A free block that was not seen has such frames. */
	return key->key.words[2] || !(flags & PV_KEY_UNREFERENCED) ||
	       key->key.words[1] != UINT32_MAX || !(key->value & KPF_BUDDY);
}

/* Ask the kernel for the values of the keys that have many frames. */
static int ask(struct unit *unit)
{
	enum { STEP = BPF_WALK_REQUESTS / (2 * NR_SAMPLES) };

	for (uint32_t k = 0; k < unit->nr_keys; k++) {
		struct known_key *key = &unit->keys[k];

		choose_samples(unit, key);
		key->is_answered = key->nr >= MIN_FRAMES;
		for (int i = 0; key->is_answered && i < NR_SAMPLES; i++)
			key->samples[i].value =
				value_of(unit, key->samples[i].pfn);
	}
	for (uint32_t k = 0; k < unit->nr_keys; k += STEP) {
		uint32_t end = k + STEP;
		int error = check_samples(
			unit, k, end < unit->nr_keys ? end : unit->nr_keys);

		if (error)
			return error;
	}
	for (uint32_t k = 0; k < unit->nr_keys; k++) {
		struct known_key *key = &unit->keys[k];

		key->is_answered &= key->nr_good >= MIN_SAMPLES &&
				    !key->has_other && is_sound(key);
	}
	return 0;
}

/* Whether the memory of a piece is online: a frame of each section tells. */
static bool is_online(struct unit *unit, const struct piece *piece)
{
	const uint64_t first = piece->pfn >> SECTION_SHIFT;
	const uint64_t last = (piece->pfn + piece->nr - 1) >> SECTION_SHIFT;

	if (last >= NR_SECTIONS)
		return false;
	for (uint64_t i = first; i <= last; i++) {
		uint64_t pfn = i << SECTION_SHIFT, value;

		if (unit->is_online[i])
			continue;
		value = value_of(unit, pfn < piece->pfn ? piece->pfn : pfn);
		if (value == PV_NO_ENTRY || value & KPF_NOPAGE)
			return false;
		unit->is_online[i] = true;
	}
	return true;
}

/* Count the frames of a unit, and begin the next one. */
static int64_t end_unit(struct unit *unit)
{
	struct pv_frames *others = unit->others;
	uint64_t nr_others = 0;
	int64_t error;

	for (uint32_t i = 0; i < unit->nr_pieces; i++)
		if (unit->pieces[i].key != NO_KEY)
			unit->keys[unit->pieces[i].key].nr +=
				unit->pieces[i].nr;
	error = ask(unit);
	if (error)
		return error;
	for (uint32_t i = 0; i < unit->nr_pieces; i++) {
		const struct piece *piece = &unit->pieces[i];
		const struct known_key *key =
			piece->key == NO_KEY ? NULL : &unit->keys[piece->key];

		if (key && key->is_answered && is_online(unit, piece)) {
			pv_counter_add(unit->counter, key->value, piece->nr);
			unit->nr_by_key += piece->nr;
		} else if (nr_others &&
			   others[nr_others - 1].pfn +
					   others[nr_others - 1].nr ==
				   piece->pfn) {
			others[nr_others - 1].nr += piece->nr;
		} else {
			others[nr_others++] =
				(struct pv_frames){ piece->pfn, piece->nr };
		}
	}
	memset(unit->slots, 0, sizeof(unit->slots));
	unit->nr_frames = unit->nr_pieces = unit->nr_keys = 0;
	return pv_counter_read(unit->counter, unit->fd, others, nr_others);
}

/* Look at the frames of the first nr requests. */
static int look(struct unit *unit, const struct pv_frames *asked, uint32_t nr)
{
	int error;

	for (uint32_t i = 0; i < nr; i++)
		pv_bpf_request_frames(unit->bpf, i, asked[i].pfn,
				      (uint32_t)asked[i].nr);
	error = pv_bpf_run_program(unit->bpf, unit->fd, 0, nr);
	if (error)
		return error;
	for (uint32_t i = 0; i < nr; i++) {
		const struct pv_page *page = pv_bpf_frame(unit->bpf, i, 0);

		if (!page) { /* there is no such frame */
			add_piece(unit, asked[i].pfn, asked[i].pfn,
				  (uint32_t)asked[i].nr, NO_KEY);
			unit->nr_frames += (uint32_t)asked[i].nr;
			continue;
		}
		for (uint64_t k = 0; k < asked[i].nr; k++)
			add_frame(unit, asked[i].pfn + k, page + k,
				  k + 1 < asked[i].nr ? page + k + 1 : NULL);
	}
	return 0;
}

static int64_t count_runs(struct unit *unit, const struct pv_frames *runs,
			  uint64_t nr_runs)
{
	struct pv_frames asked[PARTS];
	uint32_t nr = 0;
	int64_t error = 0;

	for (uint64_t at = 0; at < nr_runs; at++) {
		uint64_t pfn = runs[at].pfn, end = pfn + runs[at].nr;

		while (pfn < end) {
			/* No compound page begins at the end of a part. */
			uint64_t stop = (pfn / PART + 1) * PART;

			if (stop > end)
				stop = end;
			asked[nr++] = (struct pv_frames){ pfn, stop - pfn };
			pfn = stop;
			if (nr < PARTS)
				continue;
			error = look(unit, asked, nr);
			nr = 0;
			if (!error && unit->nr_frames + PARTS * PART > UNIT)
				error = end_unit(unit);
			if (error)
				return error;
		}
	}
	error = look(unit, asked, nr);
	return error ? error : end_unit(unit);
}

/*
 * Count the frames of runs by their value in /proc/kpageflags, as
 * pv_count_values() does. max_order is that of the largest free blocks; 0 if
 * that is not known. *nr_by_key becomes the number of frames whose value is
 * that of another frame with the same key. Returns as pv_count_values(), and
 * -ENOTSUP if this kernel's descriptions of frames are not known.
 */
int64_t pv_bpf_count(struct pv_bpf *bpf, int fd, const struct pv_frames *runs,
		     uint64_t nr_runs, unsigned int max_order,
		     struct pv_count *counts, uint64_t room,
		     uint64_t *nr_by_key)
{
	struct unit *unit;
	int64_t error = pv_bpf_find_frames(bpf);

	if (error)
		return error;
	unit = malloc(sizeof(*unit));
	if (!unit)
		return -ENOMEM;
	memset(unit, 0, offsetof(struct unit, keys));
	unit->bpf = bpf;
	unit->fd = fd;
	unit->random = 1;
	unit->scan.layout = &bpf->page;
	unit->scan.vmemmap = bpf->vmemmap;
	unit->scan.zero_pfn = bpf->zero_pfn;
	unit->scan.max_order = max_order;
	unit->scan.next = UINT64_MAX;
	unit->counter = pv_counter_start();
	error = unit->counter ? count_runs(unit, runs, nr_runs) : -ENOMEM;
	*nr_by_key = unit->nr_by_key;
	if (!error)
		error = pv_counter_end(unit->counter, counts, room);
	else
		free(unit->counter);
	free(unit);
	return error;
}
