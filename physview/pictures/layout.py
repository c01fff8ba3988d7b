# SPDX-License-Identifier: GPL-2.0-or-later
"""The positions of all shapes on the page."""

from __future__ import annotations

import textwrap
from itertools import pairwise
from typing import NamedTuple

from physview.model import PAGE_SHIFT, PAGE_SIZE
from physview.pictures.bands import PARTS, Band, parts_of
from physview.pictures.captions import Captions, describe
from physview.pictures.grid import CELLS_PER_ROW, Block, Grid
from physview.pictures.kinds import OWN, PAGES, REST, Kind
from physview.pictures.model import Picture, Space
from physview.pictures.shapes import Cells, Drawing, Rect, Ribbon, Shape, Text, fit, stripes
from physview.units import pages_size, share

WIDTH, MARGIN = 1440, 48
RIGHT = WIDTH - MARGIN
TOP = 196
HEIGHT = 784
LABELS = 48
BODY, BODY_WIDTH = 276, 84
AXIS_WIDTH = 72
HOLE = 30
MIN_BAND, BAND_GAP, FAR_GAP = 19, 5, 24
TWO_LINES = 36
LINE = 22
LEGEND_COLUMNS, LEGEND_GAP = 4, 40
# Connectors begin right of the bands and end left of the cells.
LINK_LEFT, LINK_GAP = BODY + BODY_WIDTH + 2, 6
THINNEST, LINK_OPACITY = 0.8, 0.55
# Text at the cells: its size, and its baseline below the top of a row or above that of a block.
ADDRESS_SIZE, ADDRESS_BASELINE, ADDRESS_GAP = 11, 9, 10
HOLE_SIZE, HOLE_BASELINE = 12, 10
# Addresses have at least this distance from each other.
ADDRESS_PITCH = 40


class Row(NamedTuple):
    """The position of the rows of one block of the grid.

    Args:
        first: The number of the first row, through the grid.
        nr: How many rows.
        y: The top of the first.
    """

    first: int
    nr: int
    y: float


class Place(NamedTuple):
    """The position of the frames.

    Args:
        x: Left.
        cell: Width of a cell.
        pitch: From the top of a row to that of the next.
        gap: The part of the pitch that is left empty below a row.
        rows: The blocks.
        bottom: The end of the last row.
    """

    x: float
    cell: float
    pitch: float
    gap: float
    rows: tuple[Row, ...]
    bottom: float

    @property
    def width(self) -> float:
        """Width of a row."""
        return CELLS_PER_ROW * self.cell

    @property
    def address_x(self) -> float:
        """The left end of the addresses beside the rows."""
        return self.x + self.width + ADDRESS_GAP

    @property
    def address_step(self) -> int:
        """Rows from one round address to the next."""
        step = 1
        while step * self.pitch < ADDRESS_PITCH:
            step *= 2
        return step

    def y(self, row: float) -> float:
        """The top of a row."""
        block = next(each for each in reversed(self.rows) if row >= each.first)
        return block.y + (row - block.first) * self.pitch


class Span(NamedTuple):
    """The top and bottom of a band."""

    top: float
    bottom: float


class Layout(NamedTuple):
    """The positions of the parts of a picture.

    Args:
        height: Height of the page.
        place: The position of the frames, or None.
        spans: The position of each band.
        frame_labels: The text at the frames: addresses, and names of holes.
    """

    height: float
    place: Place | None
    spans: tuple[Span, ...]
    frame_labels: tuple[Text, ...]


def lay_out(
    picture: Picture, captions: Captions | None = None, *, with_frames: bool = True
) -> tuple[Drawing, Layout]:
    """Make a drawing of a picture.

    Args:
        picture: What to draw.
        captions: Its words; by default those of `captions.describe()`.
        with_frames: Whether to draw frames and connectors; otherwise their place stays empty.
    """
    captions = captions or describe(picture)
    place = _place_frames(picture)
    spans = tuple(_place_bands(picture.space.bands)) if picture.space else ()
    bottom = max([place.bottom if place else 0, *(span.bottom for span in spans), TOP + 240])
    shapes: list[Shape] = [*_header(captions)]
    if picture.space:
        shapes += _bands(picture.space, spans, picture.kinds)
    if picture.frames and place:
        shapes.append(_heading(place.x, "Physical memory, from low to high addresses"))
        shapes += _frames(picture, place) if with_frames else []
    else:
        shapes += _missing(captions, BODY + BODY_WIDTH + 60 if picture.space else MARGIN)
    if picture.space and picture.frames and place and with_frames:
        shapes += _links(picture.space, place, spans, picture.frames.grid, picture.kinds)
    y = bottom + 52
    if with_frames:  # a page has its legend at its top, in HTML
        legend, y = _legend(picture, y)
        shapes += legend
    for note in (*(captions.scale if with_frames else ()), *captions.notes):
        for line in textwrap.wrap(note, 200):
            shapes.append(Text(MARGIN, y, line, 13, "muted"))
            y += 19
        y += 3
    height = y + MARGIN - 22
    labels = _frame_labels(picture.frames.grid, place) if picture.frames and place else ()
    layout = Layout(height, place, spans, labels)
    return Drawing(WIDTH, height, captions.title, picture.kinds, shapes), layout


def _header(captions: Captions) -> list[Shape]:
    shapes: list[Shape] = [
        Text(MARGIN, 74, fit(captions.title, 800, 32), 32, is_bold=True),
        Text(RIGHT, 74, captions.origin, 13, "muted", is_right=True),
        Text(MARGIN, 134 if captions.subtitle else 112, captions.summary, 15),
    ]
    if captions.subtitle:
        shapes.append(Text(MARGIN, 102, fit(captions.subtitle, 1344, 14), 14, "muted"))
    return shapes


def _place_frames(picture: Picture) -> Place | None:
    if not picture.frames:
        return None
    grid = picture.frames.grid
    cell = 5.0 if picture.space else (RIGHT - AXIS_WIDTH - MARGIN) / CELLS_PER_ROW
    x = RIGHT - AXIS_WIDTH - CELLS_PER_ROW * cell
    room = HEIGHT - HOLE * (len(grid.blocks) - 1)
    pitch = min(12.0, room / grid.nr_rows)
    rows, first, y = [], 0, float(TOP)
    for block in grid.blocks:
        y += HOLE if block.hole else 0
        rows.append(Row(first, block.nr_rows, y))
        first += block.nr_rows
        y += block.nr_rows * pitch
    return Place(x, cell, pitch, min(1, pitch / 5), tuple(rows), y)


def _frames(picture: Picture, place: Place) -> list[Shape]:
    assert picture.frames
    frames = picture.frames
    grid = frames.grid
    shapes: list[Shape] = []
    codes = stripes(frames.counts, 1 << grid.shift, picture.kinds)
    for row, block in zip(place.rows, grid.blocks, strict=True):
        shapes += _hole_name(row, block, place)
        mine = codes[row.first : row.first + row.nr]
        shapes.append(Cells(place.x, row.y, place.width, place.pitch, place.gap, mine))
        shapes += _addresses(row, block.first_row, place, grid.row_shift)
    return shapes


def _frame_labels(grid: Grid, place: Place) -> tuple[Text, ...]:
    labels: list[Text] = []
    for row, block in zip(place.rows, grid.blocks, strict=True):
        labels += _hole_name(row, block, place)
        labels += _addresses(row, block.first_row, place, grid.row_shift)
    return tuple(labels)


def fit_hole_name(name: str, place: Place) -> str:
    """The name of a hole as it fits above the rows."""
    return fit(name, place.width, HOLE_SIZE)


def _hole_name(row: Row, block: Block, place: Place) -> list[Text]:
    if not block.hole:
        return []
    name = fit_hole_name(block.hole, place)
    return [Text(place.x, row.y - HOLE_BASELINE, name, HOLE_SIZE, "muted")]


def _addresses(row: Row, first_row: int, place: Place, row_shift: int) -> list[Text]:
    """Addresses beside the rows: at the first row of a block, and at round ones that are not too
    close to the block's ends."""
    row_bytes = 1 << row_shift + PAGE_SHIFT
    step = place.address_step
    texts: list[Text] = []
    for i in range(row.nr):
        number = first_row + i
        is_round = number % step == 0 and row.nr - i >= step / 2
        if i == 0 or (is_round and i >= step / 2):
            y = row.y + i * place.pitch + ADDRESS_BASELINE
            address = _address(number * row_bytes)
            texts.append(Text(place.address_x, y, address, ADDRESS_SIZE, "muted"))
    return texts


def _address(paddr: int) -> str:
    """A round physical address."""
    for unit, name in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if paddr >= 1 << unit:
            number = paddr / (1 << unit)
            return f"{number:.0f} {name}" if number == int(number) else f"{number:.2f} {name}"
    return str(paddr)


def _missing(captions: Captions, x: float) -> list[Shape]:
    shapes: list[Shape] = [Text(x, TOP + 24, "Physical memory is not drawn", 18, is_bold=True)]
    for i, line in enumerate(textwrap.wrap(captions.missing, 100)):
        shapes.append(Text(x, TOP + 52 + 20 * i, line, 14, "muted"))
    return shapes


def _heading(x: float, text: str) -> Text:
    return Text(x, TOP - 18, text, 13, is_bold=True)


def _place_bands(bands: list[Band]) -> list[Span]:
    """The height of a band shows how much is resident, on a square-root scale."""
    gaps = [_gap(one, other) for one, other in pairwise(bands)]
    room = HEIGHT - sum(gaps) - MIN_BAND * len(bands)
    weights = [(band.nr_resident + 1) ** 0.5 for band in bands]
    factor = max(room, 0) / (sum(weights) or 1)
    spans, y = [], float(TOP)
    for weight, gap in zip(weights, [*gaps, 0], strict=True):
        height = MIN_BAND + weight * factor
        spans.append(Span(y, y + height))
        y += height + gap
    return spans


def _gap(one: Band, other: Band) -> float:
    return FAR_GAP if other.start - one.end >= 1 << 30 else BAND_GAP


def _bands(space: Space, spans: tuple[Span, ...], kinds: tuple[Kind, ...]) -> list[Shape]:
    import numpy as np

    shapes: list[Shape] = [_heading(LABELS, "Virtual memory, from low to high addresses")]
    shapes.append(Text(LABELS, TOP - 4, _height_words(space), 11, "muted"))
    for i, (band, span) in enumerate(zip(space.bands, spans, strict=True)):
        height = span.bottom - span.top
        hint = _band_hint(band, kinds)
        shapes.append(Rect(BODY, span.top, BODY_WIDTH, height, "panel", 2, hint=hint))
        nr_parts = parts_of(band, PARTS)
        edges = -(-np.arange(nr_parts + 1) * band.nr_pages // nr_parts)
        room = np.diff(edges).reshape(-1, 1, 1)
        codes = stripes(space.profile[i, :nr_parts].reshape(nr_parts, 1, -1), room, kinds)
        shapes.append(Cells(BODY, span.top, BODY_WIDTH, height / nr_parts, 0, codes))
        shapes += _band_label(band, span)
        if i + 1 < len(spans) and _gap(band, space.bands[i + 1]) == FAR_GAP:
            free = pages_size((space.bands[i + 1].start - band.end) // PAGE_SIZE)
            y = span.bottom + FAR_GAP / 2 + 4
            shapes.append(
                Text(BODY + BODY_WIDTH, y, f"{free} unmapped", 11, "muted", is_right=True)
            )
    return shapes


def _height_words(space: Space) -> str:
    """What the height of a band means."""
    is_diff = any(band.nr_changed is not None for band in space.bands)
    what = "memory that has or had frames" if is_diff else "resident memory"
    return f"height of a band: {what} (square-root scale)"


def _band_label(band: Band, span: Span) -> list[Shape]:
    resident = pages_size(band.nr_resident) if band.nr_resident else "-"
    height = span.bottom - span.top
    middle = (span.top + span.bottom) / 2
    name = fit(band.name, BODY - LABELS - 84, 13)
    end = BODY - 14
    if height < TWO_LINES:
        return [Text(LABELS, middle + 4.5, name), Text(end, middle + 4.5, resident, is_right=True)]
    more = f"of {pages_size(band.nr_pages)}"
    if band.nr_changed is not None:
        more = f"{pages_size(band.nr_changed)} changed" if band.nr_changed else "unchanged"
    return [
        Text(LABELS, middle - 3, name),
        Text(end, middle - 3, resident, is_right=True),
        Text(LABELS, middle + 14, f"{band.start:#x}", 11, "muted"),
        Text(end, middle + 14, more, 11, "muted", is_right=True),
    ]


def _band_hint(band: Band, kinds: tuple[Kind, ...]) -> str:
    found = [
        f"{kind.label} {pages_size(nr)}" for kind, nr in zip(kinds, band.counts, strict=True) if nr
    ]
    where = f"{band.start:#x}-{band.end:#x}"
    return f"{band.name}\n{where}, {pages_size(band.nr_pages)}\n{', '.join(found) or 'no pages'}"


def _links(
    space: Space, place: Place, spans: tuple[Span, ...], grid: Grid, kinds: tuple[Kind, ...]
) -> list[Shape]:
    """A ribbon for each link. Its width at each end is that of its pages in the band or the rows,
    and ribbons lie side by side. Ribbons to where pages were begin at the same place as those to
    where they are."""
    assert space.links
    links = space.links
    row_room = links.nr_rows << grid.row_shift
    last = place.rows[-1]
    begun: dict[tuple[int, int, bool], int] = {}
    filled: dict[int, int] = {}
    ribbons: list[tuple[int, Ribbon]] = []
    ranks = link_ranks(kinds)
    for link in sorted(links.links):
        band, span = space.bands[link.band], spans[link.band]
        nr_parts = parts_of(band, links.nr_parts)
        at = (link.band, link.part, kinds[link.kind].is_past)
        # begin: in pages from the start of the band. end: in frames from the start of the rows.
        begin = link.part * band.nr_pages / nr_parts + begun.get(at, 0)
        end = filled.get(link.row, 0)
        begun[at] = begun.get(at, 0) + link.nr_pages
        filled[link.row] = end + link.nr_pages
        per_page = (span.bottom - span.top) / band.nr_pages
        height = place.y(min(link.row + links.nr_rows, last.first + last.nr) - 1) + place.pitch
        per_frame = (height - place.y(link.row)) / row_room
        top = span.top + begin * per_page
        other = place.y(link.row) + end * per_frame
        ribbon = Ribbon(
            LINK_LEFT,
            top,
            top + max(link.nr_pages * per_page, THINNEST),
            place.x - LINK_GAP,
            other,
            other + max(link.nr_pages * per_frame, THINNEST),
            kinds[link.kind].slug,
            LINK_OPACITY,
        )
        ribbons.append((ranks[link.kind], ribbon))
    return [ribbon for _, ribbon in sorted(ribbons, key=lambda each: each[0])]


def link_ranks(kinds: tuple[Kind, ...]) -> list[int]:
    """The order in which connectors are drawn, of each kind: higher ranks over lower ones.

    In a difference first those of pages that stayed, then those to where pages were, then those to
    where they are. Otherwise all ranks are 0.
    """
    if not any(kind.is_past for kind in kinds):
        return [0] * len(kinds)
    indices = range(len(kinds))
    order = sorted(indices, key=lambda i: (i > 0, not kinds[i].is_past, i))
    return [order.index(i) for i in indices]


class LegendEntry(NamedTuple):
    """A line of the legend: a kind, and how much there is of it, in words."""

    kind: Kind
    amount: str


def legend_groups(picture: Picture) -> dict[str, list[LegendEntry]]:
    """The kinds that there are, by the headings of their groups."""
    # In a difference a share of RAM would not tell anything.
    nr_ram = sum(picture.frames.totals) if picture.frames and not picture.is_diff else 0
    groups: dict[str, list[LegendEntry]] = {}
    for kind, nr in zip(picture.kinds, _totals(picture), strict=True):
        if nr:
            amount = pages_size(nr)
            if kind.has_frame and nr_ram:
                amount += f"  {share(nr, nr_ram)}"
            groups.setdefault(kind.group, []).append(LegendEntry(kind, amount))
    return groups


def _legend(picture: Picture, top: float) -> tuple[list[Shape], float]:
    """The colours, and how much there is of each kind."""
    groups = legend_groups(picture)
    shapes: list[Shape] = []
    deepest = 0
    for name, (left, width, columns) in _legend_places(groups).items():
        items = groups[name]
        shapes.append(Text(left, top, name, 13, is_bold=True))
        per_column = -(-len(items) // columns)
        deepest = max(deepest, per_column)
        for i, (kind, amount) in enumerate(items):
            x = left + i // per_column * (width + LEGEND_GAP)
            y = top + 12 + i % per_column * LINE
            shapes.append(Rect(x, y, 12, 12, kind.slug, 2))
            shapes.append(Text(x + 20, y + 10.5, kind.label, 13))
            shapes.append(Text(x + width, y + 10.5, amount, 13, "muted", is_right=True))
    return shapes, top + 12 + deepest * LINE + 28


def _legend_places(
    groups: dict[str, list[LegendEntry]],
) -> dict[str, tuple[float, float, int]]:
    """For each group: its left end, the width of a column, and the number of columns."""
    if OWN in groups:  # below the half of the picture that they are about
        places = {
            OWN: (MARGIN, 300.0, 1),
            PAGES: (BODY + BODY_WIDTH + 28, 240.0, 1),
            REST: (RIGHT - AXIS_WIDTH - 5 * CELLS_PER_ROW, 300.0, 2),
        }
        return {name: places[name] for name in groups}
    # The group with the longest columns gets one more, as long as there is room.
    columns = dict.fromkeys(groups, 1)
    while sum(columns.values()) < LEGEND_COLUMNS:
        longest = max(groups, key=lambda name: len(groups[name]) / columns[name])
        columns[longest] += 1
    nr_columns = sum(columns.values())
    width = (RIGHT - MARGIN + LEGEND_GAP) / nr_columns - LEGEND_GAP
    found, left = {}, float(MARGIN)
    for name, nr in columns.items():
        found[name] = (left, width, nr)
        left += nr * (width + LEGEND_GAP)
    return found


def _totals(picture: Picture) -> list[int]:
    """Frames of each kind; or pages, if the kind has no frames or frames are not known.

    In a difference pages; but frames of the kinds that no page has, such as those that were left.
    """
    pages = [0] * len(picture.kinds)
    if picture.space:
        for band in picture.space.bands:
            pages = [one + other for one, other in zip(pages, band.counts, strict=True)]
    if not picture.frames:
        return pages
    if picture.is_diff:
        return [nr or frames for nr, frames in zip(pages, picture.frames.totals, strict=True)]
    return [
        frames if kind.has_frame else nr
        for kind, frames, nr in zip(picture.kinds, picture.frames.totals, pages, strict=True)
    ]
