# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab pages: frames from the page allocator, and who needs them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from physview.labs import observe, requirements, traced_process
from physview.labs.model import NUMBER, PADDR, TEXT, Evidence, EvidenceColumn, Lab, Question
from physview.labs.traced_process import NR_TOUCHED
from physview.model import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from physview.model import Translation
    from physview.tracing import Event

NAME = "pages"
TITLE = "the page allocator: whole frames, in powers of two"
NR_EVENTS, NR_SHOWN = 100, 3
PLAN = (
    f"Starts a process that writes to {NR_TOUCHED} new pages, opens sockets and fills pipes, and"
    f" traces its next {NR_EVENTS} allocations of pages: the frame number, the order, and the"
    " kernel stack. The lab groups them by what needed the frames, and compares them with the page"
    " tables of the process."
)
QUESTIONS = (
    Question(
        f"A process writes to {NR_TOUCHED} new pages, one after the other. How often is the page"
        " allocator called for these pages?",
        (
            "once: the kernel knows the size of the mapping",
            f"{NR_TOUCHED} times, at the page faults",
            "never: mmap() has allocated them",
        ),
        1,
        "mmap() only notes the mapping. Each page gets its frame at its first access, by a page"
        " fault. Where the kernel uses large folios for anonymous memory, one page fault can bring"
        " several pages; the lab switches huge pages off for its memory.",
    ),
    Question(
        "How do allocations of pages differ from allocations with kmalloc()?",
        (
            "not at all: both hand out whole pages",
            "the page allocator hands out whole frames; kmalloc() hands out pieces, and gets whole"
            " frames from the page allocator when it has none left",
            "kmalloc() takes its memory from the heap of the process",
        ),
        1,
        "The page allocator hands out 2^order contiguous frames, and its event tells a frame"
        " number. kmalloc() hands out pieces of slabs, and its event tells a virtual address. Only"
        " when its slabs are full, it gets new frames from the page allocator.",
    ),
)
# What needed the frames, by functions on the stack; the first match counts.
PROCESS = "a page of the process"
SLAB = "a slab, for kmalloc and others"
_USES = (
    (SLAB, re.compile(r"_*(?:slab_alloc|new_slab|allocate_slab|alloc_slab|refill_objects)")),
    ("a page table", re.compile(r"_*(?:pte|pmd|pud|p4d|pgd)_alloc")),
    (PROCESS, re.compile(r"_*handle_mm_fault")),
    ("a pipe's buffer", re.compile(r"pipe_write|anon_pipe_write")),
    ("a kmalloc of many bytes", re.compile(r"_*kmalloc_large")),
)
OTHER = "other"


def run() -> Evidence:
    """Trace allocations of pages, and hold them against the page tables."""
    evidence = Evidence(NAME)
    with traced_process.start() as process:
        events, answer = process.trace("mm_page_alloc", "pages")
        events = [event for event in events if _pfn(event) is not None][:NR_EVENTS]
        vaddrs = range(answer["start"], answer["start"] + NR_TOUCHED * PAGE_SIZE, PAGE_SIZE)
        touched = observe.translate(vaddrs, process.pid)
    _add_uses(evidence, events)
    _add_frames(evidence, events)
    _explain_touched(evidence, events, touched)
    _explain_orders(evidence, events)
    _explain_slabs(evidence, events)
    return evidence


def _pfn(event: Event) -> int | None:
    from physview.analysis.trace import frames_of

    frames = frames_of(event)
    return frames[0] if frames else None


def use_of(event: Event) -> str:
    """Return what needed the frames, judged by the stack."""
    names = [frame.symbol for frame in event.stack]
    for use, pattern in _USES:
        if any(map(pattern.match, names)):
            return use
    return OTHER


def _group(events: list[Event]) -> dict[str, list[Event]]:
    groups: dict[str, list[Event]] = {}
    for event in events:
        groups.setdefault(use_of(event), []).append(event)
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))


def _add_uses(evidence: Evidence, events: list[Event]) -> None:
    table = evidence.table(
        "uses",
        f"{len(events)} allocations, by what needed the frames",
        [
            EvidenceColumn("use", "needed for"),
            EvidenceColumn("events", "events", NUMBER),
            EvidenceColumn("orders", "orders", TEXT),
            EvidenceColumn("frames", "frames", NUMBER),
        ],
    )
    for use, found in _group(events).items():
        orders = ", ".join(map(str, sorted({event.number("order") for event in found})))
        table.add(use, len(found), orders, sum(1 << event.number("order") for event in found))


def _add_frames(evidence: Evidence, events: list[Event]) -> None:
    table = evidence.table(
        "frames",
        f"the first {NR_SHOWN} of each",
        [
            EvidenceColumn("use", "needed for"),
            EvidenceColumn("paddr", "first frame", PADDR),
            EvidenceColumn("order", "order", NUMBER),
            EvidenceColumn("caller", "in the stack, above the page allocator", TEXT),
        ],
    )
    for use, found in _group(events).items():
        for event in found[:NR_SHOWN]:
            pfn = _pfn(event)
            paddr = None if pfn is None else pfn << PAGE_SHIFT
            table.add(use, paddr, event.number("order"), _callers(event))


_ALLOCATOR = re.compile(r"_*(?:alloc_pages|alloc_frozen_pages|folio_alloc|get_free_pages|get_page)")


def _callers(event: Event) -> str:
    names = [str(frame) for frame in event.stack if not _ALLOCATOR.match(frame.symbol)]
    return " < ".join(names[:2])


def _explain_touched(evidence: Evidence, events: list[Event], touched: list[Translation]) -> None:
    single = {_pfn(event) for event in events if not event.number("order")}
    pfns = [one.pfn for one in touched if one.pfn is not None]
    nr = len([pfn for pfn in pfns if pfn in single])
    others = (
        f" {NR_TOUCHED - nr} of them have moved to another frame since." if nr < NR_TOUCHED else ""
    )
    is_usual = 4 * nr >= 3 * NR_TOUCHED
    evidence.check(
        "touched",
        is_usual,
        f"The process wrote to {NR_TOUCHED} new pages. {nr} of them are now in a frame that was"
        f" allocated alone in the trace (order 0).{others} So each page got its frame alone, at its"
        " page fault.",
        f"The process wrote to {NR_TOUCHED} new pages, and {nr} of them are in a frame that was"
        " allocated alone in the trace. The kernel mapped several pages at one page fault (large"
        " folios), migrated pages meanwhile, or the trace ended before.",
    )
    evidence.answer(1 if is_usual else None)
    nr_runs = observe.count_runs(pfns)
    if nr_runs > 1:
        text = (
            f"In the order of their virtual addresses, the {len(pfns)} pages are in {nr_runs} runs"
            " of contiguous frames. For each page fault the page allocator takes any free frame."
        )
    else:
        text = (
            f"The {len(pfns)} pages are in contiguous frames: the page allocator had a large free"
            " block, and handed out its frames in order, one for each page fault."
        )
    evidence.check("runs", bool(pfns), text, "None of the pages has a frame now.")


def _explain_orders(evidence: Evidence, events: list[Event]) -> None:
    blocks = [(_pfn(event) or 0, event.number("order")) for event in events]
    aligned = [pfn % (1 << order) == 0 for pfn, order in blocks]
    larger = [order for _, order in blocks if order]
    of_larger = f"; {len(larger)} blocks are larger than one frame" if larger else ""
    nr_frames = sum(1 << order for _, order in blocks)
    evidence.check(
        "orders",
        bool(blocks) and all(aligned),
        f"{len(blocks)} allocations took {nr_frames} frames. A block of order n has 2^n contiguous"
        f" frames, and its first frame number is a multiple of 2^n{of_larger}. The event tells a"
        " frame number, and no virtual address: the one who asked decides where to map the frames.",
        f"{aligned.count(False)} of {len(blocks)} blocks do not begin at a multiple of their size.",
    )


def _explain_slabs(evidence: Evidence, events: list[Event]) -> None:
    slabs = [event for event in events if use_of(event) == SLAB]
    nr_frames = sum(1 << event.number("order") for event in slabs)
    if not slabs:
        evidence.note(
            "no allocation needed a new slab: kmalloc() found free places in the slabs that it has."
            " Run the lab again"
        )
        evidence.answer(None)
        return
    nr_objects = 2 * traced_process.NR_SOCKETS
    evidence.check(
        "slabs",
        len(slabs) < nr_objects,
        f"{observe.count_words(len(slabs), 'allocation was', 'allocations were')} for a new slab,"
        f" {observe.count_words(nr_frames, 'frame')} in all, while the process opened {nr_objects}"
        " sockets, which take several objects each. kmalloc() and the other caches of objects hand"
        " out pieces of slabs, and call the page allocator only if they have no free place left.",
        f"{len(slabs)} allocations were for a new slab, but the process opened only {nr_objects}"
        " sockets.",
    )
    evidence.answer(1)


LAB = Lab(
    NAME,
    TITLE,
    (10,),
    PLAN,
    QUESTIONS,
    requirements.checker(NAME, requirements.tracing, requirements.frame_numbers),
    run,
)
