// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Prints the numbers and sizes in the header. A test compares them with
 * physview/sources/kmod.py.
 */
#include <stdio.h>

#include "../../csrc/kmod/uapi/physicalview.h"

#define SHOW(name, type)                                                       \
	printf("%s %#x %zu\n", #name, (unsigned int)PHYSICALVIEW_##name,       \
	       sizeof(struct type))

int main(void)
{
	SHOW(TRANSLATE, physicalview_translate);
	SHOW(INFO, physicalview_info);
	SHOW(WALK, physicalview_walk);
	SHOW(BATCH, physicalview_batch);
	SHOW(RANGE, physicalview_range);
	printf("page 0x0 %zu\n", sizeof(struct physicalview_page));
	printf("extent 0x0 %zu\n", sizeof(struct physicalview_extent));
	return 0;
}
