// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Takes the addresses that the course's program memview2 reports, in this
 * process: argument vectors, a local and a global string, a function, and
 * thirty buffers from malloc().
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "physview.h"

#ifndef __GLIBC__
#error "only glibc passes argv to constructors, and this file needs argv"
#endif

#define NR_BUFS 30
#define BUF_SIZE 4096
#define NR_PROBES (10 + NR_BUFS)

/* More than all free chunks that the interpreter's start can leave behind. */
#define MAX_BUFS 65536

static char **main_argv;
static char **main_envp;

const char *gmsg = "Global message";

/* The first word of each buffer points to the previous buffer. */
struct link {
	struct link *before;
};

/*
 * glibc passes the arguments of main() to constructors, also to those of a
 * shared object that is loaded later. But the third argument is the current
 * environ, which setenv() may have moved. The array that the kernel made
 * directly follows argv.
 */
__attribute__((constructor)) static void remember_argv(int argc, char **argv)
{
	main_argv = argv;
	main_envp = argv + argc + 1;
}

/* Give the page a frame: an untouched page has none yet. */
static void touch(const void *address)
{
	if (address)
		(void)*(const volatile char *)address;
}

static void free_bufs(struct link *last)
{
	while (last) {
		struct link *before = last->before;

		free(last);
		last = before;
	}
}

/*
 * Fill buf with NR_BUFS buffers that are at equal distances. In a new program
 * all buffers from malloc() are. But the interpreter's start has left free
 * chunks in the heap, and malloc() returns these first. So this function
 * allocates until they are used up. Returns the last buffer, which free_bufs()
 * frees with all others; NULL if memory is short.
 */
static struct link *alloc_bufs(char *buf[NR_BUFS])
{
	struct link *last = NULL;
	struct link *at;
	uintptr_t step = 0;
	int in_step = 0;

	for (int i = 0; i < MAX_BUFS && in_step < NR_BUFS; i++) {
		struct link *new = malloc(BUF_SIZE);

		if (!new) {
			free_bufs(last);
			return NULL;
		}
		if (last && (uintptr_t)new - (uintptr_t)last == step) {
			in_step++;
		} else {
			step = (uintptr_t)new - (uintptr_t)last;
			in_step = last ? 2 : 1;
		}
		/* This write also gives the buffer's first page a frame. */
		new->before = last;
		last = new;
	}

	at = last;
	for (int i = NR_BUFS; i--; at = at->before)
		buf[i] = (char *)at;
	return last;
}

static void add(struct pv_probe **next, const char *label, const void *address)
{
	snprintf((*next)->label, sizeof((*next)->label), "%s", label);
	(*next)->vaddr = (uintptr_t)address;
	touch(address);
	(*next)++;
}

uint64_t pv_sizeof_probe(void)
{
	return sizeof(struct pv_probe);
}

/*
 * Take the probes and call visit() with them while their memory exists: lmsg
 * and buf are locals of this function, which frees the buffers at its end. This
 * function stands for memview2's main(), so its address has the label "main".
 * Returns what visit() returns, or -ENOMEM.
 */
int pv_visit_probes(pv_visit_fn *visit, void *arg)
{
	const char *volatile lmsg = "Local message";
	char *buf[NR_BUFS];
	struct pv_probe probes[NR_PROBES];
	struct pv_probe *next = probes;
	struct link *last = alloc_bufs(buf);
	int ret;

	if (!last)
		return -ENOMEM;

	add(&next, "argv", main_argv);
	add(&next, "argv[0]", main_argv[0]);
	add(&next, "envp", main_envp);
	add(&next, "envp[0]", main_envp[0]);
	add(&next, "lmsg", lmsg);
	add(&next, "&lmsg", (const void *)&lmsg);
	add(&next, "gmsg", gmsg);
	add(&next, "&gmsg", &gmsg);
	add(&next, "main", (const void *)pv_visit_probes);
	add(&next, "&buf", buf);
	for (int i = 0; i < NR_BUFS; i++) {
		char label[sizeof(next->label)];

		snprintf(label, sizeof(label), "buf[%02d]", i);
		add(&next, label, buf[i]);
	}

	ret = visit(arg, probes, NR_PROBES);
	free_bufs(last);
	return ret;
}
