# SPDX-License-Identifier: GPL-2.0-or-later
"""The changes of a process's pages between two snapshots, found in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from physview.entry_rules import is_swapped
from physview.errors import PhysviewError
from physview.memory.rows import advance, cut, ends, steps
from physview.model import NO_ENTRY, PAGE_SIZE, PM_FILE, PM_PRESENT, PM_SOFT_DIRTY, Vma
from physview.runtime import invocation
from physview.sources.page_flags import FLAG_BITS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from physview.memory.rows import Rows
    from physview.parquet.snapshot_file import SnapshotFile

    Changes = npt.NDArray[np.void]


class Change(Enum):
    """What happened to a page. `text` describes it. `same` is true if the page did not change."""

    STAYED = "stayed", "in the same frame", True
    WRITTEN = "written", "in the same frame, and written since", False
    MAY_BE_WRITTEN = (
        "may_be_written",
        "in the same frame; its mapping grew, which hides writes",
        True,
    )
    MOVED = "moved", "in another frame: migrated, brought back, or copied after fork", False
    COPIED = "copied", "now private: was a file's or the zero page", False
    SPLIT = "split", "in the same frame, whose large folio was split", False
    COLLAPSED = "collapsed", "now in a large folio, and was not before", False
    REPLACED = "replaced", "in another frame: something else is mapped there", False
    SWAPPED_OUT = "swapped_out", "was in memory, and is now a swap entry", False
    SWAPPED_IN = "swapped_in", "was a swap entry, and is now in memory", False
    STILL_SWAPPED = "still_swapped", "in the same slot of swap", True
    RESWAPPED = "reswapped", "in another slot of swap", False
    APPEARED = "appeared", "touched since, in a mapping that existed before", False
    MAPPED = "mapped", "in a new mapping", False
    WENT = "went", "given back or evicted; its mapping still exists", False
    UNMAPPED = "unmapped", "its mapping no longer exists", False
    STILL_SPECIAL = "still_special", "still a guard, a marker, or hidden", True
    SPECIAL = "special", "a guard, marker or migration came or went", False
    UNTOLD = "untold", "in memory both times; frame numbers are hidden", True

    text: str
    same: bool

    def __new__(cls, slug: str, text: str, same: bool) -> Change:
        member = object.__new__(cls)
        member._value_ = slug
        member.text = text
        member.same = same
        return member


CHANGES = tuple(Change)
CHANGE_DTYPE = [
    ("vaddr", "u8"),
    ("nr_pages", "u8"),
    ("change", "u1"),
    ("before", "u8"),
    ("after", "u8"),
    ("vma_before", "i4"),
    ("vma_after", "i4"),
    ("frames", "u1"),
]
"""Contiguous pages with the same change.

vaddr, nr_pages: address of the first page, and number of pages. change: index in CHANGES. before,
after: frame of the first page, or the slot of its swap entry as in `rows.BASE_DTYPE`; NO_ENTRY if
it has neither. vma_before, vma_after: index of the mapping; -1 if nothing is mapped. frames:
WAS_FRAME if `before` is a frame, plus IS_FRAME if `after` is a frame.
"""
WAS_FRAME, IS_FRAME = 1, 2

_INDEX = {change: at for at, change in enumerate(CHANGES)}
# What is at an address. _FRAME includes frames whose number is hidden.
_ABSENT, _FRAME, _SWAP, _SPECIAL = range(4)


class ComparablePages(Protocol):
    """All pages of a process at one time: a snapshot in a file, or a reading in memory."""

    @property
    def vmas(self) -> Sequence[Vma]:
        """The mappings, in address order."""

    @property
    def zero_pfn(self) -> int:
        """The zero page's frame; 0 if frame numbers were hidden."""

    @property
    def clears_soft_dirty(self) -> bool:
        """Whether the soft-dirty bits of the process were cleared when the pages had been read."""

    def iter_extents(self) -> Iterator[Rows]:
        """Yield rows in address order, as `Snapshot.iter_extents()` does."""


class Diff(NamedTuple):
    """The difference between two snapshots.

    Args:
        counts: ComparablePages per change.
        by_vma: (mapping, whether it is gone, pages per change) for each mapping in which anything
            changed. A mapping that is gone is one of the earlier snapshot; the others are mappings
            of the later one.
        nr_vmas_new: Number of mappings of the later snapshot at whose addresses nothing was mapped
            in the earlier one.
        nr_vmas_gone: Number of mappings of the earlier snapshot at whose addresses nothing is
            mapped in the later one.
    """

    counts: dict[Change, int]
    by_vma: list[tuple[Vma, bool, dict[Change, int]]]
    nr_vmas_new: int
    nr_vmas_gone: int

    @property
    def nr_changed(self) -> int:
        """Number of pages that changed."""
        return sum(nr for change, nr in self.counts.items() if not change.same)


def check_comparable(before: SnapshotFile, after: SnapshotFile) -> None:
    """Refuse two snapshots that cannot be compared.

    Raises:
        PhysviewError: The snapshots are of two different boots, or one of them is incomplete.
    """
    what = f"cannot compare {before.path} and {after.path}"
    for file in (before, after):
        if not file.about["complete"]:
            why = f"{file.path} has only some of the pages"
            remedy = f"{invocation.physview('snapshot PID -o FILE')} saves all pages"
            raise PhysviewError(what, why, remedy)
    if before.about["boot_id"] != after.about["boot_id"]:
        hosts = [f"{file.about['host']}, boot {file.about['boot_id']}" for file in (before, after)]
        why = f"they are of two boots, which have no frames in common ({hosts[0]}; {hosts[1]})"
        raise PhysviewError(what, why, "take both during the same boot")


def diff(
    before: SnapshotFile,
    after: SnapshotFile,
    *,
    progress: Callable[[int, int | None], None] | None = None,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> Diff:
    """Count the pages by what happened to them between two snapshots.

    Args:
        before: The earlier snapshot.
        after: The later one.
        progress: Called with the number of extents of the earlier snapshot that are done, and with
            the number of all its extents.
        on_progress: The earlier name of `progress`.

    Raises:
        PhysviewError: The snapshots cannot be compared, or a file is damaged.
    """
    import numpy as np

    progress = progress or on_progress
    counts = np.zeros(len(CHANGES), dtype=np.int64)
    nr_before, nr_after = len(before.vmas), len(after.vmas)
    # First the later snapshot's mappings, then the earlier one's, for addresses that are no longer
    # mapped.
    by_vma = np.zeros((nr_after + nr_before, len(CHANGES)), dtype=np.int64)
    nr_done = 0
    for changes in iter_changes(before, after):
        kind = changes["change"].astype(np.intp)
        pages = changes["nr_pages"].astype(np.int64)
        np.add.at(counts, kind, pages)
        gone = changes["vma_after"] < 0
        vma = np.where(gone, nr_after + changes["vma_before"], changes["vma_after"])
        np.add.at(by_vma, (vma, kind), pages)
        if progress:
            nr_done += int((changes["before"] != np.uint64(NO_ENTRY)).sum())
            progress(min(nr_done, before.nr_extents), before.nr_extents)
    has_changed = np.zeros(len(by_vma), dtype=bool)
    for at, change in enumerate(CHANGES):  # column by column: a copy of the table would be large
        has_changed |= (by_vma[:, at] != 0) & (not change.same)
    rows = []
    for at in np.flatnonzero(has_changed).tolist():
        is_gone = at >= nr_after
        vma = before.vmas[at - nr_after] if is_gone else after.vmas[at]
        rows.append((vma, is_gone, _counted(by_vma[at])))
    rows.sort(key=lambda row: row[0].start)
    return Diff(
        _counted(counts),
        rows,
        _nr_elsewhere(after.vmas, before.vmas),
        _nr_elsewhere(before.vmas, after.vmas),
    )


def _counted(counts: Any) -> dict[Change, int]:
    return {change: int(nr) for change, nr in zip(CHANGES, counts, strict=True) if nr}


def _nr_elsewhere(vmas: Sequence[Vma], others: Sequence[Vma]) -> int:
    """Count the mappings at whose addresses the others have no mapping."""
    import numpy as np

    mine, (starts, stops) = _spans(vmas), _spans(others)
    found = np.searchsorted(stops, mine[0], side="right")
    inside = np.minimum(found, len(others) - 1)
    return int(((found == len(others)) | (starts[inside] >= mine[1])).sum())


def _spans(vmas: Sequence[Vma]) -> tuple[Any, Any]:
    import numpy as np

    starts = np.fromiter((vma.start for vma in vmas), np.uint64, len(vmas))
    return starts, np.fromiter((vma.end for vma in vmas), np.uint64, len(vmas))


def iter_changes(before: SnapshotFile, after: SnapshotFile) -> Iterator[Changes]:
    """Yield the changes of all pages that at least one of two snapshots has.

    Args:
        before: The earlier snapshot.
        after: The later one.

    Yields:
        Structured arrays of CHANGE_DTYPE, in address order. Contiguous pages with the same change
        may be split between one array and the next.

    Raises:
        PhysviewError: The snapshots cannot be compared, or a file is damaged.
    """
    check_comparable(before, after)
    return iter_page_changes(before, after)


def iter_page_changes(before: ComparablePages, after: ComparablePages) -> Iterator[Changes]:
    """Do as `iter_changes()`, without checking that the two can be compared.

    Args:
        before: The earlier pages, in a file or in memory.
        after: The later pages.
    """
    earlier, later = _Side(before), _Side(after)
    classifier = _Classifier(earlier, later)
    while earlier.fill() and later.fill():
        limit = min(earlier.known_to, later.known_to)
        changes = classifier.changes(earlier.take(limit), later.take(limit))
        if len(changes):
            yield changes
    for side in (earlier, later):
        while side.fill():
            rows = side.take(side.known_to)
            none = rows[:0]
            pair = (rows, none) if side is earlier else (none, rows)
            yield classifier.changes(*pair)


class _Side:
    """One of the two snapshots. Its rows are read as they are needed."""

    def __init__(self, pages: ComparablePages) -> None:
        self.vmas = pages.vmas
        self.zero_pfn = pages.zero_pfn
        self.clears_soft_dirty = pages.clears_soft_dirty
        self.starts, self.stops = _spans(pages.vmas)
        self._batches = pages.iter_extents()
        self._rows: Any = None

    def fill(self) -> bool:
        """Read rows unless there are some left. Returns False if there are no more."""
        while self._rows is None or not len(self._rows):
            self._rows = next(self._batches, None)
            if self._rows is None:
                return False
        return True

    @property
    def known_to(self) -> int:
        """First address that is not read yet."""
        return int(ends(self._rows[-1:])[0])

    def take(self, limit: int) -> Rows:
        """Remove and return the rows below the address `limit`. A row that crosses it is split."""
        below, self._rows = cut(self._rows, limit, self.zero_pfn)
        return below

    def vma_at(self, vaddrs: Any) -> Any:
        """Return the index of each address's mapping; -1 if nothing is mapped there."""
        import numpy as np

        at = np.searchsorted(self.starts, vaddrs, side="right") - 1
        return np.where((at >= 0) & (vaddrs < self.stops[at]), at, -1)

    def rows_at(self, rows: Rows, vaddrs: Any, nr_pages: Any) -> tuple[Rows, Any]:
        """Split rows at addresses.

        Args:
            rows: Rows in address order.
            vaddrs: uint64 array, shape (n,): first address of each piece.
            nr_pages: uint64 array, shape (n,): pages of each piece.

        Returns:
            The pieces, and what each is: _FRAME, _SWAP, _SPECIAL or _ABSENT. If it is _ABSENT, the
            content of the piece has no meaning.
        """
        import numpy as np

        if not len(rows):
            return np.zeros(len(vaddrs), dtype=rows.dtype), np.full(len(vaddrs), _ABSENT)
        at = np.searchsorted(rows["vaddr"], vaddrs, side="right") - 1
        covered = (at >= 0) & (vaddrs < ends(rows)[at])
        pieces = rows[np.maximum(at, 0)]
        offset = np.where(covered, (vaddrs - pieces["vaddr"]) // np.uint64(PAGE_SIZE), 0)
        advance(pieces, offset.astype(np.uint64), self.zero_pfn)
        pieces["nr_pages"] = nr_pages
        return pieces, np.where(covered, _kinds_of(pieces), _ABSENT)


def _kinds_of(rows: Rows) -> Any:
    import numpy as np

    present = rows["entry"] & np.uint64(PM_PRESENT) != 0
    return np.where(present, _FRAME, np.where(is_swapped(rows["entry"]), _SWAP, _SPECIAL))


class _Classifier:
    """Finds out what happened to pages."""

    def __init__(self, before: _Side, after: _Side) -> None:
        self._before = before
        self._after = after
        self._names = [_names(side.vmas) for side in (before, after)]

    def changes(self, earlier: Rows, later: Rows) -> Changes:
        """Return the changes between rows of the two snapshots that end at the same address."""
        import numpy as np

        borders = [earlier["vaddr"], ends(earlier), later["vaddr"], ends(later)]
        low, high = min(b[0] for b in borders if len(b)), max(b[-1] for b in borders if len(b))
        for side in (self._before, self._after):
            for of_vmas in (side.starts, side.stops):
                borders.append(of_vmas[(of_vmas > low) & (of_vmas < high)])
        cuts = np.unique(np.concatenate(borders))
        vaddrs = cuts[:-1]
        nr_pages = (cuts[1:] - vaddrs) // np.uint64(PAGE_SIZE)
        pieces, kinds_of_both = zip(
            self._before.rows_at(earlier, vaddrs, nr_pages),
            self._after.rows_at(later, vaddrs, nr_pages),
            strict=True,
        )
        known = (kinds_of_both[0] != _ABSENT) | (kinds_of_both[1] != _ABSENT)
        found = np.empty(int(known.sum()), dtype=CHANGE_DTYPE)
        found["vaddr"], found["nr_pages"] = vaddrs[known], nr_pages[known]
        found["vma_before"] = self._before.vma_at(found["vaddr"])
        found["vma_after"] = self._after.vma_at(found["vaddr"])
        rows = [piece[known] for piece in pieces]
        kinds_before, kinds_after = (kinds[known] for kinds in kinds_of_both)
        for name, row, kinds in zip(
            ("before", "after"), rows, (kinds_before, kinds_after), strict=True
        ):
            value = np.where(kinds == _FRAME, row["pfn"], row["swap"])
            found[name] = np.where(kinds == _ABSENT, np.uint64(NO_ENTRY), value)
        found["frames"] = np.where(kinds_before == _FRAME, WAS_FRAME, 0)
        found["frames"] |= np.where(kinds_after == _FRAME, IS_FRAME, 0).astype(np.uint8)
        found["change"] = self._classify(rows[0], kinds_before, rows[1], kinds_after, found)
        return self._join(found, rows, (kinds_before, kinds_after))

    def _classify(
        self, earlier: Rows, kinds_before: Any, later: Rows, kinds_after: Any, found: Changes
    ) -> Any:
        import numpy as np

        # The first rule that applies to a page decides.
        gone = found["vma_after"] < 0
        new = found["vma_before"] < 0
        special = (kinds_before == _SPECIAL) | (kinds_after == _SPECIAL)
        same_place = found["before"] == found["after"]
        hidden = (found["before"] == np.uint64(NO_ENTRY)) | (found["after"] == np.uint64(NO_ENTRY))
        swap_then, swap_now = kinds_before == _SWAP, kinds_after == _SWAP
        rules = [
            ((kinds_after == _ABSENT) & gone, Change.UNMAPPED),
            ((kinds_before == _ABSENT) & new, Change.MAPPED),
            (
                special & (kinds_before == kinds_after) & (earlier["entry"] == later["entry"]),
                Change.STILL_SPECIAL,
            ),
            (special, Change.SPECIAL),
            (kinds_after == _ABSENT, Change.WENT),
            (kinds_before == _ABSENT, Change.APPEARED),
            (swap_then & swap_now & hidden, Change.STILL_SPECIAL),
            (swap_then & swap_now & same_place, Change.STILL_SWAPPED),
            (swap_then & swap_now, Change.RESWAPPED),
            (swap_then, Change.SWAPPED_IN),
            (swap_now, Change.SWAPPED_OUT),
            (hidden, Change.UNTOLD),
            *self._frame_rules(earlier, later, found, same_place),
            *self._write_rules(later, found, same_place),
            (same_place, Change.STAYED),
        ]
        conditions, changes = zip(*rules, strict=True)
        return np.select(conditions, [_INDEX[c] for c in changes], _INDEX[Change.MOVED])

    def _frame_rules(
        self, earlier: Rows, later: Rows, found: Changes, same_place: Any
    ) -> list[tuple[Any, Change]]:
        """Make the rules for pages that were and are resident, from mappings and flags."""
        import numpy as np

        names = [
            names[np.maximum(found[vma], 0)]
            for names, vma in zip(self._names, ("vma_before", "vma_after"), strict=True)
        ]
        rules = [(~same_place & (names[0] != names[1]), Change.REPLACED)]
        if "flags" not in (earlier.dtype.names or ()) or "flags" not in (later.dtype.names or ()):
            # Without flags, the zero page and pages of files are known. All others are private.
            file_then, file_now = (
                row["entry"] & np.uint64(PM_FILE) != 0 for row in (earlier, later)
            )
            zero_then = earlier["pfn"] == np.uint64(self._before.zero_pfn)
            zero_now = later["pfn"] == np.uint64(self._after.zero_pfn)
            own_now = ~file_now & ~zero_now
            return [*rules, (~same_place & (file_then | zero_then) & own_now, Change.COPIED)]

        def flag(rows: Rows, name: str) -> Any:
            known = rows["flags"] != np.uint64(NO_ENTRY)
            return known & (rows["flags"] & np.uint64(1 << FLAG_BITS[name]) != 0)

        was_own = flag(earlier, "anon") & ~flag(earlier, "zero_page")
        is_own = flag(later, "anon") & ~flag(later, "zero_page")
        was_large, is_large = flag(earlier, "thp"), flag(later, "thp")
        return [
            *rules,
            (~same_place & ~was_own & is_own, Change.COPIED),
            (same_place & was_large & ~is_large, Change.SPLIT),
            (was_own & is_own & ~was_large & is_large, Change.COLLAPSED),
        ]

    def _write_rules(
        self, later: Rows, found: Changes, same_place: Any
    ) -> list[tuple[Any, Change]]:
        """Make the rules for pages that were written in place, from soft-dirty bits."""
        import numpy as np

        if not self._before.clears_soft_dirty:
            return []
        is_dirty = same_place & (later["entry"] & np.uint64(PM_SOFT_DIRTY) != 0)
        # Of a mapping that grew, the kernel reports all pages as soft-dirty.
        before, after = (np.maximum(found[vma], 0) for vma in ("vma_before", "vma_after"))
        is_same = (self._before.starts[before] == self._after.starts[after]) & (
            self._before.stops[before] == self._after.stops[after]
        )
        return [(is_dirty & is_same, Change.WRITTEN), (is_dirty, Change.MAY_BE_WRITTEN)]

    def _join(self, found: Changes, rows: Sequence[Rows], kinds_of_both: Sequence[Any]) -> Changes:
        """Merge neighbours that have the same change and contiguous frames or swap slots.

        Args:
            found: The changes, in address order.
            rows: The pages before and after, a row for each change.
            kinds_of_both: What these rows are before and after. _ABSENT has no meaning.
        """
        import numpy as np

        if len(found) < 2:
            return found
        pages = found["nr_pages"]
        goes_on = found["vaddr"][1:] == (found["vaddr"] + pages * np.uint64(PAGE_SIZE))[:-1]
        for name in ("change", "vma_before", "vma_after"):
            goes_on &= found[name][1:] == found[name][:-1]
        sides = (("before", self._before), ("after", self._after))
        for (name, side), of_side, kinds in zip(sides, rows, kinds_of_both, strict=True):
            named = (kinds != _ABSENT) & (found[name] != np.uint64(NO_ENTRY))
            step = np.where(named, steps(of_side, side.zero_pfn), np.uint64(0))
            goes_on &= found[name][1:] == (found[name] + pages * step)[:-1]
            goes_on &= kinds[1:] == kinds[:-1]
        firsts = np.flatnonzero(np.concatenate([[True], ~goes_on]))
        joined = found[firsts]
        joined["nr_pages"] = np.add.reduceat(pages, firsts)
        return joined


def _names(vmas: Sequence[Vma]) -> Any:
    """Give each mapping a number. Mappings of the same file, or name, have the same number."""
    import numpy as np

    names = (hash((vma.device, vma.inode, vma.path)) for vma in vmas)
    return np.fromiter(names, np.int64, len(vmas))
