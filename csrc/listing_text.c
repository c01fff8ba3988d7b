// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The text of a listing's rows: a table, CSV or JSON. The texts of mappings and
 * cgroups come from the caller, who has quoted them.
 * Flags: include/uapi/linux/kernel-page-flags.h, tools/mm/page-types.c.
 */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "listing.h"

#define KPF(bit) (UINT64_C(1) << (bit))
#define KPF_ERROR KPF(1)
#define KPF_ACTIVE KPF(6)
#define KPF_SLAB KPF(7)
#define KPF_WRITEBACK KPF(8)
#define KPF_RECLAIM KPF(9)
#define KPF_IDLE KPF(25)
#define KPF_OWNER_2 KPF(34)
#define KPF_SOFT_DIRTY KPF(40)
#define KPF_ANON_EXCLUSIVE KPF(47)
#define KPF_READAHEAD KPF(48)
#define KPF_SLUB_FROZEN KPF(50)
#define KPF_SLUB_DEBUG KPF(51)
#define KPF_UFFD_WP KPF(57)
#define KPF_GUARD KPF(58)
#define KPF_FILE KPF(61)
#define KPF_SWAP KPF(62)
#define KPF_MMAP_EXCLUSIVE KPF(63)
#define KPF_INTERNAL (UINT64_C(0xffff) << 32)

#define PM_SOFT_DIRTY (UINT64_C(1) << 55)
#define PM_UFFD_WP (UINT64_C(1) << 57)

/* More than all but the names of a mapping and of a cgroup needs. */
#define ROW_ROOM 4096

/* The column of frame numbers in a table: physview/reporters/pages.py. */
#define PFN_WIDTH 13

#define MARKER_GUARD 4
#define MARKER_MAX 7

static const char *const flag_names[64] = {
	[0] = "locked",		[1] = "error",
	[2] = "referenced",	[3] = "uptodate",
	[4] = "dirty",		[5] = "lru",
	[6] = "active",		[7] = "slab",
	[8] = "writeback",	[9] = "reclaim",
	[10] = "buddy",		[11] = "mmap",
	[12] = "anon",		[13] = "swapcache",
	[14] = "swapbacked",	[15] = "compound_head",
	[16] = "compound_tail", [17] = "huge",
	[18] = "unevictable",	[19] = "hwpoison",
	[20] = "nopage",	[21] = "ksm",
	[22] = "thp",		[23] = "offline",
	[24] = "zero_page",	[25] = "idle",
	[26] = "pgtable",	[32] = "reserved",
	[33] = "mlocked",	[35] = "private",
	[36] = "private_2",	[37] = "owner_private",
	[38] = "arch",		[39] = "uncached",
	[40] = "soft_dirty",	[41] = "arch_2",
	[42] = "arch_3",	[47] = "anon_exclusive",
	[48] = "readahead",	[50] = "slub_frozen",
	[51] = "slub_debug",	[57] = "uffd_wp",
	[58] = "guard",		[61] = "file",
	[62] = "swap",		[63] = "mmap_exclusive",
};

/*
 * The flags of a page that are shown. raw: all flags, with those of pagemap, as
 * physview/sources/page_flags.py makes them in expanded(); else those that
 * page-types shows, without idle. PV_NO_ENTRY if there are none.
 */
uint64_t pv_shown_flags(uint64_t flags, uint64_t entry, bool raw)
{
	if (!raw) {
		if (flags == PV_NO_ENTRY)
			return flags;
		if (!(flags & KPF_HUGE))
			flags &= ~(KPF_COMPOUND_HEAD | KPF_COMPOUND_TAIL);
		return flags & ~(KPF_INTERNAL | KPF_IDLE);
	}
	if (flags == PV_NO_ENTRY)
		flags = 0;
	if (flags & KPF_ANON && flags & KPF_OWNER_2)
		flags ^= KPF_OWNER_2 | KPF_ANON_EXCLUSIVE;
	if (flags & KPF_SLAB && flags & KPF_ACTIVE)
		flags ^= KPF_ACTIVE | KPF_SLUB_FROZEN;
	if (flags & KPF_SLAB && flags & KPF_ERROR)
		flags ^= KPF_ERROR | KPF_SLUB_DEBUG;
	if ((flags & (KPF_RECLAIM | KPF_WRITEBACK)) == KPF_RECLAIM)
		flags ^= KPF_RECLAIM | KPF_READAHEAD;
	if (entry & PM_SOFT_DIRTY)
		flags |= KPF_SOFT_DIRTY;
	if (entry & PM_UFFD_WP)
		flags |= KPF_UFFD_WP;
	if (entry & PM_GUARD)
		flags |= KPF_GUARD;
	else if (entry & PM_SWAP)
		flags |= KPF_SWAP;
	if (entry & PM_FILE)
		flags |= KPF_FILE;
	if (entry & PM_MMAP_EXCLUSIVE)
		flags |= KPF_MMAP_EXCLUSIVE;
	return flags;
}

static char *put(char *to, const char *text)
{
	size_t nr = strlen(text);

	memcpy(to, text, nr);
	return to + nr;
}

static char *put_fill(char *to, char fill, int nr)
{
	for (; nr > 0; nr--)
		*to++ = fill;
	return to;
}

/* Put a number, flush right in the width. */
static char *put_number(char *to, uint64_t value, int width)
{
	char digits[20];
	int nr = 0;

	do
		digits[nr++] = (char)('0' + value % 10);
	while (value /= 10);
	to = put_fill(to, ' ', width - nr);
	while (nr)
		*to++ = digits[--nr];
	return to;
}

/* Put 0x and a hexadecimal number of at least nr_digits digits. */
static char *put_hex(char *to, uint64_t value, int nr_digits)
{
	int nr = 16;

	while (nr > 1 && nr > nr_digits && !(value >> (4 * (nr - 1))))
		nr--;
	*to++ = '0';
	*to++ = 'x';
	while (nr)
		*to++ = "0123456789abcdef"[value >> (4 * --nr) & 15];
	return to;
}

/* Put the names of flags. quote is '"' or 0. */
static char *put_flags(char *to, uint64_t flags, char separator, char quote)
{
	char *start = to;

	if (flags == PV_NO_ENTRY) {
		flags = 0;
		if (quote)
			*to++ = quote;
		to = put(to, "no_frame");
		if (quote)
			*to++ = quote;
	}
	for (int bit = 0; flags; bit++, flags >>= 1) {
		if (!(flags & 1))
			continue;
		if (to != start) {
			*to++ = separator;
			if (quote)
				*to++ = ' ';
		}
		if (quote)
			*to++ = quote;
		if (flag_names[bit])
			to = put(to, flag_names[bit]);
		else
			to = put_number(put(to, "bit_"), (uint64_t)bit, 0);
		if (quote)
			*to++ = quote;
	}
	return to;
}

static char *put_string(char *to, const struct pv_strings *strings, uint64_t i)
{
	uint64_t begin = i ? strings->ends[i - 1] : 0;

	memcpy(to, strings->text + begin, strings->ends[i] - begin);
	return to + (strings->ends[i] - begin);
}

static uint64_t size_of(const struct pv_strings *strings, uint64_t i)
{
	return strings->ends[i] - (i ? strings->ends[i - 1] : 0);
}

/* Find a cgroup. Returns nr_inodes if it has no name. */
static uint64_t find_cgroup(const struct pv_listing *listing, uint64_t inode)
{
	uint64_t low = 0, high = listing->nr_inodes;

	while (low < high) {
		uint64_t middle = (low + high) / 2;

		if (listing->inodes[middle] < inode)
			low = middle + 1;
		else
			high = middle;
	}
	return low < listing->nr_inodes && listing->inodes[low] == inode
		       ? low
		       : listing->nr_inodes;
}

static char *put_cgroup(char *to, const struct pv_listing *listing,
			uint64_t inode)
{
	uint64_t at = find_cgroup(listing, inode);

	if (at < listing->nr_inodes)
		return put_string(to, &listing->cgroup_names, at);
	return put_number(put(to, "@"), inode, 0);
}

/* Whether the frame is charged to a cgroup. */
static bool has_cgroup(const struct pv_row *row)
{
	return row->cgroup && row->cgroup != PV_NO_ENTRY;
}

/* Why a page has no frame: PagemapEntry.cause in physview/model.py. */
static const char *cause_of(uint64_t entry)
{
	uint64_t value = entry & PM_PFRAME_MASK;
	uint64_t offset = value >> SWAP_TYPE_BITS;

	if (entry & PM_PRESENT)
		return "hidden";
	if (entry & PM_GUARD)
		return "guard";
	if (!(entry & PM_SWAP))
		return "absent";
	if (!value)
		return "swap_hidden";
	if ((value & SWAP_TYPE_MASK) == PTE_MARKER_SWAP_TYPE &&
	    offset <= MARKER_MAX)
		return offset & MARKER_GUARD ? "guard" : "marker";
	return pv_is_in_area(value) ? "swapped" : "special";
}

/* Whether the entry has a type and an offset of swap. */
static bool has_slot(uint64_t entry)
{
	return !(entry & PM_PRESENT) && entry & PM_SWAP &&
	       entry & PM_PFRAME_MASK;
}

static bool shows_flags(const struct pv_listing *listing,
			const struct pv_row *row)
{
	return listing->how & PV_LIST_FLAGS &&
	       (row->has_frame || listing->how & PV_LIST_RAW);
}

static char *put_cell(char *to, uint64_t value, bool is_known)
{
	*to++ = ' ';
	return is_known ? put_number(to, value, 4) : put(to, "   -");
}

/* Put the frame number as it can be pasted into other commands. */
static char *put_pfn(char *to, const struct pv_row *row)
{
	char number[24], *end = number;

	if (row->has_frame) {
		end = put_hex(put(end, "pfn:"), row->entry & PM_PFRAME_MASK, 1);
		to = put_fill(to, ' ', PFN_WIDTH - (int)(end - number));
		memcpy(to, number, (size_t)(end - number));
		return to + (end - number);
	}
	to = put_fill(to, ' ', PFN_WIDTH - 1);
	*to++ = '-';
	return to;
}

static char *put_table_row(char *to, const struct pv_listing *listing,
			   const struct pv_row *row)
{
	const int how = listing->how;

	to = put(to, "  ");
	if (!(how & PV_LIST_FRAMES)) {
		to = put_hex(to, row->vaddr, 12);
		*to++ = ' ';
		if (!(how & PV_LIST_EACH)) {
			to = put_number(to, row->nr, 8);
			*to++ = ' ';
		}
	}
	to = put_pfn(to, row);
	if (how & PV_LIST_FRAMES && !(how & PV_LIST_EACH)) {
		*to++ = ' ';
		to = put_number(to, row->nr, 8);
	}
	if (how & PV_LIST_MAPCOUNT)
		to = put_cell(to, row->mapcount, row->mapcount != PV_NO_ENTRY);
	if (how & PV_LIST_NODE)
		to = put_cell(to, (uint64_t)row->node, row->node >= 0);
	if (how & PV_LIST_CGROUP && has_cgroup(row)) {
		*to++ = ' ';
		to = put_cgroup(to, listing, row->cgroup);
	}
	if (!row->has_frame) {
		const char *cause = cause_of(row->entry);

		*to++ = ' ';
		to = put(to, cause);
		if (has_slot(row->entry) && strcmp(cause, "guard") != 0) {
			uint64_t slot = row->entry & PM_PFRAME_MASK;

			to = put(to, " (type ");
			to = put_number(to, slot & SWAP_TYPE_MASK, 0);
			to = put(to, ", offset ");
			to = put_hex(to, slot >> SWAP_TYPE_BITS, 1);
			*to++ = ')';
		}
	}
	if (shows_flags(listing, row) && row->flags) {
		*to++ = ' ';
		to = put_flags(to, row->flags, ',', 0);
	}
	*to++ = '\n';
	return to;
}

static char *put_csv_row(char *to, const struct pv_listing *listing,
			 const struct pv_row *row)
{
	const bool only_frames = listing->how & PV_LIST_FRAMES;
	uint64_t pfn = row->entry & PM_PFRAME_MASK;

	if (!only_frames) {
		to = put_hex(to, row->vaddr, 1);
		*to++ = ',';
		to = put_number(to, row->nr, 0);
		*to++ = ',';
	}
	if (row->has_frame) {
		to = put_hex(to, pfn << listing->page_shift, 1);
		*to++ = ',';
		to = put_number(to, pfn, 0);
	} else {
		*to++ = ',';
	}
	*to++ = ',';
	if (only_frames) {
		to = put_number(to, row->nr, 0);
	} else {
		if (!row->has_frame)
			to = put(to, cause_of(row->entry));
		*to++ = ',';
		if (!row->has_frame && has_slot(row->entry)) {
			to = put_number(to, pfn & SWAP_TYPE_MASK, 0);
			*to++ = ',';
			to = put_number(to, pfn >> SWAP_TYPE_BITS, 0);
		} else {
			*to++ = ',';
		}
	}
	*to++ = ',';
	if (shows_flags(listing, row))
		to = put_flags(to, row->flags, '|', 0);
	*to++ = ',';
	if (row->mapcount != PV_NO_ENTRY)
		to = put_number(to, row->mapcount, 0);
	*to++ = ',';
	if (has_cgroup(row))
		to = put_cgroup(to, listing, row->cgroup);
	*to++ = ',';
	if (row->node >= 0)
		to = put_number(to, (uint64_t)row->node, 0);
	if (only_frames)
		*to++ = '\n';
	else
		to = put_string(to, &listing->vma_texts, row->vma);
	return to;
}

static char *put_json_row(char *to, struct pv_listing *listing,
			  const struct pv_row *row)
{
	uint64_t pfn = row->entry & PM_PFRAME_MASK;

	to = put(to,
		 listing->has_json ? ",\n{\"paddr\": \"" : "\n{\"paddr\": \"");
	listing->has_json = 1;
	to = put_hex(to, pfn << listing->page_shift, 1);
	to = put_number(put(to, "\", \"pfn\": "), pfn, 0);
	to = put_number(put(to, ", \"nr_frames\": "), row->nr, 0);
	to = put(to, ", \"flags\": ");
	if (shows_flags(listing, row)) {
		*to++ = '[';
		to = put_flags(to, row->flags, ',', '"');
		*to++ = ']';
	} else {
		to = put(to, "null");
	}
	to = put(to, ", \"mapcount\": ");
	to = row->mapcount != PV_NO_ENTRY ? put_number(to, row->mapcount, 0)
					  : put(to, "null");
	to = put(to, ", \"cgroup\": ");
	if (has_cgroup(row)) {
		uint64_t at = find_cgroup(listing, row->cgroup);

		/* Names are JSON strings with their quotes. */
		if (at == listing->nr_inodes)
			*to++ = '"';
		to = put_cgroup(to, listing, row->cgroup);
		if (at == listing->nr_inodes)
			*to++ = '"';
	} else {
		to = put(to, "null");
	}
	to = put(to, ", \"node\": ");
	to = row->node >= 0 ? put_number(to, (uint64_t)row->node, 0)
			    : put(to, "null");
	return put(to, "}");
}

static int make_room(struct pv_listing *listing, const struct pv_row *row)
{
	uint64_t needed = listing->nr_text + ROW_ROOM;
	char *text;

	if (!(listing->how & PV_LIST_FRAMES))
		needed += size_of(&listing->vma_texts, row->vma);
	if (has_cgroup(row)) {
		uint64_t at = find_cgroup(listing, row->cgroup);

		if (at < listing->nr_inodes)
			needed += size_of(&listing->cgroup_names, at);
	}
	if (needed <= listing->room)
		return 0;
	text = realloc(listing->text, 2 * needed);
	if (!text)
		return -ENOMEM;
	listing->text = text;
	listing->room = 2 * needed;
	return 0;
}

int pv_write_row(struct pv_listing *listing, const struct pv_row *row)
{
	const int how = listing->how;
	char *to;

	if (make_room(listing, row) < 0)
		return -ENOMEM;
	to = listing->text + listing->nr_text;
	if (how & PV_LIST_CSV) {
		to = put_csv_row(to, listing, row);
	} else if (how & PV_LIST_JSON) {
		to = put_json_row(to, listing, row);
	} else {
		if (!(how & PV_LIST_FRAMES) && row->vma != listing->last_vma) {
			to = put_string(to, &listing->vma_texts, row->vma);
			listing->last_vma = row->vma;
		}
		to = put_table_row(to, listing, row);
	}
	listing->nr_text = (uint64_t)(to - listing->text);
	return 0;
}
