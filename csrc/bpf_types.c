// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What the BPF walk must know of this kernel, from the kernel's description of
 * its own types (BTF): where members of structures are, and which functions it
 * has. Format: Documentation/bpf/btf.rst
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/btf.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bpf_walk.h"

#define KERNEL_BTF "/sys/kernel/btf/vmlinux"

/* The kernel's description of its own types, in its memory or in a copy. */
struct btf {
	const char *data;
	size_t size;
	bool is_mapped;
	const char *types, *types_end, *names, *names_end;
	uint32_t *places; /* of each type, from types on */
	uint32_t nr_types;
};

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
	       btf->names[name] == *wanted &&
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
	bool vma_lock;	  /* 6.4: a page that could not be read is a marker */
	bool rmap_flags;  /* 5.19, a typedef: migration has 3 types, not 2 */
	bool userfaultfd; /* CONFIG_USERFAULTFD */
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
		{ "handle_userfault", &features->userfaultfd },
	};

	for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++)
		if (btf_is_named(btf, type->name_off, wanted[i].name))
			*wanted[i].there = true;
}

/*
 * The types of markers. Before 6.4 errors had a type of their own, and markers
 * were there only where userfaultfd protects pages from writing.
 */
static int count_markers(const struct features *features)
{
	if (!features->rmap_flags)
		return 0;
	if (features->vma_lock)
		return 1;
	return PV_OLD_UFFD_WP && features->userfaultfd ? 2 : 1;
}

/*
 * Name the types of swap entries. No file of the kernel lists them. The highest
 * types are special and the others are swap areas. The special types from the
 * highest down: markers, errors (until 6.2), device memory, migration, and
 * broken frames. Source: include/linux/swap.h
 */
static void name_swap_types(uint8_t *kinds, const struct features *features)
{
	const struct {
		uint8_t kind;
		int nr;
	} from_top[] = {
		{ PHYSICALVIEW_KIND_MARKER, count_markers(features) },
		{ PHYSICALVIEW_KIND_DEVICE, features->exclusive		? 3
					    : features->exclusive_range ? 4
									: 0 },
		{ PHYSICALVIEW_KIND_MIGRATION, features->rmap_flags ? 3 : 2 },
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
		if (BTF_INFO_KIND(type->info) == BTF_KIND_TYPEDEF &&
		    btf_is_named(&btf, type->name_off, "rmap_t"))
			features->rmap_flags = true;
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

/* Fill in the offsets for the program, and the kinds of swap entries. */
int pv_bpf_find_types(struct pv_bpf *bpf)
{
	struct features features = { 0 };
	int error = find_offsets(&bpf->area->offsets, &features);

	if (error)
		return error;
	if (PV_NEEDS_5_19 && !features.rmap_flags)
		return -ENOTSUP;
	name_swap_types(bpf->swap_kinds, &features);
	return 0;
}
