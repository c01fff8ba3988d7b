# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds the largest free blocks, so that their frames need not be read one by one.

To tell the flags of a free frame, the kernel searches for the block that has it, so free frames are
the slowest to read. But their flags are known where their block is. A block is found in two ways:

- By its number in /proc/buddyinfo, and a few frames of each place where such a block can be. Every
  free block has only free frames. So if as many places look free as there are free blocks, these
  places are the blocks. Places that look unlike the others are read as a whole first.
- By the flag of free page reporting, in virtual machines: the first frame of a free block has it,
  and the block is not smaller than the kernel's page_reporting_order.

Source: mm/page_alloc.c, mm/page_reporting.c, /proc/buddyinfo, /proc/kpageflags
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from physview import _ffi
from physview.sources.page_flags import FLAG_BITS
from physview.sources.ram import Zone, read_buddyinfo

if TYPE_CHECKING:
    from physview.sources.kpage import KpageFile

# Frames to read of each place: a power of two.
PROBES = 8

FREE = 1 << FLAG_BITS["buddy"]
# PG_reported is the bit PG_uptodate of a free frame. Source: include/linux/page-flags.h
REPORTED = FREE | 1 << FLAG_BITS["uptodate"]
REPORTING_ORDER = "/sys/module/page_reporting/parameters/page_reporting_order"

Part = tuple["Zone | None", tuple[int, int]]


class FreeBlock(NamedTuple):
    """Frames that are free.

    Args:
        first: The first frame.
        nr: The number of frames.
        flags: The flags of the first frame. The others have only FREE.
        zone: Their zone.
    """

    first: int
    nr: int
    flags: int
    zone: Zone


def find_free_blocks(file: KpageFile, parts: Iterable[Part]) -> list[FreeBlock]:
    """Find the largest free blocks of all zones where this is certain.

    Args:
        file: kpageflags of this machine.
        parts: RAM by zones, in order.

    Returns:
        The blocks, in order. Those of a zone are missing, or are shorter, if their places are not
        certain: some were split meanwhile, or other places look the same.
    """
    before = read_buddyinfo()
    order = max(map(len, before.values()), default=0) - 1
    if 1 << order < PROBES or _has_broken_frames():
        return []
    places: dict[Zone, list[tuple[int, int]]] = {}
    for zone, (low, high) in parts:
        if zone and before.get((zone.node, zone.name), [0])[-1]:
            places.setdefault(zone, []).extend(_probe(file, low, high, order))
    for zone, found in places.items():
        if len(found) > before[zone.node, zone.name][-1]:
            places[zone] = _without_false(file, found, 1 << order)
    after = read_buddyinfo()
    reporting_order = _reporting_order()
    blocks = []
    for zone, found in places.items():
        key = zone.node, zone.name
        if before[key][-1] == len(found) == after.get(key, [0])[-1]:
            blocks += [FreeBlock(first, 1 << order, flags, zone) for first, flags in found]
        elif reporting_order is not None and reporting_order <= order:
            nr = 1 << reporting_order
            reported = (place for place in found if place[1] == REPORTED)
            blocks += [FreeBlock(first, nr, flags, zone) for first, flags in reported]
    return sorted(blocks)


def _without_false(
    file: KpageFile, places: list[tuple[int, int]], nr: int
) -> list[tuple[int, int]]:
    """Read the places whose first frame is unlike most others; leave out those not wholly free."""
    usual, nr_usual = Counter(flags for _, flags in places).most_common(1)[0]
    if nr_usual < len(places) * 3 // 4:  # to read so many is no gain
        return places
    kept = []
    for first, flags in places:
        if flags != usual:
            counts = file.count_range(first + 1, nr - 1)
            if set(counts) != {FREE}:
                continue
        kept.append((first, flags))
    return kept


def counts_of(blocks: Iterable[FreeBlock]) -> dict[Zone, Counter[int]]:
    """Number of frames by flags, for each zone."""
    found: dict[Zone, Counter[int]] = {}
    for block in blocks:
        counts = found.setdefault(block.zone, Counter())
        counts[block.flags] += 1
        counts[FREE] += block.nr - 1
    return found


def _reporting_order() -> int | None:
    try:
        with open(REPORTING_ORDER, "rb") as file:
            order = int(file.read(32))
    except (OSError, ValueError):
        return None
    return order if order > 0 else None


def without_free_blocks(parts: Iterable[Part], blocks: list[FreeBlock]) -> Iterator[Part]:
    """Cut the free blocks, which are in order, out of the parts."""
    at = 0
    for zone, (low, high) in parts:
        begin = low
        while at < len(blocks) and blocks[at].first < high:
            if begin < blocks[at].first:
                yield zone, (begin, blocks[at].first)
            begin = blocks[at].first + blocks[at].nr
            at += 1
        if begin < high:
            yield zone, (begin, high)


def _probe(file: KpageFile, low: int, high: int, order: int) -> list[tuple[int, int]]:
    """The places of a range that may be free blocks: first frame, and its flags."""
    ffi, lib = _ffi.load()
    nr = 1 << order
    first = -(-low // nr) * nr
    nr_places = max(0, high - first) // nr
    if not nr_places:
        return []
    heads = ffi.new("uint64_t[]", nr_places)
    step = nr // PROBES
    ret = lib.pv_probe_blocks(file.fd, first, nr, nr_places, step, FREE, heads)
    _ffi.check(ret, "/proc/kpageflags")
    flags = list(heads)
    return [(first + i * nr, flags[i]) for i in range(nr_places) if flags[i]]


def _has_broken_frames() -> bool:
    """Whether there are poisoned frames, which old kernels leave in free blocks."""
    with open("/proc/meminfo", "rb") as file:
        match = re.search(rb"^HardwareCorrupted: +([0-9]+)", file.read(), re.MULTILINE)
    return match is not None and int(match[1]) != 0
