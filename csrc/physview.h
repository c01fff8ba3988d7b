/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The compiled core of physview. It knows nothing of Python, prints nothing,
 * keeps no state and never exits: functions return a count, or 0, or -errno.
 * Python calls it without the GIL, so all of it must be thread-safe.
 */
#ifndef PHYSVIEW_H
#define PHYSVIEW_H

#include <stdint.h>

/* No entry could be read: the address is past the end of the pagemap. */
#define PV_NO_ENTRY UINT64_MAX
/* The entry holds no frame number. */
#define PV_NO_PADDR UINT64_MAX

/*
 * An entry of a pagemap: Documentation/admin-guide/mm/pagemap.rst. The frame
 * number, or a swap entry's type and, above it, offset.
 */
#define PM_PFRAME_MASK ((UINT64_C(1) << 55) - 1)
#define PM_MMAP_EXCLUSIVE (UINT64_C(1) << 56)
#define PM_GUARD (UINT64_C(1) << 58)
#define PM_FILE (UINT64_C(1) << 61)
#define PM_SWAP (UINT64_C(1) << 62)
#define PM_PRESENT_BIT 63
#define PM_PRESENT (UINT64_C(1) << PM_PRESENT_BIT)
#define SWAP_TYPE_BITS 5
#define SWAP_TYPE_MASK ((UINT64_C(1) << SWAP_TYPE_BITS) - 1)

#include "cdef.h"

#endif
