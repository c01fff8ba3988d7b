# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab zero: the zero page. One frame of zeros backs all pages that were only read."""

from __future__ import annotations

from physview.labs import observe, requirements
from physview.labs.memory import MADV_NOHUGEPAGE, MappedPages
from physview.labs.model import PADDR, VADDR, Evidence, EvidenceColumn, Lab, Question
from physview.model import Cause
from physview.units import pfn_text

NAME = "zero"
TITLE = "the zero page"
NR_PAGES, NR_READ, NR_WRITTEN = 6, 4, 2
PLAN = (
    f"Maps {NR_PAGES} pages, reads the first {NR_READ} of them, and then writes to the first"
    f" {NR_WRITTEN}. After each step, the lab looks up the frames of all pages."
)
QUESTIONS = (
    Question(
        "A process reads four new pages and does not write to them. How many frames do these pages"
        " take?",
        ("none: reading new pages fails", "one frame for all four pages", "four frames"),
        1,
        "The kernel maps a new anonymous page that is only read to the zero page: one frame with"
        " zeros, which all processes share. A page gets a frame of its own at the first write.",
    ),
)


def run() -> Evidence:
    """Map, read and write pages, and compare their frames after each step."""
    evidence = Evidence(NAME)
    with MappedPages(NR_PAGES) as memory:
        memory.advise(MADV_NOHUGEPAGE)
        fresh = observe.translate(memory.pages)
        values = [memory.read(i) for i in range(NR_READ)]
        read = observe.translate(memory.pages)
        for i in range(NR_WRITTEN):
            memory.write(i)
        written = observe.translate(memory.pages)
        with observe.FrameFlags() as frames:
            zero_flags = [frames.has(one.pfn, "zero_page") for one in read[:NR_READ] if one.pfn]
            new_flags = [frames.has(o.pfn, "zero_page") for o in written[:NR_WRITTEN] if o.pfn]
    table = evidence.table(
        "pages",
        "the frames of the pages after each step; * means: changed",
        [
            EvidenceColumn("done", "access"),
            EvidenceColumn("vaddr", "virtual", VADDR),
            EvidenceColumn("fresh", "after mmap", PADDR),
            EvidenceColumn("read", "after reading", PADDR),
            EvidenceColumn("written", "after writing", PADDR),
        ],
    )
    for i, (one, two, three) in enumerate(zip(fresh, read, written, strict=True)):
        done = "read, written" if i < NR_WRITTEN else "read" if i < NR_READ else "none"
        changed = ["read"] if one.paddr != two.paddr else []
        changed += ["written"] if two.paddr != three.paddr else []
        cells = (observe.paddr_cell(one), observe.paddr_cell(two), observe.paddr_cell(three))
        table.add(done, one.vaddr, *cells, changed=changed)
    absent = [one for one in fresh if one.cause is Cause.ABSENT]
    evidence.check(
        "fresh",
        len(absent) == NR_PAGES,
        f"After mmap(), none of the {NR_PAGES} pages has a frame. The untouched pages have no frame"
        " at the end either. Mapping memory takes no frames.",
        f"After mmap(), {NR_PAGES - len(absent)} of {NR_PAGES} pages have a frame already. The"
        " kernel populates this process's mappings at once (mlockall).",
    )
    pfns = {one.pfn for one in read[:NR_READ]}
    evidence.check(
        "one_frame",
        len(pfns) == 1 and all(zero_flags) and len(zero_flags) == NR_READ,
        f"All {NR_READ} pages that were read are in {pfn_text(read[0].pfn or 0)}, and this frame"
        f" has the flag zero_page. Every byte that was read was {max(values)}. All processes share"
        " this frame.",
        f"The {NR_READ} pages that were read are in {observe.count_words(len(pfns), 'frame')}, and"
        f" {sum(zero_flags)} of these pages have the flag zero_page. This kernel gives a new frame"
        " at the first read, as s390 does, or it is too old to have the flag.",
    )
    evidence.answer(1 if len(pfns) == 1 else 2)
    own = {one.pfn for one in written[:NR_WRITTEN]}
    evidence.check(
        "written",
        len(own - pfns) == NR_WRITTEN and not any(new_flags),
        f"The {NR_WRITTEN} pages that were written have their own frames now, and the other pages"
        " are in the same frames as before. The kernel maps the zero page read-only, so the first"
        " write causes a page fault.",
        f"The {NR_WRITTEN} pages that were written are in"
        f" {observe.count_words(len(own - pfns), 'new frame')}. They had their own frames already.",
    )
    return evidence


LAB = Lab(
    NAME,
    TITLE,
    (),
    PLAN,
    QUESTIONS,
    requirements.checker(NAME, requirements.frame_numbers, requirements.compiled_core),
    run,
)
