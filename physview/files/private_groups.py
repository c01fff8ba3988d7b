# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds out whether a group is private: whether it has one user as its only member.

Many distributions give each user a private group and a umask of 002. So most files of a user are
writable by a group, but this group has no other member.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
from collections.abc import Collection


def is_private(fd: int, gid: int, uids: Collection[int]) -> bool:
    """Whether the group permissions of a file apply to nobody but the given users.

    An access control list may give the same permissions to further users. So the answer is False
    for a file that has an access control list.

    Args:
        fd: The file; O_PATH is enough.
        gid: The group of the file.
        uids: The users. The group must be the private group of one of them.
    """
    users = []
    for uid in uids:
        with contextlib.suppress(KeyError):  # no entry in the user database
            users.append(pwd.getpwuid(uid))
    try:
        group = grp.getgrgid(gid)
        attributes = os.listxattr(f"/proc/self/fd/{fd}")
    except (KeyError, OSError):
        return False
    # acl(5): with an access control list, the group bits are the mask of the whole list.
    if "system.posix_acl_access" in attributes:
        return False
    if not any((user.pw_gid, user.pw_name) == (gid, group.gr_name) for user in users):
        return False
    if not set(group.gr_mem) <= {user.pw_name for user in users}:
        return False
    return all(user.pw_uid in uids for user in pwd.getpwall() if user.pw_gid == gid)
