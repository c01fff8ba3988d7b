# SPDX-License-Identifier: GPL-2.0-or-later
"""Shared memory: one frame, two processes, two virtual addresses."""

from __future__ import annotations

import json
import os

from physview.labs import look, needs
from physview.labs.base import PADDR, VADDR, Cell, Column, Evidence, Lab, Question
from physview.labs.memory import Forked, Memory

NAME = "shared"
TITLE = "one frame, two virtual addresses"
NR_PAGES = 4
TOKEN = 77
PLAN = (
    f"Makes a file in memory of {NR_PAGES} pages (memfd), which two processes map, each where it"
    " likes: once shared, and once private. One writes to a shared page, the other reads it; the"
    " other writes to a private one. Both look where their pages are."
)
QUESTIONS = (
    Question(
        "Two processes share memory. What is the same in both?",
        ("the virtual address", "the physical address", "both", "neither"),
    ),
)


def run() -> Evidence:
    """Map the same file in two processes."""
    evidence = Evidence(NAME)
    fd = os.memfd_create("physview-lab")
    try:
        os.truncate(fd, NR_PAGES * os.sysconf("SC_PAGESIZE"))
        return _run(evidence, fd)
    finally:
        os.close(fd)


def _run(evidence: Evidence, fd: int) -> Evidence:
    childs: list[Memory] = []

    def step(do: int) -> str:
        if not childs:
            childs.extend([Memory(NR_PAGES, fd=fd, shared=True), Memory(NR_PAGES, fd=fd)])
        shared, private = childs
        token = shared.read(0)
        values = [private.read(i) for i in range(NR_PAGES)]
        if do:
            private.write(NR_PAGES - 1, 99)
        found = look.look_at([*shared.pages, *private.pages])
        return json.dumps([token, values, [(one.vaddr, one.paddr) for one in found]])

    # The child has our mapping, too, which it leaves alone: where it maps the file is elsewhere.
    with Memory(NR_PAGES, fd=fd, shared=True) as shared, Forked(step) as child:
        shared.write_all()
        child.tell(0)
        shared.write(0, TOKEN)
        token, _, theirs = json.loads(child.tell(1))
        left = shared.read(NR_PAGES - 1)
        ours = look.look_at(shared.pages)
    table = evidence.table(
        "pages",
        "the same page in two processes; * is another frame",
        [
            Column("page", "page", "number"),
            Column("mapping", "child maps"),
            Column("vaddr", "parent virtual", VADDR),
            Column("child_vaddr", "child virtual", VADDR),
            Column("paddr", "parent frame", PADDR),
            Column("child_paddr", "child frame", PADDR),
        ],
    )
    for i, (vaddr, paddr) in enumerate(theirs):
        one = ours[i % NR_PAGES]
        kind = "shared" if i < NR_PAGES else "private"
        if i == 2 * NR_PAGES - 1:
            kind = "and writes"
        changed = ["child_paddr"] if paddr != one.paddr else []
        cells: list[Cell] = [i % NR_PAGES, kind, one.vaddr, vaddr, look.where(one), paddr]
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
        f"All {NR_PAGES} shared pages are in the same frames in both processes, at other virtual"
        " addresses: each process has page tables of its own, and they lead to one place.",
        f"Of {NR_PAGES} shared pages {sum(same[:NR_PAGES])} are in the same frames, and"
        f" {sum(elsewhere)} at other virtual addresses: pages were moved meanwhile, or both"
        " processes happened to map them at the same address.",
    )
    is_same, is_elsewhere = all(same[:NR_PAGES]), all(elsewhere)
    evidence.answer((1 if is_elsewhere else 2) if is_same else (3 if is_elsewhere else 0))
    evidence.check(
        "seen",
        token == TOKEN,
        f"The parent wrote {TOKEN} after both had mapped the page, and the child read {token}:"
        " nothing is sent, there is only one copy.",
        f"The parent wrote {TOKEN}, and the child read {token}: they do not share the page.",
    )
    private = same[NR_PAGES:]
    evidence.check(
        "private",
        all(private[:-1]) and not private[-1] and left != 99,
        f"Mapped privately the child also had the file's own frames, {sum(private)} of"
        f" {NR_PAGES} here, until it wrote to one: that page was copied, and the file still has"
        f" {left} where the child wrote 99.",
        f"Mapped privately {sum(private)} of {NR_PAGES} pages are in the file's own frames, and the"
        f" file has {left} where the child wrote 99: pages were copied earlier, or moved.",
    )


LAB = Lab(NAME, TITLE, (), PLAN, QUESTIONS, needs.needs(NAME, needs.frames), run)
