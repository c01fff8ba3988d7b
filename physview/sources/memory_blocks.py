# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the blocks of memory that the kernel can put online and offline.

Source: Documentation/admin-guide/mm/memory-hotplug.rst, /sys/devices/system/memory
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from physview.model import PAGE_SHIFT
from physview.sources.numa import NODES, nodes_of_blocks
from physview.sources.ram import ram_ranges, read_resources
from physview.text import proctext

MEMORY = "/sys/devices/system/memory"


class MemoryBlock(NamedTuple):
    """One block of memory.

    Args:
        first: The first frame.
        end: The first frame after the block.
        is_online: Whether the kernel uses its memory.
        zone: Name of the zone that has all of its memory; None if there are several, if the block
            is offline, or if the zones were not asked for.
        node: The NUMA node; None if there are several.
    """

    first: int
    end: int
    is_online: bool
    zone: str | None
    node: int | None


def read_blocks(*, with_zones: bool, memory: str = MEMORY, nodes: str = NODES) -> list[MemoryBlock]:
    """Read all blocks of memory, in order; none if the kernel has no memory hotplug.

    Args:
        with_zones: Whether to find the zones and the nodes, too.
        memory: /sys/devices/system/memory.
        nodes: /sys/devices/system/node.
    """
    try:
        size = int(_read(f"{memory}/block_size_bytes"), 16)
        names = os.listdir(memory)
    except OSError:
        return []
    shift = size.bit_length() - 1 - PAGE_SHIFT
    numbers = (re.fullmatch("memory([0-9]+)", name) for name in names)
    node_of = nodes_of_blocks(nodes) if with_zones and os.path.isdir(nodes) else {}
    found = []
    for number in sorted(int(match[1]) for match in numbers if match):
        try:
            is_online = _read(f"{memory}/memory{number}/state") != b"offline"
            zones = _read(f"{memory}/memory{number}/valid_zones") if with_zones else b""
        except OSError:
            continue  # it was removed meanwhile
        # An offline block has the zones that it can go to.
        is_in_one = is_online and len(proctext.words(zones)) == 1 and zones != b"none"
        zone = zones.decode("ascii", "replace") if is_in_one else None
        first = number << shift
        block = MemoryBlock(first, first + (1 << shift), is_online, zone, node_of.get(number))
        found.append(block)
    return found


def read_online_ram() -> list[tuple[int, int]]:
    """Read where the RAM is that the kernel uses: ranges of frames, as of `ram.ram_ranges()`.

    Raises:
        AccessDenied: The kernel hides physical addresses from this user.
    """
    return without_offline(ram_ranges(read_resources()), read_blocks(with_zones=False))


def without_offline(ram: list[tuple[int, int]], blocks: list[MemoryBlock]) -> list[tuple[int, int]]:
    """Remove the frames of offline blocks from ranges of RAM.

    Args:
        ram: Ranges as (first frame, first frame after the range), in order.
        blocks: The blocks, in order.

    >>> block = MemoryBlock(8, 16, False, None, 0)
    >>> without_offline([(2, 20)], [block])
    [(2, 8), (16, 20)]
    """
    for block in blocks:
        if not block.is_online:
            ram = [
                part
                for first, end in ram
                for part in ((first, min(end, block.first)), (max(first, block.end), end))
                if part[0] < part[1]
            ]
    return ram


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return proctext.value(file.read())
