# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads all frames of the machine: their use by zone, and which large blocks could be made free.

The frames of each 2 MiB are counted by their flags. So one pass tells the uses, and the blocks in
which every frame is free or movable.

Source: /proc/kpageflags, /proc/iomem, /proc/zoneinfo, /proc/buddyinfo, /sys/devices/system/memory
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator

from physview.frames.free_blocks import find_free_blocks, without_free_blocks
from physview.frames.machine import Use, split_by_zones, use_of
from physview.model import PAGE_SIZE
from physview.sources.kpage import KpageFile
from physview.sources.memory_blocks import read_blocks, without_offline
from physview.sources.ram import Zone, parse_zoneinfo, ram_ranges, read_resources
from physview.text.proctext import read_or_empty

FRAMES_IN_2M, FRAMES_IN_1G = (1 << 21) // PAGE_SIZE, (1 << 30) // PAGE_SIZE

# The kernel can usually move these frames; it cannot move a frame while it is pinned.
MOVABLE = frozenset({Use.FREE, Use.ANON, Use.SHMEM, Use.PAGE_CACHE, Use.KSM})
COLUMN_OF = {
    Use.ANON: "anon",
    Use.KSM: "anon",
    Use.SHMEM: "file",
    Use.PAGE_CACHE: "file",
    Use.SLAB: "slab",
    Use.PAGE_TABLES: "page_tables",
    Use.HUGETLB: "hugetlb",
    Use.RESERVED: "reserved",
    Use.OTHER: "other",
    Use.ZERO_PAGE: "other",
    Use.POISONED: "other",
    Use.OFFLINE: "other",
}
"""The column that counts the frames of a use. Free frames and holes are in none of them."""


class ZoneFrames:
    """Counts the frames of a zone."""

    def __init__(self) -> None:
        self._by_column: Counter[str] = Counter()
        self._free: Counter[int] = Counter()
        self._movable: Counter[int] = Counter()

    def add(self, first: int, counts: dict[int, int]) -> None:
        """Add frames.

        Args:
            first: The first frame. All of them are in the same 2 MiB.
            counts: Number of frames by their value in kpageflags.
        """
        nr_movable = 0
        for flags, nr in counts.items():
            use = _use_of(flags)
            if use in COLUMN_OF:
                self._by_column[COLUMN_OF[use]] += nr
            if use is Use.FREE:
                self._free[first // FRAMES_IN_1G] += nr
            if use in MOVABLE:
                nr_movable += nr
        if nr_movable:
            self._movable[first // FRAMES_IN_2M] += nr_movable

    def row(self) -> dict[str, int]:
        """The values by column, in bytes."""
        row = {
            name: self._by_column[name] * PAGE_SIZE for name in dict.fromkeys(COLUMN_OF.values())
        }
        of_1g: Counter[int] = Counter()
        nr_whole = 0
        for block, nr in self._movable.items():
            if nr == FRAMES_IN_2M:
                nr_whole += 1
            of_1g[block * FRAMES_IN_2M // FRAMES_IN_1G] += nr
        row["could_2m"] = nr_whole << 21
        row["could_1g"] = sum(nr == FRAMES_IN_1G for nr in of_1g.values()) << 30
        row["usable_1g"] = sum(nr == FRAMES_IN_1G for nr in self._free.values()) << 30
        return row


@functools.lru_cache(maxsize=1 << 12)
def _use_of(flags: int) -> Use:
    return use_of(flags)


def read_frames() -> dict[tuple[int, str], dict[str, int]]:
    """Read all frames of the machine.

    Returns:
        The columns of schema.ZONES that frames tell, by node and zone. Frames outside of all zones
        are left out.

    Raises:
        AccessDenied: Only root may read flags and physical addresses.
        Unsupported: The kernel was built without kpageflags.
        CoreUnavailable: The core is not built.
    """
    found: dict[tuple[int, str], ZoneFrames] = {}
    with KpageFile("kpageflags") as file:
        zones = parse_zoneinfo(read_or_empty("/proc/zoneinfo"))
        blocks = read_blocks(with_zones=True)
        parts = split_by_zones(without_offline(ram_ranges(read_resources()), blocks), zones, blocks)
        free = find_free_blocks(file, parts)
        for zone in zones:
            found[zone.node, zone.name] = ZoneFrames()
        for block in free:
            for first, end in _cut(block.first, block.first + block.nr):
                found[block.zone.node, block.zone.name].add(first, {block.flags: end - first})
        ffi, _ = file.core
        one = ffi.new("struct pv_frames[1]")
        for owner, (low, high) in without_free_blocks(parts, free):
            if not isinstance(owner, Zone):
                continue
            counter = found[owner.node, owner.name]
            for first, end in _cut(low, high):
                one[0].pfn, one[0].nr = first, end - first
                counter.add(first, file.count_buffer(one, 1))
    return {key: counter.row() for key, counter in found.items()}


def _cut(first: int, end: int) -> Iterator[tuple[int, int]]:
    """Cut a range of frames where 2 MiB begin."""
    while first < end:
        border = min(end, (first // FRAMES_IN_2M + 1) * FRAMES_IN_2M)
        yield first, border
        first = border
