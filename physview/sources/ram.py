# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel says of the machine's memory: where RAM is, its zones, and what is free.

The parsers take bytes. Source: /proc/iomem, /proc/zoneinfo, /proc/buddyinfo.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from physview.errors import AccessDenied, Unsupported
from physview.model import PAGE_SHIFT, PAGE_SIZE
from physview.text import proctext

# Kernels call what was plugged in later "System RAM (virtio_mem)" and the like.
RAM = "System RAM"


class Resource(NamedTuple):
    """One line of /proc/iomem.

    Args:
        start: First physical address.
        end: First physical address after it.
        name: What it is, such as "System RAM".
        depth: How many others it lies within.
    """

    start: int
    end: int
    name: str
    depth: int


class Zone(NamedTuple):
    """One zone of a node.

    Args:
        node: Number of the NUMA node.
        name: As "DMA32" or "Normal".
        start_pfn: Its first frame.
        nr_spanned: Frames from its first to its last, holes included.
        nr_present: Frames that are there.
        nr_managed: Frames that the page allocator was given.
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
        """The first frame after it."""
        return self.start_pfn + self.nr_spanned


def parse_iomem(data: bytes) -> list[Resource]:
    r"""Read /proc/iomem. Source: kernel/resource.c.

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
    r"""Read /proc/zoneinfo; zones that span nothing are left out. Source: mm/vmstat.c.

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
        # "present" alone also begins other words; in old kernels "free" stood behind "pages".
        numbers = dict(
            re.findall(
                rb"^ +(?:pages )?(free|spanned|present|managed|start_pfn):? +(\d+)$",
                part,
                re.MULTILINE,
            )
        )
        if head and int(numbers.get(b"spanned", 0)):
            names = (b"start_pfn", b"spanned", b"present", b"managed", b"free")
            counts = (int(numbers[name]) for name in names)
            zones.append(Zone(int(head[1]), head[2].decode(), *counts))
    return zones


def parse_buddyinfo(data: bytes) -> dict[tuple[int, str], list[int]]:
    r"""Read /proc/buddyinfo: free blocks of 2**0, 2**1, … pages by (node, zone).

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


def read_resources() -> list[Resource]:
    """What lies at which physical address.

    Raises:
        AccessDenied: All addresses read as 0: they are root's.

    Source: /proc/iomem
    """
    with open("/proc/iomem", "rb") as file:
        resources = parse_iomem(file.read())
    # Without CAP_SYS_ADMIN the kernel shows names and no addresses.
    if resources and all(resource.end == 1 for resource in resources):
        raise AccessDenied(
            "cannot tell where RAM is",
            "the kernel hides the addresses in /proc/iomem from this user",
            "run as root",
            path="/proc/iomem",
        )
    return resources


def boot_id() -> str:
    """Which boot this is.

    Source: /proc/sys/kernel/random/boot_id
    """
    with open("/proc/sys/kernel/random/boot_id", "rb") as file:
        return proctext.value(file.read()).decode()


def ram_ranges(resources: list[Resource]) -> list[tuple[int, int]]:
    """Where RAM is, as whole frames.

    Args:
        resources: Those of /proc/iomem.

    Returns:
        (first frame, first frame after it), in order; ranges that touch are one.

    Raises:
        Unsupported: There is no RAM among them.
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
    """The innermost resource at a physical address, or None."""
    found = [resource for resource in resources if resource.start <= paddr < resource.end]
    return max(found, key=lambda resource: resource.depth, default=None)
