# SPDX-License-Identifier: GPL-2.0-or-later
"""A drawing as PNG, made by Pillow. Pillow has a typeface of its own, so no fonts are needed.

Source: https://pillow.readthedocs.io
"""

from __future__ import annotations

import io
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from physview.pictures.shapes import (
    NOTHING,
    Cells,
    Drawing,
    Line,
    Outline,
    Rect,
    Ribbon,
    Text,
    arrowhead,
    shaft,
)
from physview.runtime.extras import need

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

# Dots per pixel of the drawing.
SCALE = 2
STEPS = 24


def to_png(drawing: Drawing, *, theme: str = "light") -> bytes:
    """Write a drawing as a PNG image.

    Args:
        drawing: What to draw.
        theme: "light" or "dark".

    Raises:
        Unsupported: Pillow is not installed.
    """
    need_pillow()
    from PIL import Image, ImageDraw

    colours = drawing.colours(theme)
    size = (round(drawing.width * SCALE), round(drawing.height * SCALE))
    image = Image.new("RGB", size, colours["paper"])
    # In this mode shapes are blended with the image.
    canvas = ImageDraw.Draw(image, "RGBA")
    for shape in drawing.shapes:
        if isinstance(shape, Rect):
            _draw_rect(canvas, shape, colours)
        elif isinstance(shape, Outline):
            _draw_outline(canvas, shape, colours)
        elif isinstance(shape, Line):
            _draw_line(canvas, shape, colours)
        elif isinstance(shape, Text):
            _draw_text(canvas, shape, colours)
        elif isinstance(shape, Cells):
            _draw_cells(image, shape, [colours[kind.slug] for kind in drawing.kinds])
        else:
            _draw_ribbon(canvas, shape, colours)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=False)
    return buffer.getvalue()


def need_pillow() -> None:
    """Check that Pillow is installed.

    Raises:
        Unsupported: It is not.
    """
    need("PIL", "cannot write a PNG")


def _draw_rect(canvas: ImageDraw.ImageDraw, shape: Rect, colours: dict[str, str]) -> None:
    box = [shape.x, shape.y, shape.x + shape.width - 0.5, shape.y + shape.height - 0.5]
    scaled = [round(value * SCALE) for value in box]
    canvas.rounded_rectangle(scaled, shape.radius * SCALE, fill=colours[shape.colour])


def _draw_outline(canvas: ImageDraw.ImageDraw, shape: Outline, colours: dict[str, str]) -> None:
    thickness = max(1, round(shape.thickness * SCALE))
    left, top = shape.x * SCALE - thickness / 2, shape.y * SCALE - thickness / 2
    right, bottom = (
        (shape.x + shape.width) * SCALE + thickness / 2 - 1,
        (shape.y + shape.height) * SCALE + thickness / 2 - 1,
    )
    colour = colours[shape.colour]
    if not shape.is_dashed:
        box = [round(value) for value in (left, top, right, bottom)]
        canvas.rounded_rectangle(box, shape.radius * SCALE, outline=colour, width=thickness)
        return
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    for (x, y), (end_x, end_y) in pairwise(corners):
        length = abs(end_x - x) + abs(end_y - y)
        for begin in range(0, int(length), 7 * SCALE):
            ends = [begin / length, min(begin + 4 * SCALE, length) / length]
            dash = [(x + (end_x - x) * t, y + (end_y - y) * t) for t in ends]
            canvas.line(dash, fill=colour, width=thickness)


def _draw_line(canvas: ImageDraw.ImageDraw, shape: Line, colours: dict[str, str]) -> None:
    points = [(x * SCALE, y * SCALE) for x, y in shaft(shape)]
    width = max(1, round(shape.thickness * SCALE))
    canvas.line(points, fill=colours[shape.colour], width=width, joint="curve")
    if shape.has_arrow:
        corners = [(x * SCALE, y * SCALE) for x, y in arrowhead(shape)]
        canvas.polygon(corners, fill=colours[shape.colour])


def _draw_text(canvas: ImageDraw.ImageDraw, shape: Text, colours: dict[str, str]) -> None:
    from PIL import ImageFont

    font: Any = ImageFont.load_default(shape.size * SCALE)
    canvas.text(
        (shape.x * SCALE, shape.y * SCALE),
        shape.text,
        fill=colours[shape.colour],
        font=font,
        anchor="rs" if shape.is_right else "ms" if shape.is_middle else "ls",
        # Pillow's typeface has only one weight: a thin outline makes it bold.
        stroke_width=shape.size * SCALE / 60 if shape.is_bold else 0,
    )


def _draw_cells(image: Image.Image, shape: Cells, colours: list[str]) -> None:
    import numpy as np
    from PIL import Image

    rows, units = shape.codes.shape
    if not rows:
        return
    width = round(shape.width * SCALE)
    edges = np.round((shape.y + np.arange(rows + 1) * shape.pitch) * SCALE).astype(int)
    height = int(edges[-1] - edges[0])
    columns = np.arange(width) * units // width
    at = np.searchsorted(edges, np.arange(height) + edges[0], side="right") - 1
    codes = shape.codes[at][:, columns]
    if shape.gap:
        codes[edges[1:] - edges[0] - 1] = NOTHING
        codes[np.maximum(edges[1:] - edges[0] - round(shape.gap * SCALE), 0)] = NOTHING
    palette = np.zeros((256, 3), dtype=np.uint8)
    for i, colour in enumerate(colours):
        palette[i] = [int(colour[j : j + 2], 16) for j in (1, 3, 5)]
    mask = Image.fromarray(np.where(codes == NOTHING, 0, 255).astype(np.uint8))
    image.paste(Image.fromarray(palette[codes]), (round(shape.x * SCALE), int(edges[0])), mask)


def _draw_ribbon(canvas: ImageDraw.ImageDraw, shape: Ribbon, colours: dict[str, str]) -> None:
    upper = _curve(shape.x, shape.top, shape.other_x, shape.other_top)
    lower = _curve(shape.x, shape.bottom, shape.other_x, shape.other_bottom)
    alpha = f"{round(shape.opacity * 255):02x}"
    canvas.polygon([*upper, *reversed(lower)], fill=colours[shape.colour] + alpha)


def _curve(x: float, y: float, other_x: float, other_y: float) -> list[tuple[float, float]]:
    """Points of the curve that the SVG has: a Bézier curve with both handles halfway."""
    points = []
    for i in range(STEPS + 1):
        t = i / STEPS
        along = 3 * t * (1 - t) / 2 + t**3  # of x, whose handles are at 1/2
        rise = t * t * (3 - 2 * t)
        points.append(((x + (other_x - x) * along) * SCALE, (y + (other_y - y) * rise) * SCALE))
    return points
