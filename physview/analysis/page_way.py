# SPDX-License-Identifier: GPL-2.0-or-later
"""What the ways to find used pages have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from physview.analysis.page_uses import Uses
from physview.files.descriptor import Closable
from physview.model import PAGE_SIZE
from physview.sources.procfs import ProcDir

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_PAGES_AT_ONCE = 1 << 20

CHANGES_NOTHING = "nothing of the process is changed"


class PageWay(Closable):
    """A way that tells single pages.

    Args:
        proc: The process.
        clears: Whether it may clear bits of the process.
    """

    name: str
    source = ""
    knows_reads = True
    """Whether a page that was only read counts; if not, touched means written."""
    knows_writes = True
    influence = CHANGES_NOTHING
    limits: tuple[str, ...] = ()

    def __init__(self, proc: ProcDir, *, clears: bool) -> None:
        self.proc = proc
        self.clears = clears

    def close(self) -> None:
        """Close what is open: nothing, unless a subclass says more."""

    def begin(self) -> None:
        """Begin an interval.

        Raises:
            PhysviewError: The process is gone, or this user may not.
        """
        raise NotImplementedError

    def end(self) -> Uses:
        """End it. Raises as `begin()`."""
        raise NotImplementedError


def expand(
    extents: npt.NDArray[Any],
) -> Iterator[tuple[npt.NDArray[np.uint64], npt.NDArray[np.intp]]]:
    """Yield the address of each page of extents, and the index of its extent, in bounded pieces."""
    import numpy as np

    ends = np.cumsum(extents["nr_pages"].astype(np.int64))
    total = int(ends[-1]) if len(ends) else 0
    for first in range(0, total, _PAGES_AT_ONCE):
        pages = np.arange(first, min(total, first + _PAGES_AT_ONCE))
        of = np.searchsorted(ends, pages, side="right")
        within = pages - (ends[of] - extents["nr_pages"][of].astype(np.int64))
        yield extents["vaddr"][of] + within.astype(np.uint64) * np.uint64(PAGE_SIZE), of
