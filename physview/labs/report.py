# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab report: memview's report with virtual and physical addresses side by side."""

from __future__ import annotations

from itertools import combinations, pairwise

from physview.labs import observe, requirements
from physview.labs.model import PADDR, VADDR, Evidence, EvidenceColumn, EvidenceTable, Lab, Question
from physview.model import PAGE_SHIFT, PAGE_SIZE, Probe, Translation
from physview.sources.probes import visit_probes

NAME = "report"
TITLE = "virtual addresses and their physical addresses"
PLAN = (
    "Takes the virtual addresses that the course's program memview prints, and asks the kernel for"
    " the physical address of each, as the course's program memview2 does. (physview's command"
    " memview prints the same report as memview2, and with --virtual the same report as memview.)"
    " All addresses are from one process."
)
QUESTIONS = (
    Question(
        "What do a virtual address and its physical address have in common?",
        (
            "nothing: the two numbers are independent",
            "their last bits, which are the offset within the page",
            "their first bits, which select a part of memory",
        ),
        1,
        "Only the number of the page is translated. The offset within the page stays: the last 12"
        " bits where a page has 4 KiB, as always on x86-64. An arm64 kernel can have pages of 16"
        " or 64 KiB. Then the last 14 or 16 bits stay.",
    ),
)


def run() -> Evidence:
    """Translate the addresses of memview's probes."""
    evidence = Evidence(NAME)

    def visit(probes: list[Probe]) -> list[tuple[str, Translation]]:
        translations = observe.translate([probe.vaddr for probe in probes], with_vma=True)
        return [(p.label, t) for p, t in zip(probes, translations, strict=True)]

    labelled = visit_probes(visit)
    table = evidence.table(
        "report",
        "memview's virtual addresses, and memview2's physical addresses",
        [
            EvidenceColumn("label", "label"),
            EvidenceColumn("vaddr", "virtual", VADDR),
            EvidenceColumn("paddr", "physical", PADDR),
            EvidenceColumn("mapping", "mapping"),
        ],
    )
    for label, found in labelled:
        table.add(label, found.vaddr, observe.paddr_cell(found), observe.mapping_name(found))
    translations = [found for _, found in labelled]
    _explain_virtual(evidence, table, labelled)
    if observe.are_hidden(translations):
        observe.note_hidden(evidence)
        evidence.answer(None)
    else:
        _explain_physical(evidence, translations)
    return evidence


def _explain_virtual(
    evidence: Evidence, table: EvidenceTable, labelled: list[tuple[str, Translation]]
) -> None:
    in_stack = [label for label, found in labelled if observe.mapping_name(found) == "[stack]"]
    names = sorted(set(map(str, table.column("mapping"))))
    evidence.check(
        "stack",
        {"argv", "envp", "&lmsg", "&buf"} <= set(in_stack),
        f"The {len(labelled)} addresses are in {len(names)} mappings: {', '.join(names)}. The"
        " arguments, the environment and the local variables are all on the stack:"
        f" {', '.join(in_stack)}.",
        f"Only {', '.join(in_stack) or 'no label'} is in [stack]. The code ran in a thread other"
        " than the first one, and the stack of such a thread is an unnamed mapping.",
    )


def _explain_physical(evidence: Evidence, found: list[Translation]) -> None:
    known = [(one.vaddr, one.paddr) for one in found if one.paddr is not None]
    same_offset = all((v ^ p) & observe.OFFSET_MASK == 0 for v, p in known)
    same_more = all((v ^ p) >> PAGE_SHIFT & 1 == 0 for v, p in known)
    evidence.check(
        "offset",
        same_offset and not same_more,
        f"In all {len(known)} pairs, the last {PAGE_SHIFT} bits of the virtual and of the physical"
        f" address are equal, and the next bit differs in some pairs. A page has {PAGE_SIZE} bytes."
        " The kernel translates only the page's number; the offset within the page stays.",
        f"In the {len(known)} pairs, the last {PAGE_SHIFT} bits of both addresses are"
        f" {'equal, and the next bit is equal, too' if same_offset else 'not all equal'}. Pages"
        f" here are larger than {PAGE_SIZE} bytes, or the addresses are in huge pages.",
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
        f"{observe.count_words(len(pairs), 'pair')} of addresses share a virtual page, and each of"
        " these pairs also shares a frame.",
        f"{pairs.count(False)} pairs of addresses share a virtual page, but not a frame. The kernel"
        " migrated the page between two readings. Run the lab again.",
    )
    up = [q > p for (_, p), (_, q) in pairwise(sorted(set(known)))]
    evidence.check(
        "order",
        not all(up),
        f"In the order of the virtual addresses, the physical address rises {up.count(True)} times"
        f" and falls {up.count(False)} times. The order of pages says nothing about the order of"
        " their frames.",
        "In the order of the virtual addresses, the physical addresses rise, too. This process got"
        " its frames from one large free block, or this machine booted only recently.",
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
        f"Every physical address is in RAM, and RAM ends at {end:#x} on this machine. The highest"
        f" virtual address is {highest:#x}, {highest // max(end, 1)} times as high. An address"
        " space may be larger than RAM, because only resident pages need frames.",
        f"{observe.count_words(len(outside), 'label has', 'labels have')} a physical address"
        " outside of the RAM that /proc/iomem lists. The lowest of these addresses is"
        f" {min(outside, default=0):#x}. It is memory of a device, or memory that was added later.",
    )


LAB = Lab(
    NAME,
    TITLE,
    (3, 4),
    PLAN,
    QUESTIONS,
    requirements.checker(NAME, requirements.compiled_core),
    run,
)
