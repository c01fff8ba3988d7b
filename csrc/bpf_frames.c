// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Copies the kernel's descriptions of frames (struct page) by the BPF program.
 * They are one array, by frame number (vmemmap).
 */
#define _GNU_SOURCE /* memfd_create */
#include "bpf_walk.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

/* A page of our own that moves while it is looked at is tried again. */
#define MAX_TRIES 16

/* Read a word of the kernel's memory; 0 if it cannot be read. */
static uint64_t word_at(struct pv_bpf *bpf, int fd, uint64_t address)
{
	int error;

	bpf->area->word_at = address;
	error = pv_bpf_run_program(bpf, fd, 0, 0);
	bpf->area->word_at = 0;
	return error ? 0 : bpf->area->word;
}

/*
 * Find where the array begins, from the one page of a file: the file leads to
 * its page's description, and pagemap has the page's frame number. The
 * description leads back to the file, which proves it. Returns 0 if there is no
 * such page.
 */
static uint64_t find_start(struct pv_bpf *bpf, int pagemap_fd, int fd,
			   const void *page)
{
	const struct pv_page_layout *layout = &bpf->page;
	uint64_t mapping, described;
	int64_t frame = pv_own_frame(pagemap_fd, page);

	if (frame < 0)
		return 0;
	word_at(bpf, fd, 0); /* finds the file */
	mapping = word_at(bpf, fd, bpf->area->file + layout->file_mapping);
	described = word_at(
		bpf, fd, mapping + layout->mapping_pages + layout->pages_head);
	/* The lowest bits tell that there is more than one page. */
	if (!mapping || !described || described & 3 ||
	    word_at(bpf, fd, described + layout->mapping) != mapping ||
	    pv_own_frame(pagemap_fd, page) != frame)
		return 0;
	return described - (uint64_t)frame * layout->size;
}

/* The same, with a new file, in some tries. Returns 0 if it is not found. */
static uint64_t find_by_new_file(struct pv_bpf *bpf, int pagemap_fd)
{
	int fd = memfd_create("physview", MFD_CLOEXEC);
	uint64_t start = 0;
	void *page;

	if (fd < 0)
		return 0;
	page = MAP_FAILED;
	if (!ftruncate(fd, PV_PAGE))
		page = mmap(NULL, PV_PAGE, PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_POPULATE, fd, 0);
	if (page != MAP_FAILED) {
		for (int i = 0; i < MAX_TRIES && !start; i++)
			start = find_start(bpf, pagemap_fd, fd, page);
		munmap(page, PV_PAGE);
	}
	close(fd);
	return start;
}

/*
 * The frame of the zero page: a private page that is read before it is written
 * is mapped to it. Returns 0 if that is not known.
 */
static uint64_t find_zero_frame(int pagemap_fd)
{
	const volatile char *page = mmap(NULL, PV_PAGE, PROT_READ,
					 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int64_t frame;

	if (page == MAP_FAILED)
		return 0;
	(void)*page;
	frame = pv_own_frame(pagemap_fd, (const void *)page);
	munmap((void *)page, PV_PAGE);
	return frame > 0 ? (uint64_t)frame : 0;
}

/*
 * Find the descriptions of frames. Two files must lead to the same array.
 * Returns 0, or -ENOTSUP if this kernel's descriptions are not known.
 */
int pv_bpf_find_frames(struct pv_bpf *bpf)
{
	uint64_t start, other, zero;
	int fd;

	if (bpf->vmemmap)
		return 0;
	if (!bpf->page.is_known)
		return -ENOTSUP;
	fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	start = find_by_new_file(bpf, fd);
	other = find_by_new_file(bpf, fd);
	zero = find_zero_frame(fd);
	close(fd);
	if (!start || start != other || !zero)
		return -ENOTSUP;
	bpf->vmemmap = start;
	bpf->zero_pfn = zero;
	return 0;
}

/* Ask for the descriptions of some frames: of one part of a table at most. */
void pv_bpf_request_frames(struct pv_bpf *bpf, uint32_t i, uint64_t pfn,
			   uint32_t nr)
{
	const uint32_t size = nr * bpf->page.size;

	bpf->area->requests[i] = (struct bpf_walk_request){
		.vaddr = bpf->vmemmap + pfn * bpf->page.size,
		.copy = BPF_WALK_MEMORY,
		.offset = (__u16)(size % sizeof(bpf->area->tables[i])),
	};
}

/* The description of frame nr of a request; NULL if it could not be read. */
const struct pv_page *pv_bpf_frame(const struct pv_bpf *bpf, uint32_t i,
				   uint32_t nr)
{
	if (bpf->area->answers[i].state != BPF_WALK_COPIED)
		return NULL;
	return (const struct pv_page *)bpf->area->tables[i] + nr;
}
