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

#include "cdef.h"
#include "entry.h"

#endif
