# SPDX-License-Identifier: GPL-2.0-or-later
"""The first pass of a comparison: reads all pages once from each source.

The core counts the pages on which all sources agree. Only the other pages need a closer look.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from physview import _ffi
from physview.memory.extents import find_zero_pfn
from physview.model import PAGE_SHIFT, PAGE_SIZE, PM_PRESENT, PM_SWAP
from physview.sources.page_tables import WALK_EXTENT_DTYPE, PageTables
from physview.sources.pagemap import Pagemap
from physview.sources.procfs import ProcDir

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CHUNK_PAGES = 1 << 13


class AgreementPass:
    """Counts the pages on which all sources agree, and yields the other pages.

    Args:
        proc: The process.
        pagemap: One source.
        walkers: The others: one or two.
    """

    def __init__(self, proc: ProcDir, pagemap: Pagemap, walkers: list[PageTables]) -> None:
        import numpy as np

        ffi, self._lib = _ffi.load()
        self._proc = proc
        self._pagemap = pagemap
        self._walkers = walkers
        self._entries, self._left = np.empty((2, CHUNK_PAGES), dtype=np.uint64)
        self._extents = [np.empty(CHUNK_PAGES, dtype=WALK_EXTENT_DTYPE) for _ in walkers]
        self._entries_buffer = ffi.from_buffer("uint64_t[]", self._entries)
        self._left_buffer = ffi.from_buffer("uint64_t[]", self._left, require_writable=True)
        self._extents_buffers = [
            ffi.cast("struct physicalview_extent *", extents.ctypes.data)
            for extents in self._extents
        ]
        self._agreed, self._agreed_before = (
            ffi.new("struct pv_agreed[]", self._lib.PV_NR_AGREED) for _ in range(2)
        )
        self._zero_pfn = find_zero_pfn()

    @property
    def nr_agreed(self) -> int:
        """Number of pages on which the sources agreed so far."""
        return sum(agreed.nr for agreed in self._agreed)

    def agreed(self) -> list[tuple[int, list[int]]]:
        """Return the pages on which the sources agreed.

        Returns:
            Three pairs, for frames, for the zero page and for swap entries: the number of pages,
            and the addresses of the first few.
        """
        return [(agreed.nr, list(agreed.first)[: agreed.nr]) for agreed in self._agreed]

    def iter_left(self, start: int, end: int) -> Iterator[npt.NDArray[np.uint64]]:
        """Compare the pages of a range, chunk by chunk.

        Args:
            start: First address, page-aligned.
            end: First address after the range, page-aligned, a user address.

        Yields:
            Addresses of the pages on which the sources differ: uint64 array, shape (n,).

        Raises:
            ProcessGone: The process has ended, or runs another program.
        """
        while start < end:
            stop = min(start + CHUNK_PAGES * PAGE_SIZE, end)
            nrs = []
            for walker, extents in zip(self._walkers, self._extents, strict=True):
                nr_extents, stop = walker.read_extents(start, stop, extents)
                nrs.append(nr_extents)
            nrs = [_cut(extents[:nr], stop) for extents, nr in zip(self._extents, nrs, strict=True)]
            entries = self._entries[: (stop - start) >> PAGE_SHIFT]
            if self._pagemap.read(start, entries) < len(entries):
                raise self._proc.gone()
            nr_left = self._leave(start, len(entries), nrs)
            yield self._left[:nr_left].copy()
            if not any(nrs) and not nr_left:
                # No source has a page here: continue at the next page that one of them has.
                nexts = [walker.next_populated(stop, end) for walker in self._walkers]
                stop = min(self._pagemap.next_populated(stop, end), *nexts)
            start = stop

    def _leave(self, start: int, nr_pages: int, nrs: list[int]) -> int:
        """Write the addresses of the pages on which the sources differ into `_left`.

        Args:
            start: The first page's address.
            nr_pages: So many have been read.
            nrs: The number of extents that each walk found.

        Returns:
            The number of these addresses.
        """
        import numpy as np

        nr_left = 0
        for walk, nr_extents in enumerate(nrs):
            if nr_left:
                # On these pages an earlier walk differs. No page is present and in swap at once, so
                # with this entry the next walk differs, too, and nobody counts them as agreed.
                left = (self._left[:nr_left] - np.uint64(start)) >> np.uint64(PAGE_SHIFT)
                self._entries[left] = PM_PRESENT | PM_SWAP
            is_last = walk == len(nrs) - 1
            nr_left = self._lib.pv_agree(
                PAGE_SHIFT,
                start,
                nr_pages,
                self._entries_buffer,
                self._extents_buffers[walk],
                nr_extents,
                self._zero_pfn,
                self._agreed if is_last else self._agreed_before,
                self._left_buffer,
            )
        return nr_left


def _cut(extents: npt.NDArray[Any], end: int) -> int:
    """Cut extents off at an address: the one that crosses it is shortened.

    Returns:
        The number of extents that are left.
    """
    import numpy as np

    nr = int(np.searchsorted(extents["vaddr"], np.uint64(end)))
    if nr:
        last = extents[nr - 1]
        last["length"] = min(int(last["length"]), end - int(last["vaddr"]))
    return nr
