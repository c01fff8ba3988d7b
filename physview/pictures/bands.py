# SPDX-License-Identifier: GPL-2.0-or-later
"""The address space as bands, and the connectors from bands to frames.

A band is one mapping or several neighbouring mappings. Mappings with few resident pages share a
band, so that there are few enough bands to read. An offset in a band counts the pages of its
mappings, without the gaps between them.
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
# The profile of a band has this many parts.
PARTS = 64
# (parts of a band, rows of cells) that a connector bundles. The first step that makes at most
# MAX_LINKS connectors is drawn; if none does, the last.
LINK_STEPS = ((32, 1), (16, 1), (16, 2), (8, 2), (8, 4), (4, 4), (4, 8), (2, 8), (1, 8), (1, 16))
LINK_PARTS = LINK_STEPS[0][0]
MAX_LINKS = 1200


class PageFrames(NamedTuple):
    """The frames of some rows of pages.

    Args:
        rows: intp array, shape (n,): the indices of the rows.
        frames: Array of `runs.RUN_DTYPE`, shape (n,): the frames of each row, and their kind.
    """

    rows: npt.NDArray[np.intp]
    frames: Runs


class DrawnPages(Protocol):
    """The pages of an address space: at one time, or what became of them between two times."""

    @property
    def all_kinds(self) -> tuple[Kind, ...]:
        """The kinds of the pages and frames."""

    @property
    def vmas(self) -> list[Vma]:
        """The mappings, in address order."""

    @property
    def rows(self) -> npt.NDArray[np.void]:
        """Structured array, shape (n,), with vaddr, nr_pages and vma, in address order."""

    @property
    def kinds(self) -> npt.NDArray[np.uint8]:
        """Shape (n,): the kind of each row's pages; NO_KIND if they are not drawn."""

    @property
    def page_frames(self) -> list[PageFrames]:
        """The rows with frames. A row may be there more than once."""

    @property
    def is_changed(self) -> npt.NDArray[np.bool_] | None:
        """Shape (n,): which rows changed; None for pages at one time."""


class Band(NamedTuple):
    """One mapping, or several neighbouring mappings.

    Args:
        first: The index of its first mapping in all mappings of the process.
        nr: How many mappings.
        name: The name of the mapping, or of all of them.
        start: The first address.
        end: The first address after the last.
        nr_pages: Base pages of its mappings.
        counts: Pages of each kind.
        nr_resident: Pages that have, or had, a frame of their own.
        nr_changed: Pages that changed; None for pages at one time.
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
    """A connector: pages of a part of a band whose frames are in the same rows of the grid.

    Args:
        band: The index of the band.
        part: The number of the part, of `Links.nr_parts`.
        row: The first of the rows, numbered through the grid.
        kind: The kind of most of the pages, or of all, see `Links`.
        nr_pages: How many pages.
    """

    band: int
    part: int
    row: int
    kind: int
    nr_pages: int


class Links(NamedTuple):
    """All connectors from bands to frames. Every page that has a frame in RAM is in one of them.

    In a difference each kind has links of its own, so that links to where pages were differ from
    links to where they are.

    Args:
        nr_parts: How many parts a band has, if it has so many pages.
        nr_rows: How many rows of cells a link ends at.
        links: By band, part, row and kind.
    """

    nr_parts: int
    nr_rows: int
    links: tuple[Link, ...]


def make_bands(pages: DrawnPages, *, max_bands: int = MAX_BANDS) -> list[Band]:
    """Merge mappings into bands until there are few enough.

    The mappings with most resident pages have bands of their own. Others share a band with their
    neighbours.

    Args:
        pages: The pages.
        max_bands: The largest number of bands.
    """
    import numpy as np

    nr_kinds = len(pages.all_kinds)
    has_frame = np.array([kind.has_frame for kind in pages.all_kinds])
    known = pages.kinds != NO_KIND
    key = pages.rows["vma"][known].astype(np.int64) * nr_kinds + pages.kinds[known]
    weights = pages.rows["nr_pages"][known]
    size = len(pages.vmas) * nr_kinds
    counts = np.bincount(key, weights=weights, minlength=size).astype(np.int64)
    counts = counts.reshape(len(pages.vmas), nr_kinds)
    changed = None
    if pages.is_changed is not None:
        nr = np.where(pages.is_changed, pages.rows["nr_pages"], 0)
        changed = np.bincount(pages.rows["vma"], weights=nr, minlength=len(pages.vmas))
    bounds = _bounds(pages.vmas, counts.sum(axis=1).tolist(), max_bands)
    return [
        Band(
            first,
            end - first,
            _name(pages.vmas[first:end]),
            pages.vmas[first].start,
            pages.vmas[end - 1].end,
            sum(vma.end - vma.start for vma in pages.vmas[first:end]) // PAGE_SIZE,
            tuple(counts[first:end].sum(axis=0).tolist()),
            int(counts[first:end, has_frame].sum()),
            None if changed is None else int(changed[first:end].sum()),
        )
        for first, end in bounds
    ]


def _bounds(vmas: list[Vma], weights: list[int], max_bands: int) -> list[tuple[int, int]]:
    """(first, end) of the mappings of each band."""
    groups: list[tuple[int, int]] = []  # neighbouring mappings of a file belong together
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
    """Whether the gap before a mapping is so large that it should not share a band with the one
    before."""
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
    """The name of a mapping: that of its file, without the folders."""
    if not vma.path:
        return "anonymous"
    name = vma.path if vma.path.startswith("[") else os.path.basename(vma.path)
    return printable(name or vma.path)


def _offsets(pages: DrawnPages, bands: list[Band]) -> tuple[IntArrays, npt.NDArray[np.int64]]:
    """The band and the offset in the band of each row, and the length of each band, in pages."""
    import numpy as np

    sizes = np.array([(vma.end - vma.start) // PAGE_SIZE for vma in pages.vmas], dtype=np.int64)
    before = np.cumsum(sizes) - sizes
    band_of = np.repeat(np.arange(len(bands)), [band.nr for band in bands])
    starts = np.array([vma.start for vma in pages.vmas], dtype=np.uint64)
    vma = pages.rows["vma"].astype(np.intp)
    band = band_of[vma]
    firsts = before[[each.first for each in bands]]
    within = ((pages.rows["vaddr"] - starts[vma]) // np.uint64(PAGE_SIZE)).astype(np.int64)
    lengths = np.array([each.nr_pages for each in bands], dtype=np.int64)
    return (band, before[vma] + within - firsts[band]), lengths


def _split_parts(
    pages: DrawnPages, bands: list[Band], rows: npt.NDArray[np.intp], nr_parts: int
) -> IntArrays:
    """Split rows where a part of a band ends. A page belongs to the part in which it begins.

    Returns:
        For each piece: index in `rows`, band, part, first page in the row, and number of pages.
    """
    import numpy as np

    (band, offset), lengths = _offsets(pages, bands)
    band, offset = band[rows], offset[rows]
    nr = pages.rows["nr_pages"][rows].astype(np.int64)
    pieces: list[npt.NDArray[np.int64]] = [np.empty((5, 0), dtype=np.int64)]
    for each in np.unique(band).tolist():
        mine = np.flatnonzero(band == each)
        # A part has length / scale pages, so count in units of 1 / scale page.
        scale = parts_of(bands[each], nr_parts)
        index, start, length = split_at(offset[mine] * scale, nr[mine] * scale, int(lengths[each]))
        low, high = -(-start // scale), -(-(start + length) // scale)
        row = mine[index]
        columns = (row, band[row], start // lengths[each], low - offset[row], high - low)
        pieces.append(np.array([column[high > low] for column in columns], dtype=np.int64))
    return tuple(np.concatenate(pieces, axis=1))


def parts_of(band: Band, nr_parts: int) -> int:
    """The number of parts of a band: at most one for each page."""
    return min(nr_parts, band.nr_pages)


def profiles(pages: DrawnPages, bands: list[Band]) -> npt.NDArray[np.int64]:
    """Count the pages of each kind in each part of each band.

    Returns:
        int64 array, shape (bands, PARTS, kinds). A band with fewer pages uses as many parts.
    """
    import numpy as np

    rows = np.flatnonzero(pages.kinds != NO_KIND)
    row, band, part, _, nr = _split_parts(pages, bands, rows, PARTS)
    nr_kinds = len(pages.all_kinds)
    key = (band * PARTS + part) * nr_kinds + pages.kinds[rows[row]]
    size = len(bands) * PARTS * nr_kinds
    counts = np.bincount(key, weights=nr, minlength=size).astype(np.int64)
    return counts.reshape(len(bands), PARTS, nr_kinds)


def make_links(
    pages: DrawnPages, bands: list[Band], grid: Grid, ram: list[tuple[int, int]]
) -> tuple[Links, int]:
    """Bundle pages and their frames into connectors, more coarsely until there are few enough.

    Args:
        pages: The pages; their frames must be known.
        bands: Their bands.
        grid: The cells.
        ram: (first frame, first frame after it), in order.

    Returns:
        The connectors, and the number of pages with frames outside of RAM.
    """
    import numpy as np

    rows = np.concatenate([each.rows for each in pages.page_frames])
    frames = np.concatenate([each.frames for each in pages.page_frames])
    row, band, part, first, nr = _split_parts(pages, bands, rows, LINK_PARTS)
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
        # Merged here, so that all pieces are never in memory at the same time.
        distinct, same = np.unique(places, axis=1, return_inverse=True)
        nr_same = np.bincount(same.ravel(), weights=length).astype(np.int64)
        found.append(np.concatenate([distinct, nr_same[np.newaxis]]))
    band, part, grid_row, kinds, nr_pages = np.concatenate(found, axis=1)
    apart = any(each.is_past for each in pages.all_kinds)
    links = _bundle(bands, band, part, grid_row, kinds.astype(np.uint8), nr_pages, apart)
    return links, int(nr.sum()) - nr_inside


PIECES = 1 << 16
"""Pieces that are looked up at once: this bounds the memory for connectors."""


def _few_pieces(
    pfn: npt.NDArray[np.int64], nr: npt.NDArray[np.int64], edges: npt.NDArray[np.int64], shift: int
) -> Iterator[slice]:
    """Yield slices of the runs of frames: each becomes about PIECES pieces when it is split."""
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
    """Split runs of frames by ranges of frames, and drop what is in no range.

    Args:
        pfn: Shape (n,): the first frame of each run.
        nr: Shape (n,): the number of frames in it.
        edges: Shape (ranges, 2): first frame, and first frame after it, in order.

    Returns:
        For each piece: the index of its run, its first frame, and its number of frames.
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
        # If kinds are not kept apart, the kind of most pages counts.
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
