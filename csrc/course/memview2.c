// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Prints virtual addresses of this program's own memory, and the physical
 * address of each, which the kernel module tells. Read it, change it, and build
 * it again with make.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "physicalview.h" /* the module's interface: csrc/kmod/uapi */

static const char *gmsg = "Global message";
static int device;

static void report(const char *label, const void *address)
{
	struct physicalview_translate query = { .virt = (__u64)address };

	/* Read a byte: only pages that are in use have a physical address. */
	if (address)
		(void)*(const volatile char *)address;
	/*
	 * The module copies query with copy_from_user(), looks up the physical
	 * address, and copies query back with copy_to_user().
	 */
	if (ioctl(device, PHYSICALVIEW_TRANSLATE, &query)) {
		perror("ioctl");
		exit(1);
	}
	if (query.phys)
		printf("%s:  0x%016llx -> 0x%016llx\n", label, query.virt,
		       query.phys);
	else
		printf("%s:  0x%016llx -> UNKNOWN\n", label, query.virt);
}

int main(int argc, char **argv, char **envp)
{
	const char *lmsg = "Local message";
	char *buf[30];
	char label[16];

	(void)argc;

	/* For experiment 8, remove the slashes before sleep. */
	// sleep(10);

	device = open("/dev/" PHYSICALVIEW_DEVICE, O_RDONLY);
	if (device < 0) {
		perror("cannot open /dev/" PHYSICALVIEW_DEVICE);
		fprintf(stderr, "run as root, after: sudo make insert\n");
		return 1;
	}
	printf("Memory map report (virtual -> physical)\n");
	report("argv", argv);
	report("argv[0]", argv[0]);
	report("envp", envp);
	report("envp[0]", envp[0]);
	report("lmsg", lmsg);
	report("&lmsg", &lmsg);
	report("gmsg", gmsg);
	report("&gmsg", &gmsg);
	report("main", (const void *)main);
	report("&buf", &buf);
	for (int i = 0; i < 30; i++) {
		buf[i] = malloc(4096);
		snprintf(label, sizeof(label), "buf[%02d]", i);
		report(label, buf[i]);
	}
	return 0;
}
