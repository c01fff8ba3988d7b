// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The core's count of frames by BPF, on a made-up machine. Its descriptions of
 * frames (struct page) are in this program's memory, and its /proc/kpageflags
 * is a file. It has what no real machine has on demand: free blocks, compound
 * pages and hugetlb pages of all sizes, broken frames, zero pages, memory that
 * is offline, descriptions that change while they are read, and a kernel whose
 * flags depend on more than the core knows. The counts must be those of the
 * file, always. Prints for each case how many frames there are, and for how
 * many the file was not asked.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bpf_walk.h"

#define SECTION 32768
#define NR (4 * SECTION)
#define OFFLINE 2 /* this section is offline */
#define ROOM 4096

enum { BUDDY = 1 << 10, NOPAGE = 1 << 20 };
enum { HEAD = 1 << 6, LRU = 1 << 5, RESERVED = 1 << 13, POISON = 1 << 21 };
enum { NR_FLAGS = 24, OTHER_FLAGS = 0x1f };

static struct pv_page pages[NR] __attribute__((aligned(1 << 16)));
static uint64_t values[NR];
static uint32_t state = 1;
static int changes, nr_runs;

static uint32_t next_random(uint32_t limit)
{
	state = state * 1664525 + 1013904223;
	return (state >> 8) % limit;
}

/* In place of csrc/bpf_load.c. */
int pv_bpf_run_program(struct pv_bpf *bpf, int fd, uint32_t first, uint32_t nr)
{
	(void)fd;
	nr_runs++;
	for (uint32_t i = first; i < first + nr; i++) {
		const struct bpf_walk_request *request =
			&bpf->area->requests[i];
		const char *from = (const char *)(uintptr_t)request->vaddr;
		size_t size = request->offset ? request->offset
					      : sizeof(bpf->area->tables[i]);
		int is_there = from >= (const char *)pages &&
			       from + size <= (const char *)(pages + NR);

		bpf->area->answers[i].state =
			is_there ? BPF_WALK_COPIED : BPF_WALK_FAULT;
		if (is_there)
			memcpy(bpf->area->tables[i], from, size);
	}
	for (int i = 0; changes && i < NR; i++)
		pages[i].words[0] = (pages[i].words[0] & ~(63ull << 14)) |
				    (uint64_t)(nr_runs & 63) << 14;
	return 0;
}

int64_t pv_own_frame(int pagemap_fd, const void *page)
{
	(void)pagemap_fd;
	(void)page;
	abort();
}

static uint64_t mixed(uint64_t one, uint64_t other)
{
	return (one ^ other) * UINT64_C(0x9e3779b97f4a7c15) % 251 * 0x9e3779b1;
}

/* As a kernel would: flags are a function of these. */
static uint64_t value_of(uint32_t pfn, uint32_t head, int is_free)
{
	const uint64_t mask = (1 << NR_FLAGS) - 1;
	const struct pv_page *page = &pages[pfn], *first = &pages[head];
	uint64_t value = mixed(page->words[0] & mask, first->words[0] & mask);

	value = mixed(value, first->words[3] & 3);
	value = mixed(value, first->mapcount >= 0 ? 1 : first->mapcount);
	if (first->words[0] & HEAD)
		value = mixed(value + (pfn != head), pages[head + 1].words[2]);
	value &= ~(uint64_t)(BUDDY | NOPAGE);
	return is_free ? value | BUDDY : value;
}

static void make_single(uint32_t pfn)
{
	static const uint32_t kinds[] = { LRU, LRU | 8, 0, 4 };
	struct pv_page *page = &pages[pfn];

	page->words[0] = kinds[next_random(4)];
	page->words[3] = next_random(2) ? (uintptr_t)page | next_random(4) : 0;
	page->mapcount = next_random(3) ? -1 : (int)next_random(5);
	page->refcount = 1;
	if (!next_random(50))
		page->mapcount = (int)0xf2000000; /* a page table */
	if (!next_random(20))
		page->words[0] |= RESERVED;
	if (!next_random(300))
		page->words[0] |= POISON;
	if (!next_random(60))
		page->refcount = 0; /* neither free nor in use */
	values[pfn] = value_of(pfn, pfn, 0);
	if (page->words[0] & (RESERVED | POISON))
		values[pfn] ^= 1 + pfn % 7;
}

static void make_free(uint32_t pfn, unsigned int order)
{
	pages[pfn].mapcount = (int)0xf0000000;
	pages[pfn].words[5] = order;
	for (uint32_t i = 0; i < 1u << order; i++) {
		if (i)
			pages[pfn + i].mapcount = -1;
		if (!next_random(200)) /* old kernels leave them here */
			pages[pfn + i].words[0] |= POISON;
		values[pfn + i] = value_of(pfn + i, pfn + i, 1);
	}
}

static void make_compound(uint32_t pfn, unsigned int order, int has_mask)
{
	const uint64_t nr = UINT64_C(1) << order;
	const int is_hugetlb = order == 9 && next_random(2);
	const int is_plain = order == 9 && !is_hugetlb && next_random(4);
	/* Nothing but its number tells it from other memory of the kernel. */
	const int is_huge_zero = is_plain && !next_random(3);

	pages[pfn].words[0] = HEAD | (is_plain ? 0 : LRU);
	pages[pfn].words[3] = is_plain ? 0 : next_random(4);
	pages[pfn].mapcount = is_hugetlb ? (int)0xf4000000 : -1;
	pages[pfn].refcount = 1;
	for (uint32_t i = 1; i < nr; i++) {
		struct pv_page *page = &pages[pfn + i];

		page->words[1] = has_mask ? (-nr * sizeof(*page)) | 1
					  : (uintptr_t)&pages[pfn] | 1;
		page->words[0] = i == 1 ? order : 0;
		if (i == 1 && !is_plain)
			page->words[2] = next_random(3); /* map counts */
		page->mapcount = is_plain || next_random(9) ? -1 : 0;
		if (i > 3 && !next_random(100))
			page->words[0] |= POISON;
	}
	for (uint32_t i = 0; i < nr; i++) {
		values[pfn + i] = value_of(pfn + i, pfn, 0);
		if (pages[pfn + i].words[0] & POISON)
			values[pfn + i] ^= 1 + (pfn + i) % 7;
		if (is_huge_zero)
			values[pfn + i] ^= 1 << 24;
	}
	/* All but the first page of its descriptions are that page again. */
	for (uint32_t i = 64; is_hugetlb && !has_mask && i < nr; i++)
		pages[pfn + i] = pages[pfn + i % 64];
}

static void make_machine(int has_mask)
{
	memset(pages, 0, sizeof(pages));
	for (uint32_t pfn = 0; pfn < NR;) {
		const uint32_t kind = next_random(10);
		unsigned int order = next_random(11);

		while (pfn & ((1u << order) - 1))
			order--;
		if (kind < 4) {
			for (uint32_t nr = 1u << order; nr; nr--)
				make_single(pfn++);
			continue;
		}
		if (kind < 6 || !order || order > 9)
			make_free(pfn, order);
		else
			make_compound(pfn, order, has_mask);
		pfn += 1u << order;
	}
	for (uint32_t i = 0; i < SECTION; i++)
		values[OFFLINE * SECTION + i] = NOPAGE;
}

static int by_value(const void *one, const void *other)
{
	const struct pv_count *a = one, *b = other;

	return a->value < b->value ? -1 : a->value > b->value;
}

/* Compare the counts of some runs with the file's. */
static int is_equal(struct pv_bpf *bpf, int fd, const struct pv_frames *runs,
		    uint64_t nr_runs, uint64_t *nr_by_key)
{
	static struct pv_count expected[ROOM], found[ROOM];
	int64_t nr = pv_count_values(fd, runs, nr_runs, expected, ROOM);
	int64_t got = pv_bpf_count(bpf, fd, runs, nr_runs, 10, found, ROOM,
				   nr_by_key);

	if (nr < 0 || got != nr)
		return 0;
	qsort(expected, (size_t)nr, sizeof(*expected), by_value);
	qsort(found, (size_t)nr, sizeof(*found), by_value);
	return !memcmp(expected, found, (size_t)nr * sizeof(*found));
}

/* Compare all frames, all with some beyond the last, and many short runs. */
static void compare(const char *name, struct pv_bpf *bpf, const char *path)
{
	static struct pv_frames runs[3000];
	const struct pv_frames all = { 0, NR }, more = { 5, NR };
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	uint64_t nr_by_key, nr_by_key_of_runs;
	int equal = 1;

	if (fd < 0 || write(fd, values, sizeof(values)) != sizeof(values))
		exit(2);
	for (uint32_t i = 0; i < 3000; i++)
		runs[i] = (struct pv_frames){ next_random(NR - 40),
					      1 + next_random(40) };
	equal &= is_equal(bpf, fd, &more, 1, &nr_by_key);
	equal &= is_equal(bpf, fd, runs, 3000, &nr_by_key_of_runs);
	equal &= is_equal(bpf, fd, &all, 1, &nr_by_key);
	close(fd);
	printf("%s %s %d %" PRIu64 " %" PRIu64 "\n", name,
	       equal ? "equal" : "DIFFERS", NR, nr_by_key, nr_by_key_of_runs);
}

int main(int argc, char **argv)
{
	static struct bpf_walk_area area;
	static struct pv_bpf bpf = {
		.area = &area,
		.vmemmap = (uintptr_t)pages,
		.page = { .is_known = true,
			  .size = sizeof(*pages),
			  .mapping = 24,
			  .private = 40,
			  .flags_mask = (1 << NR_FLAGS) - 1,
			  .head_flag = HEAD,
			  .reserved_flag = RESERVED,
			  .lru_flag = LRU,
			  .hwpoison_flag = POISON,
			  .type_mask = 0xff000000,
			  .buddy_type = 0xf0000000,
			  .has_folio_mapcount = true },
	};

	if (argc < 2)
		return 2;
	for (int i = 0; i < 20; i++) {
		make_machine(i & 1);
		bpf.zero_pfn = next_random(NR);
		values[bpf.zero_pfn] ^= 1 << 25;
		compare("machine", &bpf, argv[1]);
	}
	bpf.page.has_folio_mapcount = false;
	compare("old", &bpf, argv[1]);
	bpf.page.has_folio_mapcount = true;
	for (int i = 0; i < NR; i++)
		values[i] = (uint64_t)i % 1999;
	compare("unknown", &bpf, argv[1]);
	make_machine(0);
	changes = 1;
	compare("changes", &bpf, argv[1]);
	return 0;
}
