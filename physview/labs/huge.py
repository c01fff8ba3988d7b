# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab huge: huge pages. One page-table entry maps hundreds of contiguous pages."""

from __future__ import annotations

import resource
from typing import NamedTuple

from physview.errors import PhysviewError
from physview.labs import observe, requirements
from physview.labs.memory import MADV_HUGEPAGE, MADV_NOHUGEPAGE, MappedPages
from physview.labs.model import NUMBER, PADDR, TEXT, VADDR, Evidence, EvidenceColumn, Lab, Question
from physview.model import PAGE_SIZE, Translation
from physview.runtime import invocation
from physview.sources.folio_sizes import huge_page_size
from physview.units import size_words

NAME = "huge"
TITLE = "huge pages: one entry for many pages"
PLAN = (
    "Maps two aligned blocks of memory, each as large as a huge page. It asks for small pages in"
    " the first block and for a huge page in the second (madvise). It writes to every page of both"
    " blocks, and compares their frames, their page faults, and the page-table entries that map"
    " them."
)
QUESTIONS = (
    Question(
        "A process writes to all of a huge page: 2 MiB, or 512 pages of 4 KiB, on x86-64. How many"
        " page faults occur?",
        ("one for each of the pages", "1, or a few", "none"),
        1,
        "One page fault brings in the whole huge page. It has 2 MiB on x86-64. On arm64 it has 2,"
        " 32 or 512 MiB, where a page has 4, 16 or 64 KiB: as much as one table's entries map.",
    ),
    Question(
        "A huge page is aligned to its size. In which address space?",
        ("in the virtual address space", "in physical memory", "in both"),
        2,
        "One entry of a page table maps the huge page. The entry stands for an aligned block of the"
        " address space, as large as the huge page, and it can only hold the number of an aligned"
        " frame.",
    ),
)


class MeasuredBlock(NamedTuple):
    """The measurements of one block of memory.

    Args:
        name: "small" or "huge": the requested page size.
        found: The translation of each page.
        nr_faults: The number of page faults while all pages were written.
        nr_large: The number of frames that are parts of a large folio.
        mapped_by: The kind of page-table entry that maps the block.
    """

    name: str
    found: list[Translation]
    nr_faults: int
    nr_large: int
    mapped_by: str

    @property
    def pfns(self) -> list[int]:
        """The frame numbers, in the order of the pages."""
        return [one.pfn for one in self.found if one.pfn is not None]


def run() -> Evidence:
    """Write to both blocks, and compare their frames, faults and entries."""
    evidence = Evidence(NAME)
    size = huge_page_size()
    small = _measure("small", size, MADV_NOHUGEPAGE)
    huge = _measure("huge", size, MADV_HUGEPAGE)
    table = evidence.table(
        "pieces",
        f"two blocks of {size_words(size)}, {size // PAGE_SIZE} pages each",
        [
            EvidenceColumn("asked", "requested"),
            EvidenceColumn("vaddr", "virtual", VADDR),
            EvidenceColumn("paddr", "physical", PADDR),
            EvidenceColumn("align", "alignment", TEXT),
            EvidenceColumn("runs", "runs", NUMBER),
            EvidenceColumn("faults", "faults", NUMBER),
            EvidenceColumn("thp", "thp", NUMBER),
            EvidenceColumn("mapped_by", "mapped by"),
        ],
    )
    for block in (small, huge):
        first = block.found[0]
        align = observe.align_words(first.paddr) if first.paddr else None
        nr_runs = observe.count_runs(block.pfns)
        table.add(
            *(block.name, first.vaddr, observe.paddr_cell(first), align, nr_runs, block.nr_faults),
            *(block.nr_large, block.mapped_by),
        )
    _explain(evidence, small, huge, size)
    return evidence


def _measure(name: str, size: int, advice: int) -> MeasuredBlock:
    with MappedPages(size // PAGE_SIZE, align=size) as memory:
        memory.advise(advice)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        memory.write_all()
        nr_faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        found = observe.translate(memory.pages)
        with observe.FrameFlags() as frames:
            nr_large = sum(frames.has(one.pfn, "thp") for one in found if one.pfn)
        return MeasuredBlock(name, found, nr_faults, nr_large, _mapped_by(memory))


def _mapped_by(memory: MappedPages) -> str:
    """Return the kind of entry that maps the first page.

    The answer comes from a walk of the page tables, or where none can be had from /proc/PID/smaps.
    """
    from physview.sources.choice import open_page_tables
    from physview.sources.mappings import MappingReader
    from physview.sources.procfs import ProcDir

    with ProcDir() as proc:
        try:
            with open_page_tables(proc) as tables:
                leaf = [level for level in tables.walk(memory.start).levels if level.leaf]
            if leaf:
                name = leaf[0].name
                return "pte entries" if name == "pte" else f"a {name} entry"
        except PhysviewError:  # neither the module nor BPF: smaps knows enough
            pass
        with MappingReader(proc, "smaps") as reader:
            for chunk in reader.iter_chunks():
                rows = zip(chunk.starts, chunk.ends, chunk.sizes("AnonHugePages"), strict=True)
                if any(start <= memory.start < end and size for start, end, size in rows):
                    return "a pmd entry"
    return "pte entries"


def _explain(evidence: Evidence, small: MeasuredBlock, huge: MeasuredBlock, size: int) -> None:
    nr = size // PAGE_SIZE
    words = size_words(size)
    got_it = huge.mapped_by != "pte entries"
    first = huge.found[0]
    evidence.check(
        "got_it",
        got_it and huge.nr_large == nr,
        f"The kernel gave a huge page: {huge.mapped_by} maps all {words}, and all {nr} frames have"
        " the flag thp, so they are parts of a large folio. The walk of the page tables ends one"
        " level earlier, and the TLB needs only one entry for the block.",
        f"The kernel gave no huge page: {huge.nr_large} of {nr} frames are in a large folio, and"
        f" {huge.mapped_by} map them. The kernel had no free contiguous block of {words}, or it did"
        " not wait for one (/sys/kernel/mm/transparent_hugepage/defrag). This command shows the"
        f" free blocks: {invocation.physview_as_root('frames')}.",
    )
    evidence.check(
        "faults",
        huge.nr_faults < nr // 8 <= small.nr_faults,
        f"Writing to all of the block caused"
        f" {observe.count_words(small.nr_faults, 'page fault')} with small pages and"
        f" {huge.nr_faults} with a huge page. Both numbers include page faults of the Python"
        " interpreter.",
        f"Writing to all of the block caused"
        f" {observe.count_words(small.nr_faults, 'page fault')} with small pages and"
        f" {huge.nr_faults} with a huge page requested. This kernel maps several small pages per"
        " page fault, or it gave no huge page.",
    )
    evidence.answer(1 if 0 < huge.nr_faults < nr // 8 else 0 if huge.nr_faults else 2)
    virtual = first.vaddr % size == 0
    physical = first.paddr is not None and first.paddr % size == 0
    nr_runs = observe.count_runs(huge.pfns)
    evidence.check(
        "alignment",
        virtual and physical and nr_runs == 1,
        f"The huge page's virtual address {first.vaddr:#x} and its physical address"
        f" {first.paddr or 0:#x} are both multiples of {words}, and its {nr} frames are contiguous."
        f" The offset within the huge page is therefore {size.bit_length() - 1} bits long, and is"
        " the same in both addresses. The small pages are in"
        f" {observe.count_words(observe.count_runs(small.pfns), 'run')} of frames.",
        f"The block's frames are in {observe.count_words(nr_runs, 'run')}, and its physical address"
        f" is {'' if physical else 'not '}a multiple of {words}. It is not a huge page.",
    )
    both = 2 if virtual and physical else 1 if physical else 0
    evidence.answer(both if got_it else None)


LAB = Lab(
    NAME,
    TITLE,
    (),
    PLAN,
    QUESTIONS,
    requirements.checker(
        NAME, requirements.frame_numbers, requirements.compiled_core, requirements.huge_pages
    ),
    run,
)
