// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Makes random ioctls on /dev/3000physicalview: numbers and arguments that are
 * nearly right, with pointers into memory that another thread maps, unmaps and
 * protects meanwhile. No call may harm the kernel. Its log must stay empty, and
 * the VM panics on any oops. Prints how many calls had which result, also when
 * SIGTERM ends it early.
 *
 * If the kernel runs 32-bit programs, one call in four is a 32-bit system call,
 * which reaches compat_ioctl. The device is opened again and again.
 *
 * Usage: fuzz NR_CALLS SEED [faults]; with faults, calls meet those of
 * inject.sh
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../csrc/kmod/uapi/physicalview.h"
#include "faults.h"

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

/*
 * Changes the mappings that the calls use, now and then: each change makes the
 * calls wait for the lock of the address space.
 */
static void *disturb(void *arg)
{
	uint64_t state = (uint64_t)(uintptr_t)arg;

	while (!stop) {
		usleep(200);
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

/* Mostly few, so that calls are fast; sometimes more than the module buffers.
 */
static uint32_t some_number(uint64_t *state)
{
	return next(state) % (next(state) % 32 ? 8 : 600);
}

/* Make an argument that is nearly right for this command. */
static void fill(uint64_t *state, unsigned long command, uint64_t words[64])
{
	struct physicalview_batch *batch = (void *)words;
	struct physicalview_range *range = (void *)words;
	struct physicalview_walk *walk = (void *)words;

	/* The largest structure has 22 words. */
	for (int i = 0; i < 24; i++)
		words[i] = next(state) % 3 ? 0 : some_address(state);
	switch (command) {
	case PHYSICALVIEW_WALK:
		walk->pid = some_pid(state);
		walk->vaddr = some_address(state);
		walk->reserved = next(state) % 8 == 0;
		break;
	case PHYSICALVIEW_BATCH:
		batch->pid = some_pid(state);
		batch->nr = some_number(state);
		batch->vaddrs = some_address(state);
		batch->pages = some_address(state);
		batch->reserved = next(state) % 8 == 0;
		break;
	case PHYSICALVIEW_RANGE:
		range->pid = some_pid(state);
		range->nr = some_number(state);
		range->start = some_address(state) & ~4095UL;
		range->end =
			range->start + ((uint64_t)some_number(state) * 7 << 12);
		range->extents = some_address(state);
		range->reserved = next(state) % 8 == 0;
		break;
	}
}

/* int $0x80 makes a 32-bit system call, also in a 64-bit program. */
static int compat_ioctl(int fd, unsigned long command, void *argument)
{
	int ret;

	__asm__ volatile("int $0x80"
			 : "=a"(ret)
			 : "a"(54), "b"(fd), "c"((uint32_t)command),
			   "d"((uint32_t)(uintptr_t)argument)
			 : "memory", "r8", "r9", "r10", "r11");
	return ret;
}

static sigjmp_buf no_compat;

static void on_no_compat(int number)
{
	(void)number;
	siglongjmp(no_compat, 1);
}

/* Without 32-bit system calls the kernel sends SIGSEGV. */
static int has_compat(void)
{
	void (*before)(int) = signal(SIGSEGV, on_no_compat);
	int found = 0;

	if (!sigsetjmp(no_compat, 1))
		found = compat_ioctl(-1, 0, NULL) == -EBADF;
	signal(SIGSEGV, before);
	return found;
}

static void on_term(int number)
{
	(void)number;
	stop = 1;
}

static void show(const char *what, const uint64_t results[256])
{
	for (int code = 0; code < 256; code++) {
		if (results[code])
			printf("%s%s %llu\n", what,
			       code ? strerror(code) : "fine",
			       (unsigned long long)results[code]);
	}
}

/* Make one call; return its errno, or 0. words has an address of 32 bits. */
static int call(uint64_t *state, int fd, int compat, uint64_t words[64])
{
	unsigned long command = some_command(state);
	void *argument = words;

	fill(state, command, words);
	if (next(state) % 8 == 0)
		argument = (void *)some_address(state);
	if (compat && next(state) % 4 == 0)
		return -compat_ioctl(fd, command, argument);
	return ioctl(fd, command, argument) ? errno : 0;
}

int main(int argc, char **argv)
{
	uint64_t nr_calls = argc > 1 ? strtoull(argv[1], NULL, 0) : 1000000;
	uint64_t state = argc > 2 ? strtoull(argv[2], NULL, 0) | 1 : 1;
	uint64_t results[256] = { 0 }, opened[256] = { 0 };
	int fd = open("/dev/3000physicalview", O_RDONLY);
	int compat = has_compat();
	uint64_t i, *words;
	pthread_t thread;
	sigset_t term;

	if (fd < 0) {
		perror("/dev/3000physicalview");
		return 1;
	}
	signal(SIGTERM, on_term);
	words = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	/* A write past its end must not change this program's own memory. */
	arena = mmap(NULL, 4 * ARENA_SIZE, PROT_NONE,
		     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	arena += ARENA_SIZE;
	mprotect(arena, 2 * ARENA_SIZE, PROT_READ | PROT_WRITE);
	memset(arena, 0, 2 * ARENA_SIZE);
	pthread_create(&thread, NULL, disturb, (void *)(uintptr_t)(state + 2));

	/* The other thread takes SIGTERM: with faults, a signal can kill. */
	sigemptyset(&term);
	sigaddset(&term, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &term, NULL);
	if (argc > 3)
		ask_for_faults();

	for (i = 0; i < nr_calls && !stop; i++) {
		results[call(&state, fd, compat, words) & 255]++;
		if (i % 64 == 0) {
			int again = open("/dev/3000physicalview", O_RDONLY);

			opened[again < 0 ? errno & 255 : 0]++;
			if (again >= 0) {
				close(fd);
				fd = again;
			}
		}
	}
	if (argc > 3)
		ask_for_no_faults();
	stop = 1;
	pthread_join(thread, NULL);
	printf("%llu calls, %s\n", (unsigned long long)i,
	       compat ? "one in four a 32-bit one" : "no 32-bit ones");
	show("", results);
	show("open: ", opened);
	return 0;
}
