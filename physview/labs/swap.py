# SPDX-License-Identifier: GPL-2.0-or-later
"""Swapped out and in again: another frame, and the same bytes."""

from __future__ import annotations

import os

from physview.errors import Unsupported
from physview.labs import look, needs
from physview.labs.base import PADDR, VADDR, Column, Evidence, Lab, Question
from physview.labs.memory import MADV_NOHUGEPAGE, MADV_PAGEOUT, Memory, taken
from physview.model import Cause, Translation

NAME = "swap"
TITLE = "swapped out, and in again"
NR_PAGES = 8
HELD_BYTES = 4 << 20
PLAN = (
    f"Writes to {NR_PAGES} pages, has the kernel swap them out (MADV_PAGEOUT), looks at what stands"
    " in the place of their frames, reads them again, and looks where they are then."
)
QUESTIONS = (
    Question(
        "A page is swapped out and in again. What of it is as before?",
        ("its virtual address and its frame", "its virtual address only", "its frame only"),
    ),
)


def run() -> Evidence:
    """Swap out, and in again."""
    evidence = Evidence(NAME)
    with Memory(NR_PAGES) as memory:
        memory.advise(MADV_NOHUGEPAGE)
        memory.write_all()
        before = look.look_at(memory.pages)
        code = memory.advise(MADV_PAGEOUT)
        if code:
            why = f"madvise(MADV_PAGEOUT): {os.strerror(code)}"
            remedy = f"Linux 5.4 or later, {needs.in_vm(NAME, '--swap 64 --kernel 6.1')}"
            raise Unsupported(f"cannot do the lab {NAME}", why, remedy)
        out = look.look_at(memory.pages)
        with taken(HELD_BYTES):
            same = memory.is_as_written()
            back = look.look_at(memory.pages)
    table = evidence.table(
        "pages",
        "pages that are swapped out and read again; * changed",
        [
            Column("page", "page", "number"),
            Column("vaddr", "virtual", VADDR),
            Column("before", "written", PADDR),
            Column("out", "swapped out"),
            Column("back", "read again", PADDR),
        ],
    )
    for i, (one, two, three) in enumerate(zip(before, out, back, strict=True)):
        changed = ["out"] if two.cause is Cause.SWAPPED else []
        changed += ["back"] if three.paddr != one.paddr else []
        table.add(*(i, one.vaddr, look.where(one), _slot(two), look.where(three)), changed=changed)
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
        f"All {len(swapped)} pages went out: their entries no longer name a frame, but the swap"
        " area and the slot in it. The frames are free for others.",
        f"{len(swapped)} of {len(before)} pages went out: of the others the kernel found that"
        " somebody uses them just now, or the swap area is full. Run it again.",
    )
    moved = [i for i in swapped if back[i].paddr != before[i].paddr and back[i].paddr is not None]
    again = len(swapped) - len(moved)
    by_chance = f" {look.count(again, 'page')} got the old one again, by chance." if again else ""
    evidence.check(
        "back",
        bool(moved),
        f"Read again, {'all' if not again else len(moved)} of these are in other frames.{by_chance}"
        " Each touch was a page fault: the kernel took a free frame, whichever that was, and read"
        " the slot into it.",
        f"Of {len(swapped)} that went out none came back in another frame: they were still in the"
        " swap cache, or got theirs again, which was free.",
    )
    evidence.check(
        "same",
        same,
        "Every page holds what was written to it, at the virtual address it always had: the"
        " process can't tell that anything happened.",
        "Not every page holds what was written to it: the memory or the swap area is broken.",
    )
    evidence.answer(None if not swapped else 1 if moved else 0)


LAB = Lab(NAME, TITLE, (), PLAN, QUESTIONS, needs.needs(NAME, needs.swap, needs.frames), run)
