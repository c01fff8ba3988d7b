# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a group is one user's alone: then its right to write is nobody else's.

Many distributions give each user a group of their own and a umask of 002.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
from collections.abc import Collection


def is_private(fd: int, gid: int, uids: Collection[int]) -> bool:
    """Whether what a group may do with a file, nobody but some users may do.

    Args:
        fd: The file; O_PATH is enough. An access control list of it may give others the same.
        gid: Its group.
        uids: The users; the group has to be one's own, and to have no other members.
    """
    users = []
    for uid in uids:
        with contextlib.suppress(KeyError):  # it has no entry
            users.append(pwd.getpwuid(uid))
    try:
        group = grp.getgrgid(gid)
        attributes = os.listxattr(f"/proc/self/fd/{fd}")
    except (KeyError, OSError):
        return False
    # acl(5): where there is a list, the group's bits are the most that the list gives anybody.
    if "system.posix_acl_access" in attributes:
        return False
    if not any((user.pw_gid, user.pw_name) == (gid, group.gr_name) for user in users):
        return False
    if not set(group.gr_mem) <= {user.pw_name for user in users}:
        return False
    return all(user.pw_uid in uids for user in pwd.getpwall() if user.pw_gid == gid)
