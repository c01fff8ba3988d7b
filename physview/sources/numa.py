# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds the NUMA node of each block of physical memory."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from physview.model import PAGE_SHIFT
from physview.sources.ram import Zone, parse_zoneinfo
from physview.text.proctext import read_or_empty

NODES = "/sys/devices/system/node"
NO_NODE = 255


class NodeMap(NamedTuple):
    """The NUMA node of each block of physical memory.

    Args:
        node_of_block: One byte per block, from frame 0 on: the node, or NO_NODE if the block has
            no memory.
        block_shift: log2 of the frames in a block.
        nodes: The nodes that have memory.
    """

    node_of_block: bytes
    block_shift: int
    nodes: tuple[int, ...]


def has_hinted_huge_pages() -> bool:
    """Whether the kernel has made huge pages fault, to learn which node uses them: NUMA hints.

    Linux 6.1 to 6.5 leave a huge page out of smaps until it has faulted.

    Source: follow_trans_huge_pmd() in mm/huge_memory.c, numa_huge_pte_updates in /proc/vmstat
    """
    return (
        re.search(rb"^numa_huge_pte_updates [1-9]", read_or_empty("/proc/vmstat"), re.M) is not None
    )


def node_map() -> NodeMap:
    """Read the NUMA node of each block of this machine's memory.

    The fallback is /proc/zoneinfo. It is used if the kernel has no memory hotplug, or if a block
    belongs to two nodes. In zoneinfo the span of one zone may contain that of another. Then the
    shorter span counts.

    Source: /sys/devices/system/node/node*/memory*, /proc/zoneinfo
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
    """The node of each block of memory; empty if a block belongs to several nodes.

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
