// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The addresses that the course's program memview2 reports, taken in this
 * process: its argument vectors, a local and a global string, a function, and
 * thirty buffers from malloc().
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "physview.h"

#ifndef __GLIBC__
#error "argv comes from glibc, which alone hands it to constructors"
#endif

#define NR_BUFS 30
#define BUF_SIZE 4096
#define NR_PROBES (10 + NR_BUFS)

/* Enough to use up every free chunk that start-up can have left behind. */
#define MAX_BUFS 65536

static char **main_argv;
static char **main_envp;

const char *gmsg = "Global message";

/* The first word of each buffer leads to the one before it. */
struct link {
	struct link *before;
};

/*
 * glibc calls constructors, also those of a shared object that is loaded
 * later, as main() is called. It passes today's environ, though, which setenv()
 * may have moved; the array that the kernel made lies right behind argv.
 */
__attribute__((constructor)) static void remember_argv(int argc, char **argv)
{
	main_argv = argv;
	main_envp = argv + argc + 1;
}

/* A page that nothing has touched has no frame yet. */
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
 * Fill buf with NR_BUFS buffers that malloc() handed out in equal steps. In a
 * new program every one is; here the interpreter's start has left free chunks
 * all over the heap, and malloc() hands those out first. So allocate until
 * they are used up. Returns the last buffer, to be freed with free_bufs().
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
		/* This also gives the buffer's first page its frame. */
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
 * Take the probes and show them to visit() while they are all alive: lmsg and
 * buf are locals of this function, and the buffers are freed after it. It
 * stands for memview2's main(), so its own address is the one of that label.
 * Returns what visit() does, or -ENOMEM.
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
