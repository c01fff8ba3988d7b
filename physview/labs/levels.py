# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables of four levels, or of five."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

from physview.labs import look, needs
from physview.labs.base import NUMBER, PADDR, TEXT, VADDR, Column, Evidence, Lab, Question
from physview.labs.memory import libc
from physview.model import PAGE_SIZE, Probe, Walk
from physview.process import Process
from physview.runtime import invocation
from physview.sources.probes import visit_probes

NAME = "levels"
TITLE = "four levels of page tables, or five"
HIGH = 1 << 48
ENTRY_BYTES = 8
PLAN = (
    "Asks for memory above 47 bits, finds where the address space ends, and, where the kernel"
    " module is loaded, walks the page tables for main, a buffer, a local, and that memory, level"
    " by level. The same machine can have four levels or five: physview vm --la57 off, or on."
)
QUESTIONS = (
    Question(
        "How many levels have the page tables of this machine?",
        ("2", "3", "4", "5"),
    ),
)
LABELS = ("main", "buf[00]", "&buf")


def run() -> Evidence:
    """Look how far addresses go, and walk."""
    evidence = Evidence(NAME)
    with _high_page() as high:
        with Process("self") as process:
            end = process.user_end()
        _explain_end(evidence, high, end)

        def visit(probes: list[Probe]) -> list[tuple[str, int]]:
            return [(p.label, p.vaddr) for p in probes if p.label in LABELS]

        if needs.module(NAME) is None:

            def walk(probes: list[Probe]) -> None:
                labelled = visit(probes) + ([("above 47 bits", high)] if high >= 1 << 47 else [])
                _walk(evidence, labelled)

            visit_probes(walk)
        else:
            evidence.note(
                "the kernel module is not loaded, or not ours to use, so that no table could be"
                f" looked at: {invocation.in_vm(f'lab {NAME}', '--la57 on')}, and with off"
            )
    return evidence


@contextmanager
def _high_page() -> Iterator[int]:
    """A page for which an address above 47 bits is asked; its address."""
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
        "how far addresses go",
        [Column("what", "what"), Column("vaddr", "virtual", VADDR), Column("bits", "bits", NUMBER)],
    )
    table.add("memory asked for at", HIGH, HIGH.bit_length())
    table.add("and given at", high, high.bit_length())
    table.add("end of user addresses", end, end.bit_length())
    is_high = high >= 1 << 47
    if os.uname().machine != "x86_64":
        evidence.answer(None)
        return
    evidence.check(
        "space",
        (end >= 1 << 55) == is_high,
        f"User addresses end at {end:#x}, and memory asked for at {HIGH:#x} was given at {high:#x}:"
        + (
            " that takes five levels of page tables, 9 bits each, and 12 bits within the page."
            " Programs that do not ask for more get addresses below 47 bits, as ever."
            if is_high
            else " four levels of page tables of 9 bits each, and 12 bits within the page, make 48"
            " bits, of which the upper half is the kernel's."
        ),
        f"User addresses end at {end:#x}, but memory asked for at {HIGH:#x} was given at {high:#x}:"
        " there is a limit on it, such as ulimit -v, or another program's personality.",
    )
    evidence.answer(3 if is_high else 2)


def _walk(evidence: Evidence, labelled: list[tuple[str, int]]) -> None:
    from physview.sources.kmod import Kmod
    from physview.sources.procfs import ProcDir

    proc = ProcDir()
    try:
        kmod = Kmod(proc)
        try:
            if kmod.info is None:
                raise kmod.only_the_course("level by level")
            walks = [(label, kmod.walk(vaddr)) for label, vaddr in labelled]
            nr_levels = kmod.info.nr_levels
        finally:
            kmod.close()
    finally:
        proc.close()
    table = evidence.table(
        "walks",
        "the walks: which entry of which table, and what it holds; * is a table of its own",
        [
            Column("label", "label"),
            Column("level", "level"),
            Column("index", "index", NUMBER),
            Column("at", "entry at", PADDR),
            Column("entry", "entry", TEXT),
            Column("spans", "spans", TEXT),
        ],
    )
    seen: set[int] = set()
    for label, walk in walks:
        for level in walk.levels:
            if level.address is None or level.entry is None:
                why = "folded: no such level" if level.folded else "hidden"
                table.add(label, level.name, None, None, why, None)
                continue
            is_new = level.address // PAGE_SIZE not in seen
            seen.add(level.address // PAGE_SIZE)
            index = level.address % PAGE_SIZE // ENTRY_BYTES
            spans = look.align_words(level.span_bytes)
            cells = (label, level.name, index, level.address, f"{level.entry:#018x}", spans)
            table.add(*cells, changed=["at"] if is_new else [])
    _explain_walks(evidence, [walk for _, walk in walks], nr_levels)


def _explain_walks(evidence: Evidence, walks: list[Walk], nr_levels: int) -> None:
    real = [[level for level in walk.levels if not level.folded] for walk in walks]
    folded = sorted({level.name for walk in walks for level in walk.levels if level.folded})
    expected = 5 if evidence.answers[-1] == 3 else 4
    not_there = f"; {', '.join(folded)} is folded into the level above" if folded else ""
    evidence.check(
        "levels",
        nr_levels == expected,
        f"The module says that there are {nr_levels} levels, as the addresses had it{not_there}.",
        f"The module says that there are {nr_levels} levels, and the addresses speak for"
        f" {expected}{not_there}: {invocation.physview('doctor')} has both.",
    )
    if any(level.entry is None for levels in real for level in levels):
        evidence.note("the module hides where page tables lie: run as root")
        return
    right = [
        level.address is not None
        and level.address % PAGE_SIZE // ENTRY_BYTES == walk.vaddr // level.span_bytes % 512
        for walk, levels in zip(walks, real, strict=True)
        for level in levels
    ]
    evidence.check(
        "index",
        all(right),
        f"All {len(right)} entries were read where 9 bits of the virtual address say: the address"
        " is the path, and the tables are a tree.",
        f"{right.count(False)} of {len(right)} entries were not read where 9 bits of the virtual"
        " address say: these page tables have entries of another size.",
    )
    found = look.look_at([walk.vaddr for walk in walks])
    agree = [one.paddr == walk.paddr for one, walk in zip(found, walks, strict=True)]
    if look.are_hidden(found):
        return
    evidence.check(
        "agrees",
        all(agree),
        f"For all {len(agree)} addresses the walk ends in the frame that pagemap names.",
        f"For {agree.count(False)} of {len(agree)} addresses the walk does not end in the frame"
        " that pagemap names: they moved in between, or"
        f" {invocation.physview_as_root('compare self')} tells more.",
    )


LAB = Lab(NAME, TITLE, (), PLAN, QUESTIONS, needs.needs(NAME, needs.core), run)
