# SPDX-License-Identifier: GPL-2.0-or-later
"""What a process touched, as a picture: each page by in how many intervals it was used.

The picture has the resident pages of each mapping, in the order of their addresses and without the
gaps between them. So its size does not depend on the size of the address space.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from physview.analysis.page_uses import History, pages_per_bit, unpack
from physview.analysis.touched import MappingUse, Touched
from physview.errors import UsageError
from physview.model import PAGE_SHIFT, PAGE_SIZE, printable
from physview.pictures.html import fill_page
from physview.pictures.kinds import Kind
from physview.pictures.output import write_drawing
from physview.pictures.shapes import NOTHING, Cells, Drawing, Rect, Shape, Text, fit
from physview.pictures.svg import body, number, style, text
from physview.units import pages_size, share, short_size

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

WIDTH, MARGIN, PITCH, GAP = 1024, 20, 8.0, 1.0
COLUMNS = 123
MAX_CELLS = 80 * COLUMNS
MAX_MAPPINGS = 20
_BLOCKS_AT_ONCE = 256
_HEATS = 5

_GROUP = "Heat"
UNKNOWN, UNTOUCHED, COLDEST = 0, 1, 2
HEAT_KINDS = (
    Kind("heat_unknown", "not known", "#d9dde1", "#3a434d", _GROUP),
    Kind("heat_none", "not touched", "#b5d3e7", "#234a66", _GROUP),
    Kind("heat_1", "touched", "#fee08b", "#6b4a12", _GROUP),
    Kind("heat_2", "touched", "#fdae61", "#a8641b", _GROUP),
    Kind("heat_3", "touched", "#f46d43", "#d9762b", _GROUP),
    Kind("heat_4", "touched", "#d73027", "#f0894a", _GROUP),
    Kind("heat_5", "touched", "#8b0a1a", "#ffd27a", _GROUP),
)
"""From cold to hot. A cell of several pages has the last kind that one of them has."""


class Strip(NamedTuple):
    """The cells of a mapping, or of several.

    Args:
        heading: Its name and its sums.
        codes: uint8 array: the index of a kind for each cell.
    """

    heading: str
    codes: npt.NDArray[np.uint8]


def write_heat(
    touched: Touched, path: str, *, theme: str | None = None, overwrite: bool = False
) -> int:
    """Draw what a process touched to a file, whole or not at all.

    Args:
        touched: What it touched.
        path: The file; its suffix is one of `output.SUFFIXES`.
        theme: As in `write_picture()`.
        overwrite: Whether to replace a file of this name.

    Returns:
        The size of the file in bytes.

    Raises:
        As `output.check_path()`.
        UsageError: Single pages are not known.
    """
    return write_drawing(
        path,
        lambda: lay_out_heat(touched),
        lambda theme: _to_html(lay_out_heat(touched), theme),
        theme=theme,
        overwrite=overwrite,
    )


def lay_out_heat(touched: Touched) -> Drawing:
    """Place everything.

    Raises:
        UsageError: Single pages are not known.
    """
    if touched.history is None:
        why = "smaps has sums of mappings only"
        raise UsageError("a picture by heat needs single pages", why, "use --by accessed, as root")
    pages_per_cell, strips = make_strips(touched, touched.history)
    title = f"What process {touched.pid} ({printable(touched.name)}) touched"
    shapes: list[Shape] = [Text(MARGIN, 34, fit(title, WIDTH - 2 * MARGIN, 20), 20, is_bold=True)]
    y = 56.0
    for line in (_facts(touched, pages_per_cell), f"changed: {touched.influence}"):
        shapes.append(Text(MARGIN, y, fit(line, WIDTH - 2 * MARGIN, 11.5), 11.5, "muted"))
        y += 17
    y = _add_legend(shapes, y + 8, len(touched.intervals))
    for heading, codes in strips:
        shapes.append(Text(MARGIN, y, fit(heading, WIDTH - 2 * MARGIN, 11), 11))
        y += 6
        rows = _rows(codes)
        shapes.append(Cells(MARGIN, y, COLUMNS * PITCH, PITCH, GAP, rows))
        y += len(rows) * PITCH + 20
    return Drawing(WIDTH, y, title, HEAT_KINDS, shapes)


def _facts(touched: Touched, pages_per_cell: int) -> str:
    total, nr = touched.total, len(touched.intervals)
    least = "at least " if total.unknown else ""
    intervals = f"{nr} intervals, together " if nr > 1 else ""
    each = "its most used page" if nr > 1 else "its page that was touched, if any"
    cell = f"a cell is {pages_size(pages_per_cell)} and shows {each}"
    if pages_per_cell == 1:
        cell = f"a cell is a page of {PAGE_SIZE >> 10} KiB"
    return (
        f"{intervals}{touched.seconds:.3g} s, by {touched.by} ({touched.source}):"
        f" {least}{short_size(total.touched)} of {short_size(total.resident)} touched; {cell}"
    )


def _add_legend(shapes: list[Shape], y: float, nr_intervals: int) -> float:
    """Add the legend; return where to go on."""
    x = float(MARGIN)
    for code, kind in enumerate(HEAT_KINDS):
        label = kind.label
        if code >= COLDEST:
            low, high = heat_range(code, nr_intervals)
            if low > high:
                continue
            if nr_intervals > 1:
                label = f"{low} times" if low == high else f"{low} to {high} times"
                label = "once" if high == 1 else label
        shapes.append(Rect(x, y - 10, 12, 12, kind.slug, 2))
        shapes.append(Text(x + 17, y, label, 11.5))
        x += 17 + len(label) * 6.6 + 22
    return y + 30


def heat_range(code: int, nr_intervals: int) -> tuple[int, int]:
    """In how many intervals the pages of a kind were touched, the least and the most.

    >>> [heat_range(code, 10) for code in range(COLDEST, COLDEST + 5)]
    [(1, 2), (3, 4), (5, 6), (7, 8), (9, 10)]
    >>> [heat_range(code, 1) for code in (COLDEST, COLDEST + 4)]  # the first kind has no pages
    [(1, 0), (1, 1)]
    """
    step = code - COLDEST
    return nr_intervals * step // _HEATS + 1, nr_intervals * (step + 1) // _HEATS


def _codes(history: History, part: slice, nr_intervals: int) -> npt.NDArray[np.uint8]:
    """The kind of each bit of some blocks; NOTHING where there is no page."""
    import numpy as np

    uses = history.uses
    assert uses
    touched = unpack(uses.touched[part])
    times = (
        touched.astype(np.int64) if history.heat is None else history.heat[part].astype(np.int64)
    )
    times = np.minimum(times, nr_intervals)
    # The inverse of heat_range(): ceil(times * 5 / nr) - 1
    codes = COLDEST + (times * _HEATS + nr_intervals - 1) // nr_intervals - 1
    codes = np.where(times > 0, codes, UNTOUCHED)
    codes = np.where((times == 0) & (unpack(uses.unknown[part]) != 0), UNKNOWN, codes)
    codes = np.where(unpack(uses.present[part]) != 0, codes, NOTHING)
    return codes.astype(np.uint8)


def iter_pages(
    history: History, nr_intervals: int
) -> Iterator[tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8], npt.NDArray[np.int64]]]:
    """Yield the addresses of pages in their order, their kinds and their sizes in base pages."""
    import numpy as np

    uses = history.uses
    assert uses
    for at in range(0, len(uses.blocks), _BLOCKS_AT_ONCE):
        part = slice(at, at + _BLOCKS_AT_ONCE)
        codes = _codes(history, part, nr_intervals)
        blocks, bits = np.nonzero(codes != NOTHING)
        vaddrs = uses.blocks["vaddr"][part][blocks] + (bits.astype(np.uint64) << PAGE_SHIFT)
        yield vaddrs, codes[blocks, bits], pages_per_bit(uses.blocks[part])[blocks]


def make_strips(touched: Touched, history: History) -> tuple[int, list[Strip]]:
    """Make the cells of each mapping, and choose how many pages a cell has."""
    import numpy as np

    uses = sorted(touched.mappings, key=lambda use: -use.sums.resident)
    shown = sorted(uses[:MAX_MAPPINGS], key=lambda use: use.vma.start)
    nr_pages = [use.sums.resident // PAGE_SIZE for use in shown]
    rest = sum(use.sums.resident for use in uses[MAX_MAPPINGS:])
    nr_pages.append(rest // PAGE_SIZE)
    pages_per_cell = 1
    while sum(-(-nr // pages_per_cell) for nr in nr_pages) > MAX_CELLS:
        pages_per_cell *= 2
    cells = [np.zeros(-(-nr // pages_per_cell), dtype=np.uint8) for nr in nr_pages]
    done = [0] * len(cells)
    starts = np.array([use.vma.start for use in shown], dtype=np.uint64)
    ends = np.array([use.vma.end for use in shown], dtype=np.uint64)
    for vaddrs, codes, sizes in iter_pages(history, len(touched.intervals)):
        which = np.searchsorted(starts, vaddrs, side="right") - 1
        inside = (which >= 0) & (vaddrs < ends[np.maximum(which, 0)]) if len(ends) else which >= 0
        which = np.where(inside, which, len(shown))
        for strip in np.unique(which).tolist():
            _fill(cells, done, strip, codes[which == strip], sizes[which == strip], pages_per_cell)
    strips = [Strip(_heading(use), cells[i]) for i, use in enumerate(shown)]
    if rest:
        nr_rest = len(uses) - len(shown)
        strips.append(Strip(f"{nr_rest} smaller mappings  {short_size(rest)}", cells[-1]))
    return pages_per_cell, strips


def _fill(
    cells: list[npt.NDArray[np.uint8]],
    done: list[int],
    strip: int,
    codes: npt.NDArray[np.uint8],
    sizes: npt.NDArray[np.int64],
    pages_per_cell: int,
) -> None:
    """Put pages into the cells of a strip, after those that it has."""
    import numpy as np

    ends = done[strip] + np.cumsum(sizes)
    firsts = (ends - sizes) // pages_per_cell
    lasts = (ends - 1) // pages_per_cell
    nr = lasts - firsts + 1
    within = np.arange(int(nr.sum())) - np.repeat(np.cumsum(nr) - nr, nr)
    places: Any = np.minimum(np.repeat(firsts, nr) + within, len(cells[strip]) - 1)
    if len(cells[strip]):
        np.maximum.at(cells[strip], places, np.repeat(codes, nr))
    done[strip] = int(ends[-1])


def _heading(use: MappingUse) -> str:
    vma, sums = use
    name = printable(vma.path) or "anonymous"
    if not sums.touched:
        return f"{vma.start:#x}  {vma.perms}  {name}  none of {short_size(sums.resident)} touched"
    return (
        f"{vma.start:#x}  {vma.perms}  {name}  {short_size(sums.touched)} of"
        f" {short_size(sums.resident)} touched ({share(sums.touched, sums.resident)})"
    )


def _rows(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Cells in rows. Each cell is UNITS stripes wide, of which the last is left empty."""
    import numpy as np

    nr_rows = -(-len(codes) // COLUMNS)
    padded = np.full(nr_rows * COLUMNS, NOTHING, dtype=np.uint8)
    padded[: len(codes)] = codes
    wide = np.repeat(padded.reshape(nr_rows, COLUMNS), int(PITCH), axis=1)
    wide[:, int(PITCH) - 1 :: int(PITCH)] = NOTHING
    return wide


def _to_html(drawing: Drawing, theme: str) -> str:
    size = f"0 0 {number(drawing.width)} {number(drawing.height)}"
    svg = (
        f'<svg viewBox="{size}" role="img" aria-label="{text(drawing.title)}">\n'
        f'<rect class="paper" width="100%" height="100%"/>\n{body(drawing)}</svg>\n'
    )
    parts = {"title": text(drawing.title), "style": style(drawing, theme), "svg": svg}
    return fill_page("heat.html", parts)
