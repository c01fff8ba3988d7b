# SPDX-License-Identifier: GPL-2.0-or-later
"""A drawing as SVG. Text stays text, and the colours follow the viewer's theme.

Source: https://www.w3.org/TR/SVG2/
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from xml.sax.saxutils import escape

from physview.pictures.shapes import (
    NOTHING,
    Cells,
    Drawing,
    Line,
    Outline,
    Rect,
    Ribbon,
    Shape,
    Text,
    arrowhead,
    shaft,
)

FONT = "system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans','DejaVu Sans',sans-serif"
MONO = "ui-monospace,'Cascadia Mono','SF Mono',Menlo,Consolas,'DejaVu Sans Mono',monospace"
LEVELS = 24


def to_svg(drawing: Drawing, *, theme: str = "auto") -> str:
    """Write a drawing as an SVG document.

    Args:
        drawing: What to draw.
        theme: "light", "dark" or "auto": what the viewer prefers.
    """
    width, height = number(drawing.width), number(drawing.height)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
        f' height="{height}" role="img">\n<title>{text(drawing.title)}</title>\n'
        f"<style>\n{style(drawing, theme)}</style>\n"
        f'<rect class="paper" width="{width}" height="{height}"/>\n'
        f"{body(drawing)}</svg>\n"
    )


def style(drawing: Drawing, theme: str) -> str:
    """The rules of all colours; `theme` as in `to_svg()`."""
    rules = f"text{{font-family:{FONT};font-variant-numeric:tabular-nums}}\n"
    rules += ".b{font-weight:600}.e{text-anchor:end}.c{fill:none}\n"
    if any(isinstance(shape, Text) and shape.is_mono for shape in drawing.shapes):
        rules += f"text.m{{font-family:{MONO}}}.i{{text-anchor:middle}}\n"
    rules += _colours(drawing, "light" if theme == "auto" else theme)
    if theme == "auto":
        dark = _colours(drawing, "dark")
        rules += f"@media(prefers-color-scheme:dark){{\n{dark}}}\n"
    return rules


def _colours(drawing: Drawing, theme: str) -> str:
    return "".join(
        f".{name}{{fill:{colour}}}.c.{name}{{fill:none;stroke:{colour}}}\n"
        for name, colour in drawing.colours(theme).items()
    )


def body(drawing: Drawing) -> str:
    """All shapes, without the document around them."""
    parts = []
    for kind, shapes in groupby(drawing.shapes, type):
        if kind is Ribbon:
            parts.append(_ribbons([shape for shape in shapes if isinstance(shape, Ribbon)]))
        else:
            parts += [_shape(shape, drawing) for shape in shapes]
    return "".join(parts)


def _shape(shape: Shape, drawing: Drawing) -> str:
    if isinstance(shape, Rect):
        return _rect(shape)
    if isinstance(shape, Text):
        return _text(shape)
    if isinstance(shape, Outline):
        return _outline_rect(shape)
    if isinstance(shape, Line):
        return _line(shape)
    assert isinstance(shape, Cells)
    return _cells(shape, drawing)


def _rect(shape: Rect) -> str:
    radius = f' rx="{number(shape.radius)}"' if shape.radius else ""
    head = (
        f'<rect class="{shape.colour}" x="{number(shape.x)}" y="{number(shape.y)}"'
        f' width="{number(shape.width)}" height="{number(shape.height)}"{radius}'
    )
    return f"{head}><title>{text(shape.hint)}</title></rect>\n" if shape.hint else f"{head}/>\n"


def _outline_rect(shape: Outline) -> str:
    radius = f' rx="{number(shape.radius)}"' if shape.radius else ""
    dashes = ' stroke-dasharray="4 3"' if shape.is_dashed else ""
    return (
        f'<rect class="c {shape.colour}" x="{number(shape.x)}" y="{number(shape.y)}"'
        f' width="{number(shape.width)}" height="{number(shape.height)}"{radius}'
        f' stroke-width="{number(shape.thickness)}"{dashes}/>\n'
    )


def _line(shape: Line) -> str:
    def path(points: Iterable[tuple[float, float]]) -> str:
        return "M" + "L".join(f"{number(x)} {number(y)}" for x, y in points)

    drawn = (
        f'<path class="c {shape.colour}" d="{path(shaft(shape))}"'
        f' stroke-width="{number(shape.thickness)}"/>\n'
    )
    if shape.has_arrow:
        drawn += f'<path class="{shape.colour}" d="{path(arrowhead(shape))}z"/>\n'
    return drawn


def _text(shape: Text) -> str:
    names = [
        shape.colour,
        *("b" for _ in range(shape.is_bold)),
        *("e" for _ in range(shape.is_right)),
        *("i" for _ in range(shape.is_middle)),
        *("m" for _ in range(shape.is_mono)),
    ]
    return (
        f'<text class="{" ".join(names)}" x="{number(shape.x)}" y="{number(shape.y)}"'
        f' font-size="{number(shape.size)}">{text(shape.text)}</text>\n'
    )


def _cells(shape: Cells, drawing: Drawing) -> str:
    """A path for each kind, with a line for each stripe. The text is short, as there are many."""
    import numpy as np

    rows, units = shape.codes.shape
    if not rows:
        return ""
    flat = shape.codes.ravel()
    begins = np.flatnonzero(
        np.concatenate([[True], flat[1:] != flat[:-1]]) | (np.arange(len(flat)) % units == 0)
    )
    lengths = np.diff(np.concatenate([begins, [len(flat)]]))
    kinds = flat[begins]
    paths = []
    for kind in sorted(set(kinds.tolist()) - {NOTHING}):
        mine = kinds == kind
        steps, before = [], (0, 0)
        for begin, length in zip(begins[mine].tolist(), lengths[mine].tolist(), strict=True):
            row, column = divmod(begin, units)
            steps.append(f"m{column - before[1]} {row - before[0]}h{length}")
            before = (row, column + length)
        paths.append(f'<path class="c {drawing.kinds[kind].slug}" d="{"".join(steps)}"/>\n')
    # A stripe is a line in the middle of its row, as thick as the row without the gap.
    thickness = 1 - shape.gap / shape.pitch
    y = shape.y + shape.pitch * thickness / 2
    return (
        f'<g transform="translate({number(shape.x)} {number(y)})'
        f' scale({shape.width / units:.6g} {shape.pitch:.6g})" stroke-width="{thickness:.3f}"'
        f' shape-rendering="crispEdges">\n{"".join(paths)}</g>\n'
    )


def _ribbons(ribbons: list[Ribbon]) -> str:
    """Ribbons of one colour and about the same opacity are one group."""
    parts = []
    for (colour, level), some in groupby(ribbons, lambda each: (each.colour, _level(each.opacity))):
        paths = "".join(f'<path d="{_outline(ribbon)}"/>' for ribbon in some)
        parts.append(f'<g class="{colour}" fill-opacity="{level / LEVELS:.2g}">{paths}</g>\n')
    return "".join(parts)


def _level(opacity: float) -> int:
    return max(1, round(opacity * LEVELS))


def _outline(ribbon: Ribbon) -> str:
    x, other = ribbon.x, ribbon.other_x
    middle = number((x + other) / 2)
    return (
        f"M{number(x)} {number(ribbon.top)}C{middle} {number(ribbon.top)} {middle}"
        f" {number(ribbon.other_top)} {number(other)} {number(ribbon.other_top)}"
        f"V{number(ribbon.other_bottom)}C{middle} {number(ribbon.other_bottom)} {middle}"
        f" {number(ribbon.bottom)} {number(x)} {number(ribbon.bottom)}z"
    )


def number(value: float) -> str:
    """A length with one decimal at most."""
    return f"{value:.1f}".removesuffix(".0")


def text(words: str) -> str:
    """Text that is safe in XML, also in quotes: without control characters and lone surrogates."""
    allowed = "".join(letter if letter.isprintable() or letter == "\n" else "�" for letter in words)
    return escape(allowed, {'"': "&quot;"})
