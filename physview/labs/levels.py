# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab levels: whether the page tables have four or five levels, and a walk of each level."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

from physview.labs import observe, requirements
from physview.labs.memory import MappedPages, libc
from physview.labs.model import NUMBER, PADDR, TEXT, VADDR, Evidence, EvidenceColumn, Lab, Question
from physview.model import PAGE_SIZE, Level, Probe, Walk
from physview.process import Process
from physview.runtime import invocation
from physview.sources.probes import visit_probes
from physview.sources.table_geometry import ENTRY_BYTES, Geometry, make_geometry, nr_levels_of

NAME = "levels"
TITLE = "four levels of page tables, or five"
# The smallest hint for which every kernel with so many bits gives a high address. arm64 wants more
# than its default limit of 48 bits: arch_get_mmap_end() in arch/arm64/include/asm/processor.h.
HIGH = 1 << 48 if os.uname().machine == "x86_64" else 1 << 49
CHOICES = (2, 3, 4, 5)
PLAN = (
    "Requests memory at an address above 47 bits, and finds the end of the user address space. Then"
    " the lab walks the page tables, level by level, for main, a local variable (&buf), a buffer"
    " (buf[00]) and the requested memory, if that is above 47 bits. The kernel module walks if it"
    " is loaded, or else a BPF program. One machine can run with four levels or with five: the"
    " option --la57 of the command vm chooses."
)
QUESTIONS = (
    Question(
        "How many levels do the page tables of this machine have?",
        tuple(map(str, CHOICES)),
        2,
        "Five where the processor and the kernel have LA57; a VM with --la57 on has it, also in"
        " emulation on any machine. arm64 has 2 to 5 levels, by its page size and its size of"
        " addresses.",
    ),
)
LABELS = ("main", "buf[00]", "&buf")


def run() -> Evidence:
    """Find the end of the address space, and walk the page tables."""
    evidence = Evidence(NAME)
    with _high_page() as high:
        with Process("self") as process:
            end = process.user_end()
        _explain_end(evidence, high, end)

        def visit(probes: list[Probe]) -> list[tuple[str, int]]:
            return [(p.label, p.vaddr) for p in probes if p.label in LABELS]

        refused = requirements.page_tables(NAME, "--la57 on")
        if refused is None:

            def walk(probes: list[Probe]) -> None:
                labelled = visit(probes) + ([("above 47 bits", high)] if high >= HIGH else [])
                _walk(evidence, labelled)

            visit_probes(walk)
        else:
            evidence.note(f"{refused.why}; {refused.remedy}, and with off")
    return evidence


@contextmanager
def _high_page() -> Iterator[int]:
    """Map a page, with a hint above 47 bits, and yield its address; 0 if mmap() fails."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    where = libc.mmap(HIGH, PAGE_SIZE, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
    address = 0 if where == ctypes.c_void_p(-1).value else int(where)
    try:
        if address:
            ctypes.memset(address, 1, 1)
        yield address
    finally:
        if address:
            libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(PAGE_SIZE))


def _explain_end(evidence: Evidence, high: int, end: int) -> None:
    table = evidence.table(
        "space",
        "the size of the user address space",
        [
            EvidenceColumn("what", "what"),
            EvidenceColumn("vaddr", "virtual", VADDR),
            EvidenceColumn("bits", "bits", NUMBER),
        ],
    )
    table.add("requested address", HIGH, HIGH.bit_length())
    table.add("address given", high, high.bit_length())
    table.add("end of user addresses", end, (end - 1).bit_length())
    geometry = make_geometry(nr_levels_of(end), end)
    evidence.check(
        "space",
        (end > HIGH) == (high >= HIGH),
        f"User addresses end at {end:#x}. The lab requested memory at {HIGH:#x}, and the kernel"
        f" gave {high:#x}. {space_words(geometry)}"
        + (
            " Programs that do not request a high address still get addresses below"
            f" {_usual_bits()} bits."
            if high >= HIGH
            else ""
        ),
        f"User addresses end at {end:#x}, but the lab requested memory at {HIGH:#x} and the kernel"
        f" gave {high:#x}. A limit such as ulimit -v, or the process's personality, prevents it.",
    )
    evidence.answer(CHOICES.index(len(geometry.levels)))


def _usual_bits() -> int:
    """How many bits an address has that the kernel chooses without a hint: the highest ones."""
    with MappedPages(1) as memory:
        return memory.start.bit_length()


def space_words(geometry: Geometry) -> str:
    """How the bits of an address are divided, in sentences.

    >>> print(space_words(make_geometry(4, (1 << 47) - 4096, page_shift=12, machine="x86_64")))
    ... # doctest: +NORMALIZE_WHITESPACE
    Four levels of page tables of 9 bits each, and 12 bits for the offset within the page, make
    48 bits. Half of these addresses are the kernel's, so user addresses have 47 bits.
    >>> print(space_words(make_geometry(4, 1 << 48, page_shift=14, machine="aarch64")))
    ... # doctest: +NORMALIZE_WHITESPACE
    Four levels of page tables of 1, 11, 11 and 11 bits, and 14 bits for the offset within the
    page, make 48 bits. The kernel has a root table of its own, so user addresses have all 48 bits.
    """
    bits = [level.index_bits for level in geometry.levels]
    each = f"{bits[0]} bits each"
    if len(set(bits)) > 1:
        each = f"{', '.join(map(str, bits[:-1]))} and {bits[-1]} bits"
    number = {2: "Two", 3: "Three", 4: "Four", 5: "Five"}[len(bits)]
    user_bits = (geometry.user_end - 1).bit_length()
    halves = (
        f"Half of these addresses are the kernel's, so user addresses have {user_bits} bits."
        if user_bits < geometry.address_bits
        else f"The kernel has a root table of its own, so user addresses have all {user_bits} bits."
    )
    return (
        f"{number} levels of page tables of {each}, and {geometry.page_shift} bits for the offset"
        f" within the page, make {geometry.address_bits} bits. {halves}"
    )


def _walk(evidence: Evidence, labelled: list[tuple[str, int]]) -> None:
    from physview.sources.choice import open_page_tables
    from physview.sources.procfs import ProcDir

    with ProcDir() as proc, open_page_tables(proc) as tables:
        walks = [(label, tables.walk(vaddr)) for label, vaddr in labelled]
        geometry = tables.geometry()
    table = evidence.table(
        "walks",
        "the walks: each level's entry and where it is; * means: the first use of this table",
        [
            EvidenceColumn("label", "label"),
            EvidenceColumn("level", "level"),
            EvidenceColumn("index", "index", NUMBER),
            EvidenceColumn("at", "entry's address", PADDR),
            EvidenceColumn("entry", "entry", TEXT),
            EvidenceColumn("spans", "spans", TEXT),
        ],
    )
    seen: set[int] = set()
    for label, walk in walks:
        indices = iter_indices(geometry, walk)
        for level, index in indices:
            if level.address is None or level.entry is None:
                why = "folded level" if level.folded else "hidden"
                table.add(label, level.name, None, None, why, None)
                continue
            start = level.address - (index or 0) * ENTRY_BYTES
            is_new = start not in seen
            seen.add(start)
            spans = observe.align_words(level.span_bytes)
            cells = (label, level.name, index, level.address, f"{level.entry:#018x}", spans)
            table.add(*cells, changed=["at"] if is_new else [])
    _explain_walks(evidence, [walk for _, walk in walks], geometry)


def iter_indices(geometry: Geometry, walk: Walk) -> Iterator[tuple[Level, int | None]]:
    """Yield the levels of a walk, each with the index of its entry in its table.

    The index is None for a folded level, and where the entry's address is hidden.
    """
    levels = iter(geometry.levels)
    for level in walk.levels:
        place = None if level.folded else next(levels)
        if place is None or level.address is None:
            yield level, None
        else:
            yield level, place.entry_index(level.address)


def _explain_walks(evidence: Evidence, walks: list[Walk], geometry: Geometry) -> None:
    real = [[level for level in walk.levels if not level.folded] for walk in walks]
    folded = sorted({level.name for walk in walks for level in walk.levels if level.folded})
    nr_levels = len(geometry.levels)
    expected = CHOICES[evidence.answers[-1] or 0]
    verb = "is" if len(folded) == 1 else "are"
    folded_words = f" {' and '.join(folded)} {verb} folded into the level above." if folded else ""
    evidence.check(
        "levels",
        nr_levels == expected,
        f"The walk goes through {nr_levels} levels, which agrees with the addresses.{folded_words}",
        f"The walk goes through {nr_levels} levels, but the addresses indicate {expected}."
        f"{folded_words} This command shows both: {invocation.physview('doctor')}.",
    )
    if any(level.entry is None for levels in real for level in levels):
        evidence.note("the module hides the addresses of page tables: run as root")
        return
    right = [
        index == place.index_of(walk.vaddr)
        for walk in walks
        for place, index in zip(
            geometry.levels,
            (index for level, index in iter_indices(geometry, walk) if not level.folded),
            strict=False,
        )
    ]
    bits = geometry.levels[-1].index_bits
    root_bits = geometry.levels[0].index_bits
    root_words = "" if root_bits == bits else f" ({root_bits} bits for the root)"
    evidence.check(
        "index",
        all(right),
        f"At each level, {bits} bits{root_words} of the virtual address are the index of the entry:"
        f" this is so for all {len(right)} entries. The page tables are a tree, and the virtual"
        " address is the path through it.",
        f"For {right.count(False)} of {len(right)} entries, the index differs from the {bits} bits"
        f"{root_words} of the virtual address. These page tables have entries of another size.",
    )
    found = observe.translate([walk.vaddr for walk in walks])
    agree = [one.paddr == walk.paddr for one, walk in zip(found, walks, strict=True)]
    if observe.are_hidden(found):
        return
    evidence.check(
        "agrees",
        all(agree),
        f"For all {len(agree)} addresses the walk ends in the same frame that pagemap reports.",
        f"For {agree.count(False)} of {len(agree)} addresses the walk ends in another frame than"
        " pagemap reports. The kernel migrated pages meanwhile, or this command finds the cause:"
        f" {invocation.physview_as_root('compare self')}.",
    )


LAB = Lab(
    NAME, TITLE, (), PLAN, QUESTIONS, requirements.checker(NAME, requirements.compiled_core), run
)
