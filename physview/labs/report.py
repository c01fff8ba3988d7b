# SPDX-License-Identifier: GPL-2.0-or-later
"""The course's report with physical addresses, beside the one that has only virtual ones."""

from __future__ import annotations

from itertools import combinations, pairwise

from physview.labs import look, needs
from physview.labs.base import PADDR, VADDR, Column, Evidence, Lab, Question, Table
from physview.model import PAGE_SHIFT, PAGE_SIZE, Probe, Translation
from physview.sources.probes import visit_probes

NAME = "report"
TITLE = "virtual addresses, and where they are"
PLAN = (
    "Takes the addresses that memview prints (memview --virtual), and asks the kernel for the"
    " physical address of each, as memview2 does (memview). One process, both reports side by side."
)
QUESTIONS = (
    Question(
        "What do a virtual address and its physical address have in common?",
        (
            "nothing: each is a number of its own",
            "their last bits, which say where in its page the byte is",
            "their first bits, which say in which part of memory the byte is",
        ),
    ),
)


def run() -> Evidence:
    """Take the probes, and look where they are."""
    evidence = Evidence(NAME)

    def visit(probes: list[Probe]) -> list[tuple[str, Translation]]:
        translations = look.look_at([probe.vaddr for probe in probes], with_vma=True)
        return [(p.label, t) for p, t in zip(probes, translations, strict=True)]

    labelled = visit_probes(visit)
    table = evidence.table(
        "report",
        "memview's report, and what memview2 adds to it",
        [
            Column("label", "label"),
            Column("vaddr", "virtual", VADDR),
            Column("paddr", "physical", PADDR),
            Column("mapping", "lies in"),
        ],
    )
    for label, found in labelled:
        table.add(label, found.vaddr, look.where(found), look.name_of(found))
    translations = [found for _, found in labelled]
    _explain_virtual(evidence, table, labelled)
    if look.are_hidden(translations):
        look.note_hidden(evidence)
        evidence.answer(None)
    else:
        _explain_physical(evidence, translations)
    return evidence


def _explain_virtual(
    evidence: Evidence, table: Table, labelled: list[tuple[str, Translation]]
) -> None:
    in_stack = [label for label, found in labelled if look.name_of(found) == "[stack]"]
    names = sorted(set(map(str, table.column("mapping"))))
    evidence.check(
        "stack",
        {"argv", "envp", "&lmsg", "&buf"} <= set(in_stack),
        f"The {len(labelled)} addresses lie in {len(names)} mappings: {', '.join(names)}. The"
        " arguments, the environment and the locals are all on the stack:"
        f" {', '.join(in_stack)}.",
        f"Only {', '.join(in_stack) or 'nothing'} lies in [stack]: the program was called on"
        " another thread's stack, which is a mapping without that name.",
    )


def _explain_physical(evidence: Evidence, found: list[Translation]) -> None:
    known = [(one.vaddr, one.paddr) for one in found if one.paddr is not None]
    same_offset = all((v ^ p) & look.OFFSET_MASK == 0 for v, p in known)
    same_more = all((v ^ p) >> PAGE_SHIFT & 1 == 0 for v, p in known)
    evidence.check(
        "offset",
        same_offset and not same_more,
        f"In all {len(known)} pairs the last {PAGE_SHIFT} bits are alike, and no more than that:"
        f" memory is handed out in pages of {PAGE_SIZE} bytes, and only the page's number is"
        " translated.",
        f"Of {len(known)} pairs the last {PAGE_SHIFT} bits are"
        f" {'alike, and one bit more' if same_offset else 'not alike'}: pages here are larger"
        f" than {PAGE_SIZE} bytes, or the probes lie in huge ones.",
    )
    evidence.answer(1 if same_offset else 0)
    pairs = [
        (p // PAGE_SIZE == q // PAGE_SIZE)
        for (v, p), (w, q) in combinations(known, 2)
        if v // PAGE_SIZE == w // PAGE_SIZE
    ]
    evidence.check(
        "same_page",
        all(pairs),
        f"{look.count(len(pairs), 'pair')} of addresses share a virtual page, and each of these"
        " pairs shares a frame.",
        f"{pairs.count(False)} pairs of addresses share a virtual page, but not a frame: the page"
        " was moved between two readings. Run it again.",
    )
    up = [q > p for (_, p), (_, q) in pairwise(sorted(set(known)))]
    evidence.check(
        "order",
        not all(up),
        f"In the order of their virtual addresses, the physical address goes up {up.count(True)}"
        f" times and down {up.count(False)} times: that one page comes before another says nothing"
        " of where their frames are.",
        "In the order of their virtual addresses the physical ones go up, too: this process got"
        " its frames from one fresh block, or this machine has hardly run yet.",
    )
    _explain_size(evidence, known)


def _explain_size(evidence: Evidence, known: list[tuple[int, int]]) -> None:
    from physview.sources.ram import ram_ranges, read_resources

    ram = ram_ranges(read_resources())
    end = max((end for _, end in ram), default=0) << PAGE_SHIFT
    outside = [p for _, p in known if not any(a <= p >> PAGE_SHIFT < b for a, b in ram)]
    highest = max(v for v, _ in known)
    evidence.check(
        "ram",
        not outside,
        f"Every physical address lies in RAM, which ends at {end:#x} here; virtual ones go up to"
        f" {highest:#x}, {highest // max(end, 1)} times as far. Address space is only a plan:"
        " RAM stands behind the pages that were touched.",
        f"{len(outside)} physical addresses are in no RAM that /proc/iomem lists, the first of"
        f" them {min(outside, default=0):#x}: a device's memory, or memory that was added later.",
    )


LAB = Lab(NAME, TITLE, (3, 4), PLAN, QUESTIONS, needs.needs(NAME, needs.core), run)
