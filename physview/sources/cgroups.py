# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory cgroups: their paths by inode number, and the processes in one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from physview.files import filesystems
from physview.text import proctext
from physview.text.proctext import Mount

PATH_MAX = 4096  # include/uapi/linux/limits.h
NR_NAMES = PATH_MAX // 256  # a name has 255 bytes at most


def memory_cgroup_mount(mounts: Iterable[Mount]) -> Mount | None:
    r"""Where the hierarchy that memory is charged to is mounted; None if it is not.

    >>> mounts = proctext.parse_mountinfo(b"9 1 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    >>> memory_cgroup_mount(mounts).path
    '/sys/fs/cgroup'
    """
    unified = None
    for mount in mounts:
        if mount.root.startswith("/.."):
            continue
        if mount.kind == "cgroup" and "memory" in mount.options:
            return mount
        if mount.kind == "cgroup2" and unified is None:
            unified = mount
    return unified


def cgroup_paths() -> dict[int, str]:
    """The memory cgroups by inode number, as /proc/kpagecgroup gives it; the root is "/".

    Those whose paths the kernel itself cannot tell, of PATH_MAX bytes and more, are left out.

    Source: Documentation/admin-guide/mm/pagemap.rst, /proc/self/mountinfo
    """
    mount = memory_cgroup_mount(proctext.read_mounts())
    if mount is None:
        return {}
    try:
        top = _open_cgroup(mount.path)
    except OSError:  # something else is mounted over it
        return {}
    try:
        if os.fstat(top).st_dev != mount.device:
            return {}
        return {
            os.fstat(fd).st_ino: f"/{'/'.join(names)}" for fd, names in _iter_cgroups(top, PATH_MAX)
        }
    finally:
        os.close(top)


def cgroup_pids(path: str) -> list[int]:
    """The processes of a cgroup and of those below it.

    Args:
        path: A folder of the cgroup file system.

    Raises:
        OSError: It is none, or cannot be read; EOPNOTSUPP: its processes are listed by the cgroup
            above it only, as it is threaded.
    """
    top = _open_cgroup(path)
    try:
        pids = set(_listed_pids(top))
        for fd, _ in _iter_cgroups(top):
            try:
                pids.update(_listed_pids(fd))
            except OSError:
                continue  # it was removed meanwhile
    finally:
        os.close(top)
    return sorted(pids - {0})  # 0: of another pid namespace


def _open_cgroup(path: str, dir_fd: int | None = None) -> int:
    """Open a folder of a cgroup file system, and nothing else. Raises OSError."""
    return filesystems.open_folder(path, filesystems.CGROUP, filesystems.CGROUP2, dir_fd=dir_fd)


def _listed_pids(fd: int) -> list[int]:
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open("cgroup.procs", flags, dir_fd=fd), "rb") as file:
        return proctext.numbers(file.read())


class _Below(NamedTuple):
    """A cgroup as a chain of names up to the top, so that a deep branch costs little."""

    above: _Below | None
    name: str
    nr_bytes: int

    def names(self) -> list[str]:
        """From the top down."""
        found = []
        at: _Below | None = self
        while at is not None:
            found.append(at.name)
            at = at.above
        return found[::-1]


def _iter_cgroups(top: int, longest: int = sys.maxsize) -> Iterator[tuple[int, list[str]]]:
    """Yield a cgroup and all below it: its folder, open until the next, and its names.

    A user may make a branch thousands deep: so without recursion, and with one folder open. What
    is mounted over a cgroup is of another device, and passed over.

    Args:
        top: The topmost one's folder.
        longest: Go no deeper than paths of so many bytes.
    """
    device = os.fstat(top).st_dev
    left: list[_Below | None] = [None]
    while left:
        at = left.pop()
        names = at.names() if at else []
        try:
            fd = _open_below(top, names)
        except OSError:
            continue  # it was removed meanwhile
        try:
            if os.fstat(fd).st_dev != device:
                continue
            yield fd, names
            nr_bytes = at.nr_bytes if at else 0
            for name in _folders(fd):
                below = _Below(at, name, nr_bytes + 1 + len(os.fsencode(name)))
                if below.nr_bytes < longest:
                    left.append(below)
        finally:
            os.close(fd)


def _open_below(top: int, names: list[str]) -> int:
    """Open a cgroup however long its path is: in steps of what the kernel takes at once."""
    fd = _open_cgroup(".", top)
    for at in range(0, len(names), NR_NAMES):
        above = fd
        try:
            fd = _open_cgroup("/".join(names[at : at + NR_NAMES]), above)
        finally:
            os.close(above)
    return fd


def _folders(fd: int) -> list[str]:
    try:
        with os.scandir(fd) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []  # it was removed meanwhile
