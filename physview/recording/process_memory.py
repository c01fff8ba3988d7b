# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the memory of one process as the row that groups add up."""

from __future__ import annotations

import os

from physview.analysis.usage import Usage
from physview.analysis.usage_reader import UsageReader
from physview.memory.snapshot import Snapshot
from physview.model import PAGE_SHIFT
from physview.sources.folio_sizes import huge_page_size
from physview.text import proctext

SUMS = (
    *("resident", "swapped", "shared", "huge", "anon", "anon_huge", "file", "hugetlb"),
    *("page_tables", "nr_extents", "in_64k", "in_2m", "in_1g", "folios"),
)
"""The columns that are sums over processes. None is a value that is not known."""

Row = tuple["int | None", ...]


class ProcessMemory:
    """The memory of a process.

    Args:
        sums: The values of SUMS.
        largest: The largest extent; None if frame numbers are hidden.
        folios: Bytes in whole folios by their order; None if flags are hidden.
    """

    __slots__ = ("folios", "largest", "sums")

    def __init__(self, sums: Row, largest: int | None, folios: dict[int, int] | None) -> None:
        self.sums = sums
        self.largest = largest
        self.folios = folios


def read_memory(reader: UsageReader, pid: int, start_time: bytes) -> ProcessMemory | None:
    """Read the memory of a process.

    Args:
        reader: Reads the mappings.
        pid: The process.
        start_time: Its start, as in stat; another process may have the pid by now.

    Returns:
        Its memory; None if the process is gone.

    Raises:
        PhysviewError: As `Snapshot`, and as `UsageReader.iter_chunks()`.
    """
    with Snapshot(pid, with_mappings=False) as snapshot:
        stat = snapshot.proc.stat()
        if stat is None or stat.start_time != int(start_time):
            return None
        usage = Usage()
        for chunk in reader.iter_chunks(snapshot, nr_threads=1):
            usage.add(chunk.total())
        status = proctext.fields_by_name(snapshot.proc.read("status"))
    return _memory_of(usage, proctext.size_of(status, b"VmPTE"))


def _memory_of(usage: Usage, page_tables: int | None) -> ProcessMemory:
    blocks = usage.contiguous
    in_blocks = [None if blocks is None else blocks.get(1 << shift, 0) for shift in (16, 21, 30)]
    folios: dict[int, int] | None = None
    if usage.folios is not None:
        folios = {}
        for kind in usage.folios.values():
            for sizes in (kind.aligned, kind.unaligned):
                for size, nr_bytes in sizes.items():
                    order = size.bit_length() - 1 - PAGE_SHIFT
                    folios[order] = folios.get(order, 0) + nr_bytes
            if kind.pmd_bytes:
                order = huge_page_size().bit_length() - 1 - PAGE_SHIFT
                folios[order] = folios.get(order, 0) + kind.pmd_bytes
    sums = (
        usage.resident_bytes,
        usage.swapped_bytes,
        usage.shared_bytes,
        usage.huge_bytes,
        usage.anon_bytes,
        usage.anon_huge_bytes,
        usage.file_bytes,
        usage.hugetlb_bytes,
        page_tables,
        usage.nr_extents,
        *in_blocks,
        usage.thp_bytes,
    )
    return ProcessMemory(sums, usage.largest_bytes, folios)


def has_core_and_pagemap() -> None:
    """Read this process, so that a machine without what is needed is told once, at the start.

    Raises:
        PhysviewError: The core is not built, or the kernel has no pagemap.
    """
    with Snapshot(os.getpid(), with_mappings=False):
        pass
