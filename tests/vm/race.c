// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Walks memory while other threads change it. Two threads walk an arena through
 * the module, by range and address by address. Other threads unmap and map it,
 * protect it, fork (which write-protects it), collapse and split huge pages,
 * swap it out, and compact the machine's memory. No walk may find an invalid
 * entry, or a page that was never there. A page that no thread changes must
 * keep its answer.
 *
 * Usage: race SECONDS [faults|mutate]; prints how many walks there were. With
 * faults the walkers' calls meet those of inject.sh. With mutate nothing walks
 * here: it prints where the arena is, for a walker in another process.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../../csrc/kmod/uapi/physicalview.h"
#include "faults.h"

#define HUGE_SIZE (2UL << 20)
#define ARENA_SIZE (8 * HUGE_SIZE)
#define PAGE 4096UL

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

static char *arena;
static volatile int stop;
static int with_faults, only_mutate;
static uint64_t nr_walked;
static uint64_t nr_bad;

static uint32_t next(uint32_t *state)
{
	*state = *state * 1664525 + 1013904223;
	return *state >> 8;
}

/* Each mutator has its own part; else it would touch what another unmapped. */
static void *mutate(void *part)
{
	uint32_t state = (uint32_t)(uintptr_t)part;
	const size_t part_size = ARENA_SIZE / 2;

	while (!stop) {
		size_t size = (1 + next(&state) % 64) * PAGE;
		char *at = (char *)part +
			   next(&state) % ((part_size - size) / PAGE) * PAGE;
		char *huge = (char *)part +
			     next(&state) % (part_size / HUGE_SIZE) * HUGE_SIZE;
		pid_t pid;

		switch (next(&state) % 9) {
		case 0:
			munmap(at, size);
			mmap(at, size, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
			break;
		case 1:
			mprotect(at, size, PROT_NONE);
			mprotect(at, size, PROT_READ | PROT_WRITE);
			break;
		case 2:
			madvise(huge, HUGE_SIZE, MADV_HUGEPAGE);
			madvise(huge, HUGE_SIZE, MADV_COLLAPSE);
			break;
		case 3:
			madvise(at, size, MADV_DONTNEED);
			break;
		case 4:
			madvise(at, size, MADV_PAGEOUT);
			break;
		case 5:
			pid = fork();
			if (pid == 0)
				_exit(0);
			if (pid > 0)
				waitpid(pid, NULL, 0);
			break;
		default:
			for (size_t i = 0; i < size; i += PAGE)
				*(volatile char *)(at + i) = 1;
		}
	}
	return NULL;
}

/* Compaction also moves pages that no other thread changes. */
static void *compact(void *arg)
{
	int fd = open("/proc/sys/vm/compact_memory", O_WRONLY);

	(void)arg;
	while (!stop && fd >= 0) {
		if (write(fd, "1", 1) < 0)
			break;
		usleep(50000);
	}
	close(fd);
	return NULL;
}

static void check_kind(uint32_t kind)
{
	__atomic_fetch_add(&nr_walked, 1, __ATOMIC_RELAXED);
	if (kind == PHYSICALVIEW_KIND_BAD || kind > PHYSICALVIEW_KIND_BAD)
		__atomic_fetch_add(&nr_bad, 1, __ATOMIC_RELAXED);
}

static void walk_by_range(int fd)
{
	static __thread struct physicalview_extent extents[512];
	struct physicalview_range range = {
		.nr = 512,
		.start = (uintptr_t)arena,
		.end = (uintptr_t)arena + ARENA_SIZE,
		.extents = (uintptr_t)extents,
	};
	uint64_t last = range.start;

	while (range.start < range.end) {
		range.nr = 512;
		if (ioctl(fd, PHYSICALVIEW_RANGE, &range))
			return;
		for (uint32_t i = 0; i < range.nr; i++) {
			check_kind(extents[i].kind);
			/* In order, without overlap, within the range. */
			if (extents[i].vaddr < last)
				check_kind(PHYSICALVIEW_KIND_BAD);
			last = extents[i].vaddr + extents[i].length;
			if (last > range.end)
				check_kind(PHYSICALVIEW_KIND_BAD);
		}
		if (range.next <= range.start)
			check_kind(PHYSICALVIEW_KIND_BAD);
		range.start = range.next;
	}
}

static void walk_one(int fd, uint32_t *state)
{
	struct physicalview_walk walk = { 0 };

	walk.vaddr = (uintptr_t)arena + next(state) % ARENA_SIZE;
	if (ioctl(fd, PHYSICALVIEW_WALK, &walk) == 0)
		check_kind(walk.page.kind);
}

static void *look(void *arg)
{
	uint32_t state = (uint32_t)(uintptr_t)arg;
	int fd = open("/dev/3000physicalview", O_RDONLY);
	volatile char still = 1;
	struct physicalview_translate first = { (uintptr_t)&still, 0 };

	if (fd < 0 || ioctl(fd, PHYSICALVIEW_TRANSLATE, &first))
		exit(1);
	if (with_faults)
		ask_for_faults();
	while (!stop) {
		walk_by_range(fd);
		for (int i = 0; i < 256; i++)
			walk_one(fd, &state);
	}
	close(fd);
	return NULL;
}

static void *rest(void *arg)
{
	return arg;
}

int main(int argc, char **argv)
{
	unsigned int seconds = argc > 1 ? (unsigned int)atoi(argv[1]) : 60;
	char *raw = mmap(NULL, ARENA_SIZE + HUGE_SIZE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pthread_t threads[5];

	with_faults = argc > 2 && !strcmp(argv[2], "faults");
	only_mutate = argc > 2 && !strcmp(argv[2], "mutate");
	arena = (char *)(((uintptr_t)raw + HUGE_SIZE - 1) & ~(HUGE_SIZE - 1));
	if (only_mutate) {
		printf("%p %p\n", (void *)arena, (void *)(arena + ARENA_SIZE));
		fflush(stdout);
	}
	for (uintptr_t i = 0; i < 2; i++) {
		pthread_create(&threads[i], NULL, only_mutate ? rest : look,
			       (void *)(i * 77 + 1));
		pthread_create(&threads[2 + i], NULL, mutate,
			       arena + i * ARENA_SIZE / 2);
	}
	pthread_create(&threads[4], NULL, compact, NULL);
	sleep(seconds);
	stop = 1;
	for (int i = 0; i < 5; i++)
		pthread_join(threads[i], NULL);
	if (only_mutate)
		return 0;
	printf("%llu walked, %llu bad\n", (unsigned long long)nr_walked,
	       (unsigned long long)nr_bad);
	return nr_bad || !nr_walked;
}
