// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Tells how the files of a file system use the page cache. To ask mincore(), a
 * file must be mapped, and to find a frame, a page must be faulted in. For a
 * file whose pages are a device's registers, that reads the device: Linux 7.3
 * reports the pages of a mapped PCI resource file of sysfs as resident. So only
 * a file that certainly has pages in the page cache may be mapped.
 * Source: include/uapi/linux/magic.h, statfs(2)
 */
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/vfs.h>

#include "filecache.h"

#define HUGETLBFS_MAGIC 0x958458f6
#define FUSE_MAGIC 0x65735546

/*
 * No device has these file systems, and their files have pages in the page
 * cache.
 */
static const uint32_t PAGED[] = {
	0x01021994, /* tmpfs, and devtmpfs */
	0x858458f6, /* ramfs */
	0x9123683e, /* btrfs */
	0x6969,	    /* nfs */
	0xff534d42, /* cifs */
	0xfe534d42, /* smb2 */
	0x01021997, /* 9p */
	0x00c36400, /* ceph */
	0x5346414f, /* afs of OpenAFS */
	0x6b414653, /* afs */
	0xf15f,	    /* ecryptfs */
	0x24051905, /* ubifs */
	0x72b6,	    /* jffs2 */
	0x2fc12fc1, /* zfs, for pages that are mapped */
	0xca451a4e, /* bcachefs */
	0xe0f5e1e2, /* erofs */
	0x73717368, /* squashfs */
	0x28cd3d45, /* cramfs */
	0x7275,	    /* romfs */
	0x20030528, /* orangefs */
	0x0bd00bd0, /* lustre */
	0x47504653, /* gpfs */
	0x786f4256, /* vboxsf */
	0x00c0ffee, /* hostfs */
};

/*
 * A file of these has no pages. mmap() maps a file of another file system in
 * its place, so mincore() tells of that one; cachestat() tells of no pages.
 */
static const uint32_t STACKED[] = {
	0x794c7630, /* overlay */
	0x73757245, /* coda */
};

/* The kernel makes the content of these files when they are read. */
static const uint32_t VIRTUAL[] = {
	0x9fa0,	    /* proc */
	0x62656572, /* sysfs */
	0x64626720, /* debugfs */
	0x74726163, /* tracefs */
	0x73636673, /* securityfs */
	0x27e0eb,   /* cgroup */
	0x63677270, /* cgroup2 */
	0xcafe4a11, /* bpf */
	0x62656570, /* configfs */
	0x6165676c, /* pstore */
	0xde5e81e4, /* efivarfs */
	0xf97cff8c, /* selinuxfs */
	0x43415d53, /* smackfs */
	0x5a3c69f0, /* apparmorfs */
	0x42494e4d, /* binfmt_misc */
	0x1cd1,	    /* devpts */
	0x19800202, /* mqueue */
	0x07655821, /* resctrl */
	0x65735543, /* fusectl */
	0x6e736673, /* nsfs */
	0x67596969, /* rpc_pipefs */
	0xabba1974, /* xenfs */
	0x9fa1,	    /* openpromfs */
	0x50495045, /* pipefs */
	0x50494446, /* pidfs */
	0x534f434b, /* sockfs */
	0x09041934, /* anon_inode */
	0x444d4142, /* dmabuf */
	0x454d444d, /* devmem */
	0x5345434d, /* secretmem, which the kernel itself cannot read */
	0x474d454d, /* guest_memfd */
	0x6c6f6f70, /* binderfs */
};

static bool has(const uint32_t *types, size_t nr, uint32_t type)
{
	for (size_t i = 0; i < nr; i++) {
		if (types[i] == type)
			return true;
	}
	return false;
}

#define HAS(types, type) has(types, sizeof(types) / sizeof(*(types)), type)

/*
 * Tell of an open file or folder how its file system uses the page cache: one
 * of the PV_FS_… constants, or -errno. device_major is the major number of
 * st_dev; 0 means that no block device holds the files. *type gets f_type.
 */
int pv_file_system(int fd, uint32_t device_major, uint64_t *type)
{
	struct statfs info;
	uint32_t magic;

	if (fstatfs(fd, &info))
		return -errno;
	magic = (uint32_t)info.f_type;
	*type = magic;
	if (magic == HUGETLBFS_MAGIC)
		return PV_FS_HUGETLB;
	if (HAS(VIRTUAL, magic))
		return PV_FS_VIRTUAL;
	if (HAS(STACKED, magic))
		return PV_FS_STACKED;
	/* FUSE may hand a file through to another (Linux 6.9). */
	if (magic == FUSE_MAGIC)
		return PV_FS_PASSING;
	if (device_major || HAS(PAGED, magic))
		return PV_FS_PAGED;
	return PV_FS_UNKNOWN;
}
