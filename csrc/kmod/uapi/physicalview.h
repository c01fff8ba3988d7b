/* SPDX-License-Identifier: GPL-2.0-or-later WITH Linux-syscall-note */
/*
 * The ABI of /dev/3000physicalview, for programs and for the module.
 *
 * Every structure has fixed-width members only, no hidden padding, and
 * reserved members that must be zero on the way in. An unknown command is
 * ENOTTY, a reserved member that is not zero EINVAL, a bad pointer EFAULT.
 *
 * Everything but INFO and TRANSLATE takes a pid: 0 is the caller's own address
 * space; another process's, in the caller's pid namespace, takes CAP_SYS_ADMIN
 * and CAP_SYS_PTRACE (EPERM). ESRCH means that there is no such process, or
 * that it has no address space: a kernel thread, or one that has ended.
 *
 * Every call takes CAP_SYS_ADMIN (EPERM), unless the module was loaded with
 * insecure=1. Then, without it, a call of one's own memory tells physical
 * addresses, but neither the raw entries nor where the tables lie: these are 0.
 * A capability counts only if both have it: who opened the descriptor, and who
 * calls.
 *
 * Only user addresses are walked. An answer was true while the tables were
 * read; nothing keeps the page where it is.
 */
#ifndef _UAPI_PHYSICALVIEW_H
#define _UAPI_PHYSICALVIEW_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define PHYSICALVIEW_DEVICE "3000physicalview"
#define PHYSICALVIEW_MAGIC 'k'

/* Raised when something that programs use has changed its meaning. */
#define PHYSICALVIEW_ABI_VERSION 1

/* What an entry of the page tables says of a page. */
enum physicalview_kind {
	PHYSICALVIEW_KIND_NONE = 0, /* no entry: never touched, or not mapped */
	PHYSICALVIEW_KIND_PRESENT = 1, /* a page that the hardware reaches */
	PHYSICALVIEW_KIND_PROT_NONE =
		2, /* a page that faults: PROT_NONE, NUMA hint */
	PHYSICALVIEW_KIND_SWAP = 3,	 /* in a swap area */
	PHYSICALVIEW_KIND_MIGRATION = 4, /* on its way to another frame */
	PHYSICALVIEW_KIND_HWPOISON = 5,	 /* its frame is broken */
	PHYSICALVIEW_KIND_DEVICE = 6,	 /* in a device's own memory */
	PHYSICALVIEW_KIND_MARKER =
		7, /* no page: userfaultfd, guard or poison */
	PHYSICALVIEW_KIND_BEYOND = 8, /* not a user address */
	PHYSICALVIEW_KIND_BAD = 9,    /* an entry that makes no sense */
};

/*
 * TRANSLATE, the course's call: an address of the caller's own. phys is 0
 * where there is no page.
 */
struct physicalview_translate {
	__u64 virt; /* in */
	__u64 phys; /* out */
};

/* INFO: what this module is, on this machine. */
struct physicalview_info {
	__u32 abi_version;
	__u32 nr_levels;  /* of page tables: 4 or 5 */
	__u32 page_shift; /* of the smallest page */
	__u32 max_batch;  /* most pages in one BATCH */
	__u64 user_end;	  /* first address that is never walked */
	__u64 reserved;
};

/* What was found at an address. */
struct physicalview_page {
	__u64 paddr;	  /* physical address, or 0 unless kind has a page */
	__u64 entry;	  /* the last entry that was read, as in memory; or 0 */
	__u64 swap;	  /* SWAP to MARKER: type in bits 0-4, offset above */
	__u32 kind;	  /* enum physicalview_kind */
	__u32 page_shift; /* of the page; of the entry's reach if none */
};

/* Levels, from the root down, as they are numbered below. */
enum physicalview_level_name {
	PHYSICALVIEW_PGD = 0,
	PHYSICALVIEW_P4D = 1,
	PHYSICALVIEW_PUD = 2,
	PHYSICALVIEW_PMD = 3,
	PHYSICALVIEW_PTE = 4,
	PHYSICALVIEW_NR_LEVELS = 5,
};

#define PHYSICALVIEW_LEVEL_FOLDED 1 /* the hardware has no such level */
#define PHYSICALVIEW_LEVEL_LEAF 2   /* it maps a page: the walk ends here */
#define PHYSICALVIEW_LEVEL_HIDDEN 4 /* address and entry: no CAP_SYS_ADMIN */

struct physicalview_level {
	__u64 address; /* physical address of the entry; 0 if folded or hidden
			*/
	__u64 entry;   /* the entry, as in memory; 0 if hidden */
	__u32 shift;   /* log2 of what the entry spans */
	__u32 flags;   /* PHYSICALVIEW_LEVEL_* */
};

/* WALK: one address, with the entry of each level that was read. */
struct physicalview_walk {
	__s32 pid;	 /* in */
	__u32 nr_levels; /* out: how many of levels were reached */
	__u64 vaddr;	 /* in */
	struct physicalview_page page;				  /* out */
	struct physicalview_level levels[PHYSICALVIEW_NR_LEVELS]; /* out */
	__u64 reserved;
};

/* BATCH: many addresses in one call. */
struct physicalview_batch {
	__s32 pid;    /* in */
	__u32 nr;     /* in: how many addresses, at most max_batch */
	__u64 vaddrs; /* in: pointer to __u64 [nr] */
	__u64 pages;  /* in: pointer to struct physicalview_page [nr] */
	__u64 reserved;
};

/*
 * Pages in a row, in both address spaces and of one kind. A swap entry or the
 * like is an extent of its own.
 */
struct physicalview_extent {
	__u64 vaddr;
	__u64 paddr;  /* of the first page, or 0 unless kind has pages */
	__u64 length; /* in bytes */
	__u64 entry;  /* of the first page; or 0 */
	__u64 swap;   /* as in struct physicalview_page */
	__u32 kind;   /* enum physicalview_kind, never NONE */
	__u32 page_shift;
};

/*
 * RANGE: everything in [start, end) that is not NONE. It returns when the
 * extents are full, after the whole range, or on a signal, and next says where
 * to go on: the whole range is done when next is end.
 */
struct physicalview_range {
	__s32 pid;     /* in */
	__u32 nr;      /* in: room in extents; out: how many there are */
	__u64 start;   /* in: page-aligned */
	__u64 end;     /* in: page-aligned */
	__u64 extents; /* in: pointer to struct physicalview_extent [nr] */
	__u64 next;    /* out */
	__u64 reserved;
};

/* clang-format off */
#define PHYSICALVIEW_TRANSLATE \
	_IOWR(PHYSICALVIEW_MAGIC, 1, struct physicalview_translate)
#define PHYSICALVIEW_INFO \
	_IOR(PHYSICALVIEW_MAGIC, 2, struct physicalview_info)
#define PHYSICALVIEW_WALK \
	_IOWR(PHYSICALVIEW_MAGIC, 3, struct physicalview_walk)
#define PHYSICALVIEW_BATCH \
	_IOWR(PHYSICALVIEW_MAGIC, 4, struct physicalview_batch)
#define PHYSICALVIEW_RANGE \
	_IOWR(PHYSICALVIEW_MAGIC, 5, struct physicalview_range)
/* clang-format on */

#endif
