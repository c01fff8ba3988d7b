# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that was only read is all one page of zeros."""

from __future__ import annotations

from physview.labs import look, needs
from physview.labs.base import PADDR, VADDR, Column, Evidence, Lab, Question
from physview.labs.memory import MADV_NOHUGEPAGE, Memory
from physview.model import Cause

NAME = "zero"
TITLE = "the zero page"
NR_PAGES, NR_READ, NR_WRITTEN = 6, 4, 2
PLAN = (
    f"Maps {NR_PAGES} pages, reads the first {NR_READ} of them, then writes to the first"
    f" {NR_WRITTEN}, and looks each time which frames stand behind them."
)
QUESTIONS = (
    Question(
        "Four new pages are read, and not written to. How many frames do they take?",
        ("none: reading takes no memory, it fails", "one, for all four", "four"),
    ),
)


def run() -> Evidence:
    """Map, read, write, and look."""
    evidence = Evidence(NAME)
    with Memory(NR_PAGES) as memory:
        memory.advise(MADV_NOHUGEPAGE)
        fresh = look.look_at(memory.pages)
        values = [memory.read(i) for i in range(NR_READ)]
        read = look.look_at(memory.pages)
        for i in range(NR_WRITTEN):
            memory.write(i)
        written = look.look_at(memory.pages)
        with look.Frames() as frames:
            zero_flags = [frames.has(one.pfn, "zero_page") for one in read[:NR_READ] if one.pfn]
            new_flags = [frames.has(o.pfn, "zero_page") for o in written[:NR_WRITTEN] if o.pfn]
    table = evidence.table(
        "pages",
        "which frame is behind a page; * changed",
        [
            Column("done", "what is done"),
            Column("vaddr", "virtual", VADDR),
            Column("fresh", "mapped", PADDR),
            Column("read", "then read", PADDR),
            Column("written", "then written", PADDR),
        ],
    )
    for i, (one, two, three) in enumerate(zip(fresh, read, written, strict=True)):
        done = "read, written" if i < NR_WRITTEN else "read" if i < NR_READ else "nothing"
        changed = ["read"] if one.paddr != two.paddr else []
        changed += ["written"] if two.paddr != three.paddr else []
        cells = (look.where(one), look.where(two), look.where(three))
        table.add(done, one.vaddr, *cells, changed=changed)
    absent = [one for one in fresh if one.cause is Cause.ABSENT]
    evidence.check(
        "fresh",
        len(absent) == NR_PAGES,
        f"After mmap() none of the {NR_PAGES} pages has a frame, and to the end the untouched ones"
        " have none: to map memory takes none.",
        f"After mmap() {NR_PAGES - len(absent)} of {NR_PAGES} pages have a frame already: mappings"
        " of this process are filled at once (mlockall).",
    )
    pfns = {one.pfn for one in read[:NR_READ]}
    evidence.check(
        "one_frame",
        len(pfns) == 1 and all(zero_flags) and len(zero_flags) == NR_READ,
        f"The {NR_READ} pages that were read are all in frame {read[0].pfn or 0:#x}, which the"
        f" kernel flags zero_page; every byte that was read was {max(values)}. This one frame"
        " serves all processes.",
        f"The {NR_READ} pages that were read are in {look.count(len(pfns), 'frame')}, of which"
        f" {sum(zero_flags)} are flagged zero_page: this kernel gives a frame at the first read,"
        " as s390 and some others do, or the flag is newer than it.",
    )
    evidence.answer(1 if len(pfns) == 1 else 2)
    own = {one.pfn for one in written[:NR_WRITTEN]}
    evidence.check(
        "written",
        len(own - pfns) == NR_WRITTEN and not any(new_flags),
        f"Written to, {NR_WRITTEN} of them got frames of their own; the others are where they"
        " were. The zero page is mapped read-only, so that the first write faults.",
        f"Written to, {NR_WRITTEN} pages are in {look.count(len(own - pfns), 'new frame')}: they"
        " had frames of their own already.",
    )
    return evidence


LAB = Lab(NAME, TITLE, (), PLAN, QUESTIONS, needs.needs(NAME, needs.frames, needs.core), run)
