# SPDX-License-Identifier: GPL-2.0-or-later
"""Where frames belong: NUMA nodes of physical memory, and the cgroups that frames are charged to.

The parsers take bytes.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from physview import filesystems, proctext
from physview.machine import Zone, parse_zoneinfo
from physview.model import PAGE_SHIFT
from physview.proctext import Mount

NODES = "/sys/devices/system/node"
NO_NODE = 255

PATH_MAX = 4096  # include/uapi/linux/limits.h
NR_NAMES = PATH_MAX // 256  # a name has 255 bytes at most


class NodeMap(NamedTuple):
    """Which node each block of physical memory belongs to.

    Args:
        node_of_block: A byte for each block, from frame 0 on; NO_NODE where there is no memory.
        block_shift: Frames in a block, as a power of two.
        nodes: The nodes that have memory.
    """

    node_of_block: bytes
    block_shift: int
    nodes: tuple[int, ...]


def node_map() -> NodeMap:
    """The nodes of this machine's frames.

    Source: /sys/devices/system/node/node*/memory*, or /proc/zoneinfo where memory cannot be
    plugged in, or a block of it is of two nodes: there the spans of zones may lie within each
    other, and the shorter one counts.
    """
    try:
        with open("/sys/devices/system/memory/block_size_bytes", "rb") as file:
            block_shift = int(file.read(), 16).bit_length() - 1 - PAGE_SHIFT
        blocks = nodes_of_blocks(NODES)
    except FileNotFoundError:
        blocks = {}
    if not blocks:
        with open("/proc/zoneinfo", "rb") as file:
            zones = parse_zoneinfo(file.read())
        return _map_of_zones(zones)
    table = bytearray([NO_NODE]) * (max(blocks) + 1)
    for block, node in blocks.items():
        table[block] = min(node, NO_NODE)
    return NodeMap(bytes(table), block_shift, tuple(sorted(set(blocks.values()))))


def nodes_of_blocks(folder: str) -> dict[int, int]:
    """The node of each block of memory; empty where one is of several.

    Args:
        folder: /sys/devices/system/node
    """
    found: dict[int, int] = {}
    for node in _numbers(folder, "node"):
        for block in _numbers(f"{folder}/node{node}", "memory"):
            if found.setdefault(block, node) != node:
                return {}
    return found


def _map_of_zones(zones: list[Zone]) -> NodeMap:
    edges = [pfn for zone in zones for pfn in (zone.start_pfn, zone.end_pfn)]
    block_shift = min(((pfn & -pfn).bit_length() - 1 for pfn in edges if pfn), default=0)
    table = bytearray([NO_NODE]) * (max(edges, default=0) >> block_shift)
    for zone in sorted(zones, key=lambda zone: -zone.nr_spanned):
        first, nr = zone.start_pfn >> block_shift, zone.nr_spanned >> block_shift
        table[first : first + nr] = bytes([min(zone.node, NO_NODE)]) * nr
    return NodeMap(bytes(table), block_shift, tuple(sorted({zone.node for zone in zones})))


def _numbers(folder: str, prefix: str) -> list[int]:
    matches = (re.fullmatch(f"{prefix}([0-9]+)", name) for name in os.listdir(folder))
    return sorted(int(match[1]) for match in matches if match)


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
