# SPDX-License-Identifier: GPL-2.0-or-later
"""The picture of what became of a process's pages between two snapshots."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from physview.model import PAGE_SHIFT
from physview.parquet.snapshot_file import SnapshotFile
from physview.pictures.bands import make_bands, make_links, profiles
from physview.pictures.kinds import DIFF_KINDS, index_of
from physview.pictures.model import (
    DiffSubject,
    MachineSubject,
    Picture,
    SnapshotSubject,
    Space,
    make_frames,
)
from physview.pictures.page_changes import PageChanges
from physview.pictures.runs import RUN_DTYPE
from physview.sources.ram import Resource, boot_id, ram_ranges, read_resources

if TYPE_CHECKING:
    from physview.pictures.runs import Runs

# Kernels add and remove RAM in blocks of this many frames.
BLOCK = 128 << 20 >> PAGE_SHIFT
# Where RAM is not known, a gap is left out if it is longer than this part of the whole range.
GAP = 16


class _Ram(NamedTuple):
    """Where RAM is.

    Args:
        ranges: (first frame, first frame after it), in order.
        resources: What lies where; None if not known: then the ranges are those with frames.
    """

    ranges: list[tuple[int, int]]
    resources: list[Resource] | None


def picture_changes(changes: PageChanges, before: SnapshotFile, after: SnapshotFile) -> Picture:
    """Draw what became of pages: where they stayed, where they went, and where they came from.

    Args:
        changes: From `read_changes()`.
        before: The earlier snapshot.
        after: The later one.

    Returns:
        The picture; without frames if either snapshot has no frame numbers.
    """
    import numpy as np

    bands = make_bands(changes)
    frames, links, nr_outside = None, None, 0
    if changes.knows_frames:
        over = np.concatenate([each.frames for each in changes.page_frames])
        ram = _find_ram(before, after, over)
        rest = index_of(DIFF_KINDS, "other")
        runs = np.array([(low, high - low, rest) for low, high in ram.ranges], dtype=RUN_DTYPE)
        frames = make_frames(runs, over, ram.ranges, DIFF_KINDS, ram.resources)
        links, nr_outside = make_links(changes, bands, frames.grid, ram.ranges)
    profile = profiles(changes, bands)
    space = Space(after.about["pid"], changes, bands, profile, links, nr_outside)
    subject = DiffSubject(_subject(before), _subject(after))
    return Picture(subject, DIFF_KINDS, frames, space)


def _subject(file: SnapshotFile) -> SnapshotSubject:
    about = file.about
    return SnapshotSubject(
        MachineSubject(about["host"], about["kernel"], file.time.astimezone()),
        file.path,
        about["pid"],
        about["comm"],
        file.process,
        file.knows_frames,
    )


def _find_ram(before: SnapshotFile, after: SnapshotFile, over: Runs) -> _Ram:
    """Where RAM was. If neither snapshot has this, where RAM is, if this is still their boot."""
    for file in (after, before):
        if file.resources is not None:
            return _Ram(ram_ranges(file.resources), file.resources)
    if boot_id() == after.about["boot_id"]:
        try:
            resources = read_resources()
        except OSError:  # only root may read them
            pass
        else:
            return _Ram(ram_ranges(resources), resources)
    return _Ram(named_ranges(over), None)


def named_ranges(over: Runs) -> list[tuple[int, int]]:
    """Guess where RAM is from the frames of a diff: ranges of whole blocks that have all of them.

    Args:
        over: Frames, array of `runs.RUN_DTYPE`, in any order.

    >>> import numpy as np
    >>> over = np.array([(9, 1, 0), (2 * BLOCK, 3, 0), (40 * BLOCK, 1, 0)], dtype=RUN_DTYPE)
    >>> [(first // BLOCK, end // BLOCK) for first, end in named_ranges(over)]
    [(0, 3), (40, 41)]
    """
    import numpy as np

    if not len(over):
        return [(0, BLOCK)]
    firsts = over["pfn"] // np.uint64(BLOCK)
    lasts = (over["pfn"] + over["nr"] - np.uint64(1)) // np.uint64(BLOCK)
    order = np.argsort(firsts)
    firsts, lasts = firsts[order].astype(np.int64), lasts[order].astype(np.int64)
    furthest = np.maximum.accumulate(lasts)
    least = max(1, int(furthest[-1] - firsts[0]) // GAP)
    begins = np.flatnonzero(np.concatenate([[True], firsts[1:] - furthest[:-1] > least]))
    ends = furthest[np.concatenate([begins[1:] - 1, [len(furthest) - 1]])] + 1
    pairs = zip(firsts[begins].tolist(), ends.tolist(), strict=True)
    return [(first * BLOCK, end * BLOCK) for first, end in pairs]
