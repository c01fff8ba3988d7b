# SPDX-License-Identifier: GPL-2.0-or-later
"""A process's memory as extents: pages in a row in both address spaces, found by the core.

Source: fs/proc/task_mmu.c, Documentation/admin-guide/mm/pagemap.rst
"""

from __future__ import annotations

import bisect
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
from physview.model import PAGE_SHIFT, PAGE_SIZE
from physview.sources.pagemap import PAGE_IS, scan
from physview.sources.procfs import MemoryMap, ProcDir

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Extents = npt.NDArray[np.void]

T = TypeVar("T")

EXTENT_DTYPE = [("vaddr", "u8"), ("entry", "u8"), ("nr_pages", "u8")]
"""vaddr: of the first page. entry: pagemap's of the first page. nr_pages: pages in a row."""

ITEM_BYTES = 24

# Above is the kernel; of its half only [vsyscall] is in a process's maps, which pagemap has not.
USER_END = 1 << 63
BATCH = 1 << 14
# A thread costs more than it brings below a few milliseconds of reading.
SLICE_BYTES = 1 << 29
MAX_SLICES = 512
MAX_BATCHES_AHEAD = 8
MIN_PAGES_FOR_THREADS = 1 << 17


class Batch(NamedTuple):
    """Extents as the core gave them.

    Args:
        extents: `struct pv_extent *`, csrc/cdef.h.
        nr: How many there are.
    """

    extents: Any
    nr: int


class ExtentReader(Descriptor):
    """Reads the extents of a process.

    Every page and every swap entry is in one, in address order; no extent lies in two mappings.
    Frames follow each other in an extent, and so do swap slots; zero pages, pages whose frames are
    hidden, guards and markers are alike instead. The process runs on meanwhile: what is read of
    one page was true at one moment, of two at two.

    Args:
        proc: The process.
        use_scan: Whether to find the pages with PAGEMAP_SCAN (Linux 6.7); None does where there
            is one. Without it the cost grows with what is mapped, not with what is there.
        batch: How many extents the core gives at a time.

    Raises:
        PhysviewError: The process is gone or not ours.
        CoreUnavailable: The core is not built.
    """

    def __init__(self, proc: ProcDir, *, use_scan: bool | None = None, batch: int = BATCH) -> None:
        self._ffi, self._lib = _ffi.load()
        self._allocate = self._ffi.new_allocator(should_clear_after_alloc=False)
        self._proc = proc
        self._batch = batch
        self.zero_pfn = find_zero_pfn()
        self._fd = proc.open_pagemap()
        try:
            self.use_scan = self._has_scan() if use_scan is None else use_scan
            self._take(MemoryMap(proc))
        except BaseException:
            self.close()
            raise

    def _take(self, memory: MemoryMap) -> None:
        self.memory = memory
        # At their ends, too: what was mapped behind one meanwhile is not in it.
        borders = {border for vma in memory.vmas for border in vma[:2]}
        self._cuts = array("Q", sorted(borders))

    def refresh(self) -> bool:
        """Read the mappings again; return whether they are others than before.

        The pagemap stays that of the address space that there was: after exec it is gone.
        """
        memory = MemoryMap(self._proc, self.memory)
        changed = memory.vmas != self.memory.vmas
        if changed:
            self._take(memory)
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
        """Read what is mapped in a range.

        Args:
            start: First address, page-aligned.
            end: First address after the range, page-aligned; None is the end of user memory.
            nr_threads: How many read at once; None chooses by how much is resident.

        Yields:
            Structured arrays of EXTENT_DTYPE, of up to BATCH and some extents, in address order.

        Raises:
            ProcessGone: The process ended or ran another program meanwhile.
        """
        import numpy as np

        cuts = np.frombuffer(self._cuts, dtype=np.uint64)
        batches = (
            np.frombuffer(self._ffi.buffer(extents, nr * ITEM_BYTES), dtype=EXTENT_DTYPE)
            for extents, nr in self.iter_batches(start, end, nr_threads=nr_threads)
        )
        return _join(batches, cuts, self.zero_pfn)

    def iter_batches(
        self, start: int = 0, end: int | None = None, *, nr_threads: int | None = None
    ) -> Iterator[Batch]:
        """As `iter_extents()`, without NumPy.

        An extent may end with one batch and go on with the next.
        """
        return self.map_batches(lambda batch: batch, start, end, nr_threads=nr_threads)

    def map_batches(
        self,
        function: Callable[[Batch], T],
        start: int = 0,
        end: int | None = None,
        *,
        nr_threads: int | None = None,
    ) -> Iterator[T]:
        """What `function` makes of each batch, in address order; the threads that read run it."""
        ranges = self._areas(start, USER_END if end is None else min(end, USER_END))
        if nr_threads is None:
            nr_threads = self._choose_nr_threads()
        if nr_threads > 1:
            return self._read_at_once(function, ranges, nr_threads)
        if self.use_scan and ranges:  # it jumps over what is not mapped; plain reading must not
            ranges = [(ranges[0][0], ranges[-1][1])]
        return (function(batch) for low, high in ranges for batch in self._read(low, high))

    def _areas(self, start: int, end: int) -> list[tuple[int, int]]:
        return [
            (max(low, start), min(high, end))
            for low, high in self.memory.areas(end)
            if high > start
        ]

    def _choose_nr_threads(self) -> int:
        nr_resident = self._proc.nr_resident()
        if nr_resident < MIN_PAGES_FOR_THREADS:
            return 1
        return _ffi.nr_threads()

    def _read(self, start: int, end: int) -> Iterator[Batch]:
        at = self._ffi.new("uint64_t *", start)
        first_cut = bisect.bisect_left(self._cuts, start)
        cuts = self._ffi.from_buffer("uint64_t[]", self._cuts)
        while at[0] < end:
            extents = self._allocate("struct pv_extent[]", self._batch)
            nr = self._lib.pv_scan_extents(
                self._fd,
                PAGE_SHIFT,
                self.use_scan,
                at,
                end,
                cuts + first_cut,
                len(cuts) - first_cut,
                self.zero_pfn,
                extents,
                self._batch,
            )
            if nr == -errno.ESRCH:
                raise self._proc.gone()
            _ffi.check(nr, f"{self._proc.path}/pagemap")
            if nr:
                yield Batch(extents, nr)

    def _read_at_once(
        self, function: Callable[[Batch], T], areas: list[tuple[int, int]], nr_threads: int
    ) -> Iterator[T]:
        """Threads read slices ahead of who asks for them; the core lets go of the GIL."""
        from concurrent.futures import ThreadPoolExecutor

        step = sum(high - low for low, high in areas) // MAX_SLICES
        step = max(SLICE_BYTES, step - step % PAGE_SIZE)
        slices = (
            (at, min(at + step, high)) for low, high in areas for at in range(low, high, step)
        )

        def read(low: int, high: int) -> tuple[list[T], int]:
            """What fits, and where to go on."""
            results = []
            for batch in self._read(low, high):
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


def _join(
    batches: Iterable[Extents], cuts: npt.NDArray[np.uint64], zero_pfn: int
) -> Iterator[Extents]:
    """Make one of what ends one batch and goes on in the next."""
    held: Extents | None = None
    for batch in batches:
        if held is not None:
            if _goes_on(held[0], batch[0], cuts, zero_pfn):
                held["nr_pages"] += batch["nr_pages"][0]
                batch[:1] = held
            else:
                yield held
        if len(batch) > 1:
            yield batch[:-1]
        held = batch[-1:].copy()
    if held is not None:
        yield held


def _goes_on(one: Any, other: Any, cuts: npt.NDArray[np.uint64], zero_pfn: int) -> bool:
    """Whether two extents are one."""
    import numpy as np

    vaddr, entry, nr_pages = (int(field) for field in one.item())
    next_vaddr, next_entry, _ = (int(field) for field in other.item())
    if vaddr + nr_pages * PAGE_SIZE != next_vaddr:
        return False
    if entry + nr_pages * step_of(entry, zero_pfn) != next_entry:
        return False
    at = np.searchsorted(cuts, np.uint64(next_vaddr))
    return bool(at == len(cuts) or cuts[at] != next_vaddr)


@functools.cache
def find_zero_pfn() -> int:
    """The zero page's frame number: a page that was read but never written. 0 if it is hidden."""
    import mmap

    ffi, lib = _ffi.load()
    proc = ProcDir()
    fd = proc.open_pagemap()
    try:
        with mmap.mmap(-1, PAGE_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
            page[0]  # maps it
            entry = ffi.new("uint64_t *")
            with ffi.from_buffer(page) as anchor:
                vaddr = int(ffi.cast("uintptr_t", anchor))
                got = lib.pv_pagemap_read(fd, vaddr >> PAGE_SHIFT, 1, entry)
            _ffi.check(got, "/proc/self/pagemap")
            return int(entry[0]) & PM_PFRAME_MASK
    finally:
        os.close(fd)
        proc.close()
