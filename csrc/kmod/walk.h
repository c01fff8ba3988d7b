/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef PHYSICALVIEW_WALK_H
#define PHYSICALVIEW_WALK_H

#include <linux/mm_types.h>

#include "uapi/physicalview.h"

/* Extents in the making, in the module's own memory. */
struct physicalview_extents {
	u32 nr;
	u32 room;
	struct physicalview_extent *at;
};

void physicalview_walk_levels(struct mm_struct *mm,
			      struct physicalview_walk *walk);
void physicalview_walk_pages(struct mm_struct *mm, const u64 *vaddrs,
			     struct physicalview_page *pages, u32 nr);
u64 physicalview_walk_table(struct mm_struct *mm, u64 start, u64 end,
			    struct physicalview_extents *extents);

#endif
