/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Compares what BPF, the module and /proc/self/pagemap say. A difference is
 * printed and counted.
 */
#ifndef ARM64_AGREE_H
#define ARM64_AGREE_H

#include <stdint.h>
#include <unistd.h>

#include "../../csrc/bpf_walk.h"

#define PAGE ((unsigned long)getpagesize())
#define NR_EXTENTS 4096
/* Documentation/admin-guide/mm/pagemap.rst */
#define PM_FRAME PM_PFRAME_MASK

extern int device, pagemap, failures;
extern struct pv_bpf *bpf;

void fail(const char *name, const char *what, uint64_t is, uint64_t wanted);
void must(int fine, const char *what);
uint64_t read_pagemap(uint64_t vaddr);
void check_bpf(const char *name, uint64_t vaddr, int fd,
	       const struct physicalview_walk *theirs);
void check(const char *name, uint64_t vaddr, uint32_t kind);
void check_bpf_range(const char *name, uint64_t start, uint64_t end,
		     const struct physicalview_extent *theirs, uint64_t nr);
void check_range(const char *name, uint64_t start, uint64_t end);

#endif
