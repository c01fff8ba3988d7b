// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Finds how this kernel describes frames: the layout of struct page, and the
 * bits of its flags. If anything is missing, nothing is known: flags are then
 * read from /proc/kpageflags only.
 */
#include "bpf_page.h"

/* struct page has this size; others have debugging data, and are not known. */
#define PAGE_BYTES 64

/* Where csrc/bpf_flags.c expects these members. */
enum { FLAGS_AT = 0, TAIL_AT = 8, MAPCOUNT_AT = 48 };

/* The flags of a page are at most so many. */
#define MAX_FLAGS 48

/* Before Linux 6.11 a type is a bit of page_type that is clear. */
#define OLD_TYPE_BASE 0xf0000000u
#define OLD_BUDDY 0x80u
/* Since then it is a number in the highest byte. */
#define TYPE_SHIFT 24
#define TYPE_MASK 0xff000000u

/* The members that are searched for. */
enum {
	FLAGS,
	MAPPING,
	PRIVATE,
	MAPCOUNT,
	PAGE_TYPE,
	REFCOUNT,
	TAIL,
	FILE_MAPPING,
	MAPPING_PAGES,
	PAGES_HEAD,
	LARGE_MAPCOUNT,
	PAGES_MAPPED,
};

static const struct {
	const char *structure, *member;
	int which;
} wanted[] = {
	{ "page", "flags", FLAGS },
	{ "page", "mapping", MAPPING },
	{ "page", "private", PRIVATE },
	{ "page", "_mapcount", MAPCOUNT },
	{ "page", "page_type", PAGE_TYPE },
	{ "page", "_refcount", REFCOUNT },
	{ "page", "compound_head", TAIL },
	{ "page", "compound_info", TAIL }, /* from 7.1 on */
	{ "file", "f_mapping", FILE_MAPPING },
	{ "address_space", "i_pages", MAPPING_PAGES },
	{ "xarray", "xa_head", PAGES_HEAD },
	{ "folio", "_large_mapcount", LARGE_MAPCOUNT }, /* 6.9 */
	{ "folio", "_nr_pages_mapped", PAGES_MAPPED },	/* 6.2 */
};

/* The flags that are searched for. */
enum { NR_FLAGS, HEAD, RESERVED, LRU, HWPOISON };

static const char *const flag_names[PV_NR_PAGE_FLAGS] = {
	[NR_FLAGS] = "__NR_PAGEFLAGS", [HEAD] = "PG_head",
	[RESERVED] = "PG_reserved",    [LRU] = "PG_lru",
	[HWPOISON] = "PG_hwpoison",
};

static void search_struct(struct pv_page_search *search, const struct btf *btf,
			  uint32_t id)
{
	const struct btf_type *type = btf_type(btf, id);

	for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++) {
		int64_t bits;

		if (!btf_is_named(btf, type->name_off, wanted[i].structure))
			continue;
		if (*wanted[i].structure == 'p')
			search->size = type->size;
		bits = pv_btf_member_bits(btf, id, wanted[i].member, 6);
		if (bits >= 0 && bits % 8 == 0)
			search->members[wanted[i].which] =
				(uint64_t)bits / 8 + 1;
	}
}

static void search_enum(struct pv_page_search *search, const struct btf *btf,
			const struct btf_type *type)
{
	const struct btf_enum *values = (const void *)(type + 1);
	const bool is_flags = btf_is_named(btf, type->name_off, "pageflags");

	if (!is_flags && !btf_is_named(btf, type->name_off, "pagetype"))
		return;
	search->has_types |= !is_flags;
	for (uint32_t i = 0; i < BTF_INFO_VLEN(type->info); i++) {
		uint64_t value = (uint64_t)(uint32_t)values[i].val + 1;

		for (int k = 0; is_flags && k < PV_NR_PAGE_FLAGS; k++)
			if (btf_is_named(btf, values[i].name_off,
					 flag_names[k]))
				search->flags[k] = value;
		if (!is_flags &&
		    btf_is_named(btf, values[i].name_off, "PGTY_buddy"))
			search->buddy_type = value;
	}
}

/* See whether a type is one of those that are searched for. */
void pv_page_search(struct pv_page_search *search, const struct btf *btf,
		    uint32_t id)
{
	const struct btf_type *type = btf_type(btf, id);
	const uint32_t kind = BTF_INFO_KIND(type->info);

	if (!BTF_INFO_VLEN(type->info))
		return;
	if (kind == BTF_KIND_STRUCT)
		search_struct(search, btf, id);
	else if (kind == BTF_KIND_ENUM)
		search_enum(search, btf, type);
}

static uint64_t bit_of(uint64_t found)
{
	return found ? UINT64_C(1) << ((found - 1) & 63) : 0;
}

/* Whether a member is one of the words before mapcount. */
static bool is_word(uint64_t found)
{
	return (found - 1) % sizeof(uint64_t) == 0 && found - 1 < MAPCOUNT_AT;
}

/* All that was found, if it is enough. */
struct pv_page_layout pv_page_layout(const struct pv_page_search *search)
{
	const uint64_t *members = search->members, *flags = search->flags;
	struct pv_page_layout layout = { 0 };

#if !defined(__x86_64__)
	/*
	 * Only x86-64 certainly has all descriptions of frames in one array, at
	 * any address (SPARSEMEM_VMEMMAP).
	 */
	return layout;
#endif
	for (int i = FLAGS; i <= PAGES_HEAD; i++)
		if (!members[i])
			return layout;
	for (int i = NR_FLAGS; i <= LRU; i++)
		if (!flags[i] || flags[i] - 1 > MAX_FLAGS)
			return layout;
	if (search->size != PAGE_BYTES || members[FLAGS] - 1 != FLAGS_AT ||
	    members[TAIL] - 1 != TAIL_AT ||
	    members[MAPCOUNT] - 1 != MAPCOUNT_AT ||
	    members[REFCOUNT] - 1 != MAPCOUNT_AT + 4 ||
	    !is_word(members[MAPPING]) || !is_word(members[PRIVATE]) ||
	    members[PAGE_TYPE] != members[MAPCOUNT] ||
	    (search->has_types && !search->buddy_type))
		return layout;
	layout = (struct pv_page_layout){
		.is_known = true,
		.size = search->size,
		.mapping = (uint32_t)members[MAPPING] - 1,
		.private = (uint32_t)members[PRIVATE] - 1,
		.file_mapping = (uint32_t)members[FILE_MAPPING] - 1,
		.mapping_pages = (uint32_t)members[MAPPING_PAGES] - 1,
		.pages_head = (uint32_t)members[PAGES_HEAD] - 1,
		.flags_mask = bit_of(flags[NR_FLAGS]) - 1,
		.head_flag = bit_of(flags[HEAD]),
		.reserved_flag = bit_of(flags[RESERVED]),
		.lru_flag = bit_of(flags[LRU]),
		.hwpoison_flag = bit_of(flags[HWPOISON]),
		.type_mask = OLD_TYPE_BASE | OLD_BUDDY,
		.buddy_type = OLD_TYPE_BASE,
		.has_folio_mapcount =
			members[LARGE_MAPCOUNT] || members[PAGES_MAPPED],
	};
	if (search->has_types) {
		layout.type_mask = TYPE_MASK;
		layout.buddy_type = (uint32_t)(search->buddy_type - 1)
				    << TYPE_SHIFT;
	}
	return layout;
}
