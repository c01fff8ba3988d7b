# SPDX-License-Identifier: GPL-2.0-or-later
"""Huge pages: 512 pages in one piece, with one entry in the page tables."""

from __future__ import annotations

import os
import resource
from typing import NamedTuple

from physview.errors import PhysviewError
from physview.labs import look, needs
from physview.labs.base import NUMBER, PADDR, TEXT, VADDR, Column, Evidence, Lab, Question
from physview.labs.memory import MADV_HUGEPAGE, MADV_NOHUGEPAGE, Memory
from physview.model import PAGE_SIZE, Translation
from physview.runtime import invocation

NAME = "huge"
TITLE = "huge pages: one entry for 512 pages"
SIZE_FILE = "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size"
PLAN = (
    "Maps two aligned pieces of memory, each of the size of a huge page, asks for small pages in"
    " the one and for a huge page in the other (madvise), writes to all of both, and looks at their"
    " frames, at how many page faults it took, and at what maps them."
)
QUESTIONS = (
    Question(
        "How many page faults does it take to write to 2 MiB in a huge page?",
        ("512, one for each 4 KiB", "1, or a few", "none"),
    ),
    Question(
        "A huge page is aligned to its size. In which address space?",
        ("in the virtual one", "in the physical one", "in both"),
    ),
)


class Piece(NamedTuple):
    """What a piece of memory turned out to be."""

    name: str
    found: list[Translation]
    nr_faults: int
    nr_large: int
    mapped_by: str

    @property
    def pfns(self) -> list[int]:
        """The frames, in the order of the pages."""
        return [one.pfn for one in self.found if one.pfn is not None]


def run() -> Evidence:
    """Write to both, and look."""
    evidence = Evidence(NAME)
    with open(SIZE_FILE, "rb") as file:
        size = int(file.read())
    small = _measure("small", size, MADV_NOHUGEPAGE)
    huge = _measure("huge", size, MADV_HUGEPAGE)
    table = evidence.table(
        "pieces",
        f"two pieces of memory of {size >> 20} MiB, {size // PAGE_SIZE} pages each",
        [
            Column("asked", "asked"),
            Column("vaddr", "virtual", VADDR),
            Column("paddr", "physical", PADDR),
            Column("align", "aligned", TEXT),
            Column("runs", "runs", NUMBER),
            Column("faults", "faults", NUMBER),
            Column("thp", "thp", NUMBER),
            Column("mapped_by", "mapped by"),
        ],
    )
    for piece in (small, huge):
        first = piece.found[0]
        align = look.align_words(first.paddr) if first.paddr else None
        nr_runs = look.nr_runs(piece.pfns)
        table.add(
            *(piece.name, first.vaddr, look.where(first), align, nr_runs, piece.nr_faults),
            *(piece.nr_large, piece.mapped_by),
        )
    _explain(evidence, small, huge, size)
    return evidence


def _measure(name: str, size: int, advice: int) -> Piece:
    with Memory(size // PAGE_SIZE, align=size) as memory:
        memory.advise(advice)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        memory.write_all()
        nr_faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        found = look.look_at(memory.pages)
        with look.Frames() as frames:
            nr_large = sum(frames.has(one.pfn, "thp") for one in found if one.pfn)
        return Piece(name, found, nr_faults, nr_large, _mapped_by(memory))


def _mapped_by(memory: Memory) -> str:
    """What maps the first page: the module's walk tells, or else the kernel's own account."""
    from physview.sources.kmod import DEVICE, Kmod
    from physview.sources.procfs import MemoryMap, ProcDir

    proc = ProcDir()
    try:
        if os.access(DEVICE, os.R_OK):
            try:
                kmod = Kmod(proc)
                try:
                    leaf = [level for level in kmod.walk(memory.start).levels if level.leaf]
                finally:
                    kmod.close()
                if leaf:
                    name = leaf[0].name
                    return "pte entries" if name == "pte" else f"a {name} entry"
            except PhysviewError:  # the course's module, which walks no levels
                pass
        maps = MemoryMap(proc)
        vma = maps.find(memory.start)
        sizes = maps.sizes(vma) if vma else {}
    finally:
        proc.close()
    return "a pmd entry" if sizes.get("AnonHugePages") else "pte entries"


def _explain(evidence: Evidence, small: Piece, huge: Piece, size: int) -> None:
    nr = size // PAGE_SIZE
    words = f"{size >> 20} MiB"
    got_it = huge.mapped_by != "pte entries"
    first = huge.found[0]
    evidence.check(
        "got_it",
        got_it and huge.nr_large == nr,
        f"The kernel gave a huge page: {huge.mapped_by} maps all {words}, and all {nr} frames are"
        " flagged as parts of a large folio (thp). The walk of the page tables ends one level"
        " earlier, and the TLB needs one entry for it.",
        f"The kernel gave no huge page: {huge.nr_large} of {nr} frames are in a large folio, and"
        f" {huge.mapped_by} map them. It had no free block of {words} in one piece, or did not want"
        " to wait for one: /sys/kernel/mm/transparent_hugepage/defrag, and"
        f" {invocation.physview_as_root('frames')}.",
    )
    evidence.check(
        "faults",
        huge.nr_faults < nr // 8 <= small.nr_faults,
        f"To write to it all took {look.count(small.nr_faults, 'page fault')} with small pages,"
        f" and {huge.nr_faults} with a huge one (those of the interpreter are counted, too).",
        f"To write to it all took {look.count(small.nr_faults, 'page fault')} with small pages,"
        f" and {huge.nr_faults} after asking for a huge one: this kernel maps several small pages"
        " at one fault, or gave no huge page.",
    )
    evidence.answer(1 if 0 < huge.nr_faults < nr // 8 else 0 if huge.nr_faults else 2)
    virtual = first.vaddr % size == 0
    physical = first.paddr is not None and first.paddr % size == 0
    nr_runs = look.nr_runs(huge.pfns)
    evidence.check(
        "alignment",
        virtual and physical and nr_runs == 1,
        f"Its virtual address {first.vaddr:#x} and its physical one {first.paddr or 0:#x} are both"
        f" multiples of {words}, and its {nr} frames follow each other: the last"
        f" {size.bit_length() - 1} bits of both addresses are alike. The small pages are in"
        f" {look.count(look.nr_runs(small.pfns), 'run')} of frames.",
        f"Its frames are in {look.count(nr_runs, 'run')}, and its physical address is"
        f" {'' if physical else 'not '}a multiple of {words}: it is no huge page.",
    )
    both = 2 if virtual and physical else 1 if physical else 0
    evidence.answer(both if got_it else None)


LAB = Lab(
    NAME,
    TITLE,
    (),
    PLAN,
    QUESTIONS,
    needs.needs(NAME, needs.frames, needs.core, needs.huge_pages),
    run,
)
