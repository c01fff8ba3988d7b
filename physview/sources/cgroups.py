# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads memory cgroups: their paths by inode number, and the processes in a cgroup."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from physview.files import filesystems
from physview.runtime import proc_mount
from physview.text import proctext
from physview.text.digits import bounded_int
from physview.text.proctext import Mount, read_or_empty

NO_INODE = (1 << 64) - 1
PATH_MAX = 4096  # include/uapi/linux/limits.h
NR_NAMES = PATH_MAX // 256  # names that always fit into PATH_MAX: a name has at most 255 bytes


def memory_cgroup_mount(mounts: Iterable[Mount]) -> Mount | None:
    r"""The mount of the cgroup hierarchy that memory is charged to; None if it is not mounted.

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
    """The paths of all memory cgroups, by inode number. /proc/kpagecgroup has the same numbers.

    The kernel reports the frames of a removed cgroup under its nearest ancestor that exists, so
    that every number has a path, unless a cgroup is made or removed meanwhile.

    The root cgroup is "/". A cgroup with a path of PATH_MAX bytes or more is left out, because the
    kernel itself cannot show such a path.

    Source: Documentation/admin-guide/mm/pagemap.rst, /proc/self/mountinfo
    """
    mount = memory_cgroup_mount(proctext.read_mounts())
    if mount is None:
        return {}
    try:
        top = _open_cgroup(mount.path)
    except OSError:  # another file system is mounted over it
        return {}
    try:
        if os.fstat(top).st_dev != mount.device:
            return {}
        return {
            os.fstat(fd).st_ino: f"/{'/'.join(names)}" for fd, names in _iter_cgroups(top, PATH_MAX)
        }
    finally:
        os.close(top)


def find_cgroup(word: str) -> int | None:
    """Find the inode number of a cgroup; None if there is no such cgroup.

    Args:
        word: "@" and the number, a path that `cgroup_paths()` has, or a folder of the file system.
    """
    if word.startswith("@") and word[1:].isascii() and word[1:].isdecimal():
        return bounded_int(word[1:], NO_INODE)
    for inode, path in cgroup_paths().items():
        if path == word:
            return inode
    try:
        fd = _open_cgroup(word)
    except (OSError, ValueError):  # ValueError: a null character
        return None
    try:
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)


def cgroup_pids(path: str) -> list[int]:
    """The processes in a cgroup and in all cgroups below it.

    Args:
        path: A folder of the cgroup file system.

    Of a threaded cgroup, these are the processes that have a thread in it; see `is_threaded()`.

    Raises:
        OSError: The path is not a cgroup, or cannot be read.
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
    return sorted(pids - {0})  # the kernel lists a process of another pid namespace as 0


def _open_cgroup(path: str, dir_fd: int | None = None) -> int:
    """Open a folder only if it is in a cgroup file system. Raises OSError."""
    return filesystems.open_folder(path, filesystems.CGROUP, filesystems.CGROUP2, dir_fd=dir_fd)


def is_threaded(path: str) -> bool:
    """Whether a cgroup has threads, of processes that belong to the cgroup above it.

    Source: Documentation/admin-guide/cgroup-v2.rst, Threads
    """
    return read_or_empty(os.path.join(path, "cgroup.type")) == b"threaded\n"


def _listed_pids(fd: int) -> list[int]:
    try:
        return proctext.numbers(_read("cgroup.procs", fd))
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
    # A threaded cgroup: the kernel lists threads only.
    tids = proctext.numbers(_read("cgroup.threads", fd))
    return [pid for pid in map(_process_of, tids) if pid]


def _process_of(tid: int) -> int:
    """The process of a thread; 0 if the thread has ended."""
    status = proctext.fields_by_name(read_or_empty(f"/proc/{tid}/status"))
    if b"Tgid" in status:
        return int(status[b"Tgid"])
    return tid if proc_mount.is_hidden(tid) else 0


def _read(name: str, folder: int) -> bytes:
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(name, flags, dir_fd=folder), "rb") as file:
        return file.read()


class _ChainedName(NamedTuple):
    """A cgroup as a chain of names up to the top cgroup.

    Cgroups of the same branch share the upper part of the chain, so a deep branch needs little
    memory.
    """

    above: _ChainedName | None
    name: str
    nr_bytes: int

    def names(self) -> list[str]:
        """The names from the top cgroup down to this one."""
        found = []
        at: _ChainedName | None = self
        while at is not None:
            found.append(at.name)
            at = at.above
        return found[::-1]


def _iter_cgroups(top: int, longest: int = sys.maxsize) -> Iterator[tuple[int, list[str]]]:
    """Yield a cgroup and all cgroups below it.

    A user may nest cgroups thousands of levels deep. So this function does not recurse, and holds
    only one folder open besides `top`. A file system that is mounted over a cgroup has another
    device number, and is skipped.

    Args:
        top: Descriptor of the topmost cgroup.
        longest: Skip cgroups with paths of this many bytes or more, and all below them.

    Yields:
        The descriptor of a cgroup, which is closed before the next one, and its names from the top
        down.
    """
    device = os.fstat(top).st_dev
    left: list[_ChainedName | None] = [None]
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
                below = _ChainedName(at, name, nr_bytes + 1 + len(os.fsencode(name)))
                if below.nr_bytes < longest:
                    left.append(below)
        finally:
            os.close(fd)


def _open_below(top: int, names: list[str]) -> int:
    """Open a cgroup whose path may exceed PATH_MAX, in steps of at most NR_NAMES names."""
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
