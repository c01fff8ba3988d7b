// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Two processes with one address space. Prints an address that has a page, and
 * the pid of the other process. Then waits until its input ends.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

static char stack[1 << 16];
static char page[1 << 16];

static int wait_for_death(void *unused)
{
	(void)unused;
	pause();
	return 0;
}

int main(void)
{
	int pid;

	page[sizeof(page) / 2] = 1;
	pid = clone(wait_for_death, stack + sizeof(stack), CLONE_VM | SIGCHLD,
		    NULL);
	if (pid < 0)
		return 1;
	printf("%p %d\n", (void *)&page[sizeof(page) / 2], pid);
	fflush(stdout);
	getchar();
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	return 0;
}
