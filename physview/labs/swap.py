# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab swap: a page that is swapped out and in again gets another frame, with the same data."""

from __future__ import annotations

import os

from physview.errors import Unsupported
from physview.labs import observe, requirements
from physview.labs.memory import MADV_NOHUGEPAGE, MADV_PAGEOUT, MappedPages, occupied_memory
from physview.labs.model import PADDR, VADDR, Evidence, EvidenceColumn, Lab, Question
from physview.model import Cause, Translation

NAME = "swap"
TITLE = "swapping pages out and in"
NR_PAGES = 8
HELD_BYTES = 4 << 20
PLAN = (
    f"Writes to {NR_PAGES} pages, and asks the kernel to swap them out (MADV_PAGEOUT). The lab"
    " prints what their page-table entries hold then, reads the pages again, and looks up their"
    " frames once more."
)
QUESTIONS = (
    Question(
        "A page is swapped out and in again. What stays the same?",
        ("its virtual address and its frame", "only its virtual address", "only its frame"),
        1,
        "Each access after the page was swapped out causes a page fault. The kernel takes any free"
        " frame for the page, and maps it at the same virtual address.",
    ),
)


def run() -> Evidence:
    """Swap pages out and in again, and compare their frames."""
    evidence = Evidence(NAME)
    with MappedPages(NR_PAGES) as memory:
        memory.advise(MADV_NOHUGEPAGE)
        memory.write_all()
        before = observe.translate(memory.pages)
        code = memory.advise(MADV_PAGEOUT)
        if code:
            why = f"madvise(MADV_PAGEOUT): {os.strerror(code)}"
            remedy = f"Linux 5.4 or later, {requirements.in_vm(NAME, '--swap 64 --kernel 6.1')}"
            raise Unsupported(f"cannot do the lab {NAME}", why, remedy)
        out = observe.translate(memory.pages)
        with occupied_memory(HELD_BYTES):
            same = memory.is_as_written()
            back = observe.translate(memory.pages)
    table = evidence.table(
        "pages",
        "the pages before, while swapped out, and after; * means: changed",
        [
            EvidenceColumn("page", "page", "number"),
            EvidenceColumn("vaddr", "virtual", VADDR),
            EvidenceColumn("before", "after writing", PADDR),
            EvidenceColumn("out", "swapped out"),
            EvidenceColumn("back", "after reading", PADDR),
        ],
    )
    for i, (one, two, three) in enumerate(zip(before, out, back, strict=True)):
        changed = ["out"] if two.cause is Cause.SWAPPED else []
        changed += ["back"] if three.paddr != one.paddr else []
        table.add(
            *(i, one.vaddr, observe.paddr_cell(one), _slot(two), observe.paddr_cell(three)),
            changed=changed,
        )
    _explain(evidence, before, out, back, same=same)
    return evidence


def _slot(found: Translation) -> str:
    swap = found.entry.swap if found.entry and found.cause is Cause.SWAPPED else None
    if swap:
        return f"area {swap[0]}, slot {swap[1]:#x}"
    return found.cause.value if found.cause else "still in its frame"


def _explain(
    evidence: Evidence,
    before: list[Translation],
    out: list[Translation],
    back: list[Translation],
    *,
    same: bool,
) -> None:
    swapped = [i for i, one in enumerate(out) if one.cause is Cause.SWAPPED]
    evidence.check(
        "out",
        len(swapped) == len(before),
        f"The kernel swapped out all {len(swapped)} pages. Their page-table entries hold a swap"
        " area and a slot in this area instead of a frame. The frames are free for other uses.",
        f"The kernel swapped out {len(swapped)} of {len(before)} pages. The other pages are in use"
        " at the moment, or the swap area is full. Run the lab again.",
    )
    moved = [i for i in swapped if back[i].paddr != before[i].paddr and back[i].paddr is not None]
    again = len(swapped) - len(moved)
    by_chance = (
        f" {observe.count_words(again, 'page')} got the old frame again, by chance."
        if again
        else ""
    )
    moved_words = f"{len(moved)} of {len(swapped)}" if again else f"all {len(swapped)}"
    evidence.check(
        "back",
        bool(moved),
        f"After reading, {moved_words} pages are in other frames.{by_chance} Each read caused a"
        " page fault. The kernel then took any free frame, and read the slot into it.",
        f"After reading, none of {len(swapped)} swapped-out pages is in another frame. The pages"
        " were still in the swap cache, or their old frames were free and were used again.",
    )
    evidence.check(
        "same",
        same,
        "Every page still holds its data at the same virtual address. The process can't see that"
        " its pages were swapped out.",
        "At least one page lost its data. The memory or the swap area is defective.",
    )
    evidence.answer(None if not swapped else 1 if moved else 0)


LAB = Lab(
    NAME,
    TITLE,
    (),
    PLAN,
    QUESTIONS,
    requirements.checker(NAME, requirements.swap_area, requirements.frame_numbers),
    run,
)
