# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the memory use of the mappings of processes, many mappings at a time."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from typing import Any

from physview import _ffi
from physview.analysis.flag_counts import new_account
from physview.analysis.usage import Usage
from physview.analysis.usage_chunk import UsageChunk
from physview.errors import AccessDenied, PhysviewError, ProcessGone
from physview.files.descriptor import Closable
from physview.memory.extents import USER_END, Batch, Borders, ExtentReader
from physview.memory.snapshot import Snapshot
from physview.model import PAGE_SHIFT, PAGE_SIZE
from physview.sources.folio_sizes import huge_page_size, smallest_anon_order
from physview.sources.kpage import KpageFile
from physview.sources.mappings import HUGETLB, MappingReader, Mappings, swap_is_used
from physview.sources.numa import node_map
from physview.sources.procfs import ProcDir, Range

MAX_PARTS = 512
# Reading pagemap over so much memory without pages takes a millisecond.
LARGE_BYTES = 1 << 29
# Reading pagemap over a hole of this size costs less than another call.
SHORT_HOLE_BYTES = 1 << 18


class UsageReader(Closable):
    """Reads the memory use of mappings, of one process or several. A context manager.

    Args:
        with_flags: Whether to read /proc/kpageflags, if we may. Without it, folios are not known.
        every_flag: Whether to read the flags of every page, even if one page's flags are enough to
            know those of its neighbours.
    """

    def __init__(self, *, with_flags: bool = True, every_flag: bool = False) -> None:
        self._ffi, self._lib = _ffi.load()
        self._allocate = self._ffi.new_allocator(should_clear_after_alloc=False)
        self._flags: KpageFile | None = None
        self.why_no_flags: AccessDenied | None = None
        if with_flags:
            try:
                self._flags = KpageFile("kpageflags")
            except AccessDenied as error:
                self.why_no_flags = error
        self._nodes = node_map()
        self._table = self._ffi.from_buffer("uint8_t[]", self._nodes.node_of_block)
        self._huge = huge_page_size()
        self._anon_order = 0 if every_flag or not self._flags else smallest_anon_order()
        self._swap_is_used = swap_is_used()
        self.nr_unsearched = 0
        """Mappings without resident memory in which zero pages were not looked for."""

    def close(self) -> None:
        """Close the file. Closing twice is harmless."""
        if self._flags:
            self._flags.close()

    def iter_usage(
        self, snapshot: Snapshot, *, nr_threads: int | None = None, with_smaps: bool = False
    ) -> Iterator[Usage]:
        """Yield the memory use of each mapping, in address order and in constant memory.

        Args:
            snapshot: The process. Its mappings are read again, as they are now.
            nr_threads: Number of threads that read; None chooses it by the resident memory.
            with_smaps: Whether to read smaps, too.

        Raises:
            ProcessGone: The process ended or ran another program meanwhile.

        Source: /proc/PID/maps or smaps, /proc/PID/pagemap, PAGEMAP_SCAN, /proc/kpageflags
        """
        for chunk in self.iter_chunks(snapshot, nr_threads=nr_threads, with_smaps=with_smaps):
            yield from chunk.usages()

    def iter_chunks(
        self, snapshot: Snapshot, *, nr_threads: int | None = None, with_smaps: bool = False
    ) -> Iterator[UsageChunk]:
        """Do as `iter_usage()`, with many mappings at a time."""
        reader = snapshot.reader
        # Where smaps is needed it is read instead of maps: for memory that is mapped by PMD, where
        # the kernel has no PAGEMAP_SCAN, and for shared memory that is swapped out.
        with_smaps = with_smaps or not reader.use_scan or self._swap_is_used
        if nr_threads is None:
            nr_threads = reader.choose_nr_threads()
        with MappingReader(snapshot.proc, "smaps" if with_smaps else "maps") as mappings:
            for chunk in mappings.iter_chunks():
                nr = bisect.bisect_left(chunk.starts, USER_END)
                if nr:
                    yield self._read(snapshot, chunk, nr, nr_threads)
        if not self._lib.pv_pagemap_read(reader.fd, 0, 1, self._ffi.new("uint64_t *")):
            raise snapshot.proc.gone()

    def _read(self, snapshot: Snapshot, mappings: Mappings, nr: int, nr_threads: int) -> UsageChunk:
        """Read pagemap and kpageflags for the first `nr` of some mappings."""
        mappings.cut(nr)
        like = self._account(snapshot)
        accounts = self._ffi.new("struct pv_account[]", nr)
        borders, unsearched = self._borders(snapshot, mappings)
        batches = snapshot.reader.map_batches(
            lambda batch: list(self._iter_parts(like, mappings, batch)),
            mappings.starts[0],
            mappings.ends[-1],
            nr_threads=nr_threads,
            borders=borders,
        )
        for batch in batches if borders.areas else ():
            for which, parts, nr_parts in batch:
                got = self._lib.pv_join_parts(like, accounts, which, parts, nr_parts)
                _ffi.check(got, "/proc/kpageflags")
        self.nr_unsearched += len(unsearched)
        return UsageChunk(
            snapshot,
            mappings,
            accounts,
            self._nodes,
            self._huge,
            has_flags=like.flags_fd >= 0,
            unsearched=unsearched,
        )

    def _borders(self, snapshot: Snapshot, mappings: Mappings) -> tuple[Borders, set[int]]:
        """Say where to read, and in which mappings not to look for pages.

        Without PAGEMAP_SCAN pagemap has to be read over holes, too, which takes minutes for the
        terabytes that AddressSanitizer or a Java machine reserves. BPF tells quickly where pages
        are. Where BPF is not available, smaps tells in which mappings nothing is resident or
        swapped.
        """
        starts, ends = mappings.starts, mappings.ends
        borders = Borders.of_ranges(starts, ends)
        large = [i for i in range(len(starts)) if ends[i] - starts[i] >= LARGE_BYTES]
        if snapshot.reader.use_scan or not large:
            return borders, set()
        areas = self._populated(snapshot.proc, borders)
        if areas is not None:
            return borders._replace(areas=areas), set()
        sizes = [mappings.sizes(name) for name in ("Rss", "Swap", *HUGETLB)]
        empty = {index for index in large if not any(column[index] for column in sizes)}
        kept = [index for index in range(len(starts)) if index not in empty]
        areas = Borders.of_ranges((starts[i] for i in kept), (ends[i] for i in kept)).areas
        return borders._replace(areas=areas), empty

    def _populated(self, proc: ProcDir, borders: Borders) -> list[Range] | None:
        """Find where pages and swap entries are, by BPF; None if BPF is not available."""

        def ranges_of(batch: Batch) -> list[Range]:
            found: list[Range] = []
            for index in range(batch.nr):
                extent = batch.extents[index]
                start, end = extent.vaddr, extent.vaddr + extent.nr_pages * PAGE_SIZE
                if found and start - found[-1][1] <= SHORT_HOLE_BYTES:
                    found[-1] = (found[-1][0], end)
                else:
                    found.append((start, end))
            return found

        try:
            with ExtentReader(proc, use_scan=False, source="bpf", with_mappings=False) as reader:
                whole = borders.areas[0][0], borders.areas[-1][1]
                batches = reader.map_batches(ranges_of, *whole, nr_threads=1, borders=borders)
                return [area for batch in batches for area in batch]
        except ProcessGone:
            raise
        except PhysviewError:
            return None

    def _iter_parts(
        self, like: Any, mappings: Mappings, batch: Batch
    ) -> Iterator[tuple[Any, Any, int]]:
        """Make the accounts of the parts of mappings that have extents in the batch."""
        room = min(MAX_PARTS, batch.nr, mappings.nr)
        done = self._ffi.new("uint64_t *")
        lib = self._lib
        while done[0] < batch.nr:
            which = self._allocate("uint64_t[]", room)
            parts = self._allocate("struct pv_account[]", room)
            got = lib.pv_account_parts(
                like,
                batch.extents,
                batch.nr,
                done,
                mappings.pointer(lib.PV_MAP_START),
                mappings.pointer(lib.PV_MAP_END),
                mappings.pointer(lib.PV_MAP_PERMS),
                mappings.pointer(lib.PV_MAP_INODE),
                mappings.nr,
                which,
                parts,
                room,
            )
            nr = _ffi.check(got, "/proc/kpageflags")
            if nr:
                yield which, parts, nr

    def _account(self, snapshot: Snapshot) -> Any:
        flags_fd = self._flags.fd if self._flags and snapshot.knows_frames else -1
        account = new_account(flags_fd=flags_fd, zero_pfn=snapshot.reader.zero_pfn)
        account.anon_shift = self._anon_order
        account.huge_order = (self._huge.bit_length() - 1 - PAGE_SHIFT) if self._huge else 0
        if snapshot.knows_frames and len(self._nodes.nodes) > 1:
            account.node_of_block = self._table
            account.nr_blocks = len(self._nodes.node_of_block)
            account.block_shift = self._nodes.block_shift
        return account
