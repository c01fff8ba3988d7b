# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab shared: shared memory. Two processes map the same frames at different addresses."""

from __future__ import annotations

import json
import os

from physview.labs import observe, requirements
from physview.labs.memory import ForkedChild, MappedPages
from physview.labs.model import PADDR, VADDR, Cell, Evidence, EvidenceColumn, Lab, Question

NAME = "shared"
TITLE = "one frame, two virtual addresses"
NR_PAGES = 4
TOKEN = 77
PLAN = (
    f"Creates a file of {NR_PAGES} pages in memory (memfd). The parent maps it shared. The child"
    " maps it twice, shared and private, each at an address that the kernel chooses. The parent"
    " writes to a shared page, and the child reads this page. The child then writes to a private"
    " page. Both look up the frames of their pages."
)
QUESTIONS = (
    Question(
        "Two processes share memory. Which address of the shared page is the same in both?",
        ("the virtual address", "the physical address", "both", "neither"),
        1,
        "Both processes map the same frame. Each process has page tables of its own, so each can"
        " map the frame at another virtual address.",
    ),
)


def run() -> Evidence:
    """Map the same file in two processes, and compare the frames."""
    evidence = Evidence(NAME)
    fd = os.memfd_create("physview-lab")
    try:
        os.truncate(fd, NR_PAGES * os.sysconf("SC_PAGESIZE"))
        return _run(evidence, fd)
    finally:
        os.close(fd)


def _run(evidence: Evidence, fd: int) -> Evidence:
    childs: list[MappedPages] = []

    def step(do: int) -> str:
        if not childs:
            childs.extend([MappedPages(NR_PAGES, fd=fd, shared=True), MappedPages(NR_PAGES, fd=fd)])
        shared, private = childs
        # All pages: a fault maps its neighbours within 64 KiB, too, but that can be one page.
        token, *_ = (shared.read(i) for i in range(NR_PAGES))
        values = [private.read(i) for i in range(NR_PAGES)]
        if do:
            private.write(NR_PAGES - 1, 99)
        found = observe.translate([*shared.pages, *private.pages])
        return json.dumps([token, values, [(one.vaddr, one.paddr) for one in found]])

    # The child inherits the parent's mapping and ignores it. Its own mappings of the file are at
    # other addresses.
    with MappedPages(NR_PAGES, fd=fd, shared=True) as shared, ForkedChild(step) as child:
        shared.write_all()
        child.run_step(0)
        shared.write(0, TOKEN)
        token, _, theirs = json.loads(child.run_step(1))
        left = shared.read(NR_PAGES - 1)
        ours = observe.translate(shared.pages)
    table = evidence.table(
        "pages",
        "the same page in two processes; * means: another frame than the parent's",
        [
            EvidenceColumn("page", "page", "number"),
            EvidenceColumn("mapping", "child maps"),
            EvidenceColumn("vaddr", "parent virtual", VADDR),
            EvidenceColumn("child_vaddr", "child virtual", VADDR),
            EvidenceColumn("paddr", "parent frame", PADDR),
            EvidenceColumn("child_paddr", "child frame", PADDR),
        ],
    )
    for i, (vaddr, paddr) in enumerate(theirs):
        one = ours[i % NR_PAGES]
        kind = "shared" if i < NR_PAGES else "private"
        if i == 2 * NR_PAGES - 1:
            kind = "private, writes"
        changed = ["child_paddr"] if paddr != one.paddr else []
        cells: list[Cell] = [i % NR_PAGES, kind, one.vaddr, vaddr, observe.paddr_cell(one), paddr]
        table.add(*cells, changed=changed)
    same = [one.paddr == paddr for one, (_, paddr) in zip(ours * 2, theirs, strict=True)]
    elsewhere = [one.vaddr != vaddr for one, (vaddr, _) in zip(ours, theirs, strict=False)]
    _explain(evidence, same, elsewhere, token, left)
    return evidence


def _explain(
    evidence: Evidence, same: list[bool], elsewhere: list[bool], token: int, left: int
) -> None:
    evidence.check(
        "one_frame",
        all(same[:NR_PAGES]) and all(elsewhere),
        f"All {NR_PAGES} shared pages have the same frames and different virtual addresses in the"
        " two processes. Each process has its own page tables, and both page tables lead to the"
        " same frames.",
        f"{sum(same[:NR_PAGES])} of {NR_PAGES} shared pages have the same frame in both processes,"
        f" and {sum(elsewhere)} have different virtual addresses. The kernel migrated pages"
        " meanwhile, or both processes happened to map the file at the same address.",
    )
    is_same, is_elsewhere = all(same[:NR_PAGES]), all(elsewhere)
    evidence.answer((1 if is_elsewhere else 2) if is_same else (3 if is_elsewhere else 0))
    evidence.check(
        "seen",
        token == TOKEN,
        f"The parent wrote {TOKEN} after both processes had mapped the page, and the child read"
        f" {token}. The kernel sends no data between the processes: memory has only one copy of the"
        " page.",
        f"The parent wrote {TOKEN}, and the child read {token}. The processes do not share the"
        " page.",
    )
    private = same[NR_PAGES:]
    evidence.check(
        "private",
        all(private[:-1]) and not private[-1] and left != 99,
        f"In the private mapping, {sum(private)} of {NR_PAGES} pages are in the file's own frames."
        " The child wrote 99 to the other page, and the kernel copied this page at the write. The"
        f" file still holds {left} in its place.",
        f"In the private mapping, {sum(private)} of {NR_PAGES} pages are in the file's own frames,"
        f" and the file holds {left} where the child wrote 99. The kernel copied pages earlier, or"
        " migrated them.",
    )


LAB = Lab(
    NAME, TITLE, (), PLAN, QUESTIONS, requirements.checker(NAME, requirements.frame_numbers), run
)
