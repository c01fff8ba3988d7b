/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The compiled core of physview. The core knows nothing of Python, prints
 * nothing and never exits. Functions return a count, 0 or -errno. Python calls
 * the core without the GIL, so every function must be thread-safe. All of its
 * state is written once, with values that no later call changes: the arguments
 * of main() in probes.c, the addresses by which arrow.c gives an object back,
 * and, on arm64, the kernel's format of entries in bpf_load.c.
 */
#ifndef PHYSVIEW_H
#define PHYSVIEW_H

#include <stdint.h>

/* No entry could be read. The address is past the end of the pagemap. */
#define PV_NO_ENTRY UINT64_MAX
/* The entry holds no frame number. */
#define PV_NO_PADDR UINT64_MAX

#include "cdef.h"
#include "cdef_arrow.h"
#include "cdef_files.h"
#include "entry.h"

#endif
