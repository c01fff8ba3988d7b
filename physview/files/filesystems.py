# SPDX-License-Identifier: GPL-2.0-or-later
"""Which file system a folder is of, as statfs() says: no name of a mount point can pretend that.

Who is root and writes where a list of mounts points to, writes where the list's author wants. So
what is found by name is opened, asked what it is, and used by that descriptor.
"""

from __future__ import annotations

import errno
import functools
import os
from typing import Any

# include/uapi/linux/magic.h
CGROUP = 0x27E0EB
CGROUP2 = 0x63677270
TRACEFS = 0x74726163


@functools.cache
def _libc() -> Any:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def type_of(fd: int) -> int:
    """The f_type of the file system that a descriptor is of; O_PATH is enough.

    Raises:
        OSError: The file system does not say.

    Source: statfs(2)
    """
    import ctypes

    # struct statfs begins with f_type, a long on x86-64 and arm64, and is shorter than this.
    buffer = (ctypes.c_long * 32)()
    if _libc().fstatfs(fd, buffer):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(buffer[0])


def open_folder(path: str, *types: int, flags: int = os.O_RDONLY, dir_fd: int | None = None) -> int:
    """Open a folder of one of these file systems; nothing else is waited for or read.

    Args:
        path: The folder.
        types: What `type_of()` may be.
        flags: O_PATH where it need not be listed.
        dir_fd: What a relative path is relative to.

    Returns:
        Its descriptor.

    Raises:
        NotADirectoryError: It is no folder, or one of another file system.
        OSError: The kernel refuses.
    """
    fd = os.open(path, flags | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        if type_of(fd) in types:
            return fd
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    raise NotADirectoryError(errno.ENOTDIR, "it lies in another file system", path)
