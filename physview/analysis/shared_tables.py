# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the page tables of many processes, and finds those that stand in several places.

Processes share tables in two cases. Processes with one address space (vfork, CLONE_VM) have all
tables in common. And the kernel lets all shared mappings of a file of hugetlbfs use the same pmd
table, if they are large enough and aligned alike.

Two places have the same table if its physical address is the same. But a process may end while the
others are read, and another process may get the memory of its tables. So all places are looked at
again at the end, twice: a table that is in both places then, and was before, is shared.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from physview.analysis.tables import (
    ProcessTables,
    TableCounts,
    TableReader,
    add_counts,
)
from physview.errors import AccessDenied, NoUserMemory, PhysviewError, ProcessGone
from physview.model import PAGE_SIZE
from physview.sources.bpf import Bpf
from physview.sources.procfs import ProcDir, list_pids

# A process that runs another program (exec) while it is read is read again.
TRIES = 3
NR_CHECKS = 2


class TablePlace(NamedTuple):
    """Where a table stands.

    Args:
        pid: The process.
        vaddr: The first virtual address that the table is for.
    """

    pid: int
    vaddr: int


class SharedTable(NamedTuple):
    """A table that stands in several places.

    Args:
        level: "pmd".
        paddr: Its physical address.
        nr_filled: The number of its entries that are not empty.
        places: The places. Processes with one address space count as one.
    """

    level: str
    paddr: int
    nr_filled: int
    places: list[TablePlace]


class TableReport(NamedTuple):
    """The page tables of several processes.

    Args:
        processes: The processes, in the order in which they were read.
        shared: The tables that stand in several places.
        total: All tables, each counted once. Entries are counted in every place.
        nr_gone: The number of processes that ended while they were read.
        nr_denied: The number of processes that this user may not examine.
    """

    processes: list[ProcessTables]
    shared: list[SharedTable]
    total: TableCounts
    nr_gone: int
    nr_denied: int

    @property
    def nr_unexplained(self) -> int:
        """The number of processes whose VmPTE is not explained."""
        return sum(process.unexplained_bytes != 0 for process in self.processes)


def read_tables(
    pids: Sequence[int | str] | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
    on_error: Callable[[int | str, PhysviewError], None] | None = None,
) -> TableReport:
    """Count the page tables of processes, and explain VmPTE of each.

    Args:
        pids: The processes, each a pid or "self"; None means all processes that are visible in
            /proc, without those that end meanwhile or have no memory.
        progress: Called with the number of processes that were read, and the number of all.
        on_error: Called with each of `pids` that cannot be read, and the error; the others are
            still read. None raises the error.

    Raises:
        AccessDenied: This user may not load BPF programs, or may not examine one of `pids`.
        Unsupported: The kernel cannot run the program; see `sources.bpf.Bpf`.
        ProcessGone: One of `pids` is gone.
        NoUserMemory: One of `pids` has no user memory: it is a kernel thread or a zombie.
    """
    wanted: Sequence[int | str] = list_pids() if pids is None else pids
    # Each process once, also if it is named by its pid and as "self".
    chosen = list({os.getpid() if pid == "self" else pid: pid for pid in wanted}.values())
    processes: list[ProcessTables] = []
    nr_gone, refused = 0, []
    with TableReader() as reader:
        for number, pid in enumerate(chosen):
            if progress:
                progress(number, len(chosen))
            try:
                processes.append(_read(reader, pid))
            except (ProcessGone, NoUserMemory, AccessDenied) as error:
                if pids is not None:
                    if on_error is None:
                        raise
                    on_error(pid, error)
                    continue
                nr_gone += isinstance(error, ProcessGone)
                if isinstance(error, AccessDenied):
                    refused.append(error)
    if refused and not processes:
        raise refused[-1]
    processes = _mark_same_memory(processes)
    own = [process for process in processes if process.same_memory_as is None]
    shared = _find_shared(own)
    total = add_counts(process.tables for process in own)
    return TableReport(processes, shared, _once(total, shared), nr_gone, len(refused))


def _read(reader: TableReader, pid: int | str) -> ProcessTables:
    for left in reversed(range(TRIES)):
        try:
            with ProcDir(pid) as proc:
                return reader.read(proc)
        except ProcessGone:
            if not left or not os.path.exists(f"/proc/{pid}"):
                raise
    raise AssertionError


def _mark_same_memory(processes: list[ProcessTables]) -> list[ProcessTables]:
    """Say of each process if it has the address space of an earlier one."""
    found = _check([("pgd", each.root, TablePlace(each.pid, 0)) for each in processes])
    first = {place.pid: places[0].pid for places in found.values() for place in places[1:]}
    return [each._replace(same_memory_as=first.get(each.pid)) for each in processes]


def _find_shared(processes: list[ProcessTables]) -> list[SharedTable]:
    candidates = [
        ("pmd", table.paddr, TablePlace(process.pid, table.vaddr))
        for process in processes
        for table in process.leaf_tables
    ]
    nr_filled = {
        table.paddr: table.nr_filled for process in processes for table in process.leaf_tables
    }
    return [
        SharedTable("pmd", paddr, nr_filled[paddr], places)
        for paddr, places in sorted(_check(candidates).items())
    ]


def _check(candidates: Iterable[tuple[str, int, TablePlace]]) -> dict[int, list[TablePlace]]:
    """The tables that stand in several places, by their physical address.

    Args:
        candidates: The level, the physical address and the place of each table.
    """
    every = list(candidates)
    for _ in range(NR_CHECKS):
        by_paddr: dict[int, list[tuple[str, int, TablePlace]]] = {}
        for each in every:
            by_paddr.setdefault(each[1], []).append(each)
        several = [each for alike in by_paddr.values() if len(alike) > 1 for each in alike]
        by_pid: dict[int, list[tuple[str, int, TablePlace]]] = {}
        for each in several:
            by_pid.setdefault(each[2].pid, []).append(each)
        there = {each for pid, own in by_pid.items() for each in _still_there(pid, own)}
        every = [each for each in several if each in there]
    found: dict[int, list[TablePlace]] = {}
    for _, paddr, place in every:
        found.setdefault(paddr, []).append(place)
    return {paddr: places for paddr, places in found.items() if len(places) > 1}


def _still_there(
    pid: int, own: Sequence[tuple[str, int, TablePlace]]
) -> list[tuple[str, int, TablePlace]]:
    """Walk again to tables of a process, and return those that are still where they were."""
    found = []
    try:
        with ProcDir(pid) as proc, Bpf(proc) as walker:
            for name, paddr, place in own:
                levels = {level.name: level.address for level in walker.walk(place.vaddr).levels}
                address = levels.get(name)
                # The pgd of arm64 can be smaller than a page. Its place has its first entry.
                if address is not None and name != "pgd":
                    address -= address % PAGE_SIZE
                if address == paddr:
                    found.append((name, paddr, place))
    except (ProcessGone, NoUserMemory, AccessDenied):
        return []
    return found


def _once(total: TableCounts, shared: Sequence[SharedTable]) -> TableCounts:
    """Count each shared table once."""
    levels = list(total.levels)
    for table in shared:
        at = next(i for i, level in enumerate(levels) if level.name == table.level)
        levels[at] = levels[at].without(table.nr_filled, len(table.places) - 1)
    return total._replace(levels=levels)
