# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads where the machine's RAM is, its zones, and its free blocks.

The parsers take bytes. Source: /proc/iomem, /proc/zoneinfo, /proc/buddyinfo.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from physview.errors import AccessDenied, Unsupported
from physview.model import PAGE_SHIFT, PAGE_SIZE
from physview.runtime.privileges import root_remedy
from physview.text import proctext
from physview.text.proctext import read_or_empty

# A prefix: hot-plugged memory has a name such as "System RAM (virtio_mem)".
RAM = "System RAM"


class Resource(NamedTuple):
    """One line of /proc/iomem.

    Args:
        start: First physical address, in bytes.
        end: First physical address after the resource.
        name: Name of the resource, such as "System RAM".
        depth: Number of the resources that contain this one.
    """

    start: int
    end: int
    name: str
    depth: int


class Zone(NamedTuple):
    """One zone of a node.

    Args:
        node: Number of the NUMA node.
        name: Such as "DMA32" or "Normal".
        start_pfn: The first frame.
        nr_spanned: Frames from the first to the last, including holes.
        nr_present: Frames that exist, without holes.
        nr_managed: Frames that the page allocator manages.
        nr_free: Frames that are free.
    """

    node: int
    name: str
    start_pfn: int
    nr_spanned: int
    nr_present: int
    nr_managed: int
    nr_free: int

    @property
    def end_pfn(self) -> int:
        """The first frame after the zone."""
        return self.start_pfn + self.nr_spanned


def parse_iomem(data: bytes) -> list[Resource]:
    r"""Parse /proc/iomem. Source: kernel/resource.c.

    >>> parse_iomem(b"00001000-00001fff : System RAM\n  00001800-00001fff : Kernel code\n")[1]
    Resource(start=6144, end=8192, name='Kernel code', depth=1)
    """
    found = []
    for line in proctext.lines(data):
        where, _, name = line.partition(b" : ")
        first, _, last = where.partition(b"-")
        depth = (len(where) - len(where.lstrip(b" "))) // 2
        text = name.decode("utf-8", "replace")
        found.append(Resource(int(first, 16), int(last, 16) + 1, text, depth))
    return found


def parse_zoneinfo(data: bytes) -> list[Zone]:
    r"""Parse /proc/zoneinfo; zones without present frames are left out. Source: mm/vmstat.c.

    A zone may span frames and have none: that of persistent memory, or of blocks that are offline.
    For such a zone the kernel writes no start_pfn.

    >>> text = (
    ...     b"Node 0, zone   DMA32\n  pages free     7\n        spanned  9\n        present  8\n"
    ...     b"        managed  8\n  start_pfn:           4096\n"
    ... )
    >>> parse_zoneinfo(text) == [Zone(0, "DMA32", 4096, 9, 8, 8, 7)]
    True
    """
    zones = []
    for part in re.split(rb"^Node +", data, flags=re.MULTILINE)[1:]:
        head = re.match(rb"(\d+), zone +([^ \n]+)", part)
        # Match whole lines, because other names begin with "present", too. "free" comes after the
        # word "pages" in old kernels.
        numbers = dict(
            re.findall(
                rb"^ +(?:pages )?(free|spanned|present|managed|start_pfn):? +(\d+)$",
                part,
                re.MULTILINE,
            )
        )
        if head and int(numbers.get(b"present", 0)) and b"start_pfn" in numbers:
            names = (b"start_pfn", b"spanned", b"present", b"managed", b"free")
            counts = (int(numbers[name]) for name in names)
            zones.append(Zone(int(head[1]), head[2].decode(), *counts))
    return zones


def parse_buddyinfo(data: bytes) -> dict[tuple[int, str], list[int]]:
    r"""Parse /proc/buddyinfo: the numbers of free blocks of 2**0, 2**1, … pages, by (node, zone).

    >>> parse_buddyinfo(b"Node 0, zone   Normal      4      2      1 \n")
    {(0, 'Normal'): [4, 2, 1]}
    """
    blocks = {}
    for line in proctext.lines(data):
        where, _, rest = line.partition(b", zone")
        zone, *counts = proctext.words(rest)
        node = int(where.removeprefix(b"Node "))
        blocks[node, zone.decode()] = [int(count) for count in counts]
    return blocks


def read_buddyinfo() -> dict[tuple[int, str], list[int]]:
    """Read /proc/buddyinfo; see `parse_buddyinfo()`."""
    with open("/proc/buddyinfo", "rb") as file:
        return parse_buddyinfo(file.read())


def read_resources() -> list[Resource]:
    """Read /proc/iomem, which says what is at which physical address.

    Raises:
        AccessDenied: The kernel hides the addresses from this user: all of them are 0.

    Source: /proc/iomem
    """
    with open("/proc/iomem", "rb") as file:
        resources = parse_iomem(file.read())
    # Without CAP_SYS_ADMIN the kernel shows names and no addresses.
    if resources and all(resource.end == 1 for resource in resources):
        raise AccessDenied(
            "cannot tell where RAM is",
            "the kernel hides the addresses in /proc/iomem from this user",
            root_remedy("SYS_ADMIN"),
            path="/proc/iomem",
        )
    return resources


def end_of_zones() -> int:
    """Return the first frame number after all zones; 0 if /proc/zoneinfo cannot be read.

    Source: /proc/zoneinfo
    """
    return max(
        (zone.end_pfn for zone in parse_zoneinfo(read_or_empty("/proc/zoneinfo"))), default=0
    )


def boot_id() -> str:
    """Read the random id of this boot of the machine.

    Source: /proc/sys/kernel/random/boot_id
    """
    with open("/proc/sys/kernel/random/boot_id", "rb") as file:
        return proctext.value(file.read()).decode()


def ram_ranges(resources: list[Resource]) -> list[tuple[int, int]]:
    """Find the ranges of whole frames that are RAM.

    Args:
        resources: The resources of /proc/iomem.

    Returns:
        Ranges as (first frame, first frame after the range), in order; adjacent ranges are merged.

    Raises:
        Unsupported: No resource is RAM.
    """
    ranges: list[tuple[int, int]] = []
    for resource in sorted(resources):
        if not resource.name.startswith(RAM):
            continue
        first, end = -(-resource.start // PAGE_SIZE), resource.end >> PAGE_SHIFT
        if ranges and first <= ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], max(end, ranges[-1][1]))
        elif first < end:
            ranges.append((first, end))
    if not ranges:
        raise Unsupported(
            "cannot tell where RAM is", f"/proc/iomem has no {RAM!r}", path="/proc/iomem"
        )
    return ranges


def resource_at(resources: list[Resource], paddr: int) -> Resource | None:
    """The innermost resource that contains a physical address; None if there is none.

    Args:
        resources: The resources of /proc/iomem.
        paddr: Physical address, in bytes.
    """
    found = [resource for resource in resources if resource.start <= paddr < resource.end]
    return max(found, key=lambda resource: resource.depth, default=None)
