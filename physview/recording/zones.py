# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the zones of memory: what is free, in which blocks, and what the frames are used for.

Source: /proc/zoneinfo, /proc/buddyinfo, and for the frames /proc/kpageflags, /proc/iomem
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from physview.model import PAGE_SIZE
from physview.recording.schema import MOMENT, ZONES, Columns
from physview.sources.ram import Zone, parse_buddyinfo, parse_zoneinfo
from physview.text.proctext import read_or_empty

SIZE_2M, SIZE_1G = 1 << 21, 1 << 30
NAMES = [column.name for column in ZONES[len(MOMENT) :]]


def unusable(free_blocks: Sequence[int]) -> list[float]:
    """The unusable free index of each order: the share of free memory in smaller blocks.

    Args:
        free_blocks: Item i is the number of free blocks of 2**i pages.

    Returns:
        A number from 0 (all free memory can be used) to 1 for each order. 0 if nothing is free,
        as the kernel's own file unusable_index has it.

    Source: mm/vmstat.c, unusable_free_index()

    >>> unusable([2, 1, 1])
    [0.0, 0.25, 0.5]
    """
    pages = [nr << order for order, nr in enumerate(free_blocks)]
    total = sum(pages)
    found, smaller = [], 0
    for nr in pages:
        found.append(smaller / total if total else 0.0)
        smaller += nr
    return found


def usable_bytes(free_blocks: Sequence[int], size: int) -> int | None:
    """Free memory in blocks of at least a size; None if the largest block is smaller.

    Args:
        free_blocks: Item i is the number of free blocks of 2**i pages.
        size: A power of two, in bytes.

    >>> usable_bytes([5, 0, 3], 4 * PAGE_SIZE) == 3 * 4 * PAGE_SIZE, usable_bytes([5], 1 << 30)
    (True, None)
    """
    order = (size // PAGE_SIZE).bit_length() - 1
    if order >= len(free_blocks):
        return None
    return sum(nr << at for at, nr in enumerate(free_blocks) if at >= order) * PAGE_SIZE


def row_of(zone: Zone, free_blocks: list[int]) -> dict[str, Any]:
    """The values of a zone that the free lists tell, by column."""
    return {
        "node": zone.node,
        "zone": zone.name,
        "present": zone.nr_present * PAGE_SIZE,
        "managed": zone.nr_managed * PAGE_SIZE,
        "free": zone.nr_free * PAGE_SIZE,
        "free_blocks": free_blocks,
        "unusable": unusable(free_blocks),
        "usable_2m": usable_bytes(free_blocks, SIZE_2M),
        "usable_1g": usable_bytes(free_blocks, SIZE_1G),
    }


def read_zones(*, with_frames: bool = False) -> Columns:
    """Read all zones once.

    Args:
        with_frames: Whether to read all frames of the machine, which needs root and takes longer.
            Without it, the columns about frames are None.

    Returns:
        The columns of schema.ZONES without those of schema.MOMENT.

    Raises:
        AccessDenied: Only root may read frames.
        Unsupported: The kernel was built without kpageflags.
        CoreUnavailable: The core is not built.
    """
    zones = parse_zoneinfo(read_or_empty("/proc/zoneinfo"))
    blocks = parse_buddyinfo(read_or_empty("/proc/buddyinfo"))
    rows = [row_of(zone, blocks.get((zone.node, zone.name), [])) for zone in zones]
    if with_frames:
        from physview.recording.zone_frames import read_frames

        found = read_frames()
        for row in rows:
            row.update(found.get((row["node"], row["zone"]), {}))
    return {name: [row.get(name) for row in rows] for name in NAMES}
