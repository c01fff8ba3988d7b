// SPDX-License-Identifier: GPL-2.0-or-later
/* Compares processes. */
#include <errno.h>
#include <linux/kcmp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "physview.h"

/*
 * Whether two processes share one address space, as after vfork() or clone()
 * with CLONE_VM. Returns 1, 0 or -errno; -ENOSYS without CONFIG_KCMP.
 */
int pv_same_mm(int one, int other)
{
	long order = syscall(SYS_kcmp, one, other, KCMP_VM, 0, 0);

	return order < 0 ? -errno : order == 0;
}

/*
 * Order two processes by their address spaces, in an order of the kernel's own.
 * Returns 0 if they share one, 1 if one comes first, 2 if other does, or
 * -errno.
 */
int pv_order_of_mm(int one, int other)
{
	long order = syscall(SYS_kcmp, one, other, KCMP_VM, 0, 0);

	if (order < 0)
		return -errno;
	return order <= 2 ? (int)order : -EINVAL;
}
