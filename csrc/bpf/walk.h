/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the BPF program and the core share: one map's value, which the core maps
 * into its own memory. The core writes a question and requests, the program
 * writes answers and copies of page tables.
 */
#ifndef BPF_WALK_H
#define BPF_WALK_H

#include <linux/types.h>

/*
 * A table is as large as a page: 4, 16 or 64 KiB. It is copied in parts of 4
 * KiB, which have so many entries.
 */
enum { BPF_WALK_REQUESTS = 256, BPF_WALK_LEVELS = 5, BPF_WALK_ENTRIES = 512 };

/* One walk: from the root down, so many entries, for an address. */
struct bpf_walk_request {
	__u64 vaddr;
	__u32 nr_levels; /* follow so many entries */
	/* Then copy the part of the table that the last of them leads to. */
	__u16 copy;
	__u16 offset; /* of the part, in bytes */
};

/*
 * The other kind of request, for which copy has this value: copy the kernel's
 * own memory. Then vaddr is the kernel's address, nr_levels is 0, and offset is
 * the number of bytes; 0 is as much as a part of a table.
 */
enum { BPF_WALK_MEMORY = 2 };

enum {
	BPF_WALK_COPIED = 1,
	/* The kernel could not read there: the table went. */
	BPF_WALK_FAULT = 2,
	/* An entry on the way changed while the table was copied. */
	BPF_WALK_UNSTABLE = 4,
};

struct bpf_walk_answer {
	__u64 address[BPF_WALK_LEVELS]; /* of each entry, in the direct map */
	__u64 entry[BPF_WALK_LEVELS];
	__u32 nr_read; /* so many were read: the last may lead nowhere */
	__u32 state;
};

/* Where in the kernel's structures a member is, in bytes. From the kernel's
 * BTF. */
struct bpf_walk_offsets {
	__u64 task_files;
	__u64 files_fdt;
	__u64 fdt_fd;
	__u64 file_private_data;
	__u64 mm_pgd;
	__u64 mm_users;
};

struct bpf_walk_area {
	struct bpf_walk_offsets offsets;
	__u64 direct_map; /* where physical address 0 is mapped */
	__u64 frame_mask; /* the bits of an entry that are a physical address */
	__u64 high_mask;  /* and those that are its highest bits, */
	__u64 high_shift; /* if they are moved up so far */
	__u64 table_mask; /* an entry leads to a table if these bits... */
	__u64 table_value;	       /* ...have this value */
	__u64 index_mask;	       /* entries in a table, less one */
	__u32 shifts[BPF_WALK_LEVELS]; /* of the address, for each level's index
					*/
	__u32 fd;      /* of /proc/PID/pagemap, of this process */
	__u32 first;   /* the first request to answer */
	__u32 nr;      /* and how many */
	__u64 word_at; /* an address to read, or 0 */
	/* The program writes what follows. */
	__u64 word;	/* what stands at word_at */
	__u64 file;	/* the address of the file behind fd */
	__u64 pgd;	/* the root table */
	__u32 nr_users; /* tasks with the address space: 0 if it is gone */
	__u32 nr_users_after;
	struct bpf_walk_request requests[BPF_WALK_REQUESTS];
	struct bpf_walk_answer answers[BPF_WALK_REQUESTS];
	__u64 tables[BPF_WALK_REQUESTS][BPF_WALK_ENTRIES];
};

#endif
