# SPDX-License-Identifier: GPL-2.0-or-later
"""Where frames belong: NUMA nodes of physical memory, and the cgroups that frames are charged to.

The parsers take bytes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from physview.machine import Zone, parse_zoneinfo
from physview.model import PAGE_SHIFT

NODES = "/sys/devices/system/node"
NO_NODE = 255


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


def memory_cgroup_mount(mountinfo: bytes) -> str | None:
    r"""Where the hierarchy that memory is charged to is mounted; None if it is not.

    >>> memory_cgroup_mount(b"9 1 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    '/sys/fs/cgroup'
    """
    unified = None
    for line in mountinfo.decode("utf-8", "surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.partition(" ")
        root, path = before.split()[3:5]
        if root.startswith("/.."):
            continue
        if kind == "cgroup" and "memory" in options.split()[-1].split(","):
            return path
        if kind == "cgroup2" and unified is None:
            unified = path
    return unified


def _iter_folders(top: str) -> Iterator[str]:
    for folder, _, _ in os.walk(top):
        yield folder


def cgroup_paths() -> dict[int, str]:
    """The memory cgroups by inode number, as /proc/kpagecgroup gives it; the root is "/".

    Source: Documentation/admin-guide/mm/pagemap.rst, /proc/self/mountinfo
    """
    with open("/proc/self/mountinfo", "rb") as file:
        top = memory_cgroup_mount(file.read())
    if top is None:
        return {}
    paths = {}
    for folder in _iter_folders(top):
        try:
            paths[os.stat(folder).st_ino] = folder[len(top) :] or "/"
        except OSError:
            continue  # it was removed meanwhile
    return paths


def cgroup_pids(path: str) -> list[int]:
    """The processes of a cgroup and of those below it.

    Args:
        path: A folder of the cgroup file system.

    Raises:
        OSError: It is none, or cannot be read.
    """
    with open(f"{path}/cgroup.procs", "rb") as file:
        pids = set(map(int, file.read().split()))
    for folder in _iter_folders(path):
        try:
            with open(f"{folder}/cgroup.procs", "rb") as file:
                pids.update(map(int, file.read().split()))
        except OSError:
            continue  # it was removed meanwhile
    return sorted(pids - {0})  # 0: of another pid namespace
