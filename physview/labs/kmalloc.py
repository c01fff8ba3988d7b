# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab kmalloc: memory that the kernel allocates for its own use, in small pieces."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from physview.labs import observe, requirements, traced_process
from physview.labs.model import NUMBER, PADDR, TEXT, VADDR, Evidence, EvidenceColumn, Lab, Question
from physview.model import PAGE_SHIFT, PAGE_SIZE, Vma

if TYPE_CHECKING:
    from physview.analysis.trace import KernelMap
    from physview.tracing import Event

NAME = "kmalloc"
TITLE = "kmalloc: the kernel's own small allocations"
NR_EVENTS, NR_SHOWN = 100, 8
PLAN = (
    f"Starts a process that opens pipes and files, and traces its next {NR_EVENTS} allocations with"
    " kmalloc(): the size, the address, and the kernel stack. The lab compares these addresses with"
    " those of the process, and looks up their frames."
)
QUESTIONS = (
    Question(
        "How do the addresses that kmalloc() returns differ from the addresses of a program?",
        (
            "they are physical addresses",
            "their highest bits are 1, and those of a program are 0",
            "not at all: the kernel uses the address space of the program",
        ),
        1,
        "The kernel has its own half of the address space, with the highest bits set. It is the"
        " same half in every process. The addresses are in the direct map: an address there is the"
        " physical address plus a constant, but it is not the physical address.",
    ),
    Question(
        "Kernel code calls kmalloc() for 33 bytes. How many bytes are set aside?",
        (
            "33",
            "the next larger size of a few fixed sizes, such as 64",
            "a page: the kernel allocates whole pages",
        ),
        1,
        "kmalloc() rounds up to a size for which it has a cache: 8, 16, 32, 64, 96, 128, 192, 256"
        " bytes, and so on. Requests of more than two pages go to the page allocator.",
    ),
)
# Functions of the allocator itself, which are on top of a stack. The next one is the caller.
_ALLOCATOR = re.compile(
    r"_*(?:kmalloc|kmem_cache_alloc|kvmalloc|kzalloc|krealloc|kcalloc|kvm?alloc)"
)
_SYSCALL = re.compile(r"do_syscall_64|el0_svc|invoke_syscall")


def run() -> Evidence:
    """Trace allocations of a process, and compare their addresses and sizes."""
    from physview.analysis.trace import read_kernel_map, read_memory

    evidence = Evidence(NAME)
    kernel = read_kernel_map()
    with traced_process.start() as process:
        events, _ = process.trace("kmalloc", "objects")
        events = [one for one in events if one.number("ptr")][:NR_EVENTS]
        memory = read_memory(process.pid)
        _add_sizes(evidence, events)
        _add_objects(evidence, events, kernel)
        _explain_addresses(evidence, events, memory)
        _explain_frames(evidence, events, kernel)
    _explain_sizes(evidence, events)
    _explain_callers(evidence, events)
    return evidence


def caller(event: Event) -> str:
    """Return the function that called the allocator."""
    names = [str(frame) for frame in event.stack]
    return next((name for name in names if not _ALLOCATOR.match(name)), "unknown")


def _add_sizes(evidence: Evidence, events: list[Event]) -> None:
    table = evidence.table(
        "sizes",
        f"{len(events)} allocations, by the number of bytes that were set aside",
        [
            EvidenceColumn("allocated", "allocated", NUMBER),
            EvidenceColumn("events", "events", NUMBER),
            EvidenceColumn("requested", "requested", TEXT),
            EvidenceColumn("callers", "most frequent callers", TEXT),
        ],
    )
    for size in sorted({event.number("bytes_alloc") for event in events}):
        same = [event for event in events if event.number("bytes_alloc") == size]
        asked = sorted({event.number("bytes_req") for event in same})
        requested = str(asked[0]) if len(asked) == 1 else f"{asked[0]} to {asked[-1]}"
        callers = [name for name, _ in Counter(map(caller, same)).most_common(2)]
        table.add(size, len(same), requested, ", ".join(callers))


def _add_objects(evidence: Evidence, events: list[Event], kernel: KernelMap) -> None:
    table = evidence.table(
        "objects",
        f"the first {min(NR_SHOWN, len(events))} of them",
        [
            EvidenceColumn("ptr", "kernel address", VADDR),
            EvidenceColumn("paddr", "physical", PADDR),
            EvidenceColumn("requested", "requested", NUMBER),
            EvidenceColumn("allocated", "allocated", NUMBER),
            EvidenceColumn("caller", "caller", TEXT),
        ],
    )
    for event in events[:NR_SHOWN]:
        ptr = event.number("ptr")
        sizes = (event.number("bytes_req"), event.number("bytes_alloc"))
        table.add(ptr, kernel.paddr(ptr), *sizes, caller(event))


def _explain_addresses(evidence: Evidence, events: list[Event], memory: list[Vma]) -> None:
    from physview.analysis.trace import KERNEL_START

    pointers = [event.number("ptr") for event in events]
    own = [vma for vma in memory if vma.end <= KERNEL_START]
    is_apart = bool(pointers and own) and min(pointers) >= KERNEL_START
    lowest, highest = min(pointers, default=0), max(pointers, default=0)
    start, end = (own[0].start, own[-1].end) if own else (0, 0)
    evidence.check(
        "kernel_half",
        is_apart,
        f"All {len(pointers)} addresses are between {lowest:#018x} and {highest:#018x}: the highest"
        f" bits are 1. The memory of the process is between {start:#018x} and {end:#018x}: the"
        " highest bits are 0. The kernel has its own half of the address space, which is the same"
        " in every process.",
        f"The addresses are between {lowest:#x} and {highest:#x}, and the memory of the process is"
        f" between {start:#x} and {end:#x}.",
    )
    evidence.answer(1 if is_apart else None)


def _explain_frames(evidence: Evidence, events: list[Event], kernel: KernelMap) -> None:
    pointers = {event.number("ptr") for event in events}
    pages = {ptr >> PAGE_SHIFT for ptr in pointers}
    evidence.check(
        "share_pages",
        len(pages) < len(pointers),
        f"The {len(events)} allocations returned {len(pointers)} different addresses, in"
        f" {len(pages)} pages. Small objects of the same size share a page. An address that occurs"
        " twice was freed in between.",
        f"The {len(pointers)} addresses are in {len(pages)} pages: no two objects share a page.",
    )
    if not kernel.direct:
        evidence.note(
            "/proc/kcore does not tell where the direct map is, so the physical addresses are"
            " unknown: a kernel with CONFIG_PROC_KCORE=y has the file, for example"
            f" {_vm_line()}"
        )
        return
    inside = {ptr: paddr for ptr in pointers if (paddr := kernel.paddr(ptr)) is not None}
    start, _, paddr = kernel.direct[0]
    evidence.check(
        "direct_map",
        len(inside) == len(pointers),
        f"All {len(pointers)} addresses are in the direct map, the kernel's mapping of all RAM."
        f" There, a virtual address is the physical address plus {start - paddr:#x}. So the kernel"
        " finds the frame of an object by a subtraction.",
        f"{len(inside)} of {len(pointers)} addresses are in the direct map. The others are in the"
        " vmalloc area: kmalloc() was asked for more contiguous memory than there was.",
    )
    _explain_slabs(evidence, sorted({paddr >> PAGE_SHIFT for paddr in inside.values()}))


def _vm_line() -> str:
    from physview.runtime import invocation

    return invocation.in_vm(f"lab {NAME}", "--kernel 6.1")


def _explain_slabs(evidence: Evidence, pfns: list[int]) -> None:
    with observe.FrameFlags() as frames:
        nr_slab = sum(frames.has(pfn, "slab") for pfn in pfns)
    evidence.check(
        "slabs",
        2 * nr_slab > len(pfns),
        f"{nr_slab} of the {len(pfns)} frames of these objects have the flag slab: kmalloc() takes"
        " whole pages from the page allocator, and cuts them into objects of one size.",
        f"Only {nr_slab} of the {len(pfns)} frames of these objects have the flag slab. The others"
        " were freed meanwhile, or the objects are as large as pages.",
    )


def _explain_sizes(evidence: Evidence, events: list[Event]) -> None:
    asked = [event.number("bytes_req") for event in events]
    given = [event.number("bytes_alloc") for event in events]
    sizes = sorted(set(given))
    rounded = bool(given) and all(a <= g for a, g in zip(asked, given, strict=True))
    evidence.check(
        "rounded",
        rounded and len(sizes) <= len(set(asked)),
        f"The callers requested {sum(asked)} bytes in {len(set(asked))} different sizes, and"
        f" kmalloc() set aside {sum(given)} bytes in {len(sizes)} sizes. It rounds each request up"
        " to the next of a few fixed sizes, so that a freed object fits the next request.",
        f"The callers requested {sum(asked)} bytes, and kmalloc() set aside {sum(given)} bytes in"
        f" {len(sizes)} sizes.",
    )
    small = [a < g < PAGE_SIZE for a, g in zip(asked, given, strict=True)]
    evidence.answer(1 if rounded and any(small) else None)


def _explain_callers(evidence: Evidence, events: list[Event]) -> None:
    in_call = [
        event for event in events if any(_SYSCALL.match(frame.symbol) for frame in event.stack)
    ]
    callers = Counter(map(caller, events))
    names = ", ".join(f"{name} ({nr})" for name, nr in callers.most_common(3))
    evidence.check(
        "callers",
        2 * len(in_call) > len(events),
        f"{len(in_call)} of {len(events)} stacks end in a system call: the kernel allocates on"
        f" behalf of the process, for example for its pipes. {len(callers)} functions called the"
        f" allocator, most often {names}.",
        f"Only {len(in_call)} of {len(events)} stacks end in a system call. Most often the caller"
        f" was {names}.",
    )


LAB = Lab(
    NAME,
    TITLE,
    (9,),
    PLAN,
    QUESTIONS,
    requirements.checker(NAME, requirements.tracing, requirements.frame_numbers),
    run,
)
