# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads a process's memory as extents: pages that are contiguous in both address spaces.

Source: fs/proc/task_mmu.c, Documentation/admin-guide/mm/pagemap.rst
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import functools
import os
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from physview import _ffi
from physview.entry_rules import PM_PFRAME_MASK, step_of
from physview.files.descriptor import Descriptor
from physview.model import PAGE_SHIFT, PAGE_SIZE, Vma
from physview.sources.frame_source import choose_frame_source
from physview.sources.pagemap import PAGE_IS, scan
from physview.sources.procfs import ALL, ANONYMOUS, MemoryMap, ProcDir, Range

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Extents = npt.NDArray[np.void]

T = TypeVar("T")

EXTENT_DTYPE = [("vaddr", "u8"), ("entry", "u8"), ("nr_pages", "u8")]
"""vaddr: address of the first page. entry: its pagemap entry. nr_pages: number of pages."""

ITEM_BYTES = 24

# End of user space. pagemap does not cover [vsyscall], the only mapping above it.
USER_END = 1 << 63
BATCH = 1 << 14
# Address space that a thread reads at a time. For less than a few milliseconds of reading, the
# overhead of a thread exceeds its gain.
SLICE_BYTES = 1 << 29
MAX_SLICES = 512
MAX_BATCHES_AHEAD = 8
MIN_PAGES_FOR_THREADS = 1 << 17


class Borders(NamedTuple):
    """Where mappings begin and end. No extent crosses such a border.

    Args:
        cuts: The addresses at which a mapping begins or ends, in ascending order.
        doubts: For each cut, whether what begins there may be a device mapping.
        areas: The mapped ranges in ascending order, as (start, end).
    """

    cuts: array[int]
    doubts: bytes
    areas: list[Range]

    @classmethod
    def of_ranges(cls, starts: Iterable[int], ends: Iterable[int]) -> Borders:
        """Make the borders of mappings in address order, of which any may be a device's."""
        areas: list[Range] = []
        cuts: list[int] = []
        for start, end in zip(starts, ends, strict=True):
            if areas and areas[-1][1] == start:
                areas[-1] = (areas[-1][0], end)
            else:
                areas.append((start, end))
                cuts.append(start)
            cuts.append(end)
        return cls(array("Q", cuts), b"\1" * len(cuts), areas)


class Batch(NamedTuple):
    """A batch of extents in the memory of the core.

    Args:
        extents: `struct pv_extent *`, csrc/cdef.h.
        nr: The number of extents.
    """

    extents: Any
    nr: int


class ExtentReader(Descriptor):
    """Reads the extents of a process.

    Every page and every swap entry belongs to exactly one extent. Extents come in address order,
    and no extent crosses the border of a mapping. The frames in an extent are contiguous, and so
    are the swap slots. In an extent of zero pages, hidden frames, guard pages or markers, all
    entries are equal instead.

    The process runs while it is read. So the extents are not an atomic snapshot: two pages may have
    been read at different moments.

    Args:
        proc: The process.
        use_scan: Whether to find pages with PAGEMAP_SCAN (Linux 6.7); None uses it if the kernel
            has it. Without it the cost grows with the mapped memory, not with the resident memory.
        batch: The maximum number of extents per call of the core.
        source: Who is asked: "pagemap", "bpf" (a BPF program walks the page tables), or "auto": BPF
            if it is available and faster. Both give the same extents if `frames_only` is set.
        frames_only: Whether entries have only the bits that all sources know: present, swap, guard,
            and the frame number or swap slot. Extents are then not split where only other bits
            differ. It is always so unless `source` is "pagemap".
        within: Only this range of addresses will be read, (start, end).
        with_mappings: Whether to read the mappings now. Without them, each call of `map_batches()`
            must say where mappings begin and end.

    Raises:
        UsageError: There is no such source.
        PhysviewError: The process is gone, this user may not examine it, or `source` is "bpf" and
            not available.
        CoreUnavailable: The core is not built.
    """

    def __init__(
        self,
        proc: ProcDir,
        *,
        use_scan: bool | None = None,
        batch: int = BATCH,
        source: str = "pagemap",
        frames_only: bool = False,
        within: Range = ALL,
        with_mappings: bool = True,
    ) -> None:
        self._ffi, self._lib = _ffi.load()
        self._allocate = self._ffi.new_allocator(should_clear_after_alloc=False)
        self._proc = proc
        self._batch = batch
        self._within = within
        self.zero_pfn = find_zero_pfn()
        self.frames_only = frames_only or source != "pagemap"
        self.source = choose_frame_source(source, proc.nr_resident() if source == "auto" else 0)
        self._fd = proc.open_pagemap()
        try:
            self.use_scan = self._has_scan() if use_scan is None else use_scan
            self._memory: MemoryMap | None = None
            self._borders: Borders | None = None
            if with_mappings:
                self._use_mappings(MemoryMap(proc, within=within))
        except BaseException:
            self.close()
            raise

    def _use_mappings(self, memory: MemoryMap) -> None:
        self._memory = memory
        # The ends are cuts, too: a mapping that appears after the end must not join the extent.
        # Each cut says whether what begins there may be a device mapping.
        borders: dict[int, bool] = {}
        for vma in memory.vmas:
            borders[vma.start] = _may_be_device(vma)
            borders[vma.end] = True
        self._borders = Borders(
            array("Q", borders), bytes(borders.values()), memory.areas(USER_END)
        )

    @property
    def memory(self) -> MemoryMap:
        """The mappings. They are read at the first use, if not before."""
        if self._memory is None:
            self._use_mappings(MemoryMap(self._proc, within=self._within))
        assert self._memory
        return self._memory

    @property
    def borders(self) -> Borders:
        """Where the mappings begin and end."""
        if self._borders is None:
            self._use_mappings(self.memory)
        assert self._borders
        return self._borders

    def refresh(self) -> bool:
        """Read the mappings again, and return whether they have changed.

        The open pagemap belongs to the old address space. After exec, reading it raises
        ProcessGone.
        """
        memory = MemoryMap(self._proc, self.memory, within=self._within)
        changed = memory.vmas != self.memory.vmas
        if changed:
            self._use_mappings(memory)
        return changed

    def _has_scan(self) -> bool:
        try:
            scan(self._fd, 0, PAGE_SIZE, PAGE_IS["present"])
        except OSError as error:
            if error.errno == errno.ENOTTY:
                return False
            if error.errno == errno.ESRCH:
                raise self._proc.gone() from None
            raise
        return True

    def iter_extents(
        self, start: int = 0, end: int | None = None, *, nr_threads: int | None = None
    ) -> Iterator[Extents]:
        """Read the extents of a range.

        Args:
            start: First address, page-aligned.
            end: First address after the range, page-aligned; None is the end of user space.
            nr_threads: The number of threads that read at once; None chooses it by the number of
                resident pages.

        Yields:
            Structured arrays of EXTENT_DTYPE, each of about BATCH extents at most, in address
            order.

        Raises:
            ProcessGone: The process ended, or ran another program, while it was read.
        """
        import numpy as np

        cuts = np.frombuffer(self.borders.cuts, dtype=np.uint64)
        batches = (
            np.frombuffer(self._ffi.buffer(extents, nr * ITEM_BYTES), dtype=EXTENT_DTYPE)
            for extents, nr in self.iter_batches(start, end, nr_threads=nr_threads)
        )
        return _join(batches, cuts, self.zero_pfn)

    def iter_batches(
        self, start: int = 0, end: int | None = None, *, nr_threads: int | None = None
    ) -> Iterator[Batch]:
        """Read the extents of a range as `iter_extents()` does, but without NumPy.

        An extent may be split between two batches.
        """
        return self.map_batches(lambda batch: batch, start, end, nr_threads=nr_threads)

    def map_batches(
        self,
        function: Callable[[Batch], T],
        start: int = 0,
        end: int | None = None,
        *,
        nr_threads: int | None = None,
        borders: Borders | None = None,
    ) -> Iterator[T]:
        """Call `function` for each batch, and yield the results in address order.

        Args:
            function: Called in the threads that read.
            start: First address, page-aligned.
            end: First address after the range, page-aligned; None is the end of user space.
            nr_threads: As in `iter_extents()`.
            borders: Where mappings begin and end; None takes all mappings as they were read.
        """
        borders = borders or self.borders
        ranges = [
            (max(low, start), min(high, USER_END if end is None else min(end, USER_END)))
            for low, high in borders.areas
            if high > start and low < (USER_END if end is None else end)
        ]
        if nr_threads is None:
            nr_threads = self.choose_nr_threads()
        if nr_threads > 1:
            return self._read_at_once(function, ranges, nr_threads, borders)
        # PAGEMAP_SCAN and BPF skip gaps; plain reading must not read them.
        if (self.use_scan or self.source == "bpf") and ranges:
            ranges = [(ranges[0][0], ranges[-1][1])]
        return (function(batch) for low, high in ranges for batch in self._read(low, high, borders))

    def choose_nr_threads(self) -> int:
        """Choose the number of threads that read at once, by the number of resident pages."""
        nr_resident = self._proc.nr_resident()
        if nr_resident < MIN_PAGES_FOR_THREADS:
            return 1
        return _ffi.nr_threads()

    def _read(self, start: int, end: int, borders: Borders) -> Iterator[Batch]:
        at = self._ffi.new("uint64_t *", start)
        with self._read_call(start, borders) as call:
            while at[0] < end:
                extents = self._allocate("struct pv_extent[]", self._batch)
                nr = call(at, end, extents)
                if nr == -errno.ESRCH:
                    raise self._proc.gone()
                _ffi.check(nr, f"{self._proc.path}/pagemap")
                if nr:
                    yield Batch(extents, nr)

    @contextlib.contextmanager
    def _read_call(self, start: int, borders: Borders) -> Iterator[Callable[[Any, int, Any], int]]:
        """Make a function that reads extents by one call of the core, from `start` on or later."""
        cuts = self._ffi.from_buffer("uint64_t[]", borders.cuts)
        nr, first = len(cuts), bisect.bisect_left(borders.cuts, start)
        how = self._lib.PV_USE_SCAN if self.use_scan else 0
        if self.frames_only:
            how |= self._lib.PV_COMMON_BITS
        fd, zero_pfn, room = self._fd, self.zero_pfn, self._batch
        if self.source == "bpf":
            from physview.sources import bpf

            scan_by_bpf = self._lib.pv_bpf_scan
            doubts = self._ffi.from_buffer("uint8_t[]", borders.doubts)
            with bpf.borrowed_program() as program:
                yield lambda at, end, extents: scan_by_bpf(
                    program, fd, how, at, end, cuts, doubts, nr, zero_pfn, extents, room
                )
        else:
            scan_pagemap = self._lib.pv_scan_extents
            ahead = cuts + first
            yield lambda at, end, extents: scan_pagemap(
                fd, PAGE_SHIFT, how, at, end, ahead, nr - first, zero_pfn, extents, room
            )

    def _read_at_once(
        self,
        function: Callable[[Batch], T],
        areas: list[tuple[int, int]],
        nr_threads: int,
        borders: Borders,
    ) -> Iterator[T]:
        """Read slices in several threads, ahead of the consumer; the core releases the GIL."""
        from concurrent.futures import ThreadPoolExecutor

        step = sum(high - low for low, high in areas) // MAX_SLICES
        step = max(SLICE_BYTES, step - step % PAGE_SIZE)
        slices = (
            (at, min(at + step, high)) for low, high in areas for at in range(low, high, step)
        )

        def read(low: int, high: int) -> tuple[list[T], int]:
            """Read up to MAX_BATCHES_AHEAD batches; return them and where to continue."""
            results = []
            for batch in self._read(low, high, borders):
                results.append(function(batch))
                if len(results) == MAX_BATCHES_AHEAD:
                    last = batch.extents[batch.nr - 1]
                    return results, int(last.vaddr + last.nr_pages * PAGE_SIZE)
            return results, high

        with ThreadPoolExecutor(nr_threads) as pool:
            ahead = deque(
                (high, pool.submit(read, low, high)) for low, high in islice(slices, 2 * nr_threads)
            )
            try:
                while ahead:
                    high, future = ahead.popleft()
                    results, at = future.result()
                    if at < high:
                        ahead.appendleft((high, pool.submit(read, at, high)))
                    else:
                        ahead.extend(
                            (end, pool.submit(read, low, end)) for low, end in islice(slices, 1)
                        )
                    yield from results
            finally:
                for _, future in ahead:
                    future.cancel()


def _may_be_device(vma: Vma) -> bool:
    return bool(vma.path) and not vma.path.startswith(ANONYMOUS)


def _join(
    batches: Iterable[Extents], cuts: npt.NDArray[np.uint64], zero_pfn: int
) -> Iterator[Extents]:
    """Merge an extent that was split between two batches."""
    held: Extents | None = None
    for batch in batches:
        if held is not None:
            if _continues(held[0], batch[0], cuts, zero_pfn):
                held["nr_pages"] += batch["nr_pages"][0]
                batch[:1] = held
            else:
                yield held
        if len(batch) > 1:
            yield batch[:-1]
        held = batch[-1:].copy()
    if held is not None:
        yield held


def _continues(one: Any, other: Any, cuts: npt.NDArray[np.uint64], zero_pfn: int) -> bool:
    """Whether `other` continues `one`, so that both are one extent."""
    import numpy as np

    vaddr, entry, nr_pages = (int(field) for field in one.item())
    next_vaddr, next_entry, _ = (int(field) for field in other.item())
    if vaddr + nr_pages * PAGE_SIZE != next_vaddr:
        return False
    step = step_of(entry, zero_pfn)
    if entry + nr_pages * step != next_entry or step != step_of(next_entry, zero_pfn):
        return False
    at = np.searchsorted(cuts, np.uint64(next_vaddr))
    return bool(at == len(cuts) or cuts[at] != next_vaddr)


@functools.cache
def find_zero_pfn() -> int:
    """Find the frame number of the zero page; 0 if frame numbers are hidden.

    A private page that is read before it is written is mapped to the zero page.
    """
    import mmap

    ffi, lib = _ffi.load()
    proc = ProcDir()
    fd = proc.open_pagemap()
    try:
        with mmap.mmap(-1, PAGE_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
            page[0]  # reading it maps the zero page
            entry = ffi.new("uint64_t *")
            with ffi.from_buffer(page) as anchor:
                vaddr = int(ffi.cast("uintptr_t", anchor))
                got = lib.pv_pagemap_read(fd, vaddr >> PAGE_SHIFT, 1, entry)
            _ffi.check(got, "/proc/self/pagemap")
            return int(entry[0]) & PM_PFRAME_MASK
    finally:
        os.close(fd)
        proc.close()
