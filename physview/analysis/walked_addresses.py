# SPDX-License-Identifier: GPL-2.0-or-later
"""Walks for several addresses of a process, with the tables on the way: what a picture shows.

The process runs on meanwhile. So a walk and the tables are read again until the entry that the walk
took is the one in the copy of the table. A table that never agrees is left out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import NamedTuple

from physview.entry_rules import swap_slot
from physview.errors import PhysviewError
from physview.model import PM_SWAP, Cause, Level, PageKind, PagemapEntry, Probe, Vma, Walk
from physview.sources.page_tables import PageTables
from physview.sources.procfs import MemoryMap, ProcDir
from physview.sources.table_geometry import ENTRY_BYTES, Geometry, GeometryLevel, TableEntries

MAX_TRIES = 10
MAX_MAPPINGS = 39
MAX_SEARCHED = 4
"""The mappings of a file that are searched for a page: four is what a library has."""


class WalkedLevel(NamedTuple):
    """One level of a walk.

    Args:
        level: The level of page tables.
        taken: The entry that the address chooses.
        read: What the walk read there.
        table: The whole table; None if it could not be read.
    """

    level: GeometryLevel
    taken: int
    read: Level
    table: TableEntries | None

    @property
    def table_paddr(self) -> int | None:
        """The physical address of the table; None if it is hidden."""
        return None if self.read.address is None else self.read.address - ENTRY_BYTES * self.taken

    @property
    def is_hidden(self) -> bool:
        """Whether the source hides entries from this user."""
        return self.read.entry is None


class WalkedAddress(NamedTuple):
    """A walk for one address.

    Args:
        label: What the address is, such as "buf[00]"; or "".
        walk: The walk.
        levels: The levels that the walk reached, without folded ones.
        vma: The mapping of the address, or None. It is read after the walk.
        cause: Why there is no page; None if there is one, or if the entry is invalid or changes.
    """

    label: str
    walk: Walk
    levels: tuple[WalkedLevel, ...]
    vma: Vma | None
    cause: Cause | None


class WalkedAddresses(NamedTuple):
    """Walks for addresses of one process.

    Args:
        pid: The process.
        name: Its name in the kernel.
        source: "kmod" or "bpf".
        geometry: How the page tables divide an address.
        machine: The architecture, as in `uname -m`.
        kernel: The kernel's release.
        taken_at: When they were read, in seconds since the epoch.
        addresses: The walks.
        asked: Index of the walk that was asked for; the others are there to choose from.
    """

    pid: int
    name: str
    source: str
    geometry: Geometry
    machine: str
    kernel: str
    taken_at: float
    addresses: list[WalkedAddress]
    asked: int = 0

    @property
    def first(self) -> WalkedAddress:
        """The walk that was asked for."""
        return self.addresses[self.asked]


def read_walks(
    proc: ProcDir, tables: PageTables, wanted: Sequence[Probe], asked: int = 0
) -> WalkedAddresses:
    """Walk the page tables for some addresses, and read the tables on the way.

    Args:
        proc: The process.
        tables: Its page tables.
        wanted: The addresses, with their labels; at least one.
        asked: Index of the address that is asked for.

    Raises:
        PhysviewError: An address is not a user address.
        ProcessGone: The process ended or ran another program meanwhile.
        AbiMismatch: The loaded module is the course's.
    """
    geometry = tables.geometry()
    for probe in wanted:
        check_address(geometry, probe.vaddr)
    reader = _Reader(tables, geometry)
    found = [(probe.label, *reader.read(probe.vaddr)) for probe in wanted]
    mappings = MemoryMap(proc)
    tables.check_alive()
    addresses = []
    for label, walk, levels in found:
        vma = mappings.find(walk.vaddr)
        addresses.append(WalkedAddress(label, walk, levels, vma, _cause(walk, vma)))
    host = os.uname()
    return WalkedAddresses(
        proc.pid,
        proc.comm(),
        tables.name,
        geometry,
        host.machine,
        host.release,
        time.time(),
        addresses,
        asked,
    )


def first_addresses(proc: ProcDir, tables: PageTables) -> list[Probe]:
    """An address in each mapped file, and in each mapping with a name such as [heap].

    It is the first that has an entry; the first of all if none has one.

    Args:
        proc: The process.
        tables: Its page tables.

    Returns:
        At most MAX_MAPPINGS addresses. Their labels are the files' names, and the mappings'.
    """
    by_name: dict[str, list[Vma]] = {}
    for vma in MemoryMap(proc).vmas:
        if vma.start < tables.user_end():
            by_name.setdefault(vma.path.rpartition("/")[2] or "[anonymous]", []).append(vma)
    some = list(by_name.items())[:MAX_MAPPINGS]
    return [Probe(name, _first_address(tables, vmas[:MAX_SEARCHED])) for name, vmas in some]


def _first_address(tables: PageTables, vmas: Sequence[Vma]) -> int:
    for vma in vmas:
        at = tables.next_populated(vma.start, vma.end)
        if at < vma.end:
            return max(at, vma.start)  # a huge page may begin before the mapping
    return vmas[0].start


def check_address(geometry: Geometry, vaddr: int) -> None:
    """Check that page tables of user space have a path to an address.

    Raises:
        PhysviewError: It is an address of the kernel, one that has a tag, or none at all.
    """
    if vaddr < geometry.user_end:
        return
    bits = (geometry.user_end - 1).bit_length()
    low = vaddr & ((1 << bits) - 1)
    if vaddr >> bits == (1 << 64 - bits) - 1:
        why = "it is an address of the kernel's half, and only user addresses are walked"
    elif vaddr >> bits:
        why = "its upper bits are not zero: it is a pointer with a tag, or no address"
    else:
        why = "it is no user address"
    remedy = f"give an address below {geometry.user_end:#x}"
    if vaddr >> bits != (1 << 64 - bits) - 1 and low < geometry.user_end:
        remedy = f"without these bits it is {low:#x}"
    raise PhysviewError(f"cannot draw the walk for {vaddr:#x}", why, remedy)


class _Reader:
    """Reads walks and tables. It reads a table that several walks use once."""

    def __init__(self, tables: PageTables, geometry: Geometry) -> None:
        self._tables = tables
        self._geometry = geometry
        self._known: dict[tuple[int, int], TableEntries] = {}

    def read(self, vaddr: int) -> tuple[Walk, tuple[WalkedLevel, ...]]:
        """Walk for one address, until the tables agree with the walk."""
        for _ in range(MAX_TRIES):
            walk = self._tables.walk(vaddr)
            levels = self._levels(walk)
            if all(each.table or each.is_hidden for each in levels):
                break
        return walk, levels

    def _levels(self, walk: Walk) -> tuple[WalkedLevel, ...]:
        reads = [level for level in walk.levels if not level.folded]
        return tuple(
            self._with_table(walk.vaddr, depth, level, read)
            for depth, (level, read) in enumerate(zip(self._geometry.levels, reads, strict=False))
        )

    def _with_table(self, vaddr: int, depth: int, level: GeometryLevel, read: Level) -> WalkedLevel:
        index = level.index_of(vaddr)
        if read.address is None or read.entry is None:
            return WalkedLevel(level, index, read, None)
        key = depth, read.address - ENTRY_BYTES * index
        table = self._known.get(key) or self._tables.read_table(vaddr, depth)
        if table and table.values[index] == read.entry:
            self._known[key] = table
        else:
            self._known.pop(key, None)
            table = None
        return WalkedLevel(level, index, read, table)


def _cause(walk: Walk, vma: Vma | None) -> Cause | None:
    """Why a walk found no page."""
    if walk.kind is PageKind.NONE:
        return Cause.ABSENT if vma else Cause.UNMAPPED
    if walk.swap is None:
        return None
    return PagemapEntry(PM_SWAP | swap_slot(*walk.swap)).cause
