// SPDX-License-Identifier: GPL-2.0-or-later
/* Compares processes. */
#include <errno.h>
#include <linux/kcmp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "physview.h"

/*
 * Order two processes by their address spaces, in an order of the kernel's own.
 * Returns 0 if they share one, as after vfork() or clone() with CLONE_VM; 1 if
 * one comes first, 2 if other does; or -errno: -ENOSYS without CONFIG_KCMP.
 */
int pv_order_of_mm(int one, int other)
{
	long order = syscall(SYS_kcmp, one, other, KCMP_VM, 0, 0);

	if (order < 0)
		return -errno;
	return order <= 2 ? (int)order : -EINVAL;
}
