// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A client that uses only what the course tells about its ABI: the device's
 * name, the number 0xC0106B01, and two unsigned longs. Prints the physical
 * addresses of a string, of a local variable, of main(), and of a page that was
 * never touched.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

struct query {
	unsigned long virt;
	unsigned long phys;
};

static void report(int fd, const char *label, const void *address)
{
	struct query query = { (unsigned long)address, 0 };

	if (ioctl(fd, 0xC0106B01, &query)) {
		perror("ioctl");
		exit(1);
	}
	printf("%s 0x%lx 0x%lx\n", label, query.virt, query.phys);
}

int main(int argc, char **argv)
{
	int fd = open("/dev/3000physicalview", O_RDONLY);
	char *untouched = aligned_alloc(1 << 20, 1 << 20);

	(void)argc;
	if (fd < 0) {
		perror("/dev/3000physicalview");
		return 1;
	}
	report(fd, "string", argv[0]);
	report(fd, "local", &fd);
	report(fd, "main", (const void *)main);
	report(fd, "untouched", untouched + (1 << 19));
	report(fd, "kernel", (const void *)0xffff888000000000UL);
	fflush(stdout);
	/* Wait, so that a test can read the same addresses from another source.
	 */
	if (argc > 1)
		pause();
	return 0;
}
