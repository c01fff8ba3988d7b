// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The first process of an arm64 machine. It loads the module, compares the
 * module's answers for every kind of page with /proc/self/pagemap, prints the
 * results on the console, and turns the machine off. tests/test_kmod_arm64.py
 * builds it as a static program.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
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
#include <unistd.h>

#include "../../csrc/kmod/uapi/physicalview.h"

#define PAGE 4096UL
#define HUGE (2UL << 20)
#define NR_PAGES 64
#define DEVICE "/dev/" PHYSICALVIEW_DEVICE
#define ANONYMOUS (MAP_PRIVATE | MAP_ANONYMOUS)

/* The address bits of an entry. The machine has little memory. */
#define ENTRY_FRAME 0x0000fffffffff000ULL

/* Documentation/admin-guide/mm/pagemap.rst */
#define PM_PRESENT (1ULL << 63)
#define PM_SWAP (1ULL << 62)
#define PM_FRAME ((1ULL << 55) - 1)

static const char rodata[] = "rodata";
static int device, pagemap, failures;

static void fail(const char *name, const char *what, uint64_t is,
		 uint64_t wanted)
{
	printf("FAILED %s: %s is %#llx, not %#llx\n", name, what,
	       (unsigned long long)is, (unsigned long long)wanted);
	failures++;
}

static void must(int fine, const char *what)
{
	if (fine)
		return;
	printf("FAILED %s: %s\n", what, strerror(errno));
	reboot(RB_POWER_OFF);
}

static uint64_t read_pagemap(uint64_t vaddr)
{
	uint64_t entry = 0;

	/* pagemap has no entry for an address outside of user space. */
	if (pread(pagemap, &entry, 8, vaddr / PAGE * 8) != 8)
		return 0;
	return entry;
}

/* Each entry must name the address of the table that has the next entry. */
static void check_chain(const char *name, const struct physicalview_walk *walk,
			const struct physicalview_info *info)
{
	uint64_t table = 0;
	unsigned int nr = 0, i;

	for (i = 0; i < walk->nr_levels; i++) {
		const struct physicalview_level *level = &walk->levels[i];

		if (level->flags & PHYSICALVIEW_LEVEL_FOLDED)
			continue;
		if (nr && (level->address & ENTRY_FRAME) != table)
			fail(name, "a table", level->address, table);
		table = level->entry & ENTRY_FRAME;
		nr++;
	}
	if (walk->page.page_shift == info->page_shift && nr != info->nr_levels)
		fail(name, "the number of levels", nr, info->nr_levels);
}

static void check(const char *name, uint64_t vaddr, uint32_t kind)
{
	struct physicalview_translate translate = { .virt = vaddr };
	struct physicalview_walk walk = { .vaddr = vaddr };
	struct physicalview_page page = { 0 };
	struct physicalview_batch batch = {
		.nr = 1,
		.vaddrs = (uintptr_t)&vaddr,
		.pages = (uintptr_t)&page,
	};
	struct physicalview_info info;
	uint64_t entry = read_pagemap(vaddr), paddr = 0;
	int before = failures;

	if (entry & PM_PRESENT)
		paddr = (entry & PM_FRAME) * PAGE + vaddr % PAGE;
	must(!ioctl(device, PHYSICALVIEW_INFO, &info), "INFO");
	must(!ioctl(device, PHYSICALVIEW_TRANSLATE, &translate), "TRANSLATE");
	must(!ioctl(device, PHYSICALVIEW_WALK, &walk), "WALK");
	must(!ioctl(device, PHYSICALVIEW_BATCH, &batch), "BATCH");
	if (translate.phys != paddr)
		fail(name, "TRANSLATE", translate.phys, paddr);
	if (page.paddr != paddr)
		fail(name, "BATCH", page.paddr, paddr);
	if (walk.page.paddr != paddr)
		fail(name, "WALK", walk.page.paddr, paddr);
	if (walk.page.kind != kind)
		fail(name, "kind", walk.page.kind, kind);
	if (entry & PM_SWAP && walk.page.swap != (entry & PM_FRAME))
		fail(name, "swap", walk.page.swap, entry & PM_FRAME);
	if (paddr)
		check_chain(name, &walk, &info);
	if (failures == before)
		printf("ok %s: %#llx -> %#llx kind %u shift %u\n", name,
		       (unsigned long long)vaddr,
		       (unsigned long long)translate.phys, walk.page.kind,
		       walk.page.page_shift);
}

/* The extents of a range must have all its pages, and no others. */
static void check_range(const char *name, uint64_t start, uint64_t end)
{
	struct physicalview_extent extents[NR_PAGES];
	struct physicalview_range range = {
		.start = start,
		.end = end,
		.nr = NR_PAGES,
		.extents = (uintptr_t)extents,
	};
	uint64_t vaddr = start, at;
	int before = failures;
	unsigned int i;

	must(!ioctl(device, PHYSICALVIEW_RANGE, &range), "RANGE");
	for (i = 0; i < range.nr; i++) {
		for (; vaddr < extents[i].vaddr; vaddr += PAGE)
			if (read_pagemap(vaddr) & PM_PRESENT)
				fail(name, "left out", vaddr, 0);
		for (at = 0; at < extents[i].length; at += PAGE) {
			uint64_t entry = read_pagemap(vaddr + at);
			uint64_t paddr = (entry & PM_FRAME) * PAGE;

			if (!(entry & PM_PRESENT) ||
			    extents[i].paddr + at != paddr)
				fail(name, "a page of an extent",
				     extents[i].paddr + at, paddr);
		}
		vaddr += extents[i].length;
	}
	for (; vaddr < end; vaddr += PAGE)
		if (read_pagemap(vaddr) & PM_PRESENT)
			fail(name, "left out at the end", vaddr, 0);
	if (range.next != end)
		fail(name, "next", range.next, end);
	if (failures == before)
		printf("ok %s: %u extents\n", name, range.nr);
}

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
	uint32_t header[] = { 1, 4095 };
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
	/* Each page has 16 contiguous entries, with the contiguous bit. */
	must(write_file("/sys/kernel/mm/hugepages/hugepages-64kB/nr_hugepages",
			"4"),
	     "64 KiB hugetlb");
	at = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE,
		  ANONYMOUS | MAP_HUGETLB | 16 << MAP_HUGE_SHIFT, -1, 0);
	must(at != MAP_FAILED, "64 KiB hugetlb");
	check("64 KiB hugetlb", (uintptr_t)touched(at, 16 * PAGE) + 5 * PAGE,
	      PHYSICALVIEW_KIND_PRESENT);
	check_range("range over 64 KiB hugetlb", (uintptr_t)at,
		    (uintptr_t)at + 16 * PAGE);
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
	check_huge_pages();
	check_range_with_holes();
	check_swap();
	check_far_addresses();
	close(device);
	must(!syscall(SYS_delete_module, "3000physicalview", O_NONBLOCK),
	     "unload");
	printf(failures ? "%d answers are wrong\n" : "all agree\n", failures);
	reboot(RB_POWER_OFF);
	return 0;
}
