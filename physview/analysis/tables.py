# SPDX-License-Identifier: GPL-2.0-or-later
"""Counts the page tables of a process, and explains VmPTE of /proc/PID/status by them.

VmPTE is the kernel's own count of a process's page tables (`mm->pgtables_bytes`). The kernel counts
tables of the levels pte, pmd and pud. It does not count tables of the levels pgd and p4d. It counts
a table that processes share in each of them.

For each anonymous transparent huge page, the kernel keeps a pte table in reserve, with which it can
split the page at any time. Such a deposited table is counted, but no entry leads to it.

Source: VmPTE in Documentation/filesystems/proc.rst; mm_inc_nr_ptes() and its callers;
    pgtable_trans_huge_deposit() in mm/pgtable-generic.c; huge_pmd_share() in mm/hugetlb.c
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from physview.analysis.explained import Explained
from physview.files.descriptor import Closable
from physview.model import PAGE_SIZE
from physview.sources.bpf import Bpf
from physview.sources.kpage import KpageFile
from physview.sources.page_flags import FLAG_BITS
from physview.sources.procfs import ProcDir
from physview.sources.table_geometry import ENTRY_BYTES, Geometry
from physview.text import proctext

NR_ENTRIES = PAGE_SIZE // ENTRY_BYTES
FILLED = (
    (0, 0),
    (1, 1),
    (2, 7),
    (8, 63),
    (64, NR_ENTRIES // 2 - 1),
    (NR_ENTRIES // 2, NR_ENTRIES - 1),
    (NR_ENTRIES, NR_ENTRIES),
)
"""The classes of tables by their number of entries that are not empty, as (smallest, largest)."""

# A process is read again while VmPTE is not explained.
MAX_TRIES = 10
FIRST_PAUSE_SECONDS = 0.0005
# Then a difference is unexplained if so many last readings are the same in all counts, or if all
# readings agree on the difference. Both take a third of a second and more: while the kernel makes a
# huge page, a table hangs nowhere and the process stands still, on a slow machine for a while.
NR_ALIKE = 3

# Flags of a huge page whose table the kernel has deposited.
_DEPOSITED = 1 << FLAG_BITS["anon"] | 1 << FLAG_BITS["zero_page"]
_HUGETLB = 1 << FLAG_BITS["huge"]


class PteCause(Explained):
    """Why VmPTE differs from the memory of the tables that were found."""

    PGD = ("pgd", "the pgd, which VmPTE does not count", True)
    P4D = ("p4d", "the p4d tables, which VmPTE does not count", True)
    CHANGED = ("changed", "the tables changed from reading to reading", True)
    UNEXPLAINED = ("unexplained", "unexplained", False)


class TableLevel(NamedTuple):
    """The page tables of one level.

    Args:
        name: "pgd", "p4d", "pud", "pmd" or "pte".
        span_bytes: How much memory one entry is for.
        nr_entries: The number of entries of a table. A table of NR_ENTRIES takes a page; on arm64
            the pgd can be smaller.
        nr_tables: The number of tables. Of the pgd only user space's entries are counted below.
        nr_unstable: Tables that changed during each of several readings, and are left out.
        nr_gone: Tables that the kernel removed before they were read, and are left out.
        nr_to_table: Entries that lead to a table of the next level.
        nr_pages: Entries that map a page: of `span_bytes`.
        nr_swapped: Entries of pages in swap.
        nr_special: Other entries that are not empty: guards, markers, pages in migration.
        filled: The number of tables in each class of FILLED.
    """

    name: str
    span_bytes: int
    nr_entries: int
    nr_tables: int
    nr_unstable: int
    nr_gone: int
    nr_to_table: int
    nr_pages: int
    nr_swapped: int
    nr_special: int
    filled: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """The memory of these tables."""
        return self.nr_tables * self.nr_entries * ENTRY_BYTES

    @property
    def nr_empty(self) -> int:
        """The number of tables without an entry."""
        return self.filled[0]

    @property
    def empty_bytes(self) -> int:
        """The memory of the tables without an entry."""
        return self.nr_empty * self.nr_entries * ENTRY_BYTES

    def without(self, nr_filled: int, nr_tables: int) -> TableLevel:
        """Leave out tables that each have `nr_filled` entries, but keep their entries."""
        at = next(i for i, (_, most) in enumerate(FILLED) if nr_filled <= most)
        filled = list(self.filled)
        filled[at] -= nr_tables
        return self._replace(nr_tables=self.nr_tables - nr_tables, filled=tuple(filled))


class TableCounts(NamedTuple):
    """The page tables of a process, or of several.

    Args:
        levels: The levels that this machine has, from the root down.
        nr_deposited: Deposited tables: see the module.
    """

    levels: list[TableLevel]
    nr_deposited: int

    @property
    def nr_tables(self) -> int:
        """The number of all tables, with the deposited ones."""
        return self.nr_deposited + sum(level.nr_tables for level in self.levels)

    @property
    def size_bytes(self) -> int:
        """The memory of all tables, with the deposited ones."""
        return self.nr_deposited * PAGE_SIZE + sum(level.size_bytes for level in self.levels)

    @property
    def nr_empty(self) -> int:
        """The number of tables without an entry. Deposited tables do not count."""
        return sum(level.nr_empty for level in self.levels)

    @property
    def empty_bytes(self) -> int:
        """The memory of the tables without an entry."""
        return sum(level.empty_bytes for level in self.levels)

    @property
    def mapped_bytes(self) -> int:
        """The memory that the entries map, with zero pages and memory of devices."""
        return sum(level.nr_pages * level.span_bytes for level in self.levels)

    @property
    def is_steady(self) -> bool:
        """Whether every table that an entry led to could be read."""
        return not any(level.nr_unstable + level.nr_gone for level in self.levels)


class LeafTable(NamedTuple):
    """A pmd table that leads to no pte table. The kernel shares only such tables.

    Args:
        vaddr: The first virtual address that it is for.
        paddr: Its physical address.
        nr_filled: The number of its entries that are not empty.
    """

    vaddr: int
    paddr: int
    nr_filled: int


class ProcessTables(NamedTuple):
    """The page tables of one process.

    Args:
        pid: The process.
        name: Its name in the kernel.
        tables: The tables.
        root: Physical address of the pgd.
        leaf_tables: The pmd tables that lead to no pte table.
        vm_pte_bytes: VmPTE in /proc/PID/status.
        differences: By cause, what must be added to the memory of `tables` to get VmPTE, in bytes.
        same_memory_as: Another process in the report that has the same address space (vfork,
            CLONE_VM) and so the same tables; or None.
    """

    pid: int
    name: str
    tables: TableCounts
    root: int
    leaf_tables: list[LeafTable]
    vm_pte_bytes: int
    differences: dict[PteCause, int]
    same_memory_as: int | None = None

    @property
    def unexplained_bytes(self) -> int:
        """The part of VmPTE whose cause is not known; it may be negative."""
        return self.differences.get(PteCause.UNEXPLAINED, 0)


class _Reading(NamedTuple):
    """One reading of a process. `rest_bytes` is what VmPTE has more than the tables explain."""

    tables: TableCounts
    root: int
    leaf_tables: list[LeafTable]
    vm_pte_bytes: int
    rest_bytes: int
    is_steady: bool


def _are_alike(readings: list[_Reading]) -> bool:
    """Whether the process has stood still, or has a difference that stays whatever it does."""
    if all(each.is_steady and each.rest_bytes == readings[0].rest_bytes for each in readings):
        return True
    last = readings[-NR_ALIKE:]
    return all(each.is_steady and each[:5] == last[0][:5] for each in last)


class TableReader(Closable):
    """Reads the page tables of processes, one after the other."""

    def __init__(self) -> None:
        self._flags: KpageFile | None = None

    def close(self) -> None:
        """Close the files. Closing twice is harmless."""
        if self._flags:
            self._flags.close()

    def read(self, proc: ProcDir) -> ProcessTables:
        """Read the page tables of a process.

        Args:
            proc: The process.

        Raises:
            ProcessGone: The process ended or ran another program meanwhile.
            PhysviewError: The tables of this process cannot be read; see `bpf.Bpf`.
        """
        reading = self._read_once(proc)
        readings = [reading]
        while reading.rest_bytes and len(readings) < MAX_TRIES:
            time.sleep(FIRST_PAUSE_SECONDS * 2 ** len(readings))
            reading = self._read_once(proc)
            readings.append(reading)
        cause = PteCause.UNEXPLAINED if _are_alike(readings) else PteCause.CHANGED
        differences = uncounted(reading.tables)
        if reading.rest_bytes:
            differences[cause] = reading.rest_bytes
        return ProcessTables(
            proc.pid,
            proc.comm(),
            reading.tables,
            reading.root,
            reading.leaf_tables,
            reading.vm_pte_bytes,
            differences,
        )

    def _read_once(self, proc: ProcDir) -> _Reading:
        with Bpf(proc) as walker:
            before = _vm_pte(proc)
            leaf_tables = []
            nr_deposited = 0
            for counts in walker.iter_tables():
                nr_deposited += self._count_deposited(counts)
                leaf_tables += [
                    LeafTable(each.vaddr, each.paddr, each.nr_filled)
                    for each in counts.leaf_tables[0 : counts.nr_leaf_tables]
                ]
            after = _vm_pte(proc)
            levels = _levels(counts, walker.geometry())
        tables = TableCounts(levels, nr_deposited)
        rest = after - tables.size_bytes - sum(uncounted(tables).values())
        is_steady = before == after and tables.is_steady
        return _Reading(tables, counts.root, leaf_tables, after, rest, is_steady)

    def _count_deposited(self, counts: Any) -> int:
        """How many huge pages of a piece have a deposited table.

        These are the anonymous ones, and those that map the huge zero page. A huge page of a file
        or of hugetlbfs has none.
        """
        if not counts.nr_huge:
            return 0
        if not self._flags:
            self._flags = KpageFile("kpageflags")
        by_flags = self._flags.count_buffer(counts.huge, counts.nr_huge)
        return sum(
            nr for flags, nr in by_flags.items() if flags & _DEPOSITED and not flags & _HUGETLB
        )


def uncounted(tables: TableCounts) -> dict[PteCause, int]:
    """By cause, what must be added to the memory of tables to get VmPTE, in bytes."""
    sizes = {level.name: level.size_bytes for level in tables.levels}
    causes = ((PteCause.PGD, "pgd"), (PteCause.P4D, "p4d"))
    return {cause: -sizes[name] for cause, name in causes if name in sizes}


def add_counts(counts: Iterable[TableCounts]) -> TableCounts:
    """Add the tables of several processes of one machine."""
    every = list(counts)
    levels = []
    for alike in zip(*(each.levels for each in every), strict=True):
        name, span_bytes, nr_entries, *_ = alike[0]
        numbers = (sum(column) for column in zip(*(level[3:10] for level in alike), strict=True))
        filled = map(sum, zip(*(level.filled for level in alike), strict=True))
        levels.append(TableLevel._make([name, span_bytes, nr_entries, *numbers, tuple(filled)]))
    return TableCounts(levels, sum(each.nr_deposited for each in every))


def _levels(counts: Any, geometry: Geometry) -> list[TableLevel]:
    return [
        TableLevel(
            form.name,
            1 << form.shift,
            form.nr_entries,
            level.nr_tables,
            level.nr_unstable,
            level.nr_gone,
            level.nr_to_table,
            level.nr_pages,
            level.nr_swapped,
            level.nr_special,
            tuple(level.filled),
        )
        for form, level in zip(geometry.levels, counts.levels, strict=False)
    ]


def _vm_pte(proc: ProcDir) -> int:
    """VmPTE of a process, in bytes.

    Raises:
        ProcessGone: The process has no memory any more.
    """
    size = proctext.size_of(proctext.fields_by_name(proc.read("status")), b"VmPTE")
    if size is None:
        raise proc.gone()
    return size
