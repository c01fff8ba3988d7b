# SPDX-License-Identifier: GPL-2.0-or-later
"""fork() copies no memory: a page is copied when one of the two writes to it."""

from __future__ import annotations

import json

from physview.labs import look, needs
from physview.labs.base import PADDR, Column, Evidence, Lab, Question
from physview.labs.memory import MADV_NOHUGEPAGE, Forked, Memory

NAME = "cow"
TITLE = "copy on write at fork()"
PLAN = (
    "Writes to four pages, and forks. Then nobody touches the first page, the child reads the"
    " second and writes to the third, and the parent writes to the fourth. Both look where their"
    " pages are."
)
DONE = ("nothing", "child reads", "child writes", "parent writes")
UNTOUCHED, READ, CHILD_WROTE, PARENT_WROTE = range(4)
QUESTIONS = (
    Question(
        "Right after fork(), before anybody writes: in how many frames are a page of the parent"
        " and the same page of the child?",
        ("in one: they share it", "in two: fork() copies memory"),
    ),
    Question(
        "The child writes to a page. Who has another frame then?",
        ("the parent", "the child", "both"),
    ),
)


def run() -> Evidence:
    """Fork, write, and look."""
    evidence = Evidence(NAME)
    with Memory(len(DONE)) as memory:
        memory.advise(MADV_NOHUGEPAGE)
        memory.write_all()
        before = look.look_at(memory.pages)

        def step(do: int) -> str:
            if do:
                memory.read(READ)
                memory.write(CHILD_WROTE, 99)
            return json.dumps([one.paddr for one in look.look_at(memory.pages)])

        with Forked(step) as child:
            forked = json.loads(child.tell(0))
            memory.write(PARENT_WROTE, 98)
            childs = json.loads(child.tell(1))
            parents = look.look_at(memory.pages)
    table = evidence.table(
        "pages",
        f"the pages from {memory.start:#x} on; * is another frame than before fork()",
        [
            Column("done", "what is done"),
            Column("before", "before fork", PADDR),
            Column("forked", "child, at once", PADDR),
            Column("parent", "parent, after", PADDR),
            Column("child", "child, after", PADDR),
        ],
    )
    at_start = [one.paddr for one in before]
    at_end = [one.paddr for one in parents]
    for i, done in enumerate(DONE):
        new = {"forked": forked[i], "parent": at_end[i], "child": childs[i]}
        changed = [name for name, paddr in new.items() if paddr != at_start[i]]
        cells = (look.where(before[i]), forked[i], look.where(parents[i]), childs[i])
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
        f"Right after fork() all {nr_shared} pages of the child are in the parent's frames: only"
        " the page tables were copied, and the pages made read-only in both.",
        f"Right after fork() {nr_shared} of {len(before)} pages are in the parent's frames: some"
        " were copied at once, as the kernel does with what a device is using, or were moved.",
    )
    evidence.answer(0 if nr_shared == len(before) else 1)
    kept = [i for i in (UNTOUCHED, READ) if before[i] == parents[i] == childs[i]]
    evidence.check(
        "reading",
        len(kept) == 2,
        "The page that nobody touched and the one that the child read are still in one frame:"
        " reading copies nothing.",
        "The page that nobody touched, or the one that was read, has got another frame: it was"
        " moved meanwhile, by compaction or NUMA balancing. Run it again.",
    )
    child_moved = childs[CHILD_WROTE] != before[CHILD_WROTE]
    parent_moved = parents[CHILD_WROTE] != before[CHILD_WROTE]
    evidence.check(
        "child_writes",
        child_moved and not parent_moved,
        "The child wrote to a page, and has it in another frame now; the parent kept the old one."
        " Who writes takes the fault, and gets the copy.",
        "The child wrote to a page, and "
        + ("the parent got another frame as well" if parent_moved else "kept the shared frame")
        + ": it was moved meanwhile. Run it again.",
    )
    evidence.answer(2 if child_moved and parent_moved else 1 if child_moved else 0)
    evidence.check(
        "parent_writes",
        parents[PARENT_WROTE] != before[PARENT_WROTE] == childs[PARENT_WROTE],
        "The parent wrote to a page, and it was the parent that got another frame; the child has"
        " the old one. Being the parent gives no right to it.",
        "The parent wrote to a page while the child shared it, and the frames are not as they"
        " should be: one of them was moved meanwhile. Run it again.",
    )


LAB = Lab(NAME, TITLE, (), PLAN, QUESTIONS, needs.needs(NAME, needs.frames), run)
