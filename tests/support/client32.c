// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A 32-bit program that makes every call of /dev/3000physicalview, to test
 * compat_ioctl. It uses no C library, because many machines have no 32-bit one:
 * gcc -m32 suffices to build it. It makes its system calls by int $0x80, which
 * on x86-64 are always 32-bit calls.
 *
 * Writes a struct report, and then waits for its stdin to end, so that a test
 * can examine the same pages meanwhile.
 */
#include "../../csrc/kmod/uapi/physicalview.h"

#define NR_PAGES 8
#define PAGE 4096U

enum { SYS_exit = 1, SYS_read = 3, SYS_write = 4, SYS_open = 5 };
enum { SYS_ioctl = 54, SYS_mprotect = 125, SYS_mmap2 = 192 };
enum { PROT_NONE = 0, PROT_RW = 3, MAP_PRIVATE_ANONYMOUS = 0x22 };

/* The output. test_kmod_compat.py has the same structure. */
struct report {
	__u64 start; /* of NR_PAGES pages */
	__s32 codes[8];
	struct physicalview_info info;
	struct physicalview_translate translate;
	struct physicalview_walk walk;
	struct physicalview_walk kernel;
	struct physicalview_page pages[NR_PAGES];
	struct physicalview_range range;
	struct physicalview_extent extents[NR_PAGES];
	__u64 end; /* a fixed number that marks the end */
};

static struct report report;
static __u64 vaddrs[NR_PAGES];

static int call(int nr, unsigned int a, unsigned int b, unsigned int c)
{
	int ret;

	__asm__ volatile("int $0x80"
			 : "=a"(ret)
			 : "a"(nr), "b"(a), "c"(b), "d"(c)
			 : "memory");
	return ret;
}

/* mmap2 has six arguments. The register of the last is the frame pointer. */
static unsigned int map(unsigned int size)
{
	unsigned int ret;

	__asm__ volatile("push %%ebp\n\t"
			 "xor %%ebp, %%ebp\n\t"
			 "int $0x80\n\t"
			 "pop %%ebp"
			 : "=a"(ret)
			 : "a"(SYS_mmap2), "b"(0), "c"(size), "d"(PROT_RW),
			   "S"(MAP_PRIVATE_ANONYMOUS), "D"(-1)
			 : "memory");
	return ret;
}

static int ask(int fd, unsigned int command, void *argument)
{
	return call(SYS_ioctl, fd, command, (unsigned int)argument);
}

/* Pages 0, 1, 2, 4 and 6 are touched. Then page 6 gets PROT_NONE. */
static void touch(unsigned int start)
{
	static const int touched[] = { 0, 1, 2, 4, 6 };

	for (int i = 0; i < 5; i++)
		*(volatile char *)(start + touched[i] * PAGE) = 1;
	call(SYS_mprotect, start + 6 * PAGE, PAGE, PROT_NONE);
}

static void make_calls(int fd, unsigned int start)
{
	struct physicalview_batch batch = { 0 };

	report.codes[0] = ask(fd, PHYSICALVIEW_INFO, &report.info);
	report.translate.virt = start + 5;
	report.codes[1] = ask(fd, PHYSICALVIEW_TRANSLATE, &report.translate);
	report.walk.vaddr = start + PAGE + 7;
	report.codes[2] = ask(fd, PHYSICALVIEW_WALK, &report.walk);
	/* An address of more than 32 bits. */
	report.kernel.vaddr = 0xffff888000000000ULL | start;
	report.codes[3] = ask(fd, PHYSICALVIEW_WALK, &report.kernel);

	for (int i = 0; i < NR_PAGES; i++)
		vaddrs[i] = start + i * PAGE + i;
	batch.nr = NR_PAGES;
	batch.vaddrs = (unsigned int)vaddrs;
	batch.pages = (unsigned int)report.pages;
	report.codes[4] = ask(fd, PHYSICALVIEW_BATCH, &batch);
	/* The upper half of a pointer must not be ignored. */
	batch.vaddrs |= 1ULL << 32;
	report.codes[5] = ask(fd, PHYSICALVIEW_BATCH, &batch);

	report.range.nr = NR_PAGES;
	report.range.start = start;
	report.range.end = start + NR_PAGES * PAGE;
	report.range.extents = (unsigned int)report.extents;
	report.codes[6] = ask(fd, PHYSICALVIEW_RANGE, &report.range);
	report.codes[7] = ask(fd, PHYSICALVIEW_RANGE + 1, &report.range);
}

void _start(void)
{
	int fd =
		call(SYS_open, (unsigned int)"/dev/" PHYSICALVIEW_DEVICE, 0, 0);
	unsigned int start = map(NR_PAGES * PAGE);
	char byte;

	if (fd < 0 || start > -4096U)
		call(SYS_exit, 1, 0, 0);
	touch(start);
	report.start = start;
	report.end = 0x1234567812345678ULL;
	make_calls(fd, start);
	call(SYS_write, 1, (unsigned int)&report, sizeof(report));
	call(SYS_read, 0, (unsigned int)&byte, 1);
	call(SYS_exit, 0, 0, 0);
}
