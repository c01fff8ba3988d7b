/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Functions of csrc/runs.c and csrc/kpage.c that csrc/account.c calls, and
 * Python does not.
 */
#ifndef RUNS_H
#define RUNS_H

#include "physview.h"

/* include/uapi/linux/kernel-page-flags.h */
#define KPF_ANON (UINT64_C(1) << 12)
#define KPF_COMPOUND_HEAD (UINT64_C(1) << 15)
#define KPF_COMPOUND_TAIL (UINT64_C(1) << 16)
#define KPF_HUGE (UINT64_C(1) << 17)
#define KPF_NOPAGE (UINT64_C(1) << 20)
#define KPF_THP (UINT64_C(1) << 22)
#define KPF_ZERO_PAGE (UINT64_C(1) << 24)

/* Values in one read. The kernel examines the frame to make each value. */
#define PV_READER_CHUNK 4096

/*
 * Reads the values of the frames in runs. Runs that are close together are read
 * in one call. The runs are sorted and do not overlap. This struct is too large
 * for a stack.
 */
struct pv_reader {
	int fd;
	const struct pv_frames *runs;
	uint64_t nr_runs;
	uint64_t chunk_first, chunk_nr; /* the frames in chunk */
	uint64_t chunk[PV_READER_CHUNK];
};

int64_t pv_read_values(struct pv_reader *reader, int fd,
		       const struct pv_frames *runs, uint64_t nr_runs,
		       const uint64_t *places, uint64_t *values);

void pv_add_frames(struct pv_account *account, uint64_t vpn, uint64_t pfn,
		   uint64_t nr);
int64_t pv_add_flags(struct pv_account *account, uint64_t vpn, uint64_t pfn,
		     uint64_t nr, const uint64_t *values);

#endif
