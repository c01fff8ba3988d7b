// SPDX-License-Identifier: GPL-2.0-or-later
/* Compares what BPF, the module and /proc/self/pagemap say: see the header. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/reboot.h>

#include "arm64_agree.h"

/* The address bits of an entry. The machine has little memory. */
#define ENTRY_FRAME (0x0001000000000000ULL - PAGE)

int device, pagemap, failures;
struct pv_bpf *bpf;

void fail(const char *name, const char *what, uint64_t is, uint64_t wanted)
{
	printf("FAILED %s: %s is %#llx, not %#llx\n", name, what,
	       (unsigned long long)is, (unsigned long long)wanted);
	failures++;
}

void must(int fine, const char *what)
{
	if (fine)
		return;
	printf("FAILED %s: %s\n", what, strerror(errno));
	reboot(RB_POWER_OFF);
}

uint64_t read_pagemap(uint64_t vaddr)
{
	uint64_t entry = 0;

	/* pagemap has no entry for an address outside of user space. */
	if (pread(pagemap, &entry, 8, vaddr / PAGE * 8) != 8)
		return 0;
	return entry;
}

/* Each entry must name the address of the table that has the next entry. */
static void check_chain(const char *name, const struct physicalview_walk *walk,
			const struct physicalview_info *info)
{
	uint64_t table = 0;
	unsigned int nr = 0, i;

	for (i = 0; i < walk->nr_levels; i++) {
		const struct physicalview_level *level = &walk->levels[i];

		if (level->flags & PHYSICALVIEW_LEVEL_FOLDED)
			continue;
		if (nr && (level->address & ENTRY_FRAME) != table)
			fail(name, "a table", level->address, table);
		table = level->entry & ENTRY_FRAME;
		nr++;
	}
	if (walk->page.page_shift == info->page_shift && nr != info->nr_levels)
		fail(name, "the number of levels", nr, info->nr_levels);
}

/* The next level that the hardware walks, from i on. */
static unsigned int next_real(const struct physicalview_walk *walk,
			      unsigned int i)
{
	while (i < walk->nr_levels &&
	       walk->levels[i].flags & PHYSICALVIEW_LEVEL_FOLDED)
		i++;
	return i;
}

/* The levels that BPF reads must be those that the module reads. */
static void check_levels(const char *name, const struct physicalview_walk *ours,
			 const struct physicalview_walk *theirs)
{
	unsigned int i = next_real(ours, 0), k = next_real(theirs, 0);

	while (i < ours->nr_levels && k < theirs->nr_levels) {
		const struct physicalview_level *level = &ours->levels[i];
		const struct physicalview_level *other = &theirs->levels[k];

		if (level->address != other->address)
			fail(name, "BPF's address of a level", level->address,
			     other->address);
		if (level->entry != other->entry)
			fail(name, "BPF's entry of a level", level->entry,
			     other->entry);
		if (level->shift != other->shift)
			fail(name, "BPF's shift of a level", level->shift,
			     other->shift);
		i = next_real(ours, i + 1);
		k = next_real(theirs, k + 1);
	}
	if (i < ours->nr_levels || k < theirs->nr_levels ||
	    ours->nr_levels != theirs->nr_levels)
		fail(name, "BPF's number of levels", ours->nr_levels,
		     theirs->nr_levels);
}

/* What BPF finds at an address of a process must be what the module finds. */
void check_bpf(const char *name, uint64_t vaddr, int fd,
	       const struct physicalview_walk *theirs)
{
	const struct physicalview_page *other = &theirs->page;
	struct physicalview_walk ours = { .vaddr = vaddr };
	struct physicalview_page page = { 0 };

	must(!pv_bpf_pages(bpf, fd, &vaddr, 1, &page), "BPF: a page");
	must(!pv_bpf_walk(bpf, fd, &ours), "BPF: the levels");
	if (page.kind != other->kind)
		fail(name, "BPF's kind", page.kind, other->kind);
	if (page.paddr != other->paddr)
		fail(name, "BPF's address", page.paddr, other->paddr);
	if (page.entry != other->entry)
		fail(name, "BPF's entry", page.entry, other->entry);
	if (page.swap != other->swap)
		fail(name, "BPF's swap slot", page.swap, other->swap);
	if (page.page_shift != other->page_shift)
		fail(name, "BPF's page shift", page.page_shift,
		     other->page_shift);
	if (memcmp(&page, &ours.page, sizeof(page)))
		fail(name, "BPF's page of a walk", ours.page.kind, page.kind);
	check_levels(name, &ours, theirs);
}

void check(const char *name, uint64_t vaddr, uint32_t kind)
{
	struct physicalview_translate translate = { .virt = vaddr };
	struct physicalview_walk walk = { .vaddr = vaddr };
	struct physicalview_page page = { 0 };
	struct physicalview_batch batch = {
		.nr = 1,
		.vaddrs = (uintptr_t)&vaddr,
		.pages = (uintptr_t)&page,
	};
	struct physicalview_info info;
	uint64_t entry = read_pagemap(vaddr), paddr = 0;
	int before = failures;

	if (entry & PM_PRESENT)
		paddr = (entry & PM_FRAME) * PAGE + vaddr % PAGE;
	must(!ioctl(device, PHYSICALVIEW_INFO, &info), "INFO");
	must(!ioctl(device, PHYSICALVIEW_TRANSLATE, &translate), "TRANSLATE");
	must(!ioctl(device, PHYSICALVIEW_WALK, &walk), "WALK");
	must(!ioctl(device, PHYSICALVIEW_BATCH, &batch), "BATCH");
	if (translate.phys != paddr)
		fail(name, "TRANSLATE", translate.phys, paddr);
	if (page.paddr != paddr)
		fail(name, "BATCH", page.paddr, paddr);
	if (walk.page.paddr != paddr)
		fail(name, "WALK", walk.page.paddr, paddr);
	if (walk.page.kind != kind)
		fail(name, "kind", walk.page.kind, kind);
	if (entry & PM_SWAP && walk.page.swap != (entry & PM_FRAME))
		fail(name, "swap", walk.page.swap, entry & PM_FRAME);
	if (paddr)
		check_chain(name, &walk, &info);
	check_bpf(name, vaddr, pagemap, &walk);
	if (failures == before)
		printf("ok %s: %#llx -> %#llx kind %u shift %u\n", name,
		       (unsigned long long)vaddr,
		       (unsigned long long)translate.phys, walk.page.kind,
		       walk.page.page_shift);
}

/* The extents that BPF finds in a range must be those of the module. */
void check_bpf_range(const char *name, uint64_t start, uint64_t end,
		     const struct physicalview_extent *theirs, uint64_t nr)
{
	static struct physicalview_extent extents[NR_EXTENTS];
	int64_t found =
		pv_bpf_extents(bpf, pagemap, &start, end, extents, NR_EXTENTS);

	if (found != (int64_t)nr || start != end) {
		fail(name, "BPF's number of extents", (uint64_t)found, nr);
		return;
	}
	for (uint64_t i = 0; i < nr; i++) {
		/* Meanwhile the processor set bits: accessed, dirty. */
		extents[i].entry = theirs[i].entry;
		if (memcmp(&extents[i], &theirs[i], sizeof(*theirs)))
			fail(name, "an extent of BPF's at", extents[i].vaddr,
			     theirs[i].vaddr);
	}
}

/* The extents of a range must have all its pages, and no others. */
void check_range(const char *name, uint64_t start, uint64_t end)
{
	static struct physicalview_extent extents[NR_EXTENTS];
	struct physicalview_range range = {
		.start = start,
		.end = end,
		.nr = NR_EXTENTS,
		.extents = (uintptr_t)extents,
	};
	uint64_t vaddr = start, at;
	int before = failures;
	unsigned int i;

	must(!ioctl(device, PHYSICALVIEW_RANGE, &range), "RANGE");
	for (i = 0; i < range.nr; i++) {
		for (; vaddr < extents[i].vaddr; vaddr += PAGE)
			if (read_pagemap(vaddr) & PM_PRESENT)
				fail(name, "left out", vaddr, 0);
		for (at = 0; at < extents[i].length; at += PAGE) {
			uint64_t entry = read_pagemap(vaddr + at);
			uint64_t paddr = (entry & PM_FRAME) * PAGE;

			if (!(entry & PM_PRESENT) ||
			    extents[i].paddr + at != paddr)
				fail(name, "a page of an extent",
				     extents[i].paddr + at, paddr);
		}
		vaddr += extents[i].length;
	}
	for (; vaddr < end; vaddr += PAGE)
		if (read_pagemap(vaddr) & PM_PRESENT)
			fail(name, "left out at the end", vaddr, 0);
	if (range.next != end)
		fail(name, "next", range.next, end);
	check_bpf_range(name, start, end, extents, range.nr);
	if (failures == before)
		printf("ok %s: %u extents\n", name, range.nr);
}
