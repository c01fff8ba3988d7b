// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The first process of an arm64 machine. It loads the module and the BPF
 * program, compares the answers of both for every kind of page with
 * /proc/self/pagemap, prints the results on the console, and turns the machine
 * off. tests/test_kmod_arm64.py builds it as a static program, with the core's
 * C files.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include "arm64_agree.h"

/* What one entry of the second lowest level maps: 2, 32 or 512 MiB. */
#define HUGE (PAGE / 8 * PAGE)
/* What contiguous entries of the lowest level map: 64 KiB or 2 MiB. */
#define CONTIGUOUS (PAGE == 4096 ? 64UL << 10 : 2UL << 20)
#define NR_PAGES 64
#define DEVICE "/dev/" PHYSICALVIEW_DEVICE
#define ANONYMOUS (MAP_PRIVATE | MAP_ANONYMOUS)

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102 /* 6.13 */
#endif

static const char rodata[] = "rodata";

static char *map(size_t size, int protection, int flags, int fd)
{
	char *at = mmap(NULL, size, protection, flags, fd, 0);

	must(at != MAP_FAILED, "mmap");
	return at;
}

static char *map_aligned(size_t size)
{
	char *at = map(size + HUGE, PROT_READ | PROT_WRITE, ANONYMOUS, -1);

	return (char *)(((uintptr_t)at + HUGE - 1) & ~(HUGE - 1));
}

static char *touched(char *at, size_t size)
{
	memset(at, 1, size);
	return at;
}

static int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	int fine = fd >= 0 && write(fd, text, strlen(text)) > 0;

	close(fd);
	return fine;
}

/* Modules are /0.ko, /1.ko and so on, in the order in which they load. */
static void load_all(void)
{
	char path[16];
	int fd, i;

	for (i = 0;; i++) {
		snprintf(path, sizeof(path), "/%d.ko", i);
		fd = open(path, O_RDONLY);
		if (fd < 0)
			return;
		must(!syscall(SYS_finit_module, fd, "", 0), path);
		close(fd);
	}
}

static int has_swap(void)
{
	uint32_t header[] = { 1, (16UL << 20) / PAGE - 1 };
	int fd;

	if (!write_file("/sys/block/zram0/disksize", "16777216"))
		return 0;
	fd = open("/dev/zram0", O_RDWR);
	/* union swap_header in include/linux/swap.h */
	must(pwrite(fd, header, sizeof(header), 1024) == sizeof(header) &&
		     pwrite(fd, "SWAPSPACE2", 10, PAGE - 10) == 10,
	     "mkswap");
	close(fd);
	must(!swapon("/dev/zram0", 0), "swapon");
	return 1;
}

static void load_bpf(void)
{
	static char log[1 << 16];
	int stage = -1,
	    result = pv_bpf_open(&bpf, NULL, &stage, log, sizeof(log));

	if (result < 0) {
		printf("BPF fails at stage %d: %s\n%s\n", stage,
		       strerror(-result), log);
		errno = -result;
		must(0, "BPF");
	}
	printf("BPF: %d levels, user addresses end at %#llx\n", result,
	       (unsigned long long)pv_bpf_user_end(bpf));
}

static void set_up(void)
{
	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	mkdir("/dev", 0755);
	must(!mount("proc", "/proc", "proc", 0, NULL), "mount /proc");
	must(!mount("sys", "/sys", "sysfs", 0, NULL), "mount /sys");
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	load_all();
	device = open(DEVICE, O_RDWR);
	must(device >= 0, DEVICE);
	pagemap = open("/proc/self/pagemap", O_RDONLY);
	must(pagemap >= 0, "/proc/self/pagemap");
	load_bpf();
}

static void check_small_pages(void)
{
	char *at, on_stack = 1;
	int fd;

	check("stack", (uintptr_t)&on_stack, PHYSICALVIEW_KIND_PRESENT);
	check("heap", (uintptr_t)touched(malloc(100), 100),
	      PHYSICALVIEW_KIND_PRESENT);
	check("text", (uintptr_t)&check_small_pages, PHYSICALVIEW_KIND_PRESENT);
	check("rodata", (uintptr_t)rodata + 0 * rodata[0],
	      PHYSICALVIEW_KIND_PRESENT);
	check("data", (uintptr_t)&failures, PHYSICALVIEW_KIND_PRESENT);
	at = (char *)getauxval(AT_SYSINFO_EHDR);
	check("vdso", (uintptr_t)at + 0 * *(volatile char *)at,
	      PHYSICALVIEW_KIND_PRESENT);

	at = map(PAGE, PROT_READ, ANONYMOUS, -1);
	check("untouched", (uintptr_t)at, PHYSICALVIEW_KIND_NONE);
	check("zero page", (uintptr_t)at + *(volatile char *)at,
	      PHYSICALVIEW_KIND_PRESENT);
	munmap(at, PAGE);
	check("hole", (uintptr_t)at, PHYSICALVIEW_KIND_NONE);
	at = touched(map(PAGE, PROT_READ | PROT_WRITE, ANONYMOUS, -1), PAGE);
	mprotect(at, PAGE, PROT_NONE);
	check("PROT_NONE", (uintptr_t)at + 7, PHYSICALVIEW_KIND_PROT_NONE);
	at = map(PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
	check("shmem", (uintptr_t)touched(at, PAGE), PHYSICALVIEW_KIND_PRESENT);
	fd = open("/init", O_RDONLY);
	at = map(PAGE, PROT_READ, MAP_PRIVATE, fd);
	check("file", (uintptr_t)at + (*(volatile char *)at & 1),
	      PHYSICALVIEW_KIND_PRESENT);
}

static void check_huge_pages(void)
{
	char *at = map_aligned(HUGE);

	madvise(at, HUGE, MADV_HUGEPAGE);
	check("THP", (uintptr_t)touched(at, HUGE) + 12345,
	      PHYSICALVIEW_KIND_PRESENT);
	mprotect(at, HUGE, PROT_NONE);
	check("THP PROT_NONE", (uintptr_t)at + 12345,
	      PHYSICALVIEW_KIND_PROT_NONE);
	mprotect(at, HUGE / 2, PROT_READ);
	check("split THP", (uintptr_t)at + 12345, PHYSICALVIEW_KIND_PRESENT);
	check_range("range over a split THP", (uintptr_t)at,
		    (uintptr_t)at + HUGE);
	at = mmap(NULL, HUGE, PROT_READ | PROT_WRITE, ANONYMOUS | MAP_HUGETLB,
		  -1, 0);
	must(at != MAP_FAILED, "hugetlb");
	check("hugetlb", (uintptr_t)touched(at, HUGE) + HUGE / 2 + 5,
	      PHYSICALVIEW_KIND_PRESENT);
	mprotect(at, HUGE, PROT_NONE);
	check("hugetlb PROT_NONE", (uintptr_t)at + HUGE / 2 + 5,
	      PHYSICALVIEW_KIND_PROT_NONE);
}

/* Each page has contiguous entries, with the contiguous bit. */
static void check_contiguous_pages(void)
{
	int shift = __builtin_ctzl(CONTIGUOUS);
	char path[80], *at;

	snprintf(path, sizeof(path),
		 "/sys/kernel/mm/hugepages/hugepages-%lukB/nr_hugepages",
		 CONTIGUOUS >> 10);
	must(write_file(path, "4"), "contiguous hugetlb");
	at = mmap(NULL, CONTIGUOUS, PROT_READ | PROT_WRITE,
		  ANONYMOUS | MAP_HUGETLB | shift << MAP_HUGE_SHIFT, -1, 0);
	must(at != MAP_FAILED, "contiguous hugetlb");
	check("contiguous hugetlb",
	      (uintptr_t)touched(at, CONTIGUOUS) + 5 * PAGE,
	      PHYSICALVIEW_KIND_PRESENT);
	check_range("range over contiguous hugetlb", (uintptr_t)at,
		    (uintptr_t)at + CONTIGUOUS);
}

/* A page of 1 GiB, if one is set aside: only with pages of 4 KiB. */
static void check_gigantic_page(void)
{
	char *at = mmap(NULL, 1UL << 30, PROT_READ | PROT_WRITE,
			ANONYMOUS | MAP_HUGETLB | 30 << MAP_HUGE_SHIFT, -1, 0);

	if (at == MAP_FAILED) {
		printf("no page of 1 GiB\n");
		return;
	}
	*at = 1;
	check("1 GiB hugetlb", (uintptr_t)at + 12345678,
	      PHYSICALVIEW_KIND_PRESENT);
	check_range("range over 1 GiB hugetlb", (uintptr_t)at + 7 * PAGE,
		    (uintptr_t)at + NR_PAGES * PAGE);
	mprotect(at, 1UL << 30, PROT_NONE);
	check("1 GiB hugetlb PROT_NONE", (uintptr_t)at + 12345678,
	      PHYSICALVIEW_KIND_PROT_NONE);
	munmap(at, 1UL << 30);
}

/* The kernel tells of a broken frame by a signal. */
static void told(int number)
{
	(void)number;
}

/* Guards, from 6.13 on, and a page of a frame that is given up. */
static void check_markers(void)
{
	char *at = map(2 * PAGE, PROT_READ | PROT_WRITE, ANONYMOUS, -1);

	if (!madvise(at, 2 * PAGE, MADV_GUARD_INSTALL))
		check("guard", (uintptr_t)at + PAGE, PHYSICALVIEW_KIND_MARKER);
	else
		printf("no guards\n");
	signal(SIGBUS, told);
	at = touched(map(PAGE, PROT_READ | PROT_WRITE, ANONYMOUS, -1), PAGE);
	if (!madvise(at, PAGE, MADV_HWPOISON))
		check("broken frame", (uintptr_t)at,
		      PHYSICALVIEW_KIND_HWPOISON);
	else
		printf("no broken frames: %s\n", strerror(errno));
}

/*
 * A range with more than one table, and entries of all levels. check_range()
 * would need a long time for each page of it.
 */
static void check_whole(void)
{
	static struct physicalview_extent extents[NR_EXTENTS];
	struct physicalview_info info;
	struct physicalview_range range = {
		.nr = NR_EXTENTS,
		.extents = (uintptr_t)extents,
	};
	uint64_t nr_pages = 0, at = 0;
	int before = failures;

	must(!ioctl(device, PHYSICALVIEW_INFO, &info), "INFO");
	range.end = info.user_end;
	/* The first time the memory that BPF shares with us becomes ours. */
	memset(extents, 0, sizeof(extents));
	must(pv_bpf_extents(bpf, pagemap, &at, info.user_end, extents,
			    NR_EXTENTS) > 0,
	     "BPF: extents");
	must(!ioctl(device, PHYSICALVIEW_RANGE, &range), "RANGE");
	check_bpf_range("all of user space", 0, info.user_end, extents,
			range.nr);
	for (unsigned int i = 0; i < range.nr; i++) {
		for (at = 0; at < extents[i].length; at += PAGE) {
			uint64_t entry = read_pagemap(extents[i].vaddr + at);

			/* pagemap shows no [vvar]. */
			if (entry & PM_PRESENT &&
			    (entry & PM_FRAME) * PAGE != extents[i].paddr + at)
				fail("all of user space", "a page",
				     extents[i].paddr + at,
				     (entry & PM_FRAME) * PAGE);
			nr_pages++;
		}
	}
	if (failures == before)
		printf("ok all of user space: %u extents, %llu pages\n",
		       range.nr, (unsigned long long)nr_pages);
}

static void check_child(void)
{
	volatile char *at =
		map(8 * PAGE, PROT_READ | PROT_WRITE, ANONYMOUS, -1);
	struct physicalview_walk walk = { .vaddr = (uintptr_t)at + 3 * PAGE };
	int pipes[2], fd, before = failures;
	char path[40], byte;
	int64_t result;

	must(!pipe(pipes), "pipe");
	walk.pid = fork();
	if (!walk.pid) {
		at[3 * PAGE] = 1;
		must(write(pipes[1], "", 1) == 1, "write");
		for (;;)
			pause();
	}
	must(read(pipes[0], &byte, 1) == 1, "read");
	snprintf(path, sizeof(path), "/proc/%d/pagemap", walk.pid);
	fd = open(path, O_RDONLY);
	must(fd >= 0, path);
	must(!ioctl(device, PHYSICALVIEW_WALK, &walk), "WALK of a child");
	if (walk.page.kind != PHYSICALVIEW_KIND_PRESENT)
		fail("child", "kind", walk.page.kind, 1);
	check_bpf("child", walk.vaddr, fd, &walk);
	kill(walk.pid, SIGKILL);
	waitpid(walk.pid, NULL, 0);
	result = pv_bpf_walk(bpf, fd, &walk);
	if (result != -ESRCH)
		fail("child", "after its end", (uint64_t)result,
		     (uint64_t)-ESRCH);
	close(fd);
	if (failures == before)
		printf("ok child\n");
}

static void check_range_with_holes(void)
{
	char *at = map(NR_PAGES * PAGE, PROT_READ | PROT_WRITE, ANONYMOUS, -1);
	int i;

	for (i = 0; i < NR_PAGES; i += i % 3 + 1)
		at[i * PAGE] = 1;
	check_range("range with holes", (uintptr_t)at,
		    (uintptr_t)at + NR_PAGES * PAGE);
}

/* More pages than two copies of parts of a table have entries. */
static void check_range_over_parts(void)
{
	const unsigned long nr = 1400;
	char *at = map(nr * PAGE, PROT_READ | PROT_WRITE, ANONYMOUS, -1);

	for (unsigned long i = 0; i < nr; i += i < 500 || i > 600 ? 3 : 1)
		at[i * PAGE] = 1;
	check_range("range over parts of tables", (uintptr_t)at,
		    (uintptr_t)at + nr * PAGE);
	munmap(at, nr * PAGE);
}

static void check_swap(void)
{
	char *at = map(NR_PAGES * PAGE, PROT_READ | PROT_WRITE, ANONYMOUS, -1);

	if (!has_swap()) {
		printf("no zram: no swap\n");
		return;
	}
	touched(at, NR_PAGES * PAGE);
	madvise(at, NR_PAGES * PAGE, MADV_PAGEOUT);
	check("swapped", (uintptr_t)at, PHYSICALVIEW_KIND_SWAP);
	check("swapped, the last", (uintptr_t)at + (NR_PAGES - 1) * PAGE,
	      PHYSICALVIEW_KIND_SWAP);
}

static void check_far_addresses(void)
{
	struct physicalview_info info;
	uint64_t heap = (uintptr_t)touched(malloc(PAGE), PAGE);
	char *at;

	ioctl(device, PHYSICALVIEW_INFO, &info);
	check("beyond", heap + info.user_end, PHYSICALVIEW_KIND_BEYOND);
	check("kernel", 0xffff800008000000, PHYSICALVIEW_KIND_BEYOND);
	at = mmap((void *)(1UL << 50), PAGE, PROT_READ | PROT_WRITE, ANONYMOUS,
		  -1, 0);
	must(at != MAP_FAILED, "mmap");
	/* If no address can be so high, the upper bits must not be ignored. */
	if (!((uintptr_t)at >> 48))
		check("beyond 48 bits", heap | 1ULL << 48,
		      PHYSICALVIEW_KIND_BEYOND);
	if (pv_bpf_user_end(bpf) != info.user_end)
		fail("the end of user space", "BPF's", pv_bpf_user_end(bpf),
		     info.user_end);
	check((uintptr_t)at >> 48 ? "above 48 bits" : "no address is so high",
	      (uintptr_t)touched(at, PAGE), PHYSICALVIEW_KIND_PRESENT);
}

int main(void)
{
	struct physicalview_info info;
	struct utsname name;

	set_up();
	uname(&name);
	must(!ioctl(device, PHYSICALVIEW_INFO, &info), "INFO");
	printf("Linux %s: %u levels, user addresses end at %#llx\n",
	       name.release, info.nr_levels, (unsigned long long)info.user_end);
	check_small_pages();
	check_gigantic_page();
	if (PAGE <= 16384) /* 512 MiB are too much */
		check_huge_pages();
	check_contiguous_pages();
	check_range_with_holes();
	check_range_over_parts();
	check_swap();
	check_markers();
	check_far_addresses();
	check_child();
	check_whole();
	pv_bpf_close(bpf);
	close(device);
	must(!syscall(SYS_delete_module, "3000physicalview", O_NONBLOCK),
	     "unload");
	printf(failures ? "%d answers are wrong\n" : "all agree\n", failures);
	reboot(RB_POWER_OFF);
	return 0;
}
