/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Counts frames by value: what csrc/bpf_flags.c uses of csrc/kpage.c. */
#ifndef PV_KPAGE_H
#define PV_KPAGE_H

#include "physview.h"

struct pv_counter;

struct pv_counter *pv_counter_start(void);
void pv_counter_add(struct pv_counter *counter, uint64_t value, uint64_t nr);
int64_t pv_counter_read(struct pv_counter *counter, int fd,
			const struct pv_frames *runs, uint64_t nr_runs);
int64_t pv_counter_end(struct pv_counter *counter, struct pv_count *counts,
		       uint64_t room);

#endif
