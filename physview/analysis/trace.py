# SPDX-License-Identifier: GPL-2.0-or-later
"""Summarizes a trace: call paths in the kernel, ranges of addresses, present use of frames."""

from __future__ import annotations

import os
import re
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from physview.errors import PhysviewError, ProcessGone
from physview.frames.owners import FrameGroup, Ownership, find_owners
from physview.model import PAGE_SHIFT, PAGE_SIZE, Vma
from physview.sources.procfs import ProcDir
from physview.sources.tagged_pointers import untagged
from physview.tracing import Event, Losses, StackFrame

KCORE = "/proc/kcore"
# On all machines kernel addresses begin with a set bit, and user addresses do not.
KERNEL_START = 1 << 63
# With five levels of page tables, user addresses have up to 56 bits.
USER_END = 1 << 56
# On x86-64 the kernel's own image and its modules are in the last 2 GiB:
# Documentation/arch/x86/x86_64/mm.rst. On other machines only the symbol table tells.
IMAGES = {"x86_64": (0xFFFFFFFF80000000, 1 << 64)}
KALLSYMS = "/proc/kallsyms"

# Fields whose values can be added up over events.
SIZES = ("bytes_req", "bytes_alloc", "n")


class Trace(NamedTuple):
    """A finished trace.

    Args:
        event: The name of the event, as the user gave it.
        probes: The tracepoints or functions that were traced for it.
        means: How they were traced: "tracepoint", "kprobe" or "breakpoint".
        pid: The process; None for the whole machine.
        seconds: Duration.
        events: The events, in order of time.
        losses: Number of events that are missing.
        memory: The process's mappings when they were last read.
        through: The function that each event's stack passes; None if all events were kept.
        nr_others: The number of events that were not kept.
    """

    event: str
    probes: tuple[str, ...]
    means: str
    pid: int | None
    seconds: float
    events: list[Event]
    losses: Losses
    memory: list[Vma]
    through: str | None = None
    nr_others: int = 0


class CallPath(NamedTuple):
    """Events with the same name and the same stack.

    Args:
        name: The events' name.
        stack: The functions, innermost first.
        nr_events: Number of events.
        comms: Names of the events' processes, most frequent first.
        sizes: Sums of the fields in SIZES.
        nr_frames: Number of page frames that the events allocated; 0 for events of other kinds.
    """

    name: str
    stack: tuple[StackFrame, ...]
    nr_events: int
    comms: list[str]
    sizes: dict[str, int]
    nr_frames: int


def fold(events: Iterable[Event]) -> list[CallPath]:
    """Count events by name and stack, most frequent first."""
    groups: dict[tuple[str, tuple[str, ...]], list[Event]] = {}
    for event in events:
        key = (event.name, tuple(str(frame) for frame in event.stack))
        groups.setdefault(key, []).append(event)
    paths = [
        CallPath(
            name,
            found[0].stack,
            len(found),
            [comm for comm, _ in Counter(event.comm for event in found).most_common()],
            sum_sizes(found),
            sum(nr_frames(event) for event in found),
        )
        for (name, _), found in groups.items()
    ]
    return sorted(paths, key=lambda path: -path.nr_events)


def sum_sizes(events: Iterable[Event]) -> dict[str, int]:
    """Add up each field in SIZES over all events."""
    sums: Counter[str] = Counter()
    for event in events:
        for name in SIZES:
            value = event.fields.get(name)
            if isinstance(value, int):
                sums[name] += value
    return dict(sums)


def frames_of(event: Event) -> tuple[int, int] | None:
    """Return the page frames that an event allocated, as (first, first after them), or None."""
    pfn, order = event.fields.get("pfn"), event.fields.get("order")
    # In the event of a failed allocation, all bits of the frame number are set.
    if not isinstance(pfn, int) or not isinstance(order, int) or pfn >= 1 << 52:
        return None
    return pfn, pfn + (1 << order)


def nr_frames(event: Event) -> int:
    """Return the number of page frames that an event allocated."""
    frames = frames_of(event)
    return frames[1] - frames[0] if frames else 0


class KernelMap(NamedTuple):
    """The areas of the kernel's address space.

    Args:
        direct: Parts of the direct map, which maps all RAM: (start, end, physical address).
        others: Other areas, such as vmalloc()'s: (start, end).
        image: The kernel's own image: (start, end). It may lie in an area of `others`. On x86-64
            also the modules.
    """

    direct: list[tuple[int, int, int]]
    others: list[tuple[int, int]]
    image: tuple[int, int] = (0, 0)

    def paddr(self, vaddr: int) -> int | None:
        """Return the physical address of an address in the direct map; None for others."""
        for start, end, paddr in self.direct:
            if start <= vaddr < end:
                return vaddr - start + paddr
        return None

    def area(self, vaddr: int) -> str:
        """Name the area of an address: user, direct map, kernel image, vmalloc, or kernel."""
        if vaddr < KERNEL_START:
            return "user"
        if self.image[0] <= vaddr < self.image[1]:
            return "kernel image"
        if self.paddr(vaddr) is not None:
            return "direct map"
        return "vmalloc" if any(a <= vaddr < b for a, b in self.others) else "kernel"


def parse_kcore(data: bytes, image: tuple[int, int] = (0, 0)) -> KernelMap:
    """Parse the program headers of /proc/kcore.

    Args:
        data: The beginning of the file.
        image: The kernel's own image: (start, end).

    Source: fs/proc/kcore.c, elf(5)
    """
    (start,) = struct.unpack_from("<Q", data, 32)
    size, number = struct.unpack_from("<HH", data, 54)
    direct: list[tuple[int, int, int]] = []
    others: list[tuple[int, int]] = []
    for at in range(start, start + size * number, size):
        if at + 56 > len(data):
            break
        kind, _, _, vaddr, paddr, length = struct.unpack_from("<IIQQQQ", data, at)
        if kind != 1 or image[0] <= vaddr < image[1]:
            continue
        if paddr not in (0, (1 << 64) - 1) or any(v - p == vaddr - paddr for v, _, p in direct):
            direct.append((vaddr, vaddr + length, paddr))
        else:
            others.append((vaddr, vaddr + length))
    # RAM that begins at physical address 0 looks like an area without RAM. The offset of the other
    # parts tells that it belongs to the direct map.
    for area in list(others):
        if any(start - paddr == area[0] for start, _, paddr in direct):
            others.remove(area)
            direct.append((*area, 0))
    return KernelMap(sorted(direct), others, image)


def find_image(kallsyms: bytes) -> tuple[int, int]:
    r"""Find the kernel's own image by its first and its last symbol.

    Args:
        kallsyms: The content of /proc/kallsyms.

    Returns:
        The first address, and the first address after it; (0, 0) if the file does not tell.

    Source: include/asm-generic/sections.h

    >>> list(map(hex, find_image(b"ffffc00080000000 T _text\nffffc00082f90000 B _end\n")))
    ['0xffffc00080000000', '0xffffc00082f90000']
    """
    found = {
        name: int(address, 16)
        for address, name in re.findall(
            rb"^([0-9a-f]+) [A-Za-z] (_text|_end)$", kallsyms, re.MULTILINE
        )
    }
    return found.get(b"_text", 0), found.get(b"_end", 0)


def _read_image() -> tuple[int, int]:
    if known := IMAGES.get(os.uname().machine):
        return known
    try:
        with open(KALLSYMS, "rb") as file:
            return find_image(file.read())
    except OSError:
        return 0, 0


def read_kernel_map() -> KernelMap:
    """Read the areas of the running kernel from /proc/kcore; empty if it cannot be read."""
    image = _read_image()
    try:
        with open(KCORE, "rb", buffering=0) as file:
            # Read only the headers. The kernel's memory follows them.
            head = file.read(64)
            size, number = struct.unpack_from("<HH", head, 54)
            return parse_kcore(head + file.read(size * number), image)
    except (OSError, struct.error):
        return KernelMap([], [], image)


class AddressRange(NamedTuple):
    """The addresses of one field that lie in one area.

    Args:
        name: Name of the field.
        area: Name of the area, as of `KernelMap.area()`.
        lowest: The lowest address.
        highest: The highest address.
        nr: Number of different addresses.
    """

    name: str
    area: str
    lowest: int
    highest: int
    nr: int


def address_ranges(events: Iterable[Event], kernel: KernelMap) -> list[AddressRange]:
    """Summarize the addresses in the events' fields, by field and area, without those of code.

    A register may hold anything else: small numbers, and values between user and kernel addresses,
    are no addresses.
    """
    found: dict[tuple[str, str], set[int]] = {}
    for event in events:
        for name in event.addresses:
            value = event.fields.get(name)
            if not isinstance(value, int) or name == "call_site":
                continue
            value = untagged(value)
            if PAGE_SIZE <= value < USER_END or value >= KERNEL_START:
                found.setdefault((name, kernel.area(value)), set()).add(value)
    return [
        AddressRange(name, area, min(values), max(values), len(values))
        for (name, area), values in sorted(found.items())
    ]


def read_memory(pid: int) -> list[Vma]:
    """Read the mappings of a process; [] if it has ended, or if we may not examine it."""
    try:
        proc = ProcDir(pid)
    except ProcessGone:
        return []
    try:
        return list(proc.iter_vmas())
    except PhysviewError:
        return []
    finally:
        proc.close()


def frames_now(events: Sequence[Event], kernel: KernelMap) -> Ownership | None:
    """Find out what the frames in the events are used for now.

    These are the frames of allocated pages, and the frames that hold allocated objects.

    Returns:
        The result of `find_owners()`; None if there are no frames in the events.

    Raises:
        PhysviewError: The present use cannot be found out.
    """
    ranges = [
        found for event in events if (found := frames_of(event) or object_frames(event, kernel))
    ]
    return find_owners(ranges) if ranges else None


def object_frames(event: Event, kernel: KernelMap) -> tuple[int, int] | None:
    """Return the frames of an allocated kernel object as (first, first after them).

    None if the event has no object, or if the object is not in the direct map.
    """
    ptr, size = event.fields.get("ptr"), event.fields.get("bytes_alloc")
    if not isinstance(ptr, int) or not isinstance(size, int) or not size:
        return None
    paddr = kernel.paddr(ptr)
    if paddr is None:
        return None
    return paddr >> PAGE_SHIFT, ((paddr + size - 1) >> PAGE_SHIFT) + 1


def uses_now(
    events: Iterable[Event], ownership: Ownership, kernel: KernelMap
) -> list[tuple[str, int]]:
    """Count the frames by their present use, largest number first. Each frame counts once."""
    uses: Counter[str] = Counter()
    seen: set[int] = set()
    for event in events:
        frames = frames_of(event) or object_frames(event, kernel)
        for group in groups_of(frames, ownership):
            new = set(range(group.pfn, group.pfn + group.nr_frames)) - seen
            seen |= new
            uses[group.use.value] += len(new)
    return uses.most_common()


def groups_of(frames: tuple[int, int] | None, ownership: Ownership) -> list[FrameGroup]:
    """Return the present use of a range of frames; [] without frames."""
    return ownership.groups(*frames) if frames else []
