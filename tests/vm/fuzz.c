// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Random ioctls on /dev/3000physicalview: numbers and arguments that are
 * nearly right, with pointers into memory that another thread maps, unmaps and
 * protects meanwhile. Nothing that it asks may harm the kernel, whose log has
 * to stay empty: the VM panics on any oops. Prints how many calls had which
 * result.
 *
 * Usage: fuzz NR_CALLS SEED
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../csrc/kmod/uapi/physicalview.h"

#define ARENA_SIZE (4UL << 20)

static char *arena;
static volatile int stop;

static uint64_t next(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

/* Takes the ground from under the calls. */
static void *disturb(void *arg)
{
	uint64_t state = (uint64_t)(uintptr_t)arg;

	while (!stop) {
		char *at = arena + (next(&state) % (ARENA_SIZE >> 12) << 12);
		size_t size = (1 + next(&state) % 16) << 12;

		if (at + size > arena + ARENA_SIZE)
			continue;
		switch (next(&state) % 4) {
		case 0:
			madvise(at, size, MADV_DONTNEED);
			break;
		case 1:
			mprotect(at, size, PROT_NONE);
			break;
		case 2:
			mprotect(at, size, PROT_READ | PROT_WRITE);
			break;
		case 3:
			mmap(at, size, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
			break;
		}
	}
	return NULL;
}

static uint64_t some_address(uint64_t *state)
{
	static const uint64_t edges[] = {
		0,
		1,
		4095,
		4096,
		(1UL << 47) - 4096,
		(1UL << 47),
		1UL << 56,
		(1UL << 63),
		0xffff888000000000,
		0xffffffff81000000,
		0xffffffffff600000,
		UINT64_MAX,
		UINT64_MAX - 4095,
	};
	uint64_t value = next(state);

	switch (value % 5) {
	case 0:
		return edges[next(state) % (sizeof(edges) / sizeof(*edges))];
	case 1:
		return next(state);
	case 2:
		return next(state) >> (next(state) % 64);
	default:
		return (uint64_t)arena + next(state) % (2 * ARENA_SIZE);
	}
}

static int32_t some_pid(uint64_t *state)
{
	switch (next(state) % 8) {
	case 0:
		return (int32_t)next(state);
	case 1:
		return getpid();
	case 2:
		return (int32_t)(next(state) % 300);
	case 3:
		return -(int32_t)(next(state) % 3);
	default:
		return 0;
	}
}

static unsigned long some_command(uint64_t *state)
{
	static const unsigned long commands[] = {
		PHYSICALVIEW_TRANSLATE, PHYSICALVIEW_INFO,  PHYSICALVIEW_WALK,
		PHYSICALVIEW_BATCH,	PHYSICALVIEW_RANGE,
	};
	unsigned long command = commands[next(state) % 5];

	if (next(state) % 16 == 0)
		command ^= 1UL << next(state) % 32;
	return command;
}

/* An argument that is nearly right, for whichever command. */
static void fill(uint64_t *state, unsigned long command, uint64_t words[64])
{
	struct physicalview_batch *batch = (void *)words;
	struct physicalview_range *range = (void *)words;
	struct physicalview_walk *walk = (void *)words;

	for (int i = 0; i < 64; i++)
		words[i] = next(state) % 3 ? 0 : some_address(state);
	switch (command) {
	case PHYSICALVIEW_WALK:
		walk->pid = some_pid(state);
		walk->vaddr = some_address(state);
		walk->reserved = next(state) % 8 == 0;
		break;
	case PHYSICALVIEW_BATCH:
		batch->pid = some_pid(state);
		batch->nr = next(state) % 600;
		batch->vaddrs = some_address(state);
		batch->pages = some_address(state);
		batch->reserved = next(state) % 8 == 0;
		break;
	case PHYSICALVIEW_RANGE:
		range->pid = some_pid(state);
		range->nr = next(state) % 600;
		range->start = some_address(state) & ~4095UL;
		range->end = range->start + (next(state) % 4096 << 12);
		range->extents = some_address(state);
		range->reserved = next(state) % 8 == 0;
		break;
	}
}

int main(int argc, char **argv)
{
	uint64_t nr_calls = argc > 1 ? strtoull(argv[1], NULL, 0) : 1000000;
	uint64_t state = argc > 2 ? strtoull(argv[2], NULL, 0) | 1 : 1;
	uint64_t results[256] = { 0 };
	int fd = open("/dev/3000physicalview", O_RDONLY);
	pthread_t thread;

	if (fd < 0) {
		perror("/dev/3000physicalview");
		return 1;
	}
	/* What is written past its end must not hit our own memory. */
	arena = mmap(NULL, 4 * ARENA_SIZE, PROT_NONE,
		     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	arena += ARENA_SIZE;
	mprotect(arena, 2 * ARENA_SIZE, PROT_READ | PROT_WRITE);
	memset(arena, 0, 2 * ARENA_SIZE);
	pthread_create(&thread, NULL, disturb, (void *)(uintptr_t)(state + 2));

	for (uint64_t i = 0; i < nr_calls; i++) {
		uint64_t words[64];
		unsigned long command = some_command(&state);
		uint64_t argument = (uint64_t)words;
		int code;

		fill(&state, command, words);
		if (next(&state) % 8 == 0)
			argument = some_address(&state);
		code = ioctl(fd, command, argument) ? errno : 0;
		results[code & 255]++;
	}
	stop = 1;
	pthread_join(thread, NULL);
	for (int code = 0; code < 256; code++) {
		if (results[code])
			printf("%s %llu\n", code ? strerror(code) : "fine",
			       (unsigned long long)results[code]);
	}
	return 0;
}
