# SPDX-License-Identifier: GPL-2.0-or-later
"""The first look of a comparison: all of a process, once from each witness, counted by the core."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from physview import _ffi
from physview.memory.extents import find_zero_pfn
from physview.model import PAGE_SHIFT, PAGE_SIZE
from physview.sources.kmod import WALK_EXTENT_DTYPE, Kmod
from physview.sources.pagemap import Pagemap
from physview.sources.procfs import ProcDir

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CHUNK_PAGES = 1 << 13


class Sieve:
    """Counts the pages on which the witnesses agree and lets the others through.

    Args:
        proc: The process.
        pagemap: One witness.
        kmod: The other.
    """

    def __init__(self, proc: ProcDir, pagemap: Pagemap, kmod: Kmod) -> None:
        import numpy as np

        ffi, self._lib = _ffi.load()
        self._proc = proc
        self._pagemap = pagemap
        self._kmod = kmod
        self._entries, self._left = np.empty((2, CHUNK_PAGES), dtype=np.uint64)
        self._extents = np.empty(CHUNK_PAGES, dtype=WALK_EXTENT_DTYPE)
        self._entries_buffer = ffi.from_buffer("uint64_t[]", self._entries)
        self._left_buffer = ffi.from_buffer("uint64_t[]", self._left, require_writable=True)
        self._extents_buffer = ffi.cast("struct physicalview_extent *", self._extents.ctypes.data)
        self._agreed = ffi.new("struct pv_agreed[]", self._lib.PV_NR_AGREED)
        self._zero_pfn = find_zero_pfn()

    @property
    def nr_agreed(self) -> int:
        """How many pages agreed so far."""
        return sum(agreed.nr for agreed in self._agreed)

    def agreed(self) -> list[tuple[int, list[int]]]:
        """What agreed: how many pages, and the addresses of the first few.

        Returns:
            The same for frames, for the zero page and for swap entries.
        """
        return [(agreed.nr, list(agreed.first)[: agreed.nr]) for agreed in self._agreed]

    def iter_left(self, start: int, end: int) -> Iterator[npt.NDArray[np.uint64]]:
        """Compare pages in a row, chunk by chunk.

        Args:
            start: First address, page-aligned.
            end: First address after the range, page-aligned, a user address.

        Yields:
            Addresses of the pages that are left over, uint64, shape (n,).

        Raises:
            ProcessGone: The process has ended, or runs another program.
        """
        while start < end:
            stop = min(start + CHUNK_PAGES * PAGE_SIZE, end)
            nr_extents, stop = self._kmod.read_extents(start, stop, self._extents)
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
                # Nothing in either: go on where one of them has the next page.
                stop = min(
                    self._pagemap.next_populated(stop, end),
                    self._kmod.next_populated(stop, end),
                )
            start = stop
