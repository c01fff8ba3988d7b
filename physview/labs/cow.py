# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab cow: copy on write. fork() copies no page; a write to a shared page copies it."""

from __future__ import annotations

import json

from physview.labs import observe, requirements
from physview.labs.memory import MADV_NOHUGEPAGE, ForkedChild, MappedPages
from physview.labs.model import PADDR, Evidence, EvidenceColumn, Lab, Question

NAME = "cow"
TITLE = "copy on write at fork()"
PLAN = (
    "Writes to four pages and forks. Then no process touches the first page, the child reads the"
    " second page and writes to the third, and the parent writes to the fourth. Parent and child"
    " each look up the frames of their pages."
)
DONE = ("none", "child reads", "child writes", "parent writes")
UNTOUCHED, READ, CHILD_WROTE, PARENT_WROTE = range(4)
QUESTIONS = (
    Question(
        "fork() has just returned, and neither process has written yet. How many frames hold a"
        " page of the parent and the same page of the child?",
        ("one: they share it", "two: fork() copies memory"),
        0,
        "fork() copies the page tables only, and makes the pages read-only in both processes.",
    ),
    Question(
        "The child writes to a page. Which process has a new frame then?",
        ("the parent", "the child", "both"),
        1,
        "The write causes a page fault, and the process that writes gets a copy in a new frame."
        " The other process keeps the old frame.",
    ),
)


def run() -> Evidence:
    """Fork, write in both processes, and compare the frames."""
    evidence = Evidence(NAME)
    with MappedPages(len(DONE)) as memory:
        memory.advise(MADV_NOHUGEPAGE)
        memory.write_all()
        before = observe.translate(memory.pages)

        def step(do: int) -> str:
            if do:
                memory.read(READ)
                memory.write(CHILD_WROTE, 99)
            return json.dumps([one.paddr for one in observe.translate(memory.pages)])

        with ForkedChild(step) as child:
            forked = json.loads(child.run_step(0))
            memory.write(PARENT_WROTE, 98)
            childs = json.loads(child.run_step(1))
            parents = observe.translate(memory.pages)
    table = evidence.table(
        "pages",
        f"four pages from {memory.start:#x} on; * means: another frame than before fork()",
        [
            EvidenceColumn("done", "access"),
            EvidenceColumn("before", "before fork", PADDR),
            EvidenceColumn("forked", "child, after fork", PADDR),
            EvidenceColumn("parent", "parent, at the end", PADDR),
            EvidenceColumn("child", "child, at the end", PADDR),
        ],
    )
    at_start = [one.paddr for one in before]
    at_end = [one.paddr for one in parents]
    for i, done in enumerate(DONE):
        new = {"forked": forked[i], "parent": at_end[i], "child": childs[i]}
        changed = [name for name, paddr in new.items() if paddr != at_start[i]]
        cells = (
            observe.paddr_cell(before[i]),
            forked[i],
            observe.paddr_cell(parents[i]),
            childs[i],
        )
        table.add(done, *cells, changed=changed)
    _explain(evidence, at_start, forked, at_end, childs)
    return evidence


def _explain(
    evidence: Evidence,
    before: list[int | None],
    forked: list[int | None],
    parents: list[int | None],
    childs: list[int | None],
) -> None:
    nr_shared = sum(one == two for one, two in zip(before, forked, strict=True))
    evidence.check(
        "shared_by_fork",
        nr_shared == len(before),
        f"Right after fork(), all {nr_shared} pages of the child are in the parent's frames."
        " fork() copied only the page tables, and made the pages read-only in both processes.",
        f"Right after fork(), {nr_shared} of {len(before)} pages of the child are in the parent's"
        " frames. The kernel copied the other pages at once, as it does with pages that a device"
        " uses, or it migrated them.",
    )
    evidence.answer(0 if nr_shared == len(before) else 1)
    kept = [i for i in (UNTOUCHED, READ) if before[i] == parents[i] == childs[i]]
    evidence.check(
        "reading",
        len(kept) == 2,
        "The untouched page and the page that the child read still share their frames. Reading"
        " copies nothing.",
        "The untouched page, or the page that the child read, has another frame. The kernel"
        " migrated it meanwhile (compaction or NUMA balancing). Run the lab again.",
    )
    child_moved = childs[CHILD_WROTE] != before[CHILD_WROTE]
    parent_moved = parents[CHILD_WROTE] != before[CHILD_WROTE]
    evidence.check(
        "child_writes",
        child_moved and not parent_moved,
        "The child wrote to a page. The child's page is in a new frame now, and the parent kept"
        " the old frame. The process that writes takes the page fault and gets the copy.",
        "The child wrote to a page. "
        + ("Both processes have a new frame." if parent_moved else "The frame is still shared.")
        + " The kernel migrated a page meanwhile. Run the lab again.",
    )
    evidence.answer(2 if child_moved and parent_moved else 1 if child_moved else 0)
    evidence.check(
        "parent_writes",
        parents[PARENT_WROTE] != before[PARENT_WROTE] == childs[PARENT_WROTE],
        "The parent wrote to a page. The parent's page is in a new frame now, and the child kept"
        " the old frame. Copy on write treats the parent and the child alike.",
        "The parent wrote to a page that the child shared, but the frames are not as expected. The"
        " kernel migrated a page meanwhile. Run the lab again.",
    )


LAB = Lab(
    NAME, TITLE, (), PLAN, QUESTIONS, requirements.checker(NAME, requirements.frame_numbers), run
)
