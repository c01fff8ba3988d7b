# SPDX-License-Identifier: GPL-2.0-or-later
"""Thirty buffers from malloc(): the pattern in their addresses, and the one in their frames."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from physview.labs import look, needs
from physview.labs.base import NUMBER, PADDR, TEXT, VADDR, Column, Evidence, Lab, Question
from physview.model import PAGE_SIZE, Probe, Translation
from physview.sources.probes import visit_probes

NAME = "heap"
TITLE = "thirty buffers of malloc()"
BUF_SIZE = 4096  # as csrc/probes.c allocates
PLAN = (
    "Has malloc() hand out buf[0] to buf[29], of 4096 bytes each, and looks where every one"
    " begins: the step from one to the next, in virtual and in physical memory."
)
QUESTIONS = (
    Question(
        "malloc(4096), thirty times. How far apart are the buffers' virtual addresses?",
        ("4096 bytes", "a bit more than 4096 bytes, always the same", "it varies: no pattern"),
    ),
    Question(
        "And the frames behind them?",
        ("one behind the other, all of them", "in no order, with short runs at best"),
    ),
)


def run() -> Evidence:
    """Take the buffers, and look at their steps."""
    evidence = Evidence(NAME)

    def visit(probes: list[Probe]) -> list[tuple[str, Translation, Translation]]:
        bufs = [probe for probe in probes if probe.label.startswith("buf[")]
        begins = look.look_at([buf.vaddr for buf in bufs], with_vma=True)
        ends = look.look_at([buf.vaddr + BUF_SIZE - 1 for buf in bufs])
        return [(b.label, first, last) for b, first, last in zip(bufs, begins, ends, strict=True)]

    found = visit_probes(visit)
    begins = [begin for _, begin, _ in found]
    steps = [two.vaddr - one.vaddr for one, two in pairwise(begins)]
    table = evidence.table(
        "bufs",
        "where the buffers begin; * is a frame that does not follow the one before",
        [
            Column("label", "label"),
            Column("vaddr", "virtual", VADDR),
            Column("step", "step", TEXT),
            Column("paddr", "physical", PADDR),
            Column("frame_step", "frames on", NUMBER),
        ],
    )
    frame_steps: list[int] = []
    for index, (label, begin, _) in enumerate(found):
        step = hex(steps[index - 1]) if index else None
        frame_step = None
        if index and begin.pfn is not None and begins[index - 1].pfn is not None:
            frame_step = begin.pfn - (begins[index - 1].pfn or 0)
            frame_steps.append(frame_step)
        is_break = frame_step is not None and frame_step != steps[index - 1] // PAGE_SIZE
        changed = ["frame_step"] if is_break else []
        table.add(label, begin.vaddr, step, look.where(begin), frame_step, changed=changed)
    _explain_steps(evidence, steps, begins)
    if look.are_hidden(begins):
        look.note_hidden(evidence)
        evidence.answer(None)
    else:
        _explain_sharing(evidence, found)
        _explain_frames(evidence, begins)
    return evidence


def _explain_steps(evidence: Evidence, steps: list[int], begins: list[Translation]) -> None:
    by_step = Counter(steps)
    step = steps[0]
    is_equal = len(by_step) == 1
    names = {look.name_of(begin) for begin in begins}
    evidence.check(
        "equal_steps",
        is_equal and BUF_SIZE < step < BUF_SIZE + PAGE_SIZE,
        f"All {len(steps)} steps are {step:#x} = {step}: the {BUF_SIZE} bytes that were asked for,"
        f" and {step - BUF_SIZE} more, in which malloc() notes the size of the block and which keep"
        f" it aligned to 16. The buffers lie one behind the other in {' and '.join(names)}.",
        f"The steps are {', '.join(f'{s:#x} ({nr} times)' for s, nr in by_step.most_common())}: "
        + (
            "malloc() filled holes that were left in the heap, or it is not glibc's."
            if "[heap]" in names
            else f"malloc() put them in {' and '.join(sorted(names))}, not in the heap: it is told"
            " to take mappings for blocks of this size (mallopt), or it is not glibc's."
        ),
    )
    evidence.answer(2 if not is_equal else 1 if step > BUF_SIZE else 0)


def _explain_sharing(evidence: Evidence, found: list[tuple[str, Translation, Translation]]) -> None:
    """The end of a buffer and the beginning of the next."""
    ends = [(last, begin) for (_, _, last), (_, begin, _) in pairwise(found)]
    in_page = [pair for pair in ends if pair[0].vaddr // PAGE_SIZE == pair[1].vaddr // PAGE_SIZE]
    in_frame = [pair for pair in in_page if pair[0].pfn == pair[1].pfn is not None]
    evidence.check(
        "neighbours_share",
        bool(in_page) and len(in_page) == len(in_frame),
        f"A step is no whole number of pages: of {len(ends)} pairs of neighbours {len(in_page)}"
        " have the end of the one and the beginning of the next in the same page, and those"
        f" {len(in_frame)} are in the same frame.",
        f"Of {len(ends)} pairs of neighbours {len(in_page)} meet in a page, and {len(in_frame)} in"
        " a frame: a page was moved meanwhile, or the buffers begin where pages do.",
    )


def _explain_frames(evidence: Evidence, begins: list[Translation]) -> None:
    # Where malloc() steps over a page, so must the frames, if they follow.
    follows = [
        (two.pfn or 0) - (one.pfn or 0) == two.vaddr // PAGE_SIZE - one.vaddr // PAGE_SIZE
        for one, two in pairwise(begins)
    ]
    nr, nr_back = sum(follows), sum((b.pfn or 0) < (a.pfn or 0) for a, b in pairwise(begins))
    with look.Frames() as frames:
        is_large = [frames.has(begin.pfn, "thp") for begin in begins if begin.pfn]
    evidence.check(
        "frames",
        not all(follows),
        f"Of {len(follows)} steps {nr} {'goes' if nr == 1 else 'go'} to the frame that follows,"
        f" {len(follows) - nr} elsewhere, {nr_back} of these backwards. A page gets its frame"
        " when it is first touched: whichever the kernel has at hand then.",
        f"All {len(follows)} steps go to the frame that follows: "
        + (
            "the heap lies in a large folio (the frames have the flag thp), which is in one piece"
            " by nature."
            if all(is_large)
            else "the kernel had a large free block at hand, and dealt it out from the front. Run"
            " it again, or on a machine that has run for longer."
        ),
    )
    evidence.answer(0 if all(follows) else 1)


LAB = Lab(NAME, TITLE, (5,), PLAN, QUESTIONS, needs.needs(NAME, needs.core), run)
