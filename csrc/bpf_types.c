// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What the BPF walk must know of this kernel, from the kernel's description of
 * its own types (BTF): where members of structures are, and which functions it
 * has.
 */
#include <errno.h>

#include "bpf_page.h"

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
			struct features *features, struct pv_page_layout *page)
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
	struct pv_page_search search = { 0 };
	struct btf btf = { 0 };
	size_t nr_found = 0;
	int error = pv_btf_open(&btf);

	if (error)
		return error;
	for (uint32_t id = 1; id < btf.nr_types; id++) {
		const struct btf_type *type = btf_type(&btf, id);

		if (BTF_INFO_KIND(type->info) == BTF_KIND_FUNC)
			find_feature(&btf, type, features);
		if (BTF_INFO_KIND(type->info) == BTF_KIND_TYPEDEF &&
		    btf_is_named(&btf, type->name_off, "rmap_t"))
			features->rmap_flags = true;
		pv_page_search(&search, &btf, id);
		if (BTF_INFO_KIND(type->info) != BTF_KIND_STRUCT ||
		    !BTF_INFO_VLEN(type->info))
			continue;
		for (size_t i = 0; i < nr_wanted; i++) {
			int64_t bits;

			if (!btf_is_named(&btf, type->name_off,
					  wanted[i].structure))
				continue;
			bits = pv_btf_member_bits(&btf, id, wanted[i].member,
						  4);
			if (bits >= 0 && bits % 8 == 0) {
				*wanted[i].offset = (__u64)bits / 8;
				nr_found++;
			}
		}
	}
	pv_btf_close(&btf);
	*page = pv_page_layout(&search);
	return nr_found < nr_wanted ? -ENOENT : 0;
}

/*
 * Fill in the offsets for the program, the kinds of swap entries, and how the
 * kernel describes frames.
 */
int pv_bpf_find_types(struct pv_bpf *bpf)
{
	struct features features = { 0 };
	int error = find_offsets(&bpf->area->offsets, &features, &bpf->page);

	if (error)
		return error;
	if (PV_NEEDS_5_19 && !features.rmap_flags)
		return -ENOTSUP;
	name_swap_types(bpf->swap_kinds, &features);
	return 0;
}
