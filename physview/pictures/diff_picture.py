# SPDX-License-Identifier: GPL-2.0-or-later
"""The picture of what became of a process's pages between two snapshots."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from physview.model import PAGE_SHIFT, PAGE_SIZE, printable
from physview.parquet.snapshot_file import SnapshotFile
from physview.pictures import bands as bands_module
from physview.pictures.bands import Links
from physview.pictures.kinds import DIFF_KINDS, index_of
from physview.pictures.model import Frames, Picture, Space, make_frames
from physview.pictures.page_changes import Moves
from physview.pictures.runs import RUN_DTYPE
from physview.sources.ram import Resource, boot_id, ram_ranges, read_resources
from physview.units import pages_size, size_words

if TYPE_CHECKING:
    from physview.pictures.runs import Runs

# Kernels plug RAM in and out in blocks of so many frames.
BLOCK = 128 << 20 >> PAGE_SHIFT
# Where RAM is not known, what is left out between frames: so much of what lies between all.
GAP = 16
MAX_SAID = 5


class _Ram(NamedTuple):
    """Where RAM is.

    Args:
        ranges: (first frame, first frame after it), in order.
        resources: What lies where; None if not known, and then the ranges are those with frames.
    """

    ranges: list[tuple[int, int]]
    resources: list[Resource] | None


def picture_moves(moves: Moves, before: SnapshotFile, after: SnapshotFile) -> Picture:
    """Draw what became of pages: where they stayed, where they went, and where they came from.

    Args:
        moves: Of `read_moves()`.
        before: The earlier snapshot.
        after: The later one.

    Returns:
        The picture; without frames where those of either snapshot were hidden.
    """
    import numpy as np

    bands = bands_module.make_bands(moves)
    frames, links, missing = None, None, ""
    scale: list[str] = []
    notes: list[str] = []
    if moves.knows_frames:
        over = np.concatenate([placed.frames for placed in moves.placed])
        ram = _find_ram(before, after, over)
        rest = index_of(DIFF_KINDS, "other")
        runs = np.array([(low, high - low, rest) for low, high in ram.ranges], dtype=RUN_DTYPE)
        frames = make_frames(runs, over, ram.ranges, DIFF_KINDS, ram.resources)
        links, nr_outside = bands_module.make_links(moves, bands, frames.grid, ram.ranges)
        scale = [_cell_note(frames), _link_note(links)]
        notes = list(_notes(moves, frames, ram, nr_outside))
    else:
        hidden = [file.path for file in (before, after) if not file.knows_frames]
        missing = f"frame numbers were hidden from who took {' and '.join(hidden)}"
        notes = ["Without frame numbers it is not known what moved."]
    profile = bands_module.profiles(moves, bands)
    return Picture(
        title=_title(before, after),
        subtitle=_times(before, after),
        origin=f"{printable(after.about['host'])}  ·  Linux {after.about['kernel']}",
        summary=_summary(moves),
        kinds=DIFF_KINDS,
        frames=frames,
        space=Space(after.about["pid"], moves, bands, profile, links),
        scale=tuple(scale),
        notes=tuple(notes),
        missing=missing,
    )


def _find_ram(before: SnapshotFile, after: SnapshotFile, over: Runs) -> _Ram:
    """Where RAM was; of snapshots that do not tell, where it is if this is still that boot."""
    for file in (after, before):
        if file.resources is not None:
            return _Ram(ram_ranges(file.resources), file.resources)
    if boot_id() == after.about["boot_id"]:
        try:
            resources = read_resources()
        except OSError:  # they are root's to see
            pass
        else:
            return _Ram(ram_ranges(resources), resources)
    return _Ram(named_ranges(over), None)


def named_ranges(over: Runs) -> list[tuple[int, int]]:
    """Ranges of frames, in whole blocks of memory, that have all of those that are named.

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


def _title(before: SnapshotFile, after: SnapshotFile) -> str:
    one, other = (
        f"{printable(file.about['comm'])} {file.about['pid']}" for file in (before, after)
    )
    if before.process == after.process:
        return f"{printable(after.about['comm'])}, process {after.about['pid']}: what moved"
    return f"{one} and {other}: what differs"


def _times(before: SnapshotFile, after: SnapshotFile) -> str:
    one, other = (file.time.astimezone() for file in (before, after))
    seconds = (other - one).total_seconds()
    form = "%Y-%m-%d %H:%M:%S"
    same_day = one.date() == other.date() and one.utcoffset() == other.utcoffset()
    clock = f"{other:%H:%M:%S}" if same_day else f"{other:{form}}"
    # Paper has no room for fractions of a second but in short times.
    later = f"{abs(seconds):,.0f} s" if abs(seconds) >= 100 else f"{abs(seconds):.1f} s"
    direction = "later" if seconds >= 0 else "earlier"
    return f"Before: {one:{form}}  ·  after: {clock} {other:%z}, {later} {direction}"


def _summary(moves: Moves) -> str:
    counts = sorted(moves.counts.items(), key=lambda item: (item[0].same, -item[1]))
    nr_all = sum(nr for _, nr in counts)
    words = [f"{pages_size(nr)} {change.value.replace('_', ' ')}" for change, nr in counts]
    if len(words) > MAX_SAID:
        rest = sum(nr for _, nr in counts[MAX_SAID - 1 :])
        words[MAX_SAID - 1 :] = [f"{pages_size(rest)} else"]
    text = f"Of {pages_size(nr_all)}: {', '.join(words) or 'nothing'}"
    if moves.knows_frames:
        one, other = moves.nr_extents("before"), moves.nr_extents("after")
        text += f"; in {one:,} extents before, {other:,} after"
    return text


def _cell_note(frames: Frames) -> str:
    cell, row = 1 << frames.grid.shift, 1 << frames.grid.row_shift
    page = size_words(PAGE_SIZE)
    what = f"{cell:,} frames of {page}, {size_words(cell * PAGE_SIZE)}"
    return (
        f"Each cell is {what if cell > 1 else f'a frame of {page}'}; each row"
        f" {size_words(row * PAGE_SIZE)}. Its stripes are what became of the frames, by their"
        " shares; each kind that the process has or had takes a quarter of the cell at least, or an"
        " eighth where there are more than four."
    )


def _link_note(links: Links) -> str:
    rows = "a row of cells" if links.nr_rows == 1 else f"{links.nr_rows} rows of cells"
    part = "a mapping" if links.nr_parts == 1 else f"1/{links.nr_parts} of a mapping"
    return (
        f"Each connector bundles pages of {part} that are, or were, in {rows}, as broad as they are"
        " many: those that moved have one to where they were and one to where they are."
    )


def _notes(moves: Moves, frames: Frames, ram: _Ram, nr_outside: int) -> list[str]:
    """What else has to be known."""
    notes = []
    _, past = moves.placed
    nr_past = int(past.frames["nr"].sum())
    nr_drawn = sum(nr for kind, nr in zip(DIFF_KINDS, frames.totals, strict=True) if kind.is_past)
    if nr_drawn < nr_past - nr_outside:
        notes.append(
            "A frame that a page has left is drawn as what it is now where the process has another"
            " page in it, or the same at another address."
        )
    if nr_outside:
        notes.append(f"{nr_outside:,} pages lie outside of RAM: no frames are drawn for them.")
    if ram.resources is None:
        notes.append(
            "Where RAM is was not kept in these snapshots, and is not known here: only the memory"
            " around the frames that they name is drawn."
        )
    return notes
