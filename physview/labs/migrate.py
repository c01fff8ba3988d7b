# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab migrate: page migration. mlock() keeps a page resident, but not in the same frame."""

from __future__ import annotations

import ctypes
import os
import platform
from typing import NamedTuple

from physview.errors import PhysviewError, Unsupported
from physview.labs import observe, requirements
from physview.labs.memory import MADV_COLLAPSE, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MappedPages, libc
from physview.labs.model import NUMBER, PADDR, VADDR, Evidence, EvidenceColumn, Lab, Question
from physview.model import PAGE_SIZE, Translation
from physview.runtime import invocation
from physview.runtime.syscalls import NUMBERS
from physview.sources.folio_sizes import huge_page_size
from physview.sources.numa import node_map
from physview.text import proctext

NAME = "migrate"
TITLE = "mlock() does not pin"
NR_SHOWN = 12
COMPACT = "/proc/sys/vm/compact_memory"
MPOL_MF_MOVE = 2  # include/uapi/linux/mempolicy.h
# The lab frees every second page of these 16 MiB. Compaction then migrates the scattered rest.
NR_SCATTERED = (16 << 20) // PAGE_SIZE
TRIES = 2
# Where a page has 64 KiB, a huge page has 512 MiB. The lab does not collapse so much.
MAX_COLLAPSED = 64 << 20
PLAN = (
    "Locks pages in memory with mlock() and records their frames. Then the lab makes the kernel"
    " migrate the pages. On a machine with several NUMA nodes, it moves them to another node"
    " (move_pages). On other machines, it compacts the machine's memory, which makes large blocks"
    " free (/proc/sys/vm/compact_memory). If compaction migrates none of the pages, the lab"
    " collapses pages into a huge page (MADV_COLLAPSE). Last, it looks up the frames again."
)
QUESTIONS = (
    Question(
        "A page is locked with mlock(). Can its physical address change while it is locked?",
        ("no: mlock() prevents it", "yes: mlock() only prevents that the page is swapped out"),
        1,
        "mlock() keeps a page resident, but not in one frame. Compaction and NUMA balancing still"
        " move it. If the kernel found nothing to move, the lab has no answer; in a VM with two"
        " NUMA nodes (--append numa=fake=2) it always has one.",
    ),
)


class MigrationAttempt(NamedTuple):
    """The result of one attempt to migrate locked pages.

    Args:
        how: The method, in words.
        before: The translation of each page before.
        after: The translation of each page after.
        same: Whether every page still holds the written data.
    """

    how: str
    before: list[Translation]
    after: list[Translation]
    same: bool

    @property
    def nr_moved(self) -> int:
        """The number of pages whose frame changed."""
        return sum(one.pfn != two.pfn for one, two in zip(self.before, self.after, strict=True))


def run() -> Evidence:
    """Lock pages, make the kernel migrate them, and compare their frames."""
    evidence = Evidence(NAME)
    nodes = node_map().nodes
    attempts = []
    if len(nodes) > 1 and platform.machine() in NUMBERS:
        attempts.append(_move_scattered(nodes))
    else:
        attempts.append(_move_scattered(()))
        if not attempts[0].nr_moved and (collapsed := _collapse()):
            attempts.append(collapsed)
    last = attempts[-1]
    pairs = list(zip(last.before, last.after, strict=True))
    moved = [(one, two) for one, two in pairs if one.pfn != two.pfn]
    stayed = [(one, two) for one, two in pairs if one.pfn == two.pfn]
    _tabulate(evidence, [*moved[:NR_SHOWN], *stayed[:4]])
    _explain(evidence, attempts, pairs)
    return evidence


def _move_scattered(nodes: tuple[int, ...]) -> MigrationAttempt:
    """Lock scattered pages and migrate them: to another node, or without nodes by compaction."""
    with MappedPages(NR_SCATTERED) as memory:
        memory.advise(MADV_NOHUGEPAGE)
        memory.write_all()
        _make_holes(memory)
        kept = memory.pages[::2]
        _lock(memory)
        before = observe.translate(kept)
        if nodes:
            how = "move_pages() to another NUMA node"
            _move_to_other_node(before, nodes)
        else:
            how = "compaction"
            _compact(kept, before)
        after = observe.translate(kept)
        same = all(memory.read(i) == i % 251 + 1 for i in range(0, NR_SCATTERED, 2))
    return MigrationAttempt(how, before, after, same)


def _collapse() -> MigrationAttempt | None:
    """Lock small pages and collapse them into a huge page; None if this kernel does not do so."""
    size = huge_page_size()
    if size > MAX_COLLAPSED:
        return None
    with MappedPages(size // PAGE_SIZE, align=size) as memory:
        memory.advise(MADV_NOHUGEPAGE)  # start with small pages
        memory.write_all()
        memory.advise(MADV_HUGEPAGE)
        if memory.lock():
            return None
        before = observe.translate(memory.pages)
        if memory.advise(MADV_COLLAPSE):
            return None
        after = observe.translate(memory.pages)
        how = "the kernel collapsed them into a huge page (MADV_COLLAPSE)"
        return MigrationAttempt(how, before, after, memory.is_as_written())


def _make_holes(memory: MappedPages) -> None:
    """Free every second page."""
    dontneed, size = 4, ctypes.c_size_t(PAGE_SIZE)
    for page in memory.pages[1::2]:
        libc.madvise(ctypes.c_void_p(page), size, dontneed)


def _lock(memory: MappedPages) -> None:
    """Lock each remaining page on its own. One mlock() for the whole range would fill the holes."""
    size = ctypes.c_size_t(PAGE_SIZE)
    for page in memory.pages[::2]:
        if libc.mlock(ctypes.c_void_p(page), size):
            code = ctypes.get_errno()
            why = f"mlock(): {os.strerror(code)}"
            remedy = "raise the limit with ulimit -l unlimited, or run as root"
            raise Unsupported(f"cannot do the lab {NAME}", why, remedy)


def _move_to_other_node(found: list[Translation], nodes: tuple[int, ...]) -> None:
    """Migrate each page to a NUMA node other than its own.

    Source: move_pages(2)
    """
    number = ctypes.c_long(NUMBERS[platform.machine()]["move_pages"])
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
    """Start compaction until a page has migrated, at most TRIES times."""
    for _ in range(TRIES):
        try:
            with open(COMPACT, "w", encoding="ascii") as file:
                file.write("1\n")
        except OSError as error:
            what, why = "cannot compact memory", f"{COMPACT}: {error.strerror}, as in a container"
            raise Unsupported(what, why, requirements.in_vm(NAME).removeprefix("or ")) from None
        after = observe.translate(vaddrs)
        if any(one.pfn != two.pfn for one, two in zip(before, after, strict=True)):
            return


def _tabulate(evidence: Evidence, pairs: list[tuple[Translation, Translation]]) -> None:
    table = evidence.table(
        "pages",
        "some of the locked pages, before and after; * means: another frame",
        [
            EvidenceColumn("vaddr", "virtual", VADDR),
            EvidenceColumn("before", "before", PADDR),
            EvidenceColumn("after", "after", PADDR),
            EvidenceColumn("frames", "step in frames", NUMBER),
        ],
    )
    for one, two in sorted(pairs, key=lambda pair: pair[0].vaddr):
        changed = ["after"] if one.pfn != two.pfn else []
        step = two.pfn - one.pfn if two.pfn is not None and one.pfn is not None else None
        table.add(
            one.vaddr, observe.paddr_cell(one), observe.paddr_cell(two), step, changed=changed
        )


def _explain(
    evidence: Evidence,
    attempts: list[MigrationAttempt],
    pairs: list[tuple[Translation, Translation]],
) -> None:
    last = attempts[-1]
    earlier = (
        f" The first attempt, {attempts[0].how}, migrated no page." if len(attempts) > 1 else ""
    )
    evidence.check(
        "moved",
        last.nr_moved > 0,
        f"{last.nr_moved} of {len(pairs)} locked pages are in other frames after {last.how}. A"
        " locked page stays resident, but it does not stay in one frame. Only a pinned page, for"
        f" example one that a device writes to, stays in its frame.{earlier}",
        f"All {len(pairs)} locked pages are in the same frames after {last.how}. The machine may"
        f" have so much contiguous free memory that compaction had nothing to do.{_forbidden()} A"
        " VM with two NUMA nodes can always migrate pages:"
        f" {invocation.in_vm(f'lab {NAME}', '--append numa=fake=2')}.",
    )
    evidence.check(
        "present",
        all(two.pfn is not None for _, two in pairs),
        "All locked pages are still resident, as mlock() guarantees.",
        f"{sum(two.pfn is None for _, two in pairs)} locked pages have no frame at the moment. The"
        " kernel is migrating them now, or mlock() had no effect.",
    )
    evidence.check(
        "same",
        last.same,
        "Every page still holds its data at the same virtual address. A stored physical address can"
        " become stale at any moment.",
        "At least one page lost its data. The memory is defective.",
    )
    evidence.answer(1 if last.nr_moved else None)


def _forbidden() -> str:
    path = "/proc/sys/vm/compact_unevictable_allowed"
    try:
        with open(path, "rb") as file:
            value = proctext.value(file.read()).decode()
            return f" Or {path} forbids it: its value is {value}, and 0 protects locked pages."
    except FileNotFoundError:
        return ""


LAB = Lab(
    NAME,
    TITLE,
    (),
    PLAN,
    QUESTIONS,
    requirements.checker(NAME, requirements.frame_numbers, requirements.migration),
    run,
)
