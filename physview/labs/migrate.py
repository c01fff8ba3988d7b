# SPDX-License-Identifier: GPL-2.0-or-later
"""Page migration: mlock() keeps pages in memory, not in their frames."""

from __future__ import annotations

import ctypes
import os
import platform
from typing import NamedTuple

from physview.errors import PhysviewError, Unsupported
from physview.labs import look, needs
from physview.labs.base import NUMBER, PADDR, VADDR, Column, Evidence, Lab, Question
from physview.labs.memory import MADV_COLLAPSE, MADV_HUGEPAGE, MADV_NOHUGEPAGE, Memory, libc
from physview.model import PAGE_SIZE, Translation
from physview.runtime import invocation
from physview.sources.numa import node_map
from physview.text import proctext

NAME = "migrate"
TITLE = "mlock() does not pin"
NR_SHOWN = 12
COMPACT = "/proc/sys/vm/compact_memory"
MPOL_MF_MOVE = 2  # include/uapi/linux/mempolicy.h
SYS_MOVE_PAGES = {"x86_64": 279, "aarch64": 239}
# Between them lie as many pages that are given back: compaction moves what lies scattered.
NR_SCATTERED = 4096
TRIES = 2
HUGE_SIZE = 2 << 20
PLAN = (
    "Locks pages in memory with mlock(), notes their frames, and has the kernel move them: to"
    " another NUMA node where there is one (move_pages); else by compaction of the machine's memory"
    " (/proc/sys/vm/compact_memory), which makes large blocks free; and where that finds nothing to"
    " do, by joining them into a huge page (MADV_COLLAPSE). Then it looks again."
)
QUESTIONS = (
    Question(
        "A page is locked with mlock(). May its physical address change while it is?",
        ("no: that is what mlock() is for", "yes: it only may not be swapped out"),
    ),
)


class Outcome(NamedTuple):
    """What became of locked pages."""

    how: str
    before: list[Translation]
    after: list[Translation]
    same: bool

    @property
    def nr_moved(self) -> int:
        """How many have another frame."""
        return sum(one.pfn != two.pfn for one, two in zip(self.before, self.after, strict=True))


def run() -> Evidence:
    """Lock, move, and look."""
    evidence = Evidence(NAME)
    nodes = node_map().nodes
    outcomes = []
    if len(nodes) > 1 and platform.machine() in SYS_MOVE_PAGES:
        outcomes.append(_move_scattered(nodes))
    else:
        outcomes.append(_move_scattered(()))
        if not outcomes[0].nr_moved and (joined := _collapse()):
            outcomes.append(joined)
    outcome = outcomes[-1]
    pairs = list(zip(outcome.before, outcome.after, strict=True))
    moved = [(one, two) for one, two in pairs if one.pfn != two.pfn]
    stayed = [(one, two) for one, two in pairs if one.pfn == two.pfn]
    _tabulate(evidence, [*moved[:NR_SHOWN], *stayed[:4]])
    _explain(evidence, outcomes, pairs)
    return evidence


def _move_scattered(nodes: tuple[int, ...]) -> Outcome:
    """Lock scattered pages, and move them to another of the nodes, or without any by compaction."""
    with Memory(NR_SCATTERED) as memory:
        memory.advise(MADV_NOHUGEPAGE)
        memory.write_all()
        _make_holes(memory)
        kept = memory.pages[::2]
        _lock(memory)
        before = look.look_at(kept)
        if nodes:
            how = "move_pages() to another NUMA node"
            _move_to_other_node(before, nodes)
        else:
            how = "compaction"
            _compact(kept, before)
        after = look.look_at(kept)
        same = all(memory.read(i) == i % 251 + 1 for i in range(0, NR_SCATTERED, 2))
    return Outcome(how, before, after, same)


def _collapse() -> Outcome | None:
    """Lock small pages and have them made a huge one; None where this kernel does not."""
    with Memory(HUGE_SIZE // PAGE_SIZE, align=HUGE_SIZE) as memory:
        memory.advise(MADV_NOHUGEPAGE)  # so that they are small at first
        memory.write_all()
        memory.advise(MADV_HUGEPAGE)
        if memory.lock():
            return None
        before = look.look_at(memory.pages)
        if memory.advise(MADV_COLLAPSE):
            return None
        after = look.look_at(memory.pages)
        how = "the kernel had joined them into a huge page (MADV_COLLAPSE)"
        return Outcome(how, before, after, memory.is_as_written())


def _make_holes(memory: Memory) -> None:
    """Give every second page back."""
    dontneed, size = 4, ctypes.c_size_t(PAGE_SIZE)
    for page in memory.pages[1::2]:
        libc.madvise(ctypes.c_void_p(page), size, dontneed)


def _lock(memory: Memory) -> None:
    """mlock() the pages that are left; one call for all would fill the holes again."""
    size = ctypes.c_size_t(PAGE_SIZE)
    for page in memory.pages[::2]:
        if libc.mlock(ctypes.c_void_p(page), size):
            code = ctypes.get_errno()
            why = f"mlock(): {os.strerror(code)}"
            raise Unsupported(f"cannot do the lab {NAME}", why, "ulimit -l unlimited, or as root")


def _move_to_other_node(found: list[Translation], nodes: tuple[int, ...]) -> None:
    """Source: move_pages(2)"""
    number = ctypes.c_long(SYS_MOVE_PAGES[platform.machine()])
    nr = len(found)
    pages = (ctypes.c_void_p * nr)(*(one.vaddr for one in found))
    status = (ctypes.c_int * nr)()
    libc.syscall(number, 0, ctypes.c_ulong(nr), pages, None, status, 0)
    others = [next(node for node in nodes if node != now) for now in status]
    wanted = (ctypes.c_int * nr)(*others)
    if libc.syscall(number, 0, ctypes.c_ulong(nr), pages, wanted, status, MPOL_MF_MOVE) < 0:
        code = ctypes.get_errno()
        raise PhysviewError("cannot move pages to another node", os.strerror(code))


def _compact(vaddrs: range, before: list[Translation]) -> None:
    """Have the kernel compact until something has moved, and not for ever."""
    for _ in range(TRIES):
        try:
            with open(COMPACT, "w", encoding="ascii") as file:
                file.write("1\n")
        except OSError as error:
            what, why = "cannot compact memory", f"{COMPACT}: {error.strerror}, as in a container"
            raise Unsupported(what, why, needs.in_vm(NAME).removeprefix("or ")) from None
        after = look.look_at(vaddrs)
        if any(one.pfn != two.pfn for one, two in zip(before, after, strict=True)):
            return


def _tabulate(evidence: Evidence, pairs: list[tuple[Translation, Translation]]) -> None:
    table = evidence.table(
        "pages",
        "some of the locked pages, before and after; * is another frame",
        [
            Column("vaddr", "virtual", VADDR),
            Column("before", "before", PADDR),
            Column("after", "after", PADDR),
            Column("frames", "frames on", NUMBER),
        ],
    )
    for one, two in sorted(pairs, key=lambda pair: pair[0].vaddr):
        changed = ["after"] if one.pfn != two.pfn else []
        step = two.pfn - one.pfn if two.pfn is not None and one.pfn is not None else None
        table.add(one.vaddr, look.where(one), look.where(two), step, changed=changed)


def _explain(
    evidence: Evidence, outcomes: list[Outcome], pairs: list[tuple[Translation, Translation]]
) -> None:
    last = outcomes[-1]
    nothing = f" Before, {outcomes[0].how} moved none." if len(outcomes) > 1 else ""
    evidence.check(
        "moved",
        last.nr_moved > 0,
        f"Of {len(pairs)} pages that were locked with mlock(), {last.nr_moved} are in other frames"
        f" after {last.how}: to be locked is to stay in memory, not to stay in a frame. Only a page"
        f" that is pinned, as for a device that writes to it, may not be moved.{nothing}",
        f"None of {len(pairs)} locked pages is in another frame after {last.how}: the machine may"
        f" have so much free memory in one piece that there was nothing to do{_forbidden()}. A VM"
        " with two NUMA nodes always has somewhere to move them:"
        f" {invocation.in_vm(f'lab {NAME}', '--append numa=fake=2')}.",
    )
    evidence.check(
        "present",
        all(two.pfn is not None for _, two in pairs),
        "All are still in memory, as mlock() promises.",
        f"{sum(two.pfn is None for _, two in pairs)} of them have no frame at the moment: they are"
        " being migrated just now, or mlock() did not hold.",
    )
    evidence.check(
        "same",
        last.same,
        "Every page holds what was written to it, at the address it always had: who keeps a"
        " physical address keeps what may be wrong a moment later.",
        "Not every page holds what was written to it: the memory is broken.",
    )
    evidence.answer(1 if last.nr_moved else None)


def _forbidden() -> str:
    path = "/proc/sys/vm/compact_unevictable_allowed"
    try:
        with open(path, "rb") as file:
            value = proctext.value(file.read()).decode()
            return f"; {path} is {value}, where 0 forbids it for locked pages"
    except FileNotFoundError:
        return ""


LAB = Lab(NAME, TITLE, (), PLAN, QUESTIONS, needs.needs(NAME, needs.frames, needs.migration), run)
