# SPDX-License-Identifier: GPL-2.0-or-later
"""POSIX access control lists, without the setfacl program."""

import os
import struct


def give(folder, uid):
    """Let a user write to a folder of mode 0775 by an access control list. The mode stays 0775.

    Source: acl(5), include/uapi/linux/posix_acl_xattr.h
    """
    # The owner, the user, the group, the mask, others.
    entries = ((1, 7, -1), (2, 7, uid), (4, 7, -1), (16, 7, -1), (32, 5, -1))
    packed = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    os.setxattr(folder, "system.posix_acl_access", packed)
