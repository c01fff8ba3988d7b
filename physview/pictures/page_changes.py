# SPDX-License-Identifier: GPL-2.0-or-later
"""What became of a process's pages, for a picture: runs of pages with their kinds, and their frames
before and after."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from physview.analysis.changes import CHANGES, IS_FRAME, WAS_FRAME, Change, iter_changes
from physview.errors import PhysviewError
from physview.memory.extents import USER_END
from physview.model import NO_ENTRY, PAGE_SIZE, Vma
from physview.parquet.snapshot_file import SnapshotFile
from physview.pictures.bands import PageFrames
from physview.pictures.kinds import DIFF_KINDS, NO_KIND, Kind, index_of
from physview.pictures.runs import RUN_DTYPE
from physview.runtime import invocation

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from physview.pictures.runs import Runs

    Rows = npt.NDArray[np.void]

PAGE_CHANGE_DTYPE = [
    ("vaddr", "u8"),
    ("nr_pages", "u8"),
    ("before", "u8"),
    ("after", "u8"),
    ("vma", "u4"),
    ("change", "u1"),
    ("frames", "u1"),
]
"""As `changes.CHANGE_DTYPE`, but vma is the index in `PageChanges.vmas`."""

# Kinds of pages with a frame of their own. Zero pages and guards are treated in _kinds().
_KINDS = {
    Change.STAYED: "stayed",
    Change.WRITTEN: "stayed",
    Change.MAY_BE_WRITTEN: "stayed",
    Change.SPLIT: "stayed",
    Change.MOVED: "moved",
    Change.COPIED: "moved",
    Change.COLLAPSED: "moved",
    Change.REPLACED: "new",
    Change.SWAPPED_OUT: "swapped_out",
    Change.SWAPPED_IN: "swapped_in",
    Change.STILL_SWAPPED: "swapped",
    Change.RESWAPPED: "swapped",
    Change.APPEARED: "new",
    Change.MAPPED: "new",
    Change.WENT: "gone",
    Change.UNMAPPED: "gone",
    Change.UNTOLD: "untold",
}
# A picture holds all runs of pages in memory, 270 bytes each: this many take 55 MiB. The files may
# come from an attacker.
MAX_RUNS = 200_000
_LEFT = (Change.MOVED, Change.COPIED, Change.COLLAPSED)
SIDES = ("before", "after")


class PageChanges(NamedTuple):
    """What became of the pages between two snapshots.

    Args:
        vmas: The mappings of the later snapshot, and between them the parts of earlier mappings
            that are gone, in address order.
        rows: Structured array, shape (n,), of PAGE_CHANGE_DTYPE, in address order.
        kinds: uint8 array, shape (n,): the kinds of the pages, indices in DIFF_KINDS; NO_KIND for
            guards and markers.
        zero_pfns: The zero page's frame before and after; 0 if frames were hidden.
        knows_frames: Whether both snapshots have frame numbers.
    """

    vmas: list[Vma]
    rows: Rows
    kinds: npt.NDArray[np.uint8]
    zero_pfns: tuple[int, int]
    knows_frames: bool

    @property
    def all_kinds(self) -> tuple[Kind, ...]:
        """The kinds of its pages and frames."""
        return DIFF_KINDS

    @property
    def is_changed(self) -> npt.NDArray[np.bool_]:
        """Bool array, shape (n,): which rows changed."""
        import numpy as np

        same = np.array([change.same for change in CHANGES])
        changed: npt.NDArray[np.bool_] = ~same[self.rows["change"]]
        return changed

    @property
    def counts(self) -> dict[Change, int]:
        """Pages per change."""
        import numpy as np

        nr = np.bincount(
            self.rows["change"], weights=self.rows["nr_pages"], minlength=len(CHANGES)
        ).astype(np.int64)
        return {change: nr for change, nr in zip(CHANGES, nr.tolist(), strict=True) if nr}

    def has_frame(self, name: str) -> npt.NDArray[np.bool_]:
        """Bool array, shape (n,): which rows are, or were, in known frames of their own.

        Args:
            name: One of SIDES.
        """
        import numpy as np

        side = SIDES.index(name)
        bit, zero_pfn = (WAS_FRAME, IS_FRAME)[side], self.zero_pfns[side]
        found: npt.NDArray[np.bool_] = self.rows["frames"] & bit != 0
        found &= ~np.isin(self.rows[name], np.array([NO_ENTRY, zero_pfn], dtype=np.uint64))
        return found

    @property
    def past_kinds(self) -> npt.NDArray[np.uint8]:
        """uint8 array, shape (n,): the kinds of the frames that the pages have left; NO_KIND if
        they have left none."""
        import numpy as np

        rows = self.rows
        kinds = np.full(len(rows), index_of(DIFF_KINDS, "gone"), dtype=np.uint8)
        left = [CHANGES.index(change) for change in _LEFT]
        kinds[np.isin(rows["change"], left)] = index_of(DIFF_KINDS, "left")
        out = rows["change"] == CHANGES.index(Change.SWAPPED_OUT)
        kinds[out] = index_of(DIFF_KINDS, "swapped_out")
        stayed = self.has_frame("after") & (rows["before"] == rows["after"])
        kinds[stayed | ~self.has_frame("before")] = NO_KIND
        return kinds

    @property
    def page_frames(self) -> list[PageFrames]:
        """The frames of the pages now, and the frames that they have left."""
        import numpy as np

        past = self.past_kinds
        return [
            self._placed("after", np.flatnonzero(self.has_frame("after")), self.kinds),
            self._placed("before", np.flatnonzero(past != NO_KIND), past),
        ]

    def _placed(self, name: str, chosen: Any, kinds: npt.NDArray[np.uint8]) -> PageFrames:
        import numpy as np

        frames: Runs = np.empty(len(chosen), dtype=RUN_DTYPE)
        frames["pfn"], frames["nr"] = self.rows[name][chosen], self.rows["nr_pages"][chosen]
        frames["kind"] = kinds[chosen]
        return PageFrames(chosen, frames)

    def nr_extents(self, name: str) -> int:
        """Count the extents: pages that are contiguous in both address spaces.

        Args:
            name: One of SIDES.
        """
        import numpy as np

        rows = self.rows[self.has_frame(name)]
        goes_on = rows["vma"][1:] == rows["vma"][:-1]
        for column, step in (("vaddr", PAGE_SIZE), (name, 1)):
            end = rows[column] + rows["nr_pages"] * np.uint64(step)
            goes_on &= rows[column][1:] == end[:-1]
        return len(rows) - int(goes_on.sum())


def read_changes(
    before: SnapshotFile,
    after: SnapshotFile,
    *,
    progress: Callable[[int, int | None], None] | None = None,
) -> PageChanges:
    """Find what became of all pages.

    Args:
        before: The earlier snapshot.
        after: The later one.
        progress: Called with how many extents of the earlier snapshot are done, and how many it
            has.

    Raises:
        PhysviewError: They cannot be compared, a file is damaged, or there are too many runs.
    """
    import numpy as np

    vmas = [vma for vma in merge_mappings(before.vmas, after.vmas) if vma.start < USER_END]
    starts = np.array([vma.start for vma in vmas], dtype=np.uint64)
    batches = [np.empty(0, dtype=PAGE_CHANGE_DTYPE)]
    nr_done = nr_runs = 0
    for changes in iter_changes(before, after):
        nr_runs += len(changes)
        if nr_runs > MAX_RUNS:
            what = f"cannot draw {before.path} and {after.path}"
            why = f"they have more than {MAX_RUNS} runs of pages, the most that a picture can have"
            remedy = f"{invocation.physview('diff --extents')} lists them all"
            raise PhysviewError(what, why, remedy)
        rows = np.empty(len(changes), dtype=PAGE_CHANGE_DTYPE)
        for name in ("vaddr", "nr_pages", "before", "after", "change", "frames"):
            rows[name] = changes[name]
        # A run ends where a mapping of either snapshot ends.
        rows["vma"] = np.searchsorted(starts, rows["vaddr"], side="right") - 1
        batches.append(rows)
        if progress:
            nr_done += int((rows["before"] != np.uint64(NO_ENTRY)).sum())
            progress(min(nr_done, before.nr_extents), before.nr_extents)
    rows = np.concatenate(batches)
    zero_pfns = before.zero_pfn, after.zero_pfn
    knows_frames = before.knows_frames and after.knows_frames
    return PageChanges(vmas, rows, _kinds(rows, zero_pfns, knows_frames), zero_pfns, knows_frames)


def merge_mappings(before: list[Vma], after: list[Vma]) -> list[Vma]:
    """The later mappings, and the parts of earlier ones where no later one is, in address order.

    The paths of parts that are gone end in "(gone)".

    >>> gone, there = Vma(0, 9, "rw-p", 0, "", 0, "a"), Vma(3, 5, "rw-p", 0, "", 0, "b")
    >>> [(vma.start, vma.end, vma.path) for vma in merge_mappings([gone], [there])]
    [(0, 3, 'a (gone)'), (3, 5, 'b'), (5, 9, 'a (gone)')]
    """
    found = list(after)
    at = 0
    for vma in before:
        start = vma.start
        while at < len(after) and after[at].end <= start:
            at += 1
        i = at
        while start < vma.end:
            end = min(vma.end, after[i].start) if i < len(after) else vma.end
            if start < end:
                path = f"{vma.path or '[anonymous]'} (gone)"
                offset = vma.offset + (start - vma.start if vma.inode else 0)
                found.append(vma._replace(start=start, end=end, offset=offset, path=path))
            if i == len(after):
                break
            start = max(start, after[i].end)
            i += 1
    return sorted(found)


def _kinds(rows: Rows, zero_pfns: tuple[int, int], knows_frames: bool) -> npt.NDArray[np.uint8]:
    """The kinds of the pages."""
    import numpy as np

    none = np.uint64(NO_ENTRY)
    by_change = [
        index_of(DIFF_KINDS, _KINDS[change]) if change in _KINDS else NO_KIND for change in CHANGES
    ]
    kinds = np.array(by_change, dtype=np.uint8)[rows["change"]]

    def change_to(slug: str, chosen: Any) -> None:
        kinds[chosen] = NO_KIND if slug == "nothing" else index_of(DIFF_KINDS, slug)

    was, is_now = (rows["frames"] & bit != 0 for bit in (WAS_FRAME, IS_FRAME))
    was_zero = was & (rows["before"] == np.uint64(zero_pfns[0])) & knows_frames
    is_zero = is_now & (rows["after"] == np.uint64(zero_pfns[1])) & knows_frames
    came = np.isin(rows["change"], [CHANGES.index(c) for c in (Change.APPEARED, Change.MAPPED)])
    went = np.isin(rows["change"], [CHANGES.index(c) for c in (Change.WENT, Change.UNMAPPED)])
    special = rows["change"] == CHANGES.index(Change.SPECIAL)
    change_to("swapped", came & ~is_now)
    if knows_frames:  # no frame and no swap slot: a guard
        change_to("nothing", came & ~is_now & (rows["after"] == none))
        change_to("nothing", went & ~was & (rows["before"] == none))
    change_to("gone", special & was)
    change_to("new", special & is_now)
    moved = kinds == index_of(DIFF_KINDS, "moved")
    change_to("stayed", moved & (rows["before"] == rows["after"]))
    change_to("new", moved & was_zero)
    change_to("zero", is_zero)
    found: npt.NDArray[np.uint8] = kinds
    return found
