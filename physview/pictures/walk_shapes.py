# SPDX-License-Identifier: GPL-2.0-or-later
"""What a drawn walk is made of: its columns, its colours, and small groups of shapes.

Lengths are in pixels of a drawing that is WIDTH wide.
"""

from __future__ import annotations

from typing import NamedTuple

from physview.pictures.kinds import BLUE, BROWN, GREYS, SKY, Kind
from physview.pictures.shapes import Line, Outline, Rect, Shape, Text
from physview.sources.table_geometry import EntryUse, Geometry, TableEntries

WIDTH, MARGIN, GAP = 1024, 20, 14
ROOT_WIDTH, FOLDED_WIDTH, FRAME_WIDTH = 108, 44, 138

TITLE_Y, PLACE_Y, ORIGIN_Y = 30, 50, 66
FIELD_CAPTION_Y, FIELD_TOP, FIELD_HEIGHT, INDEX_Y = 93, 99, 26, 140
HEADER_Y, LONG_NAME_Y, TABLE_TOP = 167, 181, 190
BAND, MORE, ROW, TAKEN, NEIGHBOURS = 18, 13, 17, 38, 3
TAKEN_TOP = TABLE_TOP + BAND + MORE + NEIGHBOURS * ROW
TABLE_BOTTOM = TAKEN_TOP + TAKEN + NEIGHBOURS * ROW + MORE
BITS_Y, BIT_PITCH, LEAST_BITS = TABLE_BOTTOM + 19, 14, 7
GRID_COLUMNS, GRID_HEIGHT, MOST_PITCH = 32, 64, 8
TRACK = 9
"""The line from an index to its entry is so far from the left edge of its column."""

_COLOURS, _ENTRIES = "Colours", "Entries"
WALK_KINDS = (
    Kind("entry_empty", "empty", *GREYS[0], _ENTRIES),
    Kind("entry_table", "leads to a table", *SKY, _ENTRIES),
    Kind("entry_page", "maps a page", *BLUE, _ENTRIES),
    Kind("entry_swapped", "swapped out", "#c98a00", "#d99a2b", _ENTRIES),
    Kind("entry_special", "special", *BROWN, _ENTRIES),
    Kind("entry_kernel", "the kernel's half", "#d3d9df", "#3a434d", _ENTRIES),
    Kind("path", "the walk", "#ae4600", "#f08850", _COLOURS),
    Kind("path_tint", "what the walk took", "#fdeadd", "#43301f", _COLOURS),
    Kind("offset", "the offset", "#0067a3", "#5cb3ee", _COLOURS),
    Kind("offset_tint", "the page", "#e2f1fa", "#17323f", _COLOURS),
)
"""The kinds of entries, in the order of EntryUse, and the colours of the walk."""

KERNEL = 5


class Column(NamedTuple):
    """A column of the drawing."""

    x: float
    width: float

    @property
    def right(self) -> float:
        """The right edge."""
        return self.x + self.width


class Columns(NamedTuple):
    """The columns: the root register's, one for each level and each folded level, the frame's."""

    root: Column
    levels: list[Column]
    folded: list[Column]
    frame: Column


def columns_of(geometry: Geometry) -> Columns:
    """The columns for the levels of a machine."""
    nr, nr_folded = len(geometry.levels), len(geometry.folded)
    rest = WIDTH - 2 * MARGIN - ROOT_WIDTH - FRAME_WIDTH - nr_folded * (FOLDED_WIDTH + GAP)
    width = (rest - (nr + 1) * GAP) / nr
    x = float(MARGIN + ROOT_WIDTH + GAP)
    levels, folded = [Column(x, width)], []
    x += width + GAP
    for _ in range(nr_folded):
        folded.append(Column(x, FOLDED_WIDTH))
        x += FOLDED_WIDTH + GAP
    for _ in range(nr - 1):
        levels.append(Column(x, width))
        x += width + GAP
    return Columns(Column(MARGIN, ROOT_WIDTH), levels, folded, Column(x, FRAME_WIDTH))


def badge(x: float, y: float, number: int, colour: str = "path") -> list[Shape]:
    """The number of a step, in a circle around x, y."""
    return [
        Rect(x - 8, y - 8, 16, 16, colour, 8),
        Text(x, y + 4, f"{number}", 11, "paper", is_bold=True, is_middle=True),
    ]


def path_to(column: Column, x: float, y: float) -> Line:
    """The line from the entry that was taken to the top of the next table."""
    middle, from_y = column.right + GAP / 2, TAKEN_TOP + TAKEN / 2
    points = ((column.right, from_y), (middle, from_y), (middle, y), (x, y))
    return Line(points, "path", 2, has_arrow=True)


def field(
    column: Column, words: str, caption: str, colour: str, *, indent: float = 0
) -> list[Shape]:
    """A box of bits of the address."""
    middle = column.x + column.width / 2
    size = min(12.5, (column.width - 6) / (max(len(words), 1) * 0.61))
    is_used = colour != "panel"
    return [
        Text(column.x + indent, FIELD_CAPTION_Y, caption, 10.5, "muted"),
        Rect(column.x, FIELD_TOP, column.width, FIELD_HEIGHT, colour, 2),
        Outline(column.x, FIELD_TOP, column.width, FIELD_HEIGHT, "muted", 1, 2),
        Text(
            middle,
            FIELD_TOP + 17.5,
            words,
            size,
            "ink" if is_used else "muted",
            is_middle=True,
            is_mono=True,
        ),
    ]


def binary(value: int, bits: int) -> str:
    """A number in binary, in groups of four digits.

    >>> binary(0xFE, 9)
    '0 1111 1110'
    """
    return f"{value:0{bits + (bits - 1) // 4}_b}".replace("_", " ")


def address_words(paddr: int | None, before: str = "") -> str:
    """A physical address, with words before it; "hidden" if it is not known."""
    return "hidden" if paddr is None else f"{before}{paddr:#x}"


def use_of(table: TableEntries | None, index: int) -> EntryUse | None:
    """What an entry is for; None if it is not known, or the kernel's."""
    return table.uses[index] if table and index < len(table.uses) else None


def shrunk(
    x: float,
    y: float,
    words: str,
    width: float,
    size: float,
    colour: str = "ink",
    *,
    is_bold: bool = False,
) -> Text:
    """A text that is made smaller if it does not fit, by an estimate of its width."""
    most = width / (max(len(words), 1) * (0.63 if is_bold else 0.56))
    return Text(x, y, words, min(size, most), colour, is_bold)


def mono(x: float, y: float, words: str, width: float) -> Text:
    """An address or another number, which is made smaller if it does not fit."""
    return Text(x, y, words, min(10.5, width / (len(words) * 0.61)), is_mono=True)


def wrap(words: str, width: float, size: float) -> list[str]:
    """Lines of a text, by an estimate of the width of its letters."""
    import textwrap

    return textwrap.wrap(words, max(8, int(width / (size * 0.55))))
