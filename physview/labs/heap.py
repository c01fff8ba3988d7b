# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab heap: thirty buffers from malloc(), their steps in virtual and in physical memory."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from physview.labs import observe, requirements
from physview.labs.model import NUMBER, PADDR, TEXT, VADDR, Evidence, EvidenceColumn, Lab, Question
from physview.model import PAGE_SIZE, Probe, Translation
from physview.sources.probes import visit_probes

NAME = "heap"
TITLE = "thirty buffers from malloc()"
BUF_SIZE = 4096  # as csrc/probes.c allocates
PLAN = (
    "Calls malloc(4096) thirty times, for buf[0] to buf[29], and looks up where each buffer begins."
    " It prints the step from one buffer to the next, in virtual and in physical memory."
)
QUESTIONS = (
    Question(
        "A program calls malloc(4096) thirty times. How far apart are the buffers' virtual"
        " addresses?",
        (
            "4096 bytes",
            "slightly more than 4096 bytes, always the same distance",
            "the distance varies without a pattern",
        ),
        1,
        "The distance is 4112 bytes (0x1010): 4096 bytes, and 16 bytes in which glibc's malloc()"
        " keeps the size of the block. Another malloc(), or other settings of it, can give another"
        " distance.",
    ),
    Question(
        "Which frames hold these buffers?",
        ("one contiguous run of frames", "scattered frames, with short contiguous runs at best"),
        1,
        "The kernel gives a page its frame at the first access, and takes any free frame. How many"
        " buffers lie in contiguous frames is chance, and differs from run to run.",
    ),
)


def run() -> Evidence:
    """Allocate the buffers, and measure the steps between them."""
    evidence = Evidence(NAME)

    def visit(probes: list[Probe]) -> list[tuple[str, Translation, Translation]]:
        bufs = [probe for probe in probes if probe.label.startswith("buf[")]
        begins = observe.translate([buf.vaddr for buf in bufs], with_vma=True)
        ends = observe.translate([buf.vaddr + BUF_SIZE - 1 for buf in bufs])
        return [(b.label, first, last) for b, first, last in zip(bufs, begins, ends, strict=True)]

    found = visit_probes(visit)
    begins = [begin for _, begin, _ in found]
    steps = [two.vaddr - one.vaddr for one, two in pairwise(begins)]
    table = evidence.table(
        "bufs",
        "where the buffers begin; * means: the frame does not follow the previous buffer's frame",
        [
            EvidenceColumn("label", "label"),
            EvidenceColumn("vaddr", "virtual", VADDR),
            EvidenceColumn("step", "step", TEXT),
            EvidenceColumn("paddr", "physical", PADDR),
            EvidenceColumn("frame_step", "step in frames", NUMBER),
        ],
    )
    for index, (label, begin, _) in enumerate(found):
        step = hex(steps[index - 1]) if index else None
        frame_step = None
        if index and begin.pfn is not None and begins[index - 1].pfn is not None:
            frame_step = begin.pfn - (begins[index - 1].pfn or 0)
        is_break = frame_step is not None and not follows(begins[index - 1], begin)
        changed = ["frame_step"] if is_break else []
        table.add(label, begin.vaddr, step, observe.paddr_cell(begin), frame_step, changed=changed)
    _explain_steps(evidence, steps, begins)
    if observe.are_hidden(begins):
        observe.note_hidden(evidence)
        evidence.answer(None)
    else:
        _explain_sharing(evidence, found)
        _explain_frames(evidence, begins)
    return evidence


def _explain_steps(evidence: Evidence, steps: list[int], begins: list[Translation]) -> None:
    by_step = Counter(steps)
    step = steps[0]
    is_equal = len(by_step) == 1
    names = {observe.mapping_name(begin) for begin in begins}
    evidence.check(
        "equal_steps",
        is_equal and BUF_SIZE < step < BUF_SIZE + PAGE_SIZE,
        f"All {len(steps)} steps are {step:#x} = {step} bytes: {BUF_SIZE} requested bytes and"
        f" {step - BUF_SIZE} bytes of overhead. malloc() stores the block's size in this overhead,"
        " and keeps the block aligned to 16 bytes. The buffers are contiguous in"
        f" {' and '.join(names)}.",
        f"The steps are {', '.join(f'{s:#x} ({nr} times)' for s, nr in by_step.most_common())}. "
        + (
            "malloc() filled holes in the heap, or it is not glibc's malloc()."
            if "[heap]" in names
            else f"malloc() placed the buffers in {' and '.join(sorted(names))}, not in the heap."
            " It is configured to use mappings for blocks of this size (mallopt), or it is not"
            " glibc's malloc()."
        ),
    )
    evidence.answer(2 if not is_equal else 1 if step > BUF_SIZE else 0)


def _explain_sharing(evidence: Evidence, found: list[tuple[str, Translation, Translation]]) -> None:
    """Check that neighbouring buffers share a frame where they share a page."""
    ends = [(last, begin) for (_, _, last), (_, begin, _) in pairwise(found)]
    in_page = [pair for pair in ends if pair[0].vaddr // PAGE_SIZE == pair[1].vaddr // PAGE_SIZE]
    in_frame = [pair for pair in in_page if pair[0].pfn == pair[1].pfn is not None]
    evidence.check(
        "neighbours_share",
        bool(in_page) and len(in_page) == len(in_frame),
        f"A step is not a whole number of pages. In {len(in_page)} of {len(ends)} pairs of"
        " neighbouring buffers, the first buffer ends in the page in which the second buffer"
        f" begins. In these {len(in_frame)} pairs, both are also in the same frame.",
        f"{len(in_page)} of {len(ends)} pairs of neighbouring buffers share a page, and"
        f" {len(in_frame)} pairs share a frame. The kernel migrated a page meanwhile, or the"
        " buffers begin at page boundaries.",
    )


def _explain_frames(evidence: Evidence, begins: list[Translation]) -> None:
    # In pages that are larger than a buffer, several buffers can begin in one page.
    others = [pair for pair in pairwise(begins) if page_step(*pair)]
    in_order = [follows(*pair) for pair in others]
    nr, nr_back = sum(in_order), sum((b.pfn or 0) < (a.pfn or 0) for a, b in others)
    nr_other = len(others) - nr
    nr_same = len(begins) - 1 - len(others)
    same_words = f" {nr_same} more steps stay in the same page." if nr_same else ""
    with observe.FrameFlags() as frames:
        is_large = [frames.has(begin.pfn, "thp") for begin in begins if begin.pfn]
    evidence.check(
        "frames",
        not all(in_order),
        f"{nr} of {len(others)} steps {'leads' if nr == 1 else 'lead'} to the next frame."
        f" {nr_other} {'step leads' if nr_other == 1 else 'steps lead'} to another frame,"
        f" {nr_back} of them backwards.{same_words}"
        " The kernel gives a page its frame at the first access, and takes any free frame.",
        f"All {len(others)} steps to another page lead to the next frame.{same_words} "
        + (
            "The heap is in a large folio (the frames have the flag thp), and the frames of a folio"
            " are always contiguous."
            if all(is_large)
            else "The kernel had a large free block, and handed out its frames in order. Run the"
            " lab again, or on a machine that has been up for longer."
        ),
    )
    evidence.answer(0 if all(in_order) else 1)


def page_step(one: Translation, two: Translation) -> int:
    """How many pages it is from one address to another."""
    return two.vaddr // PAGE_SIZE - one.vaddr // PAGE_SIZE


def follows(one: Translation, two: Translation) -> bool:
    """Whether the frames of two addresses are as far apart as their pages."""
    return (two.pfn or 0) - (one.pfn or 0) == page_step(one, two)


LAB = Lab(
    NAME, TITLE, (5,), PLAN, QUESTIONS, requirements.checker(NAME, requirements.compiled_core), run
)
