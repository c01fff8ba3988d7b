// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Searches address spaces for frames by the BPF walk. It needs no list of the
 * mappings: the page tables lead to all pages. What it finds may be too much,
 * such as a device mapping, and never too little; the caller looks at the
 * places again.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "bpf_walk.h"

struct find_visitor {
	struct pv_visitor visitor;
	const struct pv_frames *runs; /* sorted */
	uint64_t nr_runs, first, nr;  /* all runs lie in these nr frames */
	struct pv_place *place;
};

static void add_place(struct pv_place *place, uint64_t start, uint64_t end)
{
	if (!place->end)
		place->start = start;
	place->end = end;
}

/* Whether some of nr frames are in a run. */
static bool is_wanted(const struct find_visitor *mine, uint64_t pfn,
		      uint64_t nr)
{
	uint64_t low = 0, high = mine->nr_runs;

	while (low < high) { /* the first run that ends after pfn */
		uint64_t middle = low + (high - low) / 2;
		const struct pv_frames *run = &mine->runs[middle];

		if (run->pfn + run->nr <= pfn)
			low = middle + 1;
		else
			high = middle;
	}
	return low < mine->nr_runs && mine->runs[low].pfn < pfn + nr;
}

static uint64_t frame_of_entry(uint64_t entry)
{
	return entry_paddr(entry, PV_PAGE_SHIFT) >> PV_PAGE_SHIFT;
}

static void find_in_table(const struct find_visitor *mine,
			  const struct pv_found *found)
{
	const uint32_t first = index_of(found->start, PV_PAGE_SHIFT);
	const uint64_t nr = (found->end - found->start) >> PV_PAGE_SHIFT;
	const __u64 *entries = found->table + first;
	uint64_t nr_near = 0;

	/* Few tables have a frame near the runs: look without branches. */
	for (uint64_t i = 0; i < nr; i++)
		nr_near += frame_of_entry(entries[i]) - mine->first < mine->nr;
	for (uint64_t i = 0; nr_near && i < nr; i++) {
		uint64_t vaddr = found->start + (i << PV_PAGE_SHIFT);

		if (frame_of_entry(entries[i]) - mine->first >= mine->nr)
			continue;
		nr_near--;
		if (entry_is_page(entries[i], true) &&
		    is_wanted(mine, frame_of_entry(entries[i]), 1))
			add_place(mine->place, vaddr, vaddr + PV_PAGE);
	}
}

static uint64_t visit_find(struct pv_visitor *visitor,
			   const struct pv_found *found)
{
	const struct find_visitor *mine = (const struct find_visitor *)visitor;

	if (found->table) {
		find_in_table(mine, found);
	} else if (!found->is_stable) {
		add_place(mine->place, found->start, found->end);
	} else if (entry_is_page(found->entry, false)) {
		uint64_t within =
			found->start & ((UINT64_C(1) << found->shift) - 1);
		uint64_t paddr = entry_paddr(found->entry, found->shift);

		if (is_wanted(mine, (paddr + within) >> PV_PAGE_SHIFT,
			      (found->end - found->start) >> PV_PAGE_SHIFT))
			add_place(mine->place, found->start, found->end);
	}
	return found->end;
}

static uint64_t room_to_find(const struct pv_visitor *visitor)
{
	(void)visitor;
	return BPF_WALK_REQUESTS;
}

/*
 * Search processes for frames. runs are sorted and do not overlap. For each
 * process, places has the range of addresses at which it maps such frames, or
 * an error: -ESRCH if it has no address space any more.
 */
void pv_bpf_find(struct pv_bpf *bpf, const int32_t *pids, uint64_t nr_pids,
		 const struct pv_frames *runs, uint64_t nr_runs,
		 struct pv_place *places)
{
	const struct pv_frames *last = &runs[nr_runs - 1];
	struct find_visitor mine = {
		.visitor = { visit_find, room_to_find, 0 },
		.runs = runs,
		.nr_runs = nr_runs,
		.first = runs[0].pfn,
		.nr = last->pfn + last->nr - runs[0].pfn,
	};
	const uint64_t end = pv_bpf_user_end(bpf);
	char path[32];

	for (uint64_t i = 0; i < nr_pids; i++) {
		uint64_t at = 0;
		int fd;

		mine.place = &places[i];
		places[i] = (struct pv_place){ 0 };
		snprintf(path, sizeof(path), "/proc/%d/pagemap", pids[i]);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0) {
			places[i].error = -errno;
			continue;
		}
		while (at < end && !places[i].error)
			places[i].error =
				pv_bpf_visit(bpf, fd, &at, end, &mine.visitor);
		close(fd);
	}
}
