# SPDX-License-Identifier: GPL-2.0-or-later
"""The idle bitmap as a way to find the frames of a process that nobody used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from physview.analysis.page_uses import Uses, compare, count_bits
from physview.analysis.page_way import PageWay, expand
from physview.analysis.touched_ways import NO_FLUSH
from physview.memory.extents import ExtentReader
from physview.model import PAGE_SHIFT, PM_PRESENT
from physview.sources.idle_bitmap import IdleBitmap
from physview.sources.page_bits import blocks_of, join_blocks, set_bits
from physview.sources.procfs import ProcDir

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_PFN_MASK = (1 << 55) - 1


class Idle(PageWay):
    """The idle bitmap: which frames of the process nobody used.

    Raises:
        As `IdleBitmap`.
    """

    name = "idle"
    source = "idle bitmap"
    knows_writes = False
    influence = (
        "the idle bits of the frames were set, which clears the accessed bits of all processes that"
        " map them, and makes other readers of the idle bitmap begin anew; reclaim is not misled"
    )
    limits = (
        "a frame counts when anybody used it, also another process or a read() of the file",
        NO_FLUSH,
        "a folio has one bit for all of its pages; pages that are not on the lists of reclaim, such"
        " as those of hugetlbfs, are not known",
    )

    def __init__(self, proc: ProcDir) -> None:
        super().__init__(proc, clears=True)
        self._bitmap = IdleBitmap()
        self._marked: list[npt.NDArray[Any]] = []
        self._without_bit: npt.NDArray[np.uint64]

    def close(self) -> None:
        """Close the bitmap. Closing twice is harmless."""
        self._bitmap.close()

    def _extents(self) -> Iterator[npt.NDArray[Any]]:
        import numpy as np

        with ExtentReader(self.proc, source="pagemap", frames_only=True) as reader:
            for extents in reader.iter_extents():
                pfns = extents["entry"] & np.uint64(_PFN_MASK)
                has_frame = (extents["entry"] & np.uint64(PM_PRESENT) != 0) & (pfns != 0)
                if reader.zero_pfn:
                    has_frame &= pfns != np.uint64(reader.zero_pfn)
                yield extents[has_frame]

    def begin(self) -> None:
        """See `PageWay.begin()`."""
        import numpy as np

        self._marked = [extents.copy() for extents in self._extents()]
        without = [np.empty(0, dtype=np.uint64)]
        for extents in self._marked:
            for vaddrs, of in expand(extents):
                heads, tells = self._bitmap.heads(_frames(extents, vaddrs, of))
                self._bitmap.mark(np.unique(heads[tells]))
                without.append(vaddrs[~tells])
        # New pages wait a moment before they come to the lists of reclaim, and get a bit there.
        self._without_bit = np.concatenate(without)

    def end(self) -> Uses:
        """See `PageWay.end()`."""
        import numpy as np

        old = np.concatenate(self._marked) if self._marked else np.empty(0, dtype=[("vaddr", "u8")])
        befores, afters = [], []
        for extents in self._extents():
            for vaddrs, of in expand(extents):
                pfns = _frames(extents, vaddrs, of)
                heads, tells = self._bitmap.heads(pfns)
                was_there, was_pfn = _look_up(old, vaddrs)
                tells &= ~was_there | (was_pfn == pfns)  # a page that moved has another bit
                tells &= ~np.isin(vaddrs, self._without_bit, assume_unique=True)
                used = ~self._bitmap.read(heads)
                before, after = blocks_of(vaddrs), blocks_of(vaddrs)
                set_bits(before, "present", vaddrs, was_there)
                set_bits(before, "accessed", vaddrs, was_there & ~tells)  # so: not known
                set_bits(after, "present", vaddrs)
                set_bits(after, "accessed", vaddrs, ~tells | used | ~was_there)
                befores.append(before)
                afters.append(after)
        uses = compare(join_blocks(befores), join_blocks(afters), cleared=False)
        nr_old = int(old["nr_pages"].sum()) if len(old) else 0
        still = sum(int(count_bits(before["present"]).sum()) for before in befores)
        return uses._replace(gone=max(nr_old - still, 0))


def _frames(
    extents: npt.NDArray[Any], vaddrs: npt.NDArray[np.uint64], of: npt.NDArray[np.intp]
) -> npt.NDArray[np.uint64]:
    """The frame of each page of extents."""
    import numpy as np

    first = extents["entry"][of] & np.uint64(_PFN_MASK)
    frames: npt.NDArray[np.uint64] = first + (
        (vaddrs - extents["vaddr"][of]) >> np.uint64(PAGE_SHIFT)
    )
    return frames


def _look_up(
    extents: npt.NDArray[Any], vaddrs: npt.NDArray[np.uint64]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.uint64]]:
    """Whether extents have each page, and its frame."""
    import numpy as np

    if not len(extents):
        return np.zeros(len(vaddrs), dtype=np.bool_), np.zeros(len(vaddrs), dtype=np.uint64)
    at = np.maximum(np.searchsorted(extents["vaddr"], vaddrs, side="right") - 1, 0)
    within = (vaddrs - extents["vaddr"][at]) >> np.uint64(PAGE_SHIFT)
    there = (extents["vaddr"][at] <= vaddrs) & (within < extents["nr_pages"][at])
    return there, (extents["entry"][at] & np.uint64(_PFN_MASK)) + within
