// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Takes the addresses that the course's program memview2 reports, in this
 * process: argument vectors, a local and a global string, a function, and
 * thirty buffers from malloc().
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "physview.h"

#define NR_BUFS 30
#define BUF_SIZE 4096
#define NR_PROBES (10 + NR_BUFS)

#ifdef __GLIBC__
/* More than all free chunks that the interpreter's start can leave behind. */
#define MAX_BUFS 65536
#else
/* musl's malloc() takes blocks from small groups, so a search is in vain. */
#define MAX_BUFS NR_BUFS
#define PV_ARGS_FROM_PROC
#endif

/* The arrays that the kernel made for main(). */
struct main_args {
	char **argv;
	char **envp;
};

const char *gmsg = "Global message";

/* The first word of each buffer points to the previous buffer. */
struct link {
	struct link *before;
};

#ifndef PV_ARGS_FROM_PROC
static struct main_args main_args;

/*
 * glibc passes the arguments of main() to constructors, also to those of a
 * shared object that is loaded later. But the third argument is the current
 * environ, which setenv() may have moved. The array that the kernel made
 * directly follows argv.
 */
__attribute__((constructor)) static void remember_args(int argc, char **argv)
{
	main_args.argv = argv;
	main_args.envp = argv + argc + 1;
}

static int find_args(struct main_args *args)
{
	*args = main_args;
	return 0;
}
#else
/* Fields of /proc/PID/stat, which proc_pid_stat(5) counts from 1. */
enum { STAT_START_STACK = 28, STAT_ARG_START = 48, STAT_ARG_END = 49 };
#define NR_STAT (STAT_ARG_END + 1)

static int read_stat(uintptr_t fields[NR_STAT])
{
	char text[2048];
	char *at;
	size_t nr;
	FILE *file = fopen("/proc/self/stat", "re");

	if (!file)
		return -errno;
	nr = fread(text, 1, sizeof(text) - 1, file);
	fclose(file);
	text[nr] = 0;
	/* The second field, a name, may have any byte but 0. */
	at = strrchr(text, ')');
	for (int field = 3; at && field < NR_STAT; field++) {
		at = strchr(at + 1, ' ');
		fields[field] = at ? strtoul(at + 1, NULL, 10) : 0;
	}
	return at ? 0 : -EIO;
}

/*
 * musl passes nothing to constructors. The kernel makes, from lower addresses
 * to higher ones: argc, argv, NULL, envp, NULL, the auxiliary vector, and the
 * strings of argv. So the last pointer below the strings that points to them is
 * the end of argv. Its begin may be behind argc: if the program was started by
 * the name of musl's loader, the loader's own arguments are left out.
 */
static int find_args(struct main_args *args)
{
	uintptr_t fields[NR_STAT];
	const uintptr_t *bottom, *slot;
	uintptr_t begin, end;
	int ret = read_stat(fields);

	if (ret)
		return ret;
	begin = fields[STAT_ARG_START];
	end = fields[STAT_ARG_END];
	bottom = (const uintptr_t *)fields[STAT_START_STACK];
	if (!bottom || !begin)
		return -EACCES;
	slot = (const uintptr_t *)(begin & -sizeof(*slot)) - 1;
	while (slot > bottom && (*slot < begin || *slot >= end))
		slot--;
	if (slot <= bottom)
		return -ENODATA;
	args->envp = (char **)(slot + 2);
	while (slot > bottom && *slot >= begin && *slot < end)
		slot--;
	args->argv = (char **)(slot + 1);
	return 0;
}
#endif

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
 * Returns what visit() returns, -ENOMEM, or why argv is not known: -errno of
 * /proc/self/stat.
 */
int pv_visit_probes(pv_visit_fn *visit, void *arg)
{
	const char *volatile lmsg = "Local message";
	char *buf[NR_BUFS];
	struct pv_probe probes[NR_PROBES];
	struct pv_probe *next = probes;
	struct main_args args;
	struct link *last;
	int ret = find_args(&args);

	if (ret)
		return ret;
	last = alloc_bufs(buf);
	if (!last)
		return -ENOMEM;

	add(&next, "argv", args.argv);
	add(&next, "argv[0]", args.argv[0]);
	add(&next, "envp", args.envp);
	add(&next, "envp[0]", args.envp[0]);
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
