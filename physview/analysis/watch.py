# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads a process's memory again and again, and finds the changes since the previous reading.

Nothing here draws. Memory that is kept from one reading to the next is bounded by MAX_KEPT.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from physview.analysis.changes import CHANGES, Change, iter_page_changes
from physview.analysis.page_counts import PageCounts, RamMap, RamRanges
from physview.files.descriptor import Closable
from physview.memory.extents import EXTENT_DTYPE, USER_END, ExtentReader
from physview.memory.rows import BASE_DTYPE, from_extents
from physview.model import PAGE_SIZE, PM_SOFT_DIRTY, Vma
from physview.sources import soft_dirty
from physview.sources.procfs import ProcDir

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from physview.memory.rows import Rows

    Extents = npt.NDArray[np.void]

MAX_KEPT = 1 << 21
"""Number of extents that are kept for comparison; they take 48 MiB.

An extent may be gigabytes, or a single page. If no two pages are contiguous, this is enough for
8 GiB.
"""

CHUNK = 1 << 16

GROUPS = {
    "new": (Change.APPEARED, Change.MAPPED),
    "gone": (Change.WENT, Change.UNMAPPED),
    "moved": (Change.MOVED, Change.COPIED, Change.REPLACED),
    "written": (Change.WRITTEN,),
    "out": (Change.SWAPPED_OUT,),
    "in": (Change.SWAPPED_IN,),
}
"""The changes that are counted for each mapping, by group.

Splits and collapses are missing, because a reading has no flags of frames.
"""


class Reading(NamedTuple):
    """A process's memory at one moment.

    Values of mappings are int64 arrays of shape (n,), in the order of `vmas`. "Previous" means the
    reading before this one.

    Args:
        pid: Process id.
        name: The process's comm.
        time: Time of the reading, in seconds since 1970.
        seconds: Seconds since the previous reading; None for the first reading.
        vmas: The mappings, in address order.
        pages: Pages of each mapping by `page_counts.COUNTED`. Zero pages are left out if frame
            numbers are shown.
        changes: Changed pages of each mapping since the previous reading, by GROUPS. None for the
            first reading. "moved" is missing if frame numbers are hidden, "written" if writes are
            not tracked.
        counts: Pages of the whole process per Change since the previous reading, including
            mappings that are gone. None for the first reading.
        nr_minor_faults: Minor page faults of the process since its start, as the kernel counts.
        nr_major_faults: Major page faults, which read from a disk, since its start.
        new_faults: Minor and major faults since the previous reading; None for the first reading.
        knows_frames: Whether frame numbers are shown.
        tracks_writes: Whether pages that were written in place are known.
        ram: Places of the process's frames in RAM; None if they are hidden.
        compared_to: Address up to which pages were kept and compared; None if all were.
        cost_seconds: Processor time that physview needed for the reading.
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
    tracks_writes: bool
    ram: RamMap | None
    compared_to: int | None
    cost_seconds: float

    @property
    def nr_changed(self) -> dict[str, int] | None:
        """Changed pages of the whole process, by GROUPS; None for the first reading."""
        counts = self.counts
        if counts is None:
            return None
        return {name: sum(counts.get(c, 0) for c in members) for name, members in GROUPS.items()}


class Watcher(Closable):
    """Reads a process again and again. A context manager.

    Args:
        pid: Process id, or "self".
        max_kept: Maximum number of extents that are kept for comparison.
        track_writes: Whether to find pages that were written in place. Each reading then clears the
            soft-dirty bits of the process, and the next write to each page costs a page fault.

    Raises:
        Unsupported: The kernel cannot track writes.
        PhysviewError: The process cannot be opened, as with `Snapshot`.
    """

    def __init__(
        self, pid: int | str, *, max_kept: int = MAX_KEPT, track_writes: bool = False
    ) -> None:
        if track_writes:
            soft_dirty.check_supported()
        self.track_writes = track_writes
        self.proc = ProcDir(pid)
        try:
            self._reader = ExtentReader(self.proc)
        except BaseException:
            self.proc.close()
            raise
        self.max_kept = max_kept
        """Maximum number of extents that the next reading keeps."""
        self._ram = RamRanges.find() if self._reader.zero_pfn else None
        self._spans = _spans(self._vmas())
        self._before: _KeptExtents | None = None
        self._page_counts = PageCounts(self._spans, self._reader.zero_pfn, self._ram)
        self._last: Reading | None = None
        self._last_clock = 0.0

    def close(self) -> None:
        """Close the process's files. Closing twice is harmless."""
        self._reader.close()
        self.proc.close()

    @property
    def nr_kept(self) -> int:
        """Number of extents that are kept for comparison."""
        return len(self._before.extents) if self._before else 0

    def _vmas(self) -> list[Vma]:
        return [vma for vma in self._reader.memory.vmas if vma.start < USER_END]

    def read(self) -> Reading:
        """Read the process once, and compare it with the previous reading.

        Raises:
            ProcessGone: The process ended or ran another program.
            PhysviewError: The process has no memory any more, or we may no longer examine it.
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
        kept, page_counts = self._read_pages(vmas)
        if self.track_writes:
            soft_dirty.clear(self.proc)
        changes, counts = None, None
        if self._before:
            pair = different(self._before, kept)
            page_counts = self._follow(self._before, kept, pair, page_counts)
            changes, counts = self._compare(vmas, pair)
        else:
            page_counts.add(kept.extents)
        limits = [side.limit for side in (self._before, kept) if side and side.limit is not None]
        faults = (stat.nr_minor_faults, stat.nr_major_faults)
        last = self._last
        reading = Reading(
            pid=self.proc.pid,
            name=self.proc.comm(),
            time=time.time(),
            seconds=clock - self._last_clock if last else None,
            vmas=vmas,
            pages=page_counts.pages,
            changes=changes,
            counts=counts,
            nr_minor_faults=faults[0],
            nr_major_faults=faults[1],
            new_faults=(faults[0] - last.nr_minor_faults, faults[1] - last.nr_major_faults)
            if last
            else None,
            knows_frames=self._reader.zero_pfn != 0,
            tracks_writes=self.track_writes,
            ram=page_counts.ram_map(),
            compared_to=min(limits) if limits else None,
            cost_seconds=time.process_time() - began,
        )
        if self.track_writes:
            kept.clear_soft_dirty()
        self._before, self._page_counts = kept, page_counts
        self._last, self._last_clock = reading, clock
        return reading

    def _read_pages(self, vmas: list[Vma]) -> tuple[_KeptExtents, PageCounts]:
        """Read all extents. Returns those to keep, and the counts of the rest."""
        import numpy as np

        page_counts = PageCounts(self._spans, self._reader.zero_pfn, self._ram)
        batches: list[Extents] = []
        nr_kept, limit = 0, None
        # One thread: a low cost matters here, not the speed.
        for batch in self._reader.iter_extents(nr_threads=1):
            room = self.max_kept - nr_kept
            if limit is None and len(batch) > room:
                limit = int(batch["vaddr"][room])
            if limit is None or room:
                batches.append(batch[:room])
                nr_kept += len(batches[-1])
            if len(batch) > room:
                page_counts.add(batch[room:])
        extents = np.concatenate(batches) if batches else np.empty(0, dtype=EXTENT_DTYPE)
        zero_pfn, clears = self._reader.zero_pfn, self.track_writes
        return _KeptExtents(vmas, self._spans, extents, zero_pfn, limit, clears), page_counts

    def _follow(
        self,
        before: _KeptExtents,
        after: _KeptExtents,
        pair: tuple[_KeptExtents, _KeptExtents],
        rest: PageCounts,
    ) -> PageCounts:
        """Return the counts of all pages.

        If possible, they are the previous counts plus the differences. Otherwise all extents that
        were kept are counted again.

        Args:
            before: What was kept of the previous reading.
            after: What is kept of this reading.
            pair: Both without the extents that are equal.
            rest: Counts of this reading's extents that are not kept.
        """
        if before.spans is after.spans and before.limit is None and after.limit is None:
            page_counts = self._page_counts.copy()
            page_counts.add(pair[0].extents, sign=-1)
            page_counts.add(pair[1].extents)
            return page_counts
        rest.add(after.extents)
        return rest

    def _compare(
        self, vmas: list[Vma], pair: tuple[_KeptExtents, _KeptExtents]
    ) -> tuple[dict[str, npt.NDArray[np.int64]], dict[Change, int]]:
        """Find the changes, by mapping and for the whole process.

        `pair` has only the extents that differ. Most extents of most processes are equal.
        """
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
        if not self.track_writes:
            del by_vma["written"]
        nrs = zip(CHANGES, counts.tolist(), strict=True)
        return by_vma, {change: nr for change, nr in nrs if nr and not change.same}


class _KeptExtents:
    """The extents of one reading, up to a limit, in the form of `changes.ComparablePages`.

    Args:
        vmas: The mappings.
        spans: uint64 array, shape (n, 2): start and end of the mappings.
        extents: Structured array of EXTENT_DTYPE.
        zero_pfn: The zero page's frame; 0 if frame numbers are hidden.
        limit: First address that is not kept; None if all is kept.
        clears_soft_dirty: Whether the soft-dirty bits were cleared after the reading.
    """

    def __init__(
        self,
        vmas: list[Vma],
        spans: Any,
        extents: Extents,
        zero_pfn: int,
        limit: int | None,
        clears_soft_dirty: bool,
    ) -> None:
        self.vmas = vmas
        self.spans = spans
        self.extents = extents
        self.zero_pfn = zero_pfn
        self.limit = limit
        self.clears_soft_dirty = clears_soft_dirty

    def of(self, extents: Extents) -> _KeptExtents:
        """Return a copy with other extents."""
        more = (self.zero_pfn, self.limit, self.clears_soft_dirty)
        return _KeptExtents(self.vmas, self.spans, extents, *more)

    def clear_soft_dirty(self) -> None:
        """Clear all soft-dirty bits, as they are in the kernel after the reading.

        So an extent that has the bit in two readings, because it was written again, differs.
        """
        import numpy as np

        self.extents["entry"] &= ~np.uint64(PM_SOFT_DIRTY)

    def iter_extents(self) -> Iterator[Rows]:
        """Yield rows in pieces, because comparing them takes many times their size in memory."""
        for at in range(0, len(self.extents), CHUNK):
            rows = from_extents(self.extents[at : at + CHUNK], self.spans, BASE_DTYPE)
            if len(rows):
                yield rows


def different(before: _KeptExtents, after: _KeptExtents) -> tuple[_KeptExtents, _KeptExtents]:
    """Remove equal extents from two readings, and addresses that only one of them kept.

    Two extents that are only partly equal both stay, as a whole.
    """
    import numpy as np

    limits = [side.limit for side in (before, after) if side.limit is not None]
    earlier, later = before, after
    if limits:
        earlier, later = (side.of(_below(side.extents, min(limits))) for side in (before, after))
    if np.array_equal(earlier.extents.view(np.uint64), later.extents.view(np.uint64)):
        return earlier.of(earlier.extents[:0]), later.of(later.extents[:0])
    if not len(earlier.extents) or not len(later.extents):
        return earlier, later
    at = np.searchsorted(earlier.extents["vaddr"], later.extents["vaddr"])
    found = np.minimum(at, len(earlier.extents) - 1)
    same = np.ones(len(found), dtype=bool)
    for name, _ in EXTENT_DTYPE:
        same &= earlier.extents[name][found] == later.extents[name]
    left = np.ones(len(earlier.extents), dtype=bool)
    left[found[same]] = False
    return earlier.of(earlier.extents[left]), later.of(later.extents[~same])


def _below(extents: Extents, limit: int) -> Extents:
    """Return the extents below an address, as a copy. An extent that crosses it is cut."""
    import numpy as np

    below: Extents = extents[: int(np.searchsorted(extents["vaddr"], np.uint64(limit)))].copy()
    if len(below):  # only the last extent can cross the limit
        room = (limit - int(below["vaddr"][-1])) // PAGE_SIZE
        below["nr_pages"][-1] = min(int(below["nr_pages"][-1]), room)
    return below


def _spans(vmas: list[Vma]) -> npt.NDArray[np.uint64]:
    import numpy as np

    return np.array([vma[:2] for vma in vmas], dtype=np.uint64).reshape(-1, 2)
