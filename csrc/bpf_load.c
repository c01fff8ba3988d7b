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

#define LOG_BYTES (1 << 16)

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

/* Answer some requests, for the process behind a descriptor of pagemap. */
int pv_bpf_run(struct pv_bpf *bpf, int fd, uint32_t first, uint32_t nr)
{
	union bpf_attr attributes = { 0 };

	bpf->area->fd = (uint32_t)fd;
	bpf->area->first = first;
	bpf->area->nr = nr;
	attributes.test.prog_fd = (uint32_t)bpf->program_fd;
	if (sys_bpf(BPF_PROG_TEST_RUN, &attributes))
		return -errno;
	return bpf->area->nr_users && bpf->area->nr_users_after ? 0 : -ESRCH;
}

static int64_t frame_of(int pagemap_fd, const void *page)
{
	uint64_t entry;

	if (pread(pagemap_fd, &entry, sizeof(entry),
		  (off_t)((uintptr_t)page / PV_PAGE * 8)) != sizeof(entry))
		return -EIO;
	if (!(entry & PM_PRESENT) || !(entry & PM_PFRAME_MASK))
		return -EPERM;
	return (int64_t)(entry & PM_PFRAME_MASK);
}

/*
 * Find where the kernel has mapped all of RAM. The root table lies in that map,
 * which begins at a multiple of 1 GiB below it. A page of ours has a random
 * word: where it is read at base + its physical address, that is the base. A
 * second page proves it.
 */
static int find_direct_map(struct pv_bpf *bpf, int pagemap_fd)
{
	uint64_t *pages =
		mmap(NULL, 2 * PV_PAGE, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	uint64_t *other = pages + PV_PAGE / sizeof(*pages);
	struct bpf_walk_area *area = bpf->area;
	int error = -ENXIO;
	uint64_t base;

	if (pages == MAP_FAILED)
		return -errno;
	if (getrandom(pages, 8, 0) != 8 || getrandom(other, 8, 0) != 8) {
		error = -errno;
		goto out;
	}
	area->word_at = 0;
	error = pv_bpf_run(bpf, pagemap_fd, 0, 0);
	if (error)
		goto out;
	error = -ENXIO;
	base = area->pgd & ~(PV_DIRECT_MAP_STEP - 1);
	for (; base >= PV_DIRECT_MAP_LOWEST; base -= PV_DIRECT_MAP_STEP) {
		/* Again each time: the page may move meanwhile. */
		int64_t frame = frame_of(pagemap_fd, pages);

		if (frame < 0) {
			error = (int)frame;
			break;
		}
		area->word_at = base + (uint64_t)frame * PV_PAGE;
		if (pv_bpf_run(bpf, pagemap_fd, 0, 0) || area->word != *pages)
			continue;
		frame = frame_of(pagemap_fd, other);
		if (frame < 0)
			continue;
		area->word_at = base + (uint64_t)frame * PV_PAGE;
		if (pv_bpf_run(bpf, pagemap_fd, 0, 0) || area->word != *other)
			continue;
		area->direct_map = base;
		error = 0;
		break;
	}
out:
	area->word_at = 0;
	munmap(pages, 2 * PV_PAGE);
	return error;
}

/* 5 levels if the address space of a 64-bit process reaches beyond 2^47. */
static int find_levels(struct pv_bpf *bpf, int pagemap_fd)
{
	const uint64_t beyond = (UINT64_C(1) << 47) / PV_PAGE * 8;
	uint64_t entry;
	ssize_t nr = pread(pagemap_fd, &entry, sizeof(entry), (off_t)beyond);

	if (nr < 0)
		return -errno;
	bpf->nr_levels = nr ? 5 : 4;
	for (uint32_t level = 0; level < bpf->nr_levels; level++)
		bpf->area->shifts[level] =
			PV_PAGE_SHIFT +
			PV_TABLE_SHIFT * (bpf->nr_levels - 1 - level);
	return 0;
}

/* Find out what the program must know of this kernel. */
static int find_kernel(struct pv_bpf *bpf)
{
	int pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	int error;

	if (pagemap_fd < 0)
		return -errno;
	bpf->area->frame_mask = PV_FRAME_MASK;
	bpf->area->table_mask = PV_TABLE_MASK;
	bpf->area->table_value = PV_TABLE_VALUE;
	bpf->area->index_mask = BPF_WALK_ENTRIES - 1;
	error = find_levels(bpf, pagemap_fd);
	if (!error)
		error = find_direct_map(bpf, pagemap_fd);
	close(pagemap_fd);
	return error;
}

/* Copy what another program knows of this kernel. */
static void copy_knowledge(struct pv_bpf *bpf, const struct pv_bpf *like)
{
	memcpy(bpf->area, like->area, offsetof(struct bpf_walk_area, fd));
	memcpy(bpf->swap_kinds, like->swap_kinds, sizeof(bpf->swap_kinds));
	bpf->nr_levels = like->nr_levels;
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
	*stage = PV_BPF_DIRECT_MAP;
	error = like ? 0 : find_kernel(bpf);
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
