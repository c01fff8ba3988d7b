# SPDX-License-Identifier: GPL-2.0-or-later
"""Counts all frames of the machine by their flags, zone and use.

Source: /proc/kpageflags (fs/proc/page.c), /proc/iomem, /proc/zoneinfo, /proc/buddyinfo,
/sys/devices/system/memory
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from enum import Enum
from itertools import groupby, pairwise
from typing import Any, NamedTuple

from physview import _ffi
from physview.frames.free_blocks import counts_of, find_free_blocks, without_free_blocks
from physview.model import NO_ENTRY
from physview.sources.frame_flags import choose_flag_source, count_frames, read_max_order
from physview.sources.kpage import KpageFile
from physview.sources.memory_blocks import MemoryBlock, read_blocks, without_offline
from physview.sources.page_flags import FLAG_BITS
from physview.sources.ram import (
    Zone,
    parse_zoneinfo,
    ram_ranges,
    read_buddyinfo,
    read_resources,
)

# Frames that one thread counts at a time: about 20 ms of work in the kernel.
SLICE = 1 << 18

MAPPED = 1 << FLAG_BITS["mmap"]


class Use(Enum):
    """What a frame is used for. `rule` names the flags that decide, `text` describes the use.

    The rules are tried in this order, and the first rule that matches counts. SLAB comes before
    ANON: in a slab some bits have another meaning, so the kernel may report flags such as anon for
    it.
    """

    NO_FRAME = ("no_frame", "no flags, or nopage", "no RAM that the kernel knows of")
    POISONED = ("poisoned", "hwpoison", "broken RAM that was taken out of use")
    OFFLINE = ("offline", "offline", "given back to the hypervisor, or not yet online")
    FREE = ("free", "buddy", "free")
    SLAB = ("slab", "slab", "the kernel's own small objects")
    PAGE_TABLES = ("page_tables", "pgtable", "page tables of processes")
    ZERO_PAGE = ("zero_page", "zero_page", "the zero page, shared by all pages that were only read")
    HUGETLB = ("hugetlb", "huge", "huge pages that were set aside (hugetlb), in use or not")
    RESERVED = ("reserved", "reserved", "the kernel itself, and firmware")
    KSM = ("ksm", "ksm", "equal anonymous pages that were merged (KSM)")
    ANON = ("anon", "anon", "anonymous memory: heaps, stacks, private copies")
    SHMEM = ("shmem", "swapbacked, not anon", "shared memory and tmpfs")
    PAGE_CACHE = ("page_cache", "lru, thp or uptodate", "files in the page cache")
    OTHER = ("other", "none of these", "kernel memory without a flag, or frames held back from use")

    rule: str
    text: str

    def __new__(cls, slug: str, rule: str, text: str) -> Use:
        member = object.__new__(cls)
        member._value_ = slug
        member.rule = rule
        member.text = text
        return member


_USES_BY_FLAG = [(1 << FLAG_BITS[use.rule], use) for use in Use if use.rule in FLAG_BITS]
_NOPAGE = 1 << FLAG_BITS["nopage"]
_SWAPBACKED = 1 << FLAG_BITS["swapbacked"]
# thp: kernels before 6.9 report only thp for the tails of a large folio in the page cache.
# uptodate: while the kernel moves a page to another LRU list, lru is clear and uptodate stays set.
_CACHED = 1 << FLAG_BITS["lru"] | 1 << FLAG_BITS["thp"] | 1 << FLAG_BITS["uptodate"]


def use_of(flags: int) -> Use:
    """Find what a frame is used for by its value in kpageflags.

    >>> use_of(1 << 10), use_of(1 << 5 | 1 << 11), use_of(1 << 7 | 1 << 12)
    (<Use.FREE: 'free'>, <Use.PAGE_CACHE: 'page_cache'>, <Use.SLAB: 'slab'>)
    """
    if flags == NO_ENTRY or flags & _NOPAGE:
        return Use.NO_FRAME
    for bit, use in _USES_BY_FLAG:
        if flags & bit:
            return use
    if flags & _SWAPBACKED:
        return Use.SHMEM
    return Use.PAGE_CACHE if flags & _CACHED else Use.OTHER


class ZoneFrames(NamedTuple):
    """The frames of one zone.

    Args:
        zone: The zone; None stands for RAM outside of all zones.
        counts: Number of frames by their value in kpageflags.
        free_blocks: Item i is the number of free blocks of 2**i frames.
    """

    zone: Zone | None
    counts: dict[int, int]
    free_blocks: list[int]


class MachineFrames(NamedTuple):
    """The frames of the machine. Each frame is counted once, while the machine runs.

    Args:
        ram: The ranges of RAM as (first frame, first frame after the range), in order, without
            blocks that are offline.
        zones: The frames of each zone, sorted by node and address.
        nr_offline: The number of frames in blocks that are offline.
        source: "kpageflags" if the kernel was asked for each frame, or "bpf" if a BPF program told
            which frames are alike.
    """

    ram: list[tuple[int, int]]
    zones: list[ZoneFrames]
    nr_offline: int = 0
    source: str = "kpageflags"

    @property
    def nr_frames(self) -> int:
        """The number of frames of RAM."""
        return nr_of(self.ram)

    @property
    def nr_unmanaged(self) -> int:
        """The number of frames that are present, but not managed by the page allocator."""
        zones = [found.zone for found in self.zones if found.zone]
        return sum(zone.nr_present - zone.nr_managed for zone in zones)

    @property
    def counts(self) -> Counter[int]:
        """Number of frames by their value in kpageflags. Frames that do not exist: NO_ENTRY."""
        total: Counter[int] = Counter()
        for zone in self.zones:
            total.update(zone.counts)
        return total


def by_use(counts: dict[int, int]) -> dict[Use, tuple[int, int]]:
    """Add up frames by their use.

    Args:
        counts: Number of frames by their value in kpageflags.

    Returns:
        For each use: the number of frames, and the number of those that a process maps.
    """
    found: dict[Use, tuple[int, int]] = {}
    for flags, nr in counts.items():
        use = use_of(flags)
        nr_all, nr_mapped = found.get(use, (0, 0))
        is_mapped = flags != NO_ENTRY and flags & MAPPED and use is not Use.SLAB
        found[use] = (nr_all + nr, nr_mapped + (nr if is_mapped else 0))
    return found


def read_machine(
    *,
    nr_threads: int | None = None,
    source: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> MachineFrames:
    """Count all frames of RAM by their flags.

    Args:
        nr_threads: The number of threads that read at once; None is one for each processor, up to
            four.
        source: Who tells the flags: "kpageflags", "bpf", or "auto": BPF if it is available and
            faster. All give the same answer.
        progress: Called with the number of frames that were counted, and the number of all frames.

    Raises:
        UsageError: There is no such source.
        AccessDenied: Only root may read flags and physical addresses, and load BPF programs.
        Unsupported: The kernel was built without kpageflags, or has no BPF.
        CoreUnavailable: The core is not built.
    """
    with KpageFile("kpageflags") as file:
        all_ram = ram_ranges(read_resources())
        with open("/proc/zoneinfo", "rb") as zoneinfo:
            zones = parse_zoneinfo(zoneinfo.read())
        blocks = read_buddyinfo()
        memory_blocks = read_blocks(with_zones=_overlap(zones))
        ram = without_offline(all_ram, memory_blocks)
        parts = split_by_zones(ram, zones, memory_blocks)
        free = find_free_blocks(file, parts)
        used = list(without_free_blocks(parts, free))
        source = choose_flag_source(source, nr_of(part for _, part in used))
        order = 0 if source == "kpageflags" else read_max_order()

        def count(runs: Any) -> dict[int, int]:
            return count_frames(file, runs, len(runs), source, max_order=order).counts

        counts = _count(count, used, nr_threads or _ffi.nr_threads(), progress)
    for owner, more in counts_of(free).items():
        counts.setdefault(owner, Counter()).update(more)
    found = []
    for zone in [*zones, None]:
        if zone is None and None not in counts:
            continue
        free_blocks = blocks.get((zone.node, zone.name), []) if zone else []
        found.append(ZoneFrames(zone, dict(counts.get(zone, {})), free_blocks))
    return MachineFrames(ram, found, nr_of(all_ram) - nr_of(ram), source)


def nr_of(ranges: Iterable[tuple[int, int]]) -> int:
    """The number of frames in ranges."""
    return sum(end - first for first, end in ranges)


def _overlap(zones: list[Zone]) -> bool:
    """Whether the spans of two zones overlap. Then only the blocks of memory tell the zone."""
    in_order = sorted(zones, key=lambda zone: zone.start_pfn)
    return any(one.end_pfn > other.start_pfn for one, other in pairwise(in_order))


def split_by_zones(
    ram: list[tuple[int, int]], zones: list[Zone], blocks: Iterable[MemoryBlock] = ()
) -> list[tuple[Zone | None, tuple[int, int]]]:
    """Split RAM by zones.

    A block of memory tells its zone. The spans of zones may overlap: frames that no block tells
    belong to the zone that begins later.

    Args:
        ram: Ranges as (first frame, first frame after the range), in order.
        zones: The zones.
        blocks: Blocks of memory, in order.

    Returns:
        The zone of each part of RAM, in order; None is outside of all zones.
    """
    by_name = {(zone.node, zone.name): zone for zone in zones}
    told = [
        (block.first, block.end, by_name[block.node, block.zone])
        for block in blocks
        if block.node is not None and block.zone and (block.node, block.zone) in by_name
    ]
    firsts = [first for first, _, _ in told]
    borders = {cut for zone in zones for cut in (zone.start_pfn, zone.end_pfn)}
    cuts = sorted(borders | {cut for first, end, _ in told for cut in (first, end)})
    parts: list[tuple[Zone | None, tuple[int, int]]] = []
    for first, end in ram:
        inner = cuts[bisect.bisect_right(cuts, first) : bisect.bisect_left(cuts, end)]
        for low, high in pairwise([first, *inner, end]):
            at = bisect.bisect_right(firsts, low) - 1
            if at >= 0 and low < told[at][1]:
                owner: Zone | None = told[at][2]
            else:
                inside = [zone for zone in zones if zone.start_pfn <= low < zone.end_pfn]
                owner = max(inside, key=lambda zone: zone.start_pfn, default=None)
            if parts and parts[-1][0] == owner and parts[-1][1][1] == low:
                parts[-1] = owner, (parts[-1][1][0], high)
            else:
                parts.append((owner, (low, high)))
    return parts


def _count(
    count: Callable[[Any], dict[int, int]],
    parts: list[tuple[Zone | None, tuple[int, int]]],
    nr_threads: int,
    progress: Callable[[int, int], None] | None,
) -> dict[Zone | None, Counter[int]]:
    nr_all = nr_of(part for _, part in parts)
    nr_done = 0
    counts: dict[Zone | None, Counter[int]] = {}
    with ThreadPoolExecutor(nr_threads) as pool:
        waiting = {pool.submit(count, runs): (zone, nr) for zone, runs, nr in _slices(parts)}
        try:
            for future in as_completed(waiting):
                zone, nr = waiting[future]
                counts.setdefault(zone, Counter()).update(future.result())
                nr_done += nr
                if progress:
                    progress(nr_done, nr_all)
        finally:
            pool.shutdown(cancel_futures=True)
    return counts


def _slices(
    parts: list[tuple[Zone | None, tuple[int, int]]],
) -> Iterator[tuple[Zone | None, Any, int]]:
    """Make slices of about SLICE frames: the zone, `struct pv_frames[]`, and how many frames."""
    ffi, _ = _ffi.load()
    for zone, group in groupby(parts, key=lambda part: part[0]):
        runs: list[tuple[int, int]] = []
        nr = 0
        for _, (low, high) in group:
            for at in range(low, high, SLICE):
                runs.append((at, min(SLICE, high - at)))
                nr += runs[-1][1]
                if nr >= SLICE:
                    yield zone, ffi.new("struct pv_frames[]", runs), nr
                    runs, nr = [], 0
        if runs:
            yield zone, ffi.new("struct pv_frames[]", runs), nr
