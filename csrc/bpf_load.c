// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Loads the BPF program that walks page tables, and finds where the kernel has
 * mapped all of RAM.
 */
#include "bpf_walk.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/btf.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "bpf/walk_program.h"

/* A page of our own that moves while it is looked at is tried again. */
#define MAX_TRIES 16

/* The smallest user space of arm64 has addresses of so many bits. */
#define MIN_USER_BITS 36
#define MAX_USER_BITS 56

/* The root table lies in RAM, below this physical address. */
#define HIGHEST_ROOT (UINT64_C(1) << 48)

#if defined(__aarch64__)
struct arm64_format pv_arm64;
#endif

static long sys_bpf(int command, union bpf_attr *attributes)
{
	return syscall(SYS_bpf, command, attributes, sizeof(*attributes));
}

/*
 * Types of the program's two functions, which the kernel wants of one that has
 * a callback: int walk(void), and static int walk_one(void).
 */
static int load_own_btf(void)
{
	static const struct {
		struct btf_header header;
		struct btf_type integer;
		__u32 bits;
		struct btf_type prototype, walk, walk_one;
		char names[20];
	} __attribute__((packed)) own = {
		.header = { .magic = BTF_MAGIC,
			    .version = BTF_VERSION,
			    .hdr_len = sizeof(struct btf_header),
			    .type_len = 4 * sizeof(struct btf_type) + 4,
			    .str_off = 4 * sizeof(struct btf_type) + 4,
			    .str_len = sizeof(own.names) },
		.integer = { .name_off = 1,
			     .info = BTF_KIND_INT << 24,
			     .size = 4 },
		.bits = BTF_INT_SIGNED << 24 | 32,
		.prototype = { .info = BTF_KIND_FUNC_PROTO << 24, .type = 1 },
		.walk = { .name_off = 5,
			  .info = BTF_KIND_FUNC << 24 | BTF_FUNC_GLOBAL,
			  .type = 2 },
		.walk_one = { .name_off = 10,
			      .info = BTF_KIND_FUNC << 24 | BTF_FUNC_STATIC,
			      .type = 2 },
		.names = "\0int\0walk\0walk_one\0",
	};
	union bpf_attr attributes = { 0 };
	long fd;

	attributes.btf = (uintptr_t)&own;
	attributes.btf_size = sizeof(own);
	fd = sys_bpf(BPF_BTF_LOAD, &attributes);
	return fd < 0 ? -errno : (int)fd;
}

/* Before 5.11 maps counted as locked memory. */
static void allow_locked_memory(void)
{
	const struct rlimit all = { RLIM_INFINITY, RLIM_INFINITY };

	setrlimit(RLIMIT_MEMLOCK, &all);
}

static int make_map(struct pv_bpf *bpf)
{
	union bpf_attr attributes = { 0 };
	void *area;
	long fd;

	attributes.map_type = BPF_MAP_TYPE_ARRAY;
	attributes.key_size = 4;
	attributes.value_size = sizeof(struct bpf_walk_area);
	attributes.max_entries = 1;
	attributes.map_flags = BPF_F_MMAPABLE;
	fd = sys_bpf(BPF_MAP_CREATE, &attributes);
	if (fd < 0 && errno == EPERM) {
		allow_locked_memory();
		fd = sys_bpf(BPF_MAP_CREATE, &attributes);
	}
	if (fd < 0)
		return -errno;
	bpf->map_fd = (int)fd;
	area = mmap(NULL, sizeof(*bpf->area), PROT_READ | PROT_WRITE,
		    MAP_SHARED, bpf->map_fd, 0);
	if (area == MAP_FAILED)
		return -errno;
	bpf->area = area;
	return 0;
}

static int load_program(struct pv_bpf *bpf, char *log, uint32_t log_bytes)
{
	struct bpf_insn
		program[sizeof(bpf_walk_program) / sizeof(struct bpf_insn)];
	const uint32_t nr = sizeof(program) / sizeof(program[0]);
	const struct bpf_func_info functions[] = { { 0, 3 },
						   { BPF_WALK_CALLBACK, 4 } };
	union bpf_attr attributes = { 0 };
	int btf_fd = load_own_btf();
	long fd;

	if (btf_fd < 0)
		return btf_fd;
	memcpy(program, bpf_walk_program, sizeof(program));
	for (uint32_t i = 0; i < nr; i++) {
		if (program[i].code == (BPF_LD | BPF_IMM | BPF_DW)) {
			if (program[i].src_reg == BPF_PSEUDO_MAP_VALUE)
				program[i].imm = bpf->map_fd;
			i++; /* a wide load has two */
		}
	}
	attributes.prog_type = BPF_PROG_TYPE_RAW_TRACEPOINT;
	attributes.insns = (uintptr_t)program;
	attributes.insn_cnt = nr;
	attributes.license = (uintptr_t)"GPL";
	attributes.prog_btf_fd = (uint32_t)btf_fd;
	attributes.func_info = (uintptr_t)functions;
	attributes.func_info_cnt = 2;
	attributes.func_info_rec_size = sizeof(functions[0]);
	memcpy(attributes.prog_name, "physview_walk", sizeof("physview_walk"));
	fd = sys_bpf(BPF_PROG_LOAD, &attributes);
	if (fd < 0 && log_bytes && errno != EPERM) {
		attributes.log_buf = (uintptr_t)log;
		attributes.log_size = log_bytes;
		attributes.log_level = 1;
		fd = sys_bpf(BPF_PROG_LOAD, &attributes);
	}
	if (fd < 0)
		fd = -errno;
	close(btf_fd);
	if (fd < 0)
		return (int)fd;
	bpf->program_fd = (int)fd;
	return 0;
}

/*
 * Run the program for some requests. fd is a descriptor of any file whose
 * private data is an address space, or nothing.
 */
int pv_bpf_run_program(struct pv_bpf *bpf, int fd, uint32_t first, uint32_t nr)
{
	union bpf_attr attributes = { 0 };

	bpf->area->fd = (uint32_t)fd;
	bpf->area->first = first;
	bpf->area->nr = nr;
	attributes.test.prog_fd = (uint32_t)bpf->program_fd;
	return sys_bpf(BPF_PROG_TEST_RUN, &attributes) ? -errno : 0;
}

/* Answer some requests, for the process behind a descriptor of pagemap. */
int pv_bpf_run(struct pv_bpf *bpf, int fd, uint32_t first, uint32_t nr)
{
	int error = pv_bpf_run_program(bpf, fd, first, nr);

	if (error)
		return error;
	return bpf->area->nr_users && bpf->area->nr_users_after ? 0 : -ESRCH;
}

/* The frame of a page of our own, or -errno. */
int64_t pv_own_frame(int pagemap_fd, const void *page)
{
	uint64_t entry = 0;

	/* While the page moves it is not present for a moment. */
	for (int i = 0; i < MAX_TRIES && !(entry & PM_PRESENT); i++)
		if (pread(pagemap_fd, &entry, sizeof(entry),
			  (off_t)((uintptr_t)page / PV_PAGE * 8)) !=
		    sizeof(entry))
			return -EIO;
	if (!(entry & PM_PRESENT) || !(entry & PM_PFRAME_MASK))
		return -EPERM;
	return (int64_t)(entry & PM_PFRAME_MASK);
}

/* Two pages of our own. Each begins with a random word. */
static uint64_t *make_pages(uint64_t *pages[2])
{
	pages[0] = mmap(NULL, 2 * PV_PAGE, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (pages[0] == MAP_FAILED)
		return NULL;
	pages[1] = pages[0] + PV_PAGE / sizeof(**pages);
	for (int i = 0; i < 2; i++) {
		if (getrandom(pages[i], 8, 0) != 8) {
			munmap(pages[0], 2 * PV_PAGE);
			return NULL;
		}
	}
	return pages[0];
}

/* Whether the kernel reads the word of a page there, with RAM mapped at base.
 */
static int is_found(struct pv_bpf *bpf, int pagemap_fd, const uint64_t *page,
		    uint64_t base)
{
	/* Again each time: the page may move meanwhile. */
	int64_t frame = pv_own_frame(pagemap_fd, page);

	if (frame < 0)
		return (int)frame;
	bpf->area->word_at = base + (uint64_t)frame * PV_PAGE;
	return !pv_bpf_run(bpf, pagemap_fd, 0, 0) && bpf->area->word == *page;
}

/*
 * Find where the kernel has mapped all of RAM. The root table lies in that map,
 * which begins at a multiple of 1 GiB below it. A page of ours has a random
 * word: where it is read at base + its physical address, that is the base. A
 * second page proves it.
 */
static int find_direct_map(struct pv_bpf *bpf, int pagemap_fd,
			   uint64_t *pages[2])
{
	uint64_t base, below;
	int found;

	bpf->area->word_at = 0;
	found = pv_bpf_run(bpf, pagemap_fd, 0, 0);
	if (found)
		return found;
	base = bpf->area->pgd & ~(PV_DIRECT_MAP_STEP - 1);
	for (below = 0; below < HIGHEST_ROOT; below += PV_DIRECT_MAP_STEP) {
		found = is_found(bpf, pagemap_fd, pages[0], base - below);
		if (found > 0)
			found = is_found(bpf, pagemap_fd, pages[1],
					 base - below);
		if (found)
			break;
	}
	bpf->area->word_at = 0;
	bpf->area->direct_map = base - below;
	return found < 0 ? found : found ? 0 : -ENXIO;
}

/*
 * Find the number of levels by the size of user space: pagemap has an entry for
 * each page of it, and none above. x86-64 has 47 or 56 bits, and the kernel's
 * half in the same tables. arm64 has 36, 39, 42, 47, 48 or 52.
 */
static int find_levels(struct pv_bpf *bpf, int pagemap_fd)
{
	unsigned int bits = MIN_USER_BITS;
	struct bpf_walk_area *area = bpf->area;
	uint64_t entry;
	ssize_t nr;

	for (;; bits++) {
		nr = pread(pagemap_fd, &entry, sizeof(entry),
			   (off_t)((UINT64_C(1) << bits) / PV_PAGE * 8));
		if (nr < 0)
			return -errno;
		if (!nr)
			break;
		if (bits == MAX_USER_BITS)
			return -ENOTSUP;
	}
	bpf->user_end = (UINT64_C(1) << bits) - PV_USER_GAP;
	bits += PV_KERNEL_BITS;
	bpf->nr_levels =
		(bits - PV_PAGE_SHIFT + PV_TABLE_SHIFT - 1) / PV_TABLE_SHIFT;
	if (bpf->nr_levels < 2 || bpf->nr_levels > BPF_WALK_LEVELS)
		return -ENOTSUP;
	for (uint32_t level = 0; level < bpf->nr_levels; level++)
		area->shifts[level] =
			PV_PAGE_SHIFT +
			PV_TABLE_SHIFT * (bpf->nr_levels - 1 - level);
	return 0;
}

/*
 * Walk to two pages of our own, one of which is PROT_NONE, and compare with
 * pagemap: no answer counts before this one is right. On arm64 their entries
 * also tell what entries look like here.
 */
static int check_walk(struct pv_bpf *bpf, int pagemap_fd, uint64_t *pages[2])
{
	const uint32_t kinds[] = { PHYSICALVIEW_KIND_PRESENT,
				   PHYSICALVIEW_KIND_PROT_NONE };
	struct physicalview_walk walks[2];

	if (mprotect(pages[1], PV_PAGE, PROT_NONE))
		return -errno;
	for (int tries = 0; tries < MAX_TRIES; tries++) {
		bool is_right = true;
		int64_t frames[2];

		for (int i = 0; i < 2; i++) {
			struct physicalview_walk *walk = &walks[i];
			int error;

			walk->vaddr = (uintptr_t)pages[i];
			error = pv_bpf_walk(bpf, pagemap_fd, walk);
			if (error)
				return error;
			frames[i] = pv_own_frame(pagemap_fd, pages[i]);
			if (frames[i] < 0)
				return (int)frames[i];
			is_right &= walk->page.kind == kinds[i] &&
				    walk->page.paddr ==
					    (uint64_t)frames[i] * PV_PAGE;
		}
		if (is_right)
			return 0;
		entry_find_format(walks[0].page.entry,
				  (uint64_t)frames[0] * PV_PAGE,
				  walks[1].page.entry);
	}
	return -EBADMSG;
}

/* Learn what the program must know of this machine. *stage is as below. */
static int find_machine(struct pv_bpf *bpf, int *stage)
{
	uint64_t *pages[2];
	int fd, error;

	*stage = PV_BPF_CHECK;
	bpf->area->frame_mask = PV_FRAME_MASK;
	bpf->area->high_mask = PV_HIGH_MASK;
	bpf->area->high_shift = PV_HIGH_SHIFT;
	bpf->area->table_mask = PV_TABLE_MASK;
	bpf->area->table_value = PV_TABLE_VALUE;
	bpf->area->index_mask = (UINT64_C(1) << PV_TABLE_SHIFT) - 1;
	fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (!make_pages(pages)) {
		error = -errno;
		close(fd);
		return error;
	}
	error = find_levels(bpf, fd);
	if (!error) {
		*stage = PV_BPF_DIRECT_MAP;
		error = find_direct_map(bpf, fd, pages);
	}
	if (!error) {
		*stage = PV_BPF_CHECK;
		error = check_walk(bpf, fd, pages);
	}
	munmap(pages[0], 2 * PV_PAGE);
	close(fd);
	return error;
}

/* Copy what another program knows of this kernel. */
static void copy_knowledge(struct pv_bpf *bpf, const struct pv_bpf *like)
{
	memcpy(bpf->area, like->area, offsetof(struct bpf_walk_area, fd));
	memcpy(bpf->swap_kinds, like->swap_kinds, sizeof(bpf->swap_kinds));
	bpf->nr_levels = like->nr_levels;
	bpf->user_end = like->user_end;
	bpf->page = like->page;
	bpf->vmemmap = like->vmemmap;
	bpf->zero_pfn = like->zero_pfn;
}

/*
 * Loads the program. like is one that is loaded already, or NULL: with it,
 * loading takes half the time. On an error *stage says at what, and the
 * verifier's log is in log. The descriptors are closed by pv_bpf_close(), and
 * by the kernel whenever the process ends: nothing stays loaded.
 */
int pv_bpf_open(struct pv_bpf **opened, const struct pv_bpf *like, int *stage,
		char *log, uint32_t log_bytes)
{
	struct pv_bpf *bpf = calloc(1, sizeof(*bpf));
	int error;

	if (!bpf)
		return -ENOMEM;
#if defined(__aarch64__)
	pv_arm64.page_shift = (unsigned int)__builtin_ctzl(
		(unsigned long)sysconf(_SC_PAGESIZE));
#endif
	bpf->map_fd = bpf->program_fd = -1;
	*stage = PV_BPF_MAP;
	error = make_map(bpf);
	if (error)
		goto fail;
	*stage = PV_BPF_TYPES;
	if (like)
		copy_knowledge(bpf, like);
	else
		error = pv_bpf_find_types(bpf);
	if (error)
		goto fail;
	*stage = PV_BPF_PROGRAM;
	error = load_program(bpf, log, log_bytes);
	if (error)
		goto fail;
	error = like ? 0 : find_machine(bpf, stage);
	if (error)
		goto fail;
	*opened = bpf;
	return (int)bpf->nr_levels;
fail:
	pv_bpf_close(bpf);
	return error;
}

void pv_bpf_close(struct pv_bpf *bpf)
{
	if (bpf->area)
		munmap(bpf->area, sizeof(*bpf->area));
	if (bpf->program_fd >= 0)
		close(bpf->program_fd);
	if (bpf->map_fd >= 0)
		close(bpf->map_fd);
	free(bpf);
}
