# SPDX-License-Identifier: GPL-2.0-or-later
"""What a trace shows: ways through the kernel, addresses of both kinds, what frames are now."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from physview.errors import PhysviewError, ProcessGone
from physview.frames.owners import FrameGroup, Ownership, find_owners
from physview.model import PAGE_SHIFT, PAGE_SIZE, Vma
from physview.sources.procfs import ProcDir
from physview.tracing import Event, Losses, StackFrame

KCORE = "/proc/kcore"
# On all machines kernel addresses begin with a set bit, and user addresses do not.
KERNEL_START = 1 << 63
# The kernel's own image and its modules are in the last 2 GiB: Documentation/arch/x86/x86_64/mm.rst
IMAGE_START = 0xFFFFFFFF80000000

# What adds up over events.
SIZES = ("bytes_req", "bytes_alloc", "n")


class Trace(NamedTuple):
    """What was traced.

    Args:
        event: What was asked for.
        probes: What was traced for it: tracepoints, or functions.
        means: "tracepoint", "kprobe" or "breakpoint".
        pid: The process; None for the whole machine.
        seconds: How long.
        events: What happened, by time.
        losses: What is missing.
        memory: Mappings of the process when they were last seen.
    """

    event: str
    probes: tuple[str, ...]
    means: str
    pid: int | None
    seconds: float
    events: list[Event]
    losses: Losses
    memory: list[Vma]


class Path(NamedTuple):
    """A way through the kernel that several events came.

    Args:
        name: The event's.
        stack: The functions, the innermost first.
        nr_events: How many events.
        comms: Whose, the most first.
        sizes: Sums of what adds up, by field.
        nr_frames: How many page frames were allocated; 0 for other events.
    """

    name: str
    stack: tuple[StackFrame, ...]
    nr_events: int
    comms: list[str]
    sizes: dict[str, int]
    nr_frames: int


def fold(events: Iterable[Event]) -> list[Path]:
    """Count events by the functions that led to them, the most first."""
    groups: dict[tuple[str, tuple[str, ...]], list[Event]] = {}
    for event in events:
        key = (event.name, tuple(str(frame) for frame in event.stack))
        groups.setdefault(key, []).append(event)
    paths = [
        Path(
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
    """Sums of what adds up, by field."""
    sums: Counter[str] = Counter()
    for event in events:
        for name in SIZES:
            value = event.fields.get(name)
            if isinstance(value, int):
                sums[name] += value
    return dict(sums)


def frames_of(event: Event) -> tuple[int, int] | None:
    """The page frames that an event allocated, as (first, first after them)."""
    pfn, order = event.fields.get("pfn"), event.fields.get("order")
    # An allocation that failed has a frame number of all ones.
    if not isinstance(pfn, int) or not isinstance(order, int) or pfn >= 1 << 52:
        return None
    return pfn, pfn + (1 << order)


def nr_frames(event: Event) -> int:
    """How many page frames an event allocated."""
    frames = frames_of(event)
    return frames[1] - frames[0] if frames else 0


class KernelMap(NamedTuple):
    """Where the kernel sees what.

    Args:
        direct: The direct map, which shows all RAM in a row: (start, end, physical address).
        others: Other areas, such as that of vmalloc(): (start, end).
    """

    direct: list[tuple[int, int, int]]
    others: list[tuple[int, int]]

    def paddr(self, vaddr: int) -> int | None:
        """Physical address of one in the direct map."""
        for start, end, paddr in self.direct:
            if start <= vaddr < end:
                return vaddr - start + paddr
        return None

    def area(self, vaddr: int) -> str:
        """What an address lies in: user, direct map, kernel image, vmalloc, or kernel."""
        if vaddr < KERNEL_START:
            return "user"
        if vaddr >= IMAGE_START:
            return "kernel image"
        if self.paddr(vaddr) is not None:
            return "direct map"
        return "vmalloc" if any(a <= vaddr < b for a, b in self.others) else "kernel"


def parse_kcore(data: bytes) -> KernelMap:
    """Read the program headers of /proc/kcore. Source: fs/proc/kcore.c, elf(5)

    Args:
        data: Its beginning.
    """
    (start,) = struct.unpack_from("<Q", data, 32)
    size, number = struct.unpack_from("<HH", data, 54)
    direct: list[tuple[int, int, int]] = []
    others: list[tuple[int, int]] = []
    for at in range(start, start + size * number, size):
        if at + 56 > len(data):
            break
        kind, _, _, vaddr, paddr, length = struct.unpack_from("<IIQQQQ", data, at)
        if kind != 1 or vaddr >= IMAGE_START:
            continue
        if paddr not in (0, (1 << 64) - 1) or any(v - p == vaddr - paddr for v, _, p in direct):
            direct.append((vaddr, vaddr + length, paddr))
        else:
            others.append((vaddr, vaddr + length))
    # RAM that begins at 0 looks like an area without RAM, but lies where the others say.
    for area in list(others):
        if any(start - paddr == area[0] for start, _, paddr in direct):
            others.remove(area)
            direct.append((*area, 0))
    return KernelMap(sorted(direct), others)


def read_kernel_map() -> KernelMap:
    """Read it of the running kernel; empty where it is not told."""
    try:
        with open(KCORE, "rb", buffering=0) as file:
            # No more than the headers: behind them the kernel's memory begins.
            head = file.read(64)
            size, number = struct.unpack_from("<HH", head, 54)
            return parse_kcore(head + file.read(size * number))
    except (OSError, struct.error):
        return KernelMap([], [])


class AddressRange(NamedTuple):
    """Addresses of one field that lie in one area.

    Args:
        name: The field.
        area: As `KernelMap.area()` names it.
        lowest: The lowest of them.
        highest: The highest.
        nr: How many different ones.
    """

    name: str
    area: str
    lowest: int
    highest: int
    nr: int


def address_ranges(events: Iterable[Event], kernel: KernelMap) -> list[AddressRange]:
    """Where the addresses lie that events tell, by field and area; code is left out."""
    found: dict[tuple[str, str], set[int]] = {}
    for event in events:
        for name in event.addresses:
            value = event.fields.get(name)
            if isinstance(value, int) and value >= PAGE_SIZE and name not in ("call_site", "value"):
                found.setdefault((name, kernel.area(value)), set()).add(value)
    return [
        AddressRange(name, area, min(values), max(values), len(values))
        for (name, area), values in sorted(found.items())
    ]


def read_memory(pid: int) -> list[Vma]:
    """The mappings of a process; none if it has ended or is not to be looked into."""
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
    """What the frames are now that events tell of: allocated pages, and pages of objects.

    Returns:
        What `find_owners()` finds; None if events tell of no frame.

    Raises:
        PhysviewError: It cannot be told.
    """
    ranges = [
        found for event in events if (found := frames_of(event) or object_frames(event, kernel))
    ]
    return find_owners(ranges) if ranges else None


def object_frames(event: Event, kernel: KernelMap) -> tuple[int, int] | None:
    """The frames that a kernel object lies in, if it lies in the direct map."""
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
    """How many of the frames are used for what now, the most first; each counts once."""
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
    """What some of the frames are now."""
    return ownership.groups(*frames) if frames else []
