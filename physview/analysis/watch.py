# SPDX-License-Identifier: GPL-2.0-or-later
"""A process's memory read again and again: what it has, and what became of it since the last time.

Nothing here draws. What is kept from one reading to the next is bounded: see MAX_KEPT.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from physview.analysis.changes import CHANGES, Change, iter_page_changes
from physview.analysis.page_counts import Ram, RamMap, Tally
from physview.files.descriptor import Closable
from physview.memory.extents import EXTENT_DTYPE, USER_END, ExtentReader
from physview.memory.rows import BASE_DTYPE, from_extents
from physview.model import PAGE_SIZE, Vma
from physview.sources.procfs import ProcDir

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from physview.memory.rows import Rows

    Extents = npt.NDArray[np.void]

MAX_KEPT = 1 << 21
"""How many extents are kept for comparison: 48 MiB. Each may be gigabytes, or one page: of 8 GiB in
which no two pages are in a row that is all."""

CHUNK = 1 << 16

GROUPS = {
    "new": (Change.APPEARED, Change.MAPPED),
    "gone": (Change.WENT, Change.UNMAPPED),
    "moved": (Change.MOVED, Change.COPIED, Change.REPLACED),
    "out": (Change.SWAPPED_OUT,),
    "in": (Change.SWAPPED_IN,),
}
"""The changes that a mapping is told of. Without flags of frames none is a split or a collapse."""


class Reading(NamedTuple):
    """A process at one moment; what belongs to a mapping is an int64 array in the order of `vmas`.

    Args:
        pid: Process id.
        name: Its comm.
        time: When, in seconds since 1970.
        seconds: Since the reading before; None for the first.
        vmas: The mappings, in address order.
        pages: What each mapping has, in pages: HAS. Zero pages are left out where they are known.
        changes: What became of each mapping's pages since the reading before, by GROUPS; None for
            the first reading, and "moved" is missing where frame numbers are hidden.
        counts: The same of the whole process, also of mappings that are gone, by Change; None for
            the first.
        nr_minor_faults: Page faults that the kernel counted since the process began.
        nr_major_faults: Those of them that read from a disk.
        new_faults: Both, since the reading before; None for the first.
        knows_frames: Whether frame numbers are shown.
        ram: Where in RAM it is; None where that is hidden.
        compared_to: First address beyond which nothing was kept to be compared; None: all was.
        cost_seconds: Processor time that the reading took of us.
    """

    pid: int
    name: str
    time: float
    seconds: float | None
    vmas: Sequence[Vma]
    pages: dict[str, npt.NDArray[np.int64]]
    changes: dict[str, npt.NDArray[np.int64]] | None
    counts: dict[Change, int] | None
    nr_minor_faults: int
    nr_major_faults: int
    new_faults: tuple[int, int] | None
    knows_frames: bool
    ram: RamMap | None
    compared_to: int | None
    cost_seconds: float


class Watcher(Closable):
    """Reads a process again and again. A context manager.

    Args:
        pid: Process id, or "self".
        max_kept: How many extents are kept to be compared.

    Raises:
        PhysviewError: As `Snapshot`.
    """

    def __init__(self, pid: int | str, *, max_kept: int = MAX_KEPT) -> None:
        self.proc = ProcDir(pid)
        try:
            self._reader = ExtentReader(self.proc)
        except BaseException:
            self.proc.close()
            raise
        self._max_kept = max_kept
        self._ram = Ram.find() if self._reader.zero_pfn else None
        self._spans = _spans(self._vmas())
        self._before: _Kept | None = None
        self._tally = Tally(self._spans, self._reader.zero_pfn, self._ram)
        self._last: Reading | None = None
        self._last_clock = 0.0

    def close(self) -> None:
        """Close the process's files. Closing twice is harmless."""
        self._reader.close()
        self.proc.close()

    def _vmas(self) -> list[Vma]:
        return [vma for vma in self._reader.memory.vmas if vma.start < USER_END]

    def read(self) -> Reading:
        """Read it once, and compare that with the time before.

        Raises:
            ProcessGone: The process ended or ran another program.
            PhysviewError: Its memory is no longer there, or ours to look into.
        """
        clock, began = time.monotonic(), time.process_time()
        if self._reader.refresh():
            self._spans = _spans(self._vmas())
        stat = self.proc.stat()
        if stat is None:
            raise self.proc.gone()
        vmas = self._before.vmas if self._before else []
        if not self._before or self._before.spans is not self._spans:
            vmas = self._vmas()
        kept, tally = self._read_pages(vmas)
        changes, counts = None, None
        if self._before:
            pair = different(self._before, kept)
            tally = self._follow(self._before, kept, pair, tally)
            changes, counts = self._compare(vmas, pair)
        else:
            tally.add(kept.extents)
        limits = [side.limit for side in (self._before, kept) if side and side.limit is not None]
        faults = (stat.nr_minor_faults, stat.nr_major_faults)
        last = self._last
        reading = Reading(
            pid=self.proc.pid,
            name=self.proc.comm(),
            time=time.time(),
            seconds=clock - self._last_clock if last else None,
            vmas=vmas,
            pages=tally.pages,
            changes=changes,
            counts=counts,
            nr_minor_faults=faults[0],
            nr_major_faults=faults[1],
            new_faults=(faults[0] - last.nr_minor_faults, faults[1] - last.nr_major_faults)
            if last
            else None,
            knows_frames=self._reader.zero_pfn != 0,
            ram=tally.ram_map(),
            compared_to=min(limits) if limits else None,
            cost_seconds=time.process_time() - began,
        )
        self._before, self._tally = kept, tally
        self._last, self._last_clock = reading, clock
        return reading

    def _read_pages(self, vmas: list[Vma]) -> tuple[_Kept, Tally]:
        """What there is now, as far as it is kept, and the tally of the rest."""
        import numpy as np

        tally = Tally(self._spans, self._reader.zero_pfn, self._ram)
        batches: list[Extents] = []
        nr_kept, limit = 0, None
        # One thread: it has to cost little, not to be done soon.
        for batch in self._reader.iter_extents(nr_threads=1):
            room = self._max_kept - nr_kept
            if limit is None and len(batch) > room:
                limit = int(batch["vaddr"][room])
            if limit is None or room:
                batches.append(batch[:room])
                nr_kept += len(batches[-1])
            if len(batch) > room:
                tally.add(batch[room:])
        extents = np.concatenate(batches) if batches else np.empty(0, dtype=EXTENT_DTYPE)
        return _Kept(vmas, self._spans, extents, self._reader.zero_pfn, limit), tally

    def _follow(self, before: _Kept, after: _Kept, pair: tuple[_Kept, _Kept], rest: Tally) -> Tally:
        """The tally of all: where it can be, of the one before and what differs."""
        if before.spans is after.spans and before.limit is None and after.limit is None:
            tally = self._tally.copy()
            tally.add(pair[0].extents, sign=-1)
            tally.add(pair[1].extents)
            return tally
        rest.add(after.extents)
        return rest

    def _compare(
        self, vmas: list[Vma], pair: tuple[_Kept, _Kept]
    ) -> tuple[dict[str, npt.NDArray[np.int64]], dict[Change, int]]:
        """What became of pages, of what is not alike: most extents of most processes are."""
        import numpy as np

        by_vma: dict[str, npt.NDArray[np.int64]] = {
            name: np.zeros(len(vmas), dtype=np.int64) for name in GROUPS
        }
        counts = np.zeros(len(CHANGES), dtype=np.int64)
        for changes in iter_page_changes(*pair):
            np.add.at(counts, changes["change"].astype(np.intp), changes["nr_pages"].astype(int))
            for name, members in GROUPS.items():
                indices = [CHANGES.index(change) for change in members]
                chosen = np.isin(changes["change"], indices) & (changes["vma_after"] >= 0)
                found = changes[chosen]
                np.add.at(by_vma[name], found["vma_after"], found["nr_pages"].astype(int))
        if not self._reader.zero_pfn:
            del by_vma["moved"]
        nrs = zip(CHANGES, counts.tolist(), strict=True)
        return by_vma, {change: nr for change, nr in nrs if nr and not change.same}


class _Kept:
    """The extents of one reading, up to a limit, as `changes.Pages`."""

    def __init__(
        self, vmas: list[Vma], spans: Any, extents: Extents, zero_pfn: int, limit: int | None
    ) -> None:
        self.vmas = vmas
        self.spans = spans
        self.extents = extents
        self.zero_pfn = zero_pfn
        self.limit = limit

    def of(self, extents: Extents) -> _Kept:
        """The same with these extents instead."""
        return _Kept(self.vmas, self.spans, extents, self.zero_pfn, self.limit)

    def iter_extents(self) -> Iterator[Rows]:
        """Yield rows; in pieces, for comparing takes many times their size."""
        for at in range(0, len(self.extents), CHUNK):
            rows = from_extents(self.extents[at : at + CHUNK], self.spans, BASE_DTYPE)
            if len(rows):
                yield rows


def different(before: _Kept, after: _Kept) -> tuple[_Kept, _Kept]:
    """Both without the extents that are the same in both, and without what only one of them kept.

    An extent that is partly the same stays in both, whole.
    """
    import numpy as np

    limits = [side.limit for side in (before, after) if side.limit is not None]
    one, other = before, after
    if limits:
        one, other = (side.of(_below(side.extents, min(limits))) for side in (before, after))
    if np.array_equal(one.extents.view(np.uint64), other.extents.view(np.uint64)):
        return one.of(one.extents[:0]), other.of(other.extents[:0])
    if not len(one.extents) or not len(other.extents):
        return one, other
    at = np.searchsorted(one.extents["vaddr"], other.extents["vaddr"])
    found = np.minimum(at, len(one.extents) - 1)
    same = np.ones(len(found), dtype=bool)
    for name, _ in EXTENT_DTYPE:
        same &= one.extents[name][found] == other.extents[name]
    left = np.ones(len(one.extents), dtype=bool)
    left[found[same]] = False
    return one.of(one.extents[left]), other.of(other.extents[~same])


def _below(extents: Extents, limit: int) -> Extents:
    """What of the extents lies below an address."""
    import numpy as np

    below: Extents = extents[: int(np.searchsorted(extents["vaddr"], np.uint64(limit)))].copy()
    if len(below):  # only the last can lie across it
        room = (limit - int(below["vaddr"][-1])) // PAGE_SIZE
        below["nr_pages"][-1] = min(int(below["nr_pages"][-1]), room)
    return below


def _spans(vmas: list[Vma]) -> npt.NDArray[np.uint64]:
    import numpy as np

    return np.array([vma[:2] for vma in vmas], dtype=np.uint64).reshape(-1, 2)
