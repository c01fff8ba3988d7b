# SPDX-License-Identifier: GPL-2.0-or-later
"""The address space as bands one below the other, and what leads from them to frames.

A band is a mapping, or mappings in a row: what has little in memory is told together, so that
there are never more bands than one can read. Within a band a place is an offset in pages, with
nothing left between its mappings.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, Protocol

from physview.memory.rows import split_at
from physview.model import PAGE_SIZE, Vma, printable
from physview.pictures.grid import CELLS_SHIFT, MAX_ROWS, Grid
from physview.pictures.kinds import NO_KIND, Kind

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from physview.pictures.runs import Runs

    IntArrays = tuple[npt.NDArray[np.int64], ...]

MAX_BANDS = 16
MAX_NAMES = 3
# What a band is cut into, for its profile.
PARTS = 64
# Connectors begin at so many places of a band, and end at so many rows of cells: the first that
# makes few enough.
LINK_STEPS = ((32, 1), (16, 1), (16, 2), (8, 2), (8, 4), (4, 4), (4, 8), (2, 8), (1, 8), (1, 16))
LINK_PARTS = LINK_STEPS[0][0]
MAX_LINKS = 1200


class PageFrames(NamedTuple):
    """Pages that have frames.

    Args:
        rows: intp array, shape (n,): which rows of the pages.
        frames: Array of `runs.RUN_DTYPE`, shape (n,): the frames of each, and what they are.
    """

    rows: npt.NDArray[np.intp]
    frames: Runs


class DrawnPages(Protocol):
    """What an address space has: a process's memory at one time, or what became of it."""

    @property
    def all_kinds(self) -> tuple[Kind, ...]:
        """What its pages and frames can be."""

    @property
    def vmas(self) -> list[Vma]:
        """The mappings, in address order."""

    @property
    def rows(self) -> npt.NDArray[np.void]:
        """Structured array, shape (n,), with vaddr, nr_pages and vma, in address order."""

    @property
    def kinds(self) -> npt.NDArray[np.uint8]:
        """Shape (n,): what the pages of each row are; NO_KIND where that is not drawn."""

    @property
    def page_frames(self) -> list[PageFrames]:
        """Which have frames; a row may be there more than once."""

    @property
    def is_changed(self) -> npt.NDArray[np.bool_] | None:
        """Shape (n,): which are not as they were; None if that is not what it is about."""


class Band(NamedTuple):
    """A mapping, or mappings in a row.

    Args:
        first: The index of the first of them in the process's mappings.
        nr: How many mappings.
        name: The mapping's name, or what they are together.
        start: The first address.
        end: The first address after the last.
        nr_pages: Base pages that are mapped.
        counts: DrawnPages of each kind.
        nr_resident: DrawnPages that have, or had, a frame of their own.
        nr_changed: DrawnPages that are not as they were; None if that is not what it is about.
    """

    first: int
    nr: int
    name: str
    start: int
    end: int
    nr_pages: int
    counts: tuple[int, ...]
    nr_resident: int
    nr_changed: int | None


class Link(NamedTuple):
    """Pages of a part of a band whose frames lie in the same rows of the grid.

    Args:
        band: The index of the band.
        part: Which part of it, of so many as `Links.nr_parts`.
        row: The first of the rows, over all that are drawn.
        kind: What most of the pages are, or all, see `Links`.
        nr_pages: How many pages.
    """

    band: int
    part: int
    row: int
    kind: int
    nr_pages: int


class Links(NamedTuple):
    """All that leads from bands to frames; every page that has a frame in RAM is in one.

    Where there are kinds of what was, each kind has links of its own, for then it tells apart where
    pages were and where they are.

    Args:
        nr_parts: How many parts a band has, if it has so many pages.
        nr_rows: How many rows a link ends at.
        links: By band, part, row and kind.
    """

    nr_parts: int
    nr_rows: int
    links: tuple[Link, ...]


def make_bands(memory: DrawnPages, *, max_bands: int = MAX_BANDS) -> list[Band]:
    """Put mappings together until there are few enough bands.

    Those that have most in memory have bands of their own; the others share one with their
    neighbours.

    Args:
        memory: The pages.
        max_bands: How many there may be.
    """
    import numpy as np

    nr_kinds = len(memory.all_kinds)
    has_frame = np.array([kind.has_frame for kind in memory.all_kinds])
    known = memory.kinds != NO_KIND
    key = memory.rows["vma"][known].astype(np.int64) * nr_kinds + memory.kinds[known]
    weights = memory.rows["nr_pages"][known]
    size = len(memory.vmas) * nr_kinds
    counts = np.bincount(key, weights=weights, minlength=size).astype(np.int64)
    counts = counts.reshape(len(memory.vmas), nr_kinds)
    changed = None
    if memory.is_changed is not None:
        nr = np.where(memory.is_changed, memory.rows["nr_pages"], 0)
        changed = np.bincount(memory.rows["vma"], weights=nr, minlength=len(memory.vmas))
    bounds = _bounds(memory.vmas, counts.sum(axis=1).tolist(), max_bands)
    return [
        Band(
            first,
            end - first,
            _name(memory.vmas[first:end]),
            memory.vmas[first].start,
            memory.vmas[end - 1].end,
            sum(vma.end - vma.start for vma in memory.vmas[first:end]) // PAGE_SIZE,
            tuple(counts[first:end].sum(axis=0).tolist()),
            int(counts[first:end, has_frame].sum()),
            None if changed is None else int(changed[first:end].sum()),
        )
        for first, end in bounds
    ]


def _bounds(vmas: list[Vma], weights: list[int], max_bands: int) -> list[tuple[int, int]]:
    """(first, end) of the mappings of each band."""
    groups: list[tuple[int, int]] = []  # mappings of the same file in a row belong together
    for i, vma in enumerate(vmas):
        if groups and vma.path and vmas[groups[-1][0]].path == vma.path:
            groups[-1] = (groups[-1][0], i + 1)
        else:
            groups.append((i, i + 1))
    by_weight = sorted(groups, key=lambda group: -sum(weights[slice(*group)]))
    nr_alone = max_bands
    while True:
        alone = set(by_weight[:nr_alone])
        bounds: list[tuple[int, int]] = []
        for group in groups:
            joins = bounds and group not in alone and bounds[-1] not in alone
            if joins and not _is_far(vmas, group[0]):
                bounds[-1] = (bounds[-1][0], group[1])
            else:
                bounds.append(group)
        if len(bounds) <= max_bands or not nr_alone:
            return bounds if len(bounds) <= max_bands else _in_equal_parts(groups, max_bands)
        nr_alone -= 1


FAR = 1 << 30


def _is_far(vmas: list[Vma], index: int) -> bool:
    """Whether there is much unmapped before a mapping: what is on either side has little to do
    with the other."""
    return vmas[index].start - vmas[index - 1].end >= FAR


def _in_equal_parts(groups: list[tuple[int, int]], nr: int) -> list[tuple[int, int]]:
    edges = [len(groups) * i // nr for i in range(nr + 1)]
    return [(groups[low][0], groups[high - 1][1]) for low, high in pairwise(edges) if low < high]


def _name(vmas: list[Vma]) -> str:
    names = list(dict.fromkeys(name_of(vma) for vma in vmas))
    if len(names) <= MAX_NAMES:
        return ", ".join(names)
    return f"{len(vmas):,} mappings"


def name_of(vma: Vma) -> str:
    """What a mapping is called: its file's name without the folders."""
    if not vma.path:
        return "anonymous"
    name = vma.path if vma.path.startswith("[") else os.path.basename(vma.path)
    return printable(name or vma.path)


def _offsets(memory: DrawnPages, bands: list[Band]) -> tuple[IntArrays, npt.NDArray[np.int64]]:
    """Of each row its band and its offset in it, in pages; and how long each band is."""
    import numpy as np

    sizes = np.array([(vma.end - vma.start) // PAGE_SIZE for vma in memory.vmas], dtype=np.int64)
    before = np.cumsum(sizes) - sizes
    band_of = np.repeat(np.arange(len(bands)), [band.nr for band in bands])
    starts = np.array([vma.start for vma in memory.vmas], dtype=np.uint64)
    vma = memory.rows["vma"].astype(np.intp)
    band = band_of[vma]
    firsts = before[[each.first for each in bands]]
    within = ((memory.rows["vaddr"] - starts[vma]) // np.uint64(PAGE_SIZE)).astype(np.int64)
    lengths = np.array([each.nr_pages for each in bands], dtype=np.int64)
    return (band, before[vma] + within - firsts[band]), lengths


def _split_parts(
    memory: DrawnPages, bands: list[Band], rows: npt.NDArray[np.intp], nr_parts: int
) -> IntArrays:
    """Cut rows where a part of a band ends; a page lies in the part that it begins in.

    Returns:
        Of each piece which of `rows`, its band, its part, its first page in the row and its pages.
    """
    import numpy as np

    (band, offset), lengths = _offsets(memory, bands)
    band, offset = band[rows], offset[rows]
    nr = memory.rows["nr_pages"][rows].astype(np.int64)
    pieces: list[npt.NDArray[np.int64]] = [np.empty((5, 0), dtype=np.int64)]
    for each in np.unique(band).tolist():
        mine = np.flatnonzero(band == each)
        # A part is length / scale pages: so count in scale-ths of a page.
        scale = parts_of(bands[each], nr_parts)
        index, start, length = split_at(offset[mine] * scale, nr[mine] * scale, int(lengths[each]))
        low, high = -(-start // scale), -(-(start + length) // scale)
        row = mine[index]
        columns = (row, band[row], start // lengths[each], low - offset[row], high - low)
        pieces.append(np.array([column[high > low] for column in columns], dtype=np.int64))
    return tuple(np.concatenate(pieces, axis=1))


def parts_of(band: Band, nr_parts: int) -> int:
    """How many parts a band is cut into: no more than it has pages."""
    return min(nr_parts, band.nr_pages)


def profiles(memory: DrawnPages, bands: list[Band]) -> npt.NDArray[np.int64]:
    """What each band has where: pages of each kind in each of its parts.

    Returns:
        int64 array, shape (bands, PARTS, kinds); of a band of fewer pages only so many are used.
    """
    import numpy as np

    rows = np.flatnonzero(memory.kinds != NO_KIND)
    row, band, part, _, nr = _split_parts(memory, bands, rows, PARTS)
    nr_kinds = len(memory.all_kinds)
    key = (band * PARTS + part) * nr_kinds + memory.kinds[rows[row]]
    size = len(bands) * PARTS * nr_kinds
    counts = np.bincount(key, weights=nr, minlength=size).astype(np.int64)
    return counts.reshape(len(bands), PARTS, nr_kinds)


def make_links(
    memory: DrawnPages, bands: list[Band], grid: Grid, ram: list[tuple[int, int]]
) -> tuple[Links, int]:
    """Bundle what leads from pages to frames, more coarsely until there are few enough.

    Args:
        memory: The pages; their frames must be known.
        bands: Its bands.
        grid: Where frames are drawn.
        ram: (first frame, first frame after it), in order.

    Returns:
        The links, and how many pages have frames outside of RAM.
    """
    import numpy as np

    rows = np.concatenate([each.rows for each in memory.page_frames])
    frames = np.concatenate([each.frames for each in memory.page_frames])
    row, band, part, first, nr = _split_parts(memory, bands, rows, LINK_PARTS)
    pfn, kind = frames["pfn"][row].astype(np.int64) + first, frames["kind"][row]
    edges = np.array(ram, dtype=np.int64)
    found = [np.empty((5, 0), dtype=np.int64)]
    nr_inside = 0
    for mine in _few_pieces(pfn, nr, edges, grid.row_shift):
        index, start, length = _within(pfn[mine], nr[mine], edges)
        nr_inside += int(length.sum())
        again, start, length = split_at(start, length, 1 << grid.row_shift)
        which = mine.start + index[again]
        places = np.array([band[which], part[which], grid.place(start) >> CELLS_SHIFT, kind[which]])
        # What is alike is one, so that the pieces are never there all at a time.
        distinct, same = np.unique(places, axis=1, return_inverse=True)
        pages = np.bincount(same.ravel(), weights=length).astype(np.int64)
        found.append(np.concatenate([distinct, pages[np.newaxis]]))
    band, part, grid_row, kinds, nr_pages = np.concatenate(found, axis=1)
    apart = any(each.is_past for each in memory.all_kinds)
    links = _bundle(bands, band, part, grid_row, kinds.astype(np.uint8), nr_pages, apart)
    return links, int(nr.sum()) - nr_inside


PIECES = 1 << 16
"""How many pieces are looked up at once: what this takes of memory is the most that links take."""


def _few_pieces(
    pfn: npt.NDArray[np.int64], nr: npt.NDArray[np.int64], edges: npt.NDArray[np.int64], shift: int
) -> Iterator[slice]:
    """Which runs of frames to cut together, so that they become PIECES or few more."""
    import numpy as np

    nr_ranges = np.searchsorted(edges[:, 0], pfn + nr) - np.searchsorted(edges[:, 1], pfn, "right")
    most = np.maximum(nr_ranges, 0) + np.minimum(nr >> shift, MAX_ROWS) + 2
    done = np.cumsum(most)
    first = 0
    while first < len(pfn):
        before = int(done[first - 1]) if first else 0
        end = max(first + 1, int(np.searchsorted(done, before + PIECES, "right")))
        yield slice(first, end)
        first = end


def _within(
    pfn: npt.NDArray[np.int64], nr: npt.NDArray[np.int64], edges: npt.NDArray[np.int64]
) -> IntArrays:
    """Cut runs of frames to what lies in ranges of them.

    Args:
        pfn: Shape (n,): the first frame of each.
        nr: Shape (n,): how many.
        edges: Shape (ranges, 2): first frame, and first frame after it, in order.

    Returns:
        Of each piece the index of its run, its first frame, and how many it has.
    """
    import numpy as np

    first = np.searchsorted(edges[:, 1], pfn, side="right")
    nr_ranges = np.maximum(np.searchsorted(edges[:, 0], pfn + nr) - first, 0)
    index = np.repeat(np.arange(len(pfn)), nr_ranges)
    number = np.arange(len(index)) - np.repeat(np.cumsum(nr_ranges) - nr_ranges, nr_ranges)
    low, high = edges[first[index] + number].T
    start = np.maximum(pfn[index], low)
    return index, start, np.minimum((pfn + nr)[index], high) - start


def _bundle(
    bands: list[Band],
    band: npt.NDArray[np.int64],
    part: npt.NDArray[np.int64],
    row: npt.NDArray[np.int64],
    kind: npt.NDArray[np.uint8],
    nr: npt.NDArray[np.int64],
    apart: bool = False,
) -> Links:
    import numpy as np

    finest = np.array([parts_of(each, LINK_PARTS) for each in bands])
    for nr_parts, nr_rows in LINK_STEPS:
        coarser = part * np.minimum(finest, nr_parts)[band] // finest[band]
        key = ((band << 10 | coarser) << 20 | row // nr_rows) << 8 | kind
        distinct, index = np.unique(key, return_inverse=True)
        pages = np.bincount(index, weights=nr).astype(np.int64)
        # A place of its own for each kind, or the one that most are of.
        places, firsts = np.unique(distinct >> (0 if apart else 8), return_index=True)
        if len(places) <= MAX_LINKS:
            break
    links = []
    for i, place in enumerate(places.tolist()):
        end = firsts[i + 1] if i + 1 < len(firsts) else len(distinct)
        mine = slice(int(firsts[i]), int(end))
        most = int(distinct[mine][np.argmax(pages[mine])]) & 255
        where = place >> (8 if apart else 0)
        at = (where >> 30, where >> 20 & 1023, (where & (1 << 20) - 1) * nr_rows)
        links.append(Link(*at, most, int(pages[mine].sum())))
    return Links(nr_parts, nr_rows, tuple(links))
