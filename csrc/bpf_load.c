// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Loads the BPF program that walks page tables, and finds what it must know of
 * this kernel: where members of structures are, and where the direct map is.
 */
#include "bpf_walk.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/btf.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "bpf/walk_program.h"
#include "kmod/uapi/physicalview.h"

#define KERNEL_BTF "/sys/kernel/btf/vmlinux"
#define LOG_BYTES (1 << 16)

/* The kernel's description of its own types, in its memory or in a copy. */
struct btf {
	const char *data;
	size_t size;
	bool is_mapped;
	const char *types, *types_end, *names, *names_end;
	uint32_t *places; /* of each type, from types on */
	uint32_t nr_types;
};

static long sys_bpf(int command, union bpf_attr *attributes)
{
	return syscall(SYS_bpf, command, attributes, sizeof(*attributes));
}

/* The size of a type's description; 0 for a kind that is not known. */
static size_t btf_type_bytes(const struct btf_type *type)
{
	size_t nr = BTF_INFO_VLEN(type->info), more;

	switch (BTF_INFO_KIND(type->info)) {
	case BTF_KIND_PTR:
	case BTF_KIND_FWD:
	case BTF_KIND_TYPEDEF:
	case BTF_KIND_VOLATILE:
	case BTF_KIND_CONST:
	case BTF_KIND_RESTRICT:
	case BTF_KIND_FUNC:
	case 16: /* BTF_KIND_FLOAT, 5.13 */
	case 18: /* BTF_KIND_TYPE_TAG, 5.17 */
		more = 0;
		break;
	case BTF_KIND_INT:
	case BTF_KIND_VAR:
	case 17: /* BTF_KIND_DECL_TAG, 5.16 */
		more = 4;
		break;
	case BTF_KIND_ARRAY:
		more = sizeof(struct btf_array);
		break;
	case BTF_KIND_STRUCT:
	case BTF_KIND_UNION:
		more = nr * sizeof(struct btf_member);
		break;
	case BTF_KIND_DATASEC:
	case 19: /* BTF_KIND_ENUM64, 6.0 */
		more = nr * 12;
		break;
	case BTF_KIND_ENUM:
	case BTF_KIND_FUNC_PROTO:
		more = nr * 8;
		break;
	default:
		return 0;
	}
	return sizeof(*type) + more;
}

static const struct btf_type *btf_type(const struct btf *btf, uint32_t id)
{
	return (const void *)(btf->types + btf->places[id]);
}

static bool btf_is_named(const struct btf *btf, uint32_t name,
			 const char *wanted)
{
	size_t length = strlen(wanted) + 1;

	return name < (size_t)(btf->names_end - btf->names) &&
	       (size_t)(btf->names_end - btf->names) - name >= length &&
	       !memcmp(btf->names + name, wanted, length);
}

static void close_btf(struct btf *btf)
{
	free(btf->places);
	if (btf->is_mapped)
		munmap((void *)btf->data, btf->size);
	else
		free((void *)btf->data);
}

/* Read or map the file: from 6.16 on it can be mapped. */
static int read_btf(struct btf *btf)
{
	int fd = open(KERNEL_BTF, O_RDONLY | O_CLOEXEC), error;
	struct stat status;
	size_t done = 0;
	char *data;

	if (fd < 0)
		return -errno;
	if (fstat(fd, &status)) {
		error = -errno;
		close(fd);
		return error;
	}
	btf->size = (size_t)status.st_size;
	data = mmap(NULL, btf->size, PROT_READ, MAP_PRIVATE, fd, 0);
	btf->is_mapped = data != MAP_FAILED;
	if (!btf->is_mapped) {
		data = malloc(btf->size);
		if (!data) {
			close(fd);
			return -ENOMEM;
		}
		while (done < btf->size) {
			ssize_t nr = read(fd, data + done, btf->size - done);

			if (nr <= 0) {
				error = nr < 0 ? -errno : -EINVAL;
				free(data);
				close(fd);
				return error;
			}
			done += (size_t)nr;
		}
	}
	btf->data = data;
	close(fd);
	return 0;
}

static int open_btf(struct btf *btf)
{
	const struct btf_header *header;
	const char *at;
	int error = read_btf(btf);

	if (error)
		return error;
	header = (const void *)btf->data;
	if (btf->size < sizeof(*header) || header->magic != BTF_MAGIC ||
	    (uint64_t)header->hdr_len + header->type_off + header->type_len >
		    btf->size ||
	    (uint64_t)header->hdr_len + header->str_off + header->str_len >
		    btf->size)
		goto bad;
	btf->types = btf->data + header->hdr_len + header->type_off;
	btf->types_end = btf->types + header->type_len;
	btf->names = btf->data + header->hdr_len + header->str_off;
	btf->names_end = btf->names + header->str_len;
	/* A type has 12 bytes at least; number 0 is void. */
	btf->places = malloc((header->type_len / sizeof(struct btf_type) + 2) *
			     sizeof(*btf->places));
	if (!btf->places) {
		close_btf(btf);
		return -ENOMEM;
	}
	btf->nr_types = 1;
	btf->places[0] = 0;
	for (at = btf->types; at < btf->types_end;) {
		size_t size = btf_type_bytes((const void *)at);

		if (!size || size > (size_t)(btf->types_end - at))
			goto bad;
		btf->places[btf->nr_types++] = (uint32_t)(at - btf->types);
		at += size;
	}
	return 0;
bad:
	close_btf(btf);
	return -EINVAL;
}

/* The offset of a member in bits, also of one in a nameless struct; or -1. */
static int64_t member_bits(const struct btf *btf, uint32_t id, const char *name,
			   int depth)
{
	const struct btf_type *type = btf_type(btf, id);
	const struct btf_member *members = (const void *)(type + 1);

	for (uint32_t i = 0; i < BTF_INFO_VLEN(type->info); i++) {
		int64_t bits =
			BTF_INFO_KFLAG(type->info)
				? BTF_MEMBER_BIT_OFFSET(members[i].offset)
				: members[i].offset;
		uint32_t kind;

		if (btf_is_named(btf, members[i].name_off, name))
			return bits;
		if (members[i].name_off || members[i].type >= btf->nr_types ||
		    !depth)
			continue;
		kind = BTF_INFO_KIND(btf_type(btf, members[i].type)->info);
		if (kind == BTF_KIND_STRUCT || kind == BTF_KIND_UNION) {
			int64_t inner = member_bits(btf, members[i].type, name,
						    depth - 1);

			if (inner >= 0)
				return bits + inner;
		}
	}
	return -1;
}

/* Functions that tell how this kernel was built. */
struct features {
	bool memory_failure;  /* CONFIG_MEMORY_FAILURE */
	bool exclusive_range; /* CONFIG_DEVICE_PRIVATE until 6.14: 4 types */
	bool exclusive;	      /* the same from 6.15 on: 3 types */
	bool vma_lock; /* 6.4: a page that could not be read is a marker */
};

static void find_feature(const struct btf *btf, const struct btf_type *type,
			 struct features *features)
{
	const struct {
		const char *name;
		bool *there;
	} wanted[] = {
		{ "memory_failure", &features->memory_failure },
		{ "make_device_exclusive_range", &features->exclusive_range },
		{ "make_device_exclusive", &features->exclusive },
		{ "lock_vma_under_rcu", &features->vma_lock },
	};

	for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++)
		if (btf_is_named(btf, type->name_off, wanted[i].name))
			*wanted[i].there = true;
}

/*
 * What the types of swap entries are, which no file tells: the highest numbers
 * are no swap areas. From the top: markers, errors (until 6.2), device memory,
 * migration, and broken frames. Source: include/linux/swap.h
 */
static void name_swap_types(uint8_t *kinds, const struct features *features)
{
	const struct {
		uint8_t kind;
		int nr;
	} from_top[] = {
		{ PHYSICALVIEW_KIND_MARKER, features->vma_lock ? 1 : 2 },
		{ PHYSICALVIEW_KIND_DEVICE, features->exclusive		? 3
					    : features->exclusive_range ? 4
									: 0 },
		{ PHYSICALVIEW_KIND_MIGRATION, 3 },
		{ PHYSICALVIEW_KIND_HWPOISON, features->memory_failure },
	};
	int type = 1 << SWAP_TYPE_BITS;

	memset(kinds, PHYSICALVIEW_KIND_SWAP, (size_t)type);
	for (size_t i = 0; i < sizeof(from_top) / sizeof(from_top[0]); i++)
		for (int nr = from_top[i].nr; nr; nr--)
			kinds[--type] = from_top[i].kind;
}

/* Find all offsets. -ENOENT if this kernel has no such member. */
static int find_offsets(struct bpf_walk_offsets *offsets,
			struct features *features)
{
	const struct {
		const char *structure, *member;
		__u64 *offset;
	} wanted[] = {
		{ "task_struct", "files", &offsets->task_files },
		{ "files_struct", "fdt", &offsets->files_fdt },
		{ "fdtable", "fd", &offsets->fdt_fd },
		{ "file", "private_data", &offsets->file_private_data },
		{ "mm_struct", "pgd", &offsets->mm_pgd },
		{ "mm_struct", "mm_users", &offsets->mm_users },
	};
	const size_t nr_wanted = sizeof(wanted) / sizeof(wanted[0]);
	struct btf btf = { 0 };
	size_t nr_found = 0;
	int error = open_btf(&btf);

	if (error)
		return error;
	for (uint32_t id = 1; id < btf.nr_types; id++) {
		const struct btf_type *type = btf_type(&btf, id);

		if (BTF_INFO_KIND(type->info) == BTF_KIND_FUNC)
			find_feature(&btf, type, features);
		if (BTF_INFO_KIND(type->info) != BTF_KIND_STRUCT ||
		    !BTF_INFO_VLEN(type->info))
			continue;
		for (size_t i = 0; i < nr_wanted; i++) {
			int64_t bits;

			if (!btf_is_named(&btf, type->name_off,
					  wanted[i].structure))
				continue;
			bits = member_bits(&btf, id, wanted[i].member, 4);
			if (bits >= 0 && bits % 8 == 0) {
				*wanted[i].offset = (__u64)bits / 8;
				nr_found++;
			}
		}
	}
	close_btf(&btf);
	return nr_found < nr_wanted ? -ENOENT : 0;
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

/* Run the program once, for the process behind a descriptor of pagemap. */
int pv_bpf_run(struct pv_bpf *bpf, int fd, uint32_t nr_requests)
{
	union bpf_attr attributes = { 0 };

	bpf->area->fd = (uint32_t)fd;
	bpf->area->nr_requests = nr_requests;
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
	error = pv_bpf_run(bpf, pagemap_fd, 0);
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
		if (pv_bpf_run(bpf, pagemap_fd, 0) || area->word != *pages)
			continue;
		frame = frame_of(pagemap_fd, other);
		if (frame < 0)
			continue;
		area->word_at = base + (uint64_t)frame * PV_PAGE;
		if (pv_bpf_run(bpf, pagemap_fd, 0) || area->word != *other)
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

/*
 * Loads the program. On an error *stage says at what, and the verifier's log is
 * in log. The descriptors are closed by pv_bpf_close(), and by the kernel
 * whenever the process ends: nothing stays loaded.
 */
int pv_bpf_open(struct pv_bpf **opened, int *stage, char *log,
		uint32_t log_bytes)
{
	struct pv_bpf *bpf = calloc(1, sizeof(*bpf));
	struct features features = { 0 };
	int pagemap_fd = -1, error;

	if (!bpf)
		return -ENOMEM;
	bpf->map_fd = bpf->program_fd = -1;
	*stage = PV_BPF_MAP;
	error = make_map(bpf);
	if (error)
		goto fail;
	*stage = PV_BPF_TYPES;
	error = find_offsets(&bpf->area->offsets, &features);
	if (error)
		goto fail;
	name_swap_types(bpf->swap_kinds, &features);
	*stage = PV_BPF_PROGRAM;
	error = load_program(bpf, log, log_bytes);
	if (error)
		goto fail;
	*stage = PV_BPF_DIRECT_MAP;
	pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (pagemap_fd < 0) {
		error = -errno;
		goto fail;
	}
	bpf->area->frame_mask = PV_FRAME_MASK;
	bpf->area->table_mask = PV_TABLE_MASK;
	bpf->area->table_value = PV_TABLE_VALUE;
	bpf->area->index_mask = BPF_WALK_ENTRIES - 1;
	error = find_levels(bpf, pagemap_fd);
	if (!error)
		error = find_direct_map(bpf, pagemap_fd);
	close(pagemap_fd);
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
