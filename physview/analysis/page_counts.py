# SPDX-License-Identifier: GPL-2.0-or-later
"""Counts the pages of mappings and their places in RAM, from extents that come and go."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from physview.entry_rules import is_swapped
from physview.errors import PhysviewError
from physview.memory.rows import split_at
from physview.model import PM_FILE, PM_MMAP_EXCLUSIVE, PM_PFRAME_MASK, PM_PRESENT
from physview.sources.ram import ram_ranges, read_resources

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Extents = npt.NDArray[np.void]

COUNTED = ("resident", "swapped", "exclusive", "file")
"""Names of the properties by which the pages of a mapping are counted."""

MAX_CELLS = 8192
"""Maximum number of cells into which RAM is divided. A smaller drawing merges cells."""

# Number of extents that are counted at once. malloc() returns arrays of more than 128 KiB to the
# kernel and faults them in again each time, which took three times as long.
PIECE = 1 << 13


class RamMap(NamedTuple):
    """A process's frames in each part of RAM.

    Args:
        frames: int64 array, shape (n,): number of the process's frames in each cell, in the order
            of physical addresses.
        cell_frames: Number of frames in a cell; the last cell may have fewer.
        nr_frames: Number of frames in RAM. Holes between ranges of RAM are left out.
        nr_elsewhere: Number of the process's frames that are not in RAM but in devices.
    """

    frames: npt.NDArray[np.int64]
    cell_frames: int
    nr_frames: int
    nr_elsewhere: int


class RamRanges:
    """The ranges of RAM, numbered through as if there were no holes between them.

    Each frame has a place: the number of frames of RAM below it. The places are divided into cells
    of equal size.

    Args:
        ranges: (first frame, first frame after it) of each range, in ascending order.
    """

    def __init__(self, ranges: list[tuple[int, int]]) -> None:
        import numpy as np

        self.firsts = np.array([first for first, _ in ranges], dtype=np.int64)
        self.ends = np.array([end for _, end in ranges], dtype=np.int64)
        sizes = self.ends - self.firsts
        self.places = np.cumsum(sizes) - sizes
        self.nr_frames = int(sizes.sum())
        self.cell_frames = -(-self.nr_frames // MAX_CELLS)

    @classmethod
    def find(cls) -> RamRanges | None:
        """Read the ranges from /proc/iomem; None if the kernel hides them."""
        try:
            return cls(ram_ranges(read_resources()))
        except (PhysviewError, OSError):
            return None


class PageCounts:
    """Page counts of mappings, and places in RAM. Extents can be added and subtracted.

    Args:
        spans: uint64 array, shape (n, 2): start and end of the mappings, in address order.
        zero_pfn: The zero page's frame; 0 if frame numbers are hidden.
        ram: The ranges of RAM, or None if they are hidden.
    """

    def __init__(self, spans: npt.NDArray[np.uint64], zero_pfn: int, ram: RamRanges | None) -> None:
        import numpy as np

        self.pages: dict[str, npt.NDArray[np.int64]] = {
            name: np.zeros(len(spans), dtype=np.int64) for name in COUNTED
        }
        self._spans = spans
        self._zero_pfn = zero_pfn
        self._ram = ram
        if ram:
            self._frames = np.zeros(-(-ram.nr_frames // ram.cell_frames), dtype=np.int64)
        self._nr_elsewhere = 0

    def copy(self) -> PageCounts:
        """Return an independent copy."""
        copied = PageCounts(self._spans, self._zero_pfn, self._ram)
        copied.pages = {name: nr.copy() for name, nr in self.pages.items()}
        if self._ram:
            copied._frames = self._frames.copy()
        copied._nr_elsewhere = self._nr_elsewhere
        return copied

    def ram_map(self) -> RamMap | None:
        """Return the places in RAM; None if the ranges of RAM are hidden."""
        ram = self._ram
        if ram is None:
            return None
        return RamMap(self._frames, ram.cell_frames, ram.nr_frames, self._nr_elsewhere)

    def add(self, extents: Extents, *, sign: int = 1) -> None:
        """Add extents.

        Args:
            extents: Structured array of `extents.EXTENT_DTYPE`.
            sign: 1 adds the extents, -1 subtracts them.
        """
        for at in range(0, len(extents), PIECE):
            piece = extents[at : at + PIECE]
            self._add_pages(piece, sign)
            if self._ram:
                self._add_frames(piece, sign, self._ram)

    def _add_pages(self, batch: Extents, sign: int) -> None:
        """Count the pages of each mapping, as differences of running sums.

        This works because no extent lies in two mappings.
        """
        import numpy as np

        lows = np.searchsorted(batch["vaddr"], self._spans[:, 0])
        highs = np.searchsorted(batch["vaddr"], self._spans[:, 1])
        at = np.flatnonzero(highs > lows)
        # Copies: a column of a structured array is not contiguous, and it is read several times.
        entry, nr = batch["entry"].copy(), batch["nr_pages"].astype(np.int64)
        value = entry & np.uint64(PM_PFRAME_MASK)
        present = entry & np.uint64(PM_PRESENT) != 0
        if self._zero_pfn:
            present &= value != np.uint64(self._zero_pfn)
        of_each = {
            "resident": present,
            "swapped": is_swapped(entry),
            "exclusive": present & (entry & np.uint64(PM_MMAP_EXCLUSIVE) != 0),
            "file": present & (entry & np.uint64(PM_FILE) != 0),
        }
        for name, chosen in of_each.items():
            if not chosen.any():
                continue
            sums = np.concatenate([[0], np.cumsum(np.where(chosen, nr, 0))])
            self.pages[name][at] += sign * (sums[highs[at]] - sums[lows[at]])

    def _add_frames(self, batch: Extents, sign: int, ram: RamRanges) -> None:
        import numpy as np

        entry = batch["entry"].copy()
        pfn, nr = (entry & np.uint64(PM_PFRAME_MASK)).view(np.int64), batch["nr_pages"]
        chosen = entry & np.uint64(PM_PRESENT) != 0
        chosen &= (pfn != 0) & (pfn != self._zero_pfn)
        if not chosen.all():
            pfn, nr = pfn[chosen], nr[chosen]
        nr = nr.astype(np.int64)
        within = np.searchsorted(ram.firsts, pfn, side="right") - 1
        inside = (within >= 0) & (pfn < ram.ends[within])
        if not inside.all():
            self._nr_elsewhere += sign * int(nr[~inside].sum())
            pfn, nr, within = pfn[inside], nr[inside], within[inside]
        place = pfn - ram.firsts[within] + ram.places[within]
        cell = place // ram.cell_frames
        nr_cells = (place + nr - 1) // ram.cell_frames - cell + 1
        if (nr_cells > 1).any():
            _, place, nr = split_at(place, nr, ram.cell_frames)
            cell = place // ram.cell_frames
        room = len(self._frames)
        # No extent should cross the end of a range of RAM. If one does, stay within the map.
        cell = np.minimum(cell, room - 1)
        self._frames += sign * np.bincount(cell, weights=nr, minlength=room).astype(np.int64)
