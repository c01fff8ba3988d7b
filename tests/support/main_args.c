// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Compares argv and envp of main() with those that csrc/probes.c finds. The
 * program is compiled with PV_ARGS_FROM_PROC: this is the way on musl.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "physview.h"

static char **real_argv;
static char **real_envp;

static int visit(void *arg, const struct pv_probe *probes, int nr)
{
	const uint64_t expected[] = {
		(uintptr_t)real_argv,
		(uintptr_t)real_argv[0],
		(uintptr_t)real_envp,
		(uintptr_t)real_envp[0],
	};
	int failed = nr != 40;

	(void)arg;
	for (int i = 0; i < 4; i++) {
		if (probes[i].vaddr == expected[i])
			continue;
		fprintf(stderr, "%s is not as in main()\n", probes[i].label);
		failed = 1;
	}
	for (int i = 10; i < nr; i++)
		failed |= !probes[i].vaddr;
	return failed;
}

int main(int argc, char **argv, char **envp)
{
	(void)argc;
	real_argv = argv;
	real_envp = envp;
	/* This moves environ, but not the array that the kernel made. */
	if (setenv("PHYSVIEW_ONE_MORE", "1", 1))
		return 2;
	return pv_visit_probes(visit, NULL);
}
