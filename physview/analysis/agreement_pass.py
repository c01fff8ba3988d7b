# SPDX-License-Identifier: GPL-2.0-or-later
"""The first pass of a comparison: reads all pages once from both sources.

The core counts the pages on which the sources agree. Only the other pages need a closer look.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from physview import _ffi
from physview.memory.extents import find_zero_pfn
from physview.model import PAGE_SHIFT, PAGE_SIZE
from physview.sources.page_tables import WALK_EXTENT_DTYPE, PageTables
from physview.sources.pagemap import Pagemap
from physview.sources.procfs import ProcDir

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CHUNK_PAGES = 1 << 13


class AgreementPass:
    """Counts the pages on which two sources agree, and yields the other pages.

    Args:
        proc: The process.
        pagemap: One source.
        walker: The other source.
    """

    def __init__(self, proc: ProcDir, pagemap: Pagemap, walker: PageTables) -> None:
        import numpy as np

        ffi, self._lib = _ffi.load()
        self._proc = proc
        self._pagemap = pagemap
        self._walker = walker
        self._entries, self._left = np.empty((2, CHUNK_PAGES), dtype=np.uint64)
        self._extents = np.empty(CHUNK_PAGES, dtype=WALK_EXTENT_DTYPE)
        self._entries_buffer = ffi.from_buffer("uint64_t[]", self._entries)
        self._left_buffer = ffi.from_buffer("uint64_t[]", self._left, require_writable=True)
        self._extents_buffer = ffi.cast("struct physicalview_extent *", self._extents.ctypes.data)
        self._agreed = ffi.new("struct pv_agreed[]", self._lib.PV_NR_AGREED)
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
            nr_extents, stop = self._walker.read_extents(start, stop, self._extents)
            nr_pages = (stop - start) >> PAGE_SHIFT
            if self._pagemap.read(start, self._entries[:nr_pages]) < nr_pages:
                raise self._proc.gone()
            nr_left = self._lib.pv_agree(
                PAGE_SHIFT,
                start,
                nr_pages,
                self._entries_buffer,
                self._extents_buffer,
                nr_extents,
                self._zero_pfn,
                self._agreed,
                self._left_buffer,
            )
            yield self._left[:nr_left].copy()
            if not nr_extents and not nr_left:
                # Neither source has a page here: continue at the next page that one of them has.
                stop = min(
                    self._pagemap.next_populated(stop, end),
                    self._walker.next_populated(stop, end),
                )
            start = stop
