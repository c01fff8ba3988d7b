# SPDX-License-Identifier: GPL-2.0-or-later
"""The shapes of a drawing, for every file format: rectangles, text, cells and connectors.

A colour is a name: of a kind, or one of PAPER. Lengths are in pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from physview.pictures.kinds import Kind

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

PAPER = {
    "paper": ("#ffffff", "#14181d"),
    "ink": ("#1b2127", "#e6eaee"),
    "muted": ("#66717c", "#98a3ae"),
    "line": ("#dde2e6", "#303842"),
    "panel": ("#f6f7f9", "#1a1f25"),
}
"""The colours of the page itself, on light paper and on dark."""

NOTHING = 255
"""In arrays of stripes: a stripe that is left empty."""

UNITS = 8
"""The number of stripes in a cell."""

ARROW_LENGTH = 7.0
"""Length of the head of an arrow."""

LEAST = 2
"""A kind that the picture is about has at least this many stripes in each cell that has some of it;
or one, if a cell has too many such kinds."""


class Rect(NamedTuple):
    """A rectangle; a viewer shows `hint` when the mouse points at it."""

    x: float
    y: float
    width: float
    height: float
    colour: str
    radius: float = 0
    hint: str = ""


class Outline(NamedTuple):
    """The border of a rectangle, with a line of this thickness."""

    x: float
    y: float
    width: float
    height: float
    colour: str
    thickness: float = 1
    radius: float = 0
    is_dashed: bool = False


class Line(NamedTuple):
    """Straight lines from point to point; with `has_arrow` the last has an arrowhead at its end."""

    points: tuple[tuple[float, float], ...]
    colour: str
    thickness: float = 1
    has_arrow: bool = False


class Text(NamedTuple):
    """A line of text; x, y is the left end of its baseline, or with `is_right` the right end, or
    with `is_middle` the middle. `is_mono`: all letters have one width, where there is such a font.
    """

    x: float
    y: float
    text: str
    size: float = 13
    colour: str = "ink"
    is_bold: bool = False
    is_right: bool = False
    is_middle: bool = False
    is_mono: bool = False


class Cells(NamedTuple):
    """Rows of stripes.

    Args:
        x: Left.
        y: Top.
        width: Of all.
        pitch: From the top of a row to that of the next.
        gap: The part of the pitch that is left empty.
        codes: uint8 array, shape (rows, stripes): indices of kinds, or NOTHING.
    """

    x: float
    y: float
    width: float
    pitch: float
    gap: float
    codes: npt.NDArray[np.uint8]


class Ribbon(NamedTuple):
    """A connector, from a range of one vertical line to a range of another."""

    x: float
    top: float
    bottom: float
    other_x: float
    other_top: float
    other_bottom: float
    colour: str
    opacity: float


Shape: TypeAlias = Rect | Outline | Line | Text | Cells | Ribbon


class Drawing(NamedTuple):
    """A page.

    Args:
        width: In pixels.
        height: In pixels.
        title: The title of the document.
        kinds: The kinds whose slugs are names of colours.
        shapes: The shapes in drawing order.
    """

    width: float
    height: float
    title: str
    kinds: tuple[Kind, ...]
    shapes: list[Shape]

    def colours(self, theme: str) -> dict[str, str]:
        """The value of each colour, "#rrggbb". `theme`: "light" or "dark"."""
        which = ("light", "dark").index(theme)
        return {name: pair[which] for name, pair in PAPER.items()} | {
            kind.slug: (kind.light, kind.dark)[which] for kind in self.kinds
        }


def stripes(
    counts: npt.NDArray[np.int64], capacity: npt.NDArray[np.int64] | int, kinds: tuple[Kind, ...]
) -> npt.NDArray[np.uint8]:
    """Make stripes of cells: the share of each kind, rounded to 1 / UNITS.

    Each kind that the picture is about has at least LEAST stripes in a cell that has some of it.
    Other kinds may be too few to be seen.

    Args:
        counts: Shape (rows, columns, kinds).
        capacity: Frames or pages in a full cell; shape (rows, columns, 1) if cells differ.
        kinds: The kinds of the last axis.

    Returns:
        uint8 array, shape (rows, columns * UNITS): indices of kinds, or NOTHING.
    """
    import numpy as np

    exact = counts * UNITS / capacity
    subject = np.array([kind.is_subject for kind in kinds])
    nr_shown = ((counts > 0) & subject).sum(axis=2, keepdims=True)
    least = np.where((counts > 0) & subject, np.where(nr_shown * LEAST > UNITS, 1, LEAST), 0)
    units = np.maximum(np.floor(exact).astype(np.int64), least)
    wanted = np.ceil(exact.sum(axis=2) - 1e-9).astype(np.int64)
    wanted = np.maximum(wanted, least.sum(axis=2))
    for _ in range(UNITS):
        missing = wanted - units.sum(axis=2)
        if not missing.any():
            break
        # The largest remainder gets one; the kind with the most above its share gives one.
        short = np.where(exact > 0, exact - units, -np.inf)
        over = np.where(units > least, units - exact, -np.inf)
        for step, where, score in ((1, missing > 0, short), (-1, missing < 0, over)):
            best = score.argmax(axis=2)
            np.add.at(units, (*np.nonzero(where), best[where]), step)
    rows, columns, nr_kinds = counts.shape
    blank = np.maximum(UNITS - units.sum(axis=2, keepdims=True), 0)
    lengths = np.concatenate([units, blank], axis=2)
    codes = np.array([*range(nr_kinds), NOTHING], dtype=np.uint8)
    flat = np.repeat(np.tile(codes, rows * columns), lengths.ravel())
    return flat.reshape(rows, columns * UNITS)


def arrowhead(line: Line) -> list[tuple[float, float]]:
    """The corners of the arrowhead of a line: a triangle with its tip at the end of the line."""
    (from_x, from_y), (x, y) = line.points[-2:]
    length = ((x - from_x) ** 2 + (y - from_y) ** 2) ** 0.5
    along_x, along_y = (x - from_x) / length, (y - from_y) / length
    back, half = ARROW_LENGTH, ARROW_LENGTH * 0.45
    return [
        (x, y),
        (x - back * along_x - half * along_y, y - back * along_y + half * along_x),
        (x - back * along_x + half * along_y, y - back * along_y - half * along_x),
    ]


def shaft(line: Line) -> tuple[tuple[float, float], ...]:
    """The points of a line without its arrowhead, whose tip would not be sharp otherwise."""
    if not line.has_arrow:
        return line.points
    _, one, other = arrowhead(line)
    return (*line.points[:-1], ((one[0] + other[0]) / 2, (one[1] + other[1]) / 2))


def fit(text: str, width: float, size: float) -> str:
    """Shorten a text that does not fit, by an estimate of the width of its letters."""
    room = int(width / (size * 0.58))
    return text if len(text) <= room else text[: max(room - 1, 1)].rstrip() + "…"
