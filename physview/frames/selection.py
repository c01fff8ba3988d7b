# SPDX-License-Identifier: GPL-2.0-or-later
"""Counts and lists some frames: those of ranges, with some flags, or charged to a cgroup.

Source: /proc/kpageflags, /proc/kpagecgroup
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from physview.model import NO_ENTRY
from physview.sources.frame_flags import count_frames, read_max_order
from physview.sources.kpage import FRAMES_DTYPE, PIECE_DTYPE, KpageFile
from physview.sources.page_flags import (
    IDLE,
    FlagFilter,
    expanded,
    shown_flags,
    well_known_array,
)

if TYPE_CHECKING:
    import numpy.typing as npt

# Frames that are looked up at a time.
SLICE = 1 << 18

Ranges = list[tuple[int, int]]


class Selection(NamedTuple):
    """Which frames to count or to list.

    Args:
        ranges: Ranges as (first frame, first frame after the range), in order.
        where: Only frames with these flags; None is all.
        cgroup: Only frames that are charged to the cgroup with this inode number; None is all.
        raw: Whether flags are told as `page_flags.expanded()` does.
    """

    ranges: Ranges
    where: FlagFilter | None
    cgroup: int | None
    raw: bool


def cut_ranges(ranges: Ranges, within: Ranges) -> Ranges:
    """The frames of ranges that are in other ranges, in order, each once.

    >>> cut_ranges([(5, 9), (0, 6)], [(1, 3), (4, 8)])
    [(1, 3), (4, 8)]
    """
    joined: Ranges = []
    for first, end in sorted(ranges):
        if joined and first <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((first, end))
    pieces = ((max(first, low), min(end, high)) for first, end in joined for low, high in within)
    return [(first, end) for first, end in pieces if first < end]


def count_selected(
    file: KpageFile,
    selection: Selection,
    *,
    source: str = "kpageflags",
    progress: Callable[[int, int], None] | None = None,
) -> Counter[int]:
    """Count the chosen frames by their flags.

    Args:
        file: The flags of all frames.
        selection: Which frames.
        source: Who tells the flags: what `choose_flag_source()` returned.
        progress: Called with the number of frames that were examined, and of all.
    """
    found: Counter[int] = Counter()
    ffi, _ = file.core
    max_order = 0 if source == "kpageflags" else read_max_order()
    for ranges in iter_ranges(selection, progress=progress):
        runs = [(first, end - first) for first, end in ranges]
        frames = ffi.new("struct pv_frames[]", runs)
        found.update(count_frames(file, frames, len(runs), source, max_order=max_order).counts)
    chosen: Counter[int] = Counter()
    for flags, nr in found.items():
        if flags == NO_ENTRY:
            if selection.where is None:
                chosen[flags] += nr
            continue
        shown = expanded(flags) if selection.raw else shown_flags(flags)
        if selection.where is None or selection.where.matches(shown):
            chosen[flags] += nr
    return chosen


def read_pieces(
    file: KpageFile,
    selection: Selection,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> npt.NDArray[Any]:
    """Read the flags of the chosen frames. The memory for them grows with the number of runs.

    Args:
        file: The flags of all frames.
        selection: Which frames.
        progress: Called with the number of frames that were examined, and of all.

    Returns:
        Structured array of kpage.PIECE_DTYPE, in the order of frame numbers: a row for each run of
        contiguous frames whose flags are shown alike. Field "run" has no meaning.
    """
    import numpy as np

    none = np.uint64(NO_ENTRY)
    found = [np.empty(0, dtype=PIECE_DTYPE)]
    for ranges in iter_ranges(selection, progress=progress):
        frames = np.array([(first, end - first) for first, end in ranges], dtype=FRAMES_DTYPE)
        for pieces in file.iter_pieces(frames):
            flags = pieces["value"]
            shown = expanded(flags) if selection.raw else well_known_array(flags) & ~np.uint64(IDLE)
            pieces["value"] = np.where(flags == none, none, shown)
            if selection.where is None:
                found.append(pieces.copy())
            else:
                exists = pieces["value"] != none
                found.append(pieces[exists & selection.where.matches(pieces["value"])])
    rows = np.concatenate(found)
    follows = (rows["pfn"][1:] == rows["pfn"][:-1] + rows["nr"][:-1]) & (
        rows["value"][1:] == rows["value"][:-1]
    )
    starts = np.flatnonzero(np.concatenate([[True], ~follows])[: len(rows)])
    joined = rows[starts]
    if len(rows):
        joined["nr"] = np.add.reduceat(rows["nr"], starts)
    return joined


def iter_ranges(
    selection: Selection, *, progress: Callable[[int, int], None] | None = None
) -> Iterator[Ranges]:
    """Yield the ranges of the chosen frames, in order, without regard to their flags."""
    nr_all = sum(end - first for first, end in selection.ranges)
    nr_done = 0
    cgroups = None if selection.cgroup is None else KpageFile("kpagecgroup")
    try:
        for low, high in selection.ranges:
            for first in range(low, high, SLICE):
                end = min(first + SLICE, high)
                found = [(first, end)]
                if cgroups is not None:
                    found = _charged(cgroups, first, end, selection.cgroup)
                if found:
                    yield found
                nr_done += end - first
                if progress:
                    progress(nr_done, nr_all)
    finally:
        if cgroups is not None:
            cgroups.close()


def _charged(file: KpageFile, first: int, end: int, inode: int | None) -> Ranges:
    import numpy as np

    frames = np.array([(first, end - first)], dtype=FRAMES_DTYPE)
    return [
        (pfn, pfn + nr)
        for pieces in file.iter_pieces(frames)
        for _, pfn, nr, value in pieces.tolist()
        if value == inode
    ]
