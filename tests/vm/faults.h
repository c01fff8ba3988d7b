/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Faults that the kernel injects: allocations, and copies to and from user
 * space, fail in threads that ask for it. With faults a program could not even
 * start, so each thread asks when all is ready. inject.sh sets the probability.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static inline void ask_for_faults(void)
{
	int fd = open("/proc/thread-self/make-it-fail", O_WRONLY);

	if (fd < 0 || write(fd, "1", 1) != 1) {
		perror("/proc/thread-self/make-it-fail");
		exit(1);
	}
	close(fd);
}

/* The program's last output must arrive. This call may also meet a fault. */
static inline void ask_for_no_faults(void)
{
	int done = 0;

	while (!done) {
		int fd = open("/proc/thread-self/make-it-fail", O_WRONLY);

		if (fd < 0)
			continue;
		done = write(fd, "0", 1) == 1;
		close(fd);
	}
}
