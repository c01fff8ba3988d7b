# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds the type of the file system that a folder is in, by fstatfs().

A path in the list of mounts cannot be trusted, because users can choose names of mount points. If
root wrote to such a path, a user could choose where root writes. So a folder that was found by
name is opened first. Then its file system is checked, and after that only its descriptor is used.
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
    """The type (f_type) of the file system that an open file is in.

    Args:
        fd: The file; O_PATH is enough.

    Raises:
        OSError: fstatfs() fails.

    Source: statfs(2)
    """
    import ctypes

    # struct statfs begins with f_type, a long on x86-64 and arm64. The buffer is larger than it.
    buffer = (ctypes.c_long * 32)()
    if _libc().fstatfs(fd, buffer):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(buffer[0])


def open_folder(path: str, *types: int, flags: int = os.O_RDONLY, dir_fd: int | None = None) -> int:
    """Open a folder if it is in a file system of one of the given types.

    Anything that is not a folder is refused at once: opening a FIFO or a device could block.

    Args:
        path: The folder.
        types: The types of file systems to accept, as `type_of()` returns them.
        flags: O_PATH if the folder will not be listed.
        dir_fd: The folder that a relative path starts from; None is the working directory.

    Returns:
        The descriptor of the folder.

    Raises:
        NotADirectoryError: The path is not a folder, or is in another type of file system.
        OSError: The folder cannot be opened.
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
