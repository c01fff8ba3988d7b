// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Prints the report of memview from the core alone, without Python. It is
 * linked with the compiled core of a wheel, to run it with a C library for
 * which this machine has no Python: scripts/ci/musl-wheel.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#include "physview.h"

static int print(void *arg, const struct pv_probe *probes, int nr)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	long page_bytes = sysconf(_SC_PAGESIZE);
	unsigned int shift = (unsigned int)__builtin_ctzl(page_bytes);

	(void)arg;
	for (int i = 0; fd >= 0 && i < nr; i++) {
		uint64_t entry, paddr;

		if (pv_pagemap_read(fd, probes[i].vaddr >> shift, 1, &entry) !=
		    1)
			return 1;
		pv_decode(shift, &probes[i].vaddr, 1, &entry, &paddr);
		printf("%s:  0x%016" PRIx64 " -> ", probes[i].label,
		       probes[i].vaddr);
		if (paddr == PV_NO_PADDR)
			puts("UNKNOWN");
		else
			printf("0x%016" PRIx64 "\n", paddr);
	}
	return fd < 0;
}

int main(void)
{
	puts("Memory map report (virtual -> physical)");
	return pv_visit_probes(print, NULL);
}
