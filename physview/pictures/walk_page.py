# SPDX-License-Identifier: GPL-2.0-or-later
"""Walks of the page tables as an interactive page: one file that loads nothing else.

The page is made of walk.html, walk.css, walk.js, and a drawing of each walk.
"""

from __future__ import annotations

import base64
import json
import zlib

from physview.analysis.walked_addresses import WalkedAddresses
from physview.model import printable
from physview.pictures.html import fill_page, read_part
from physview.pictures.svg import FONT, MONO, body, number, text
from physview.pictures.walk_layout import WalkDrawing, lay_out_walk
from physview.pictures.walk_shapes import WIDTH
from physview.runtime import invocation

HINT = (
    "From the address at the top to the frame at the right: each index chooses an entry of a table,"
    " and the entry says where the next table is. Press the right arrow, or Step, to follow it."
)


def walks_to_html(walks: WalkedAddresses, *, theme: str = "auto") -> str:
    """Write walks as an HTML document.

    Args:
        walks: The walks; the page begins with the one that was asked for.
        theme: "light", "dark" or "auto": what the viewer prefers. Printed, it is light.
    """
    drawings = [lay_out_walk(walks, each) for each in walks.addresses]
    first = drawings[walks.asked]
    return fill_page(
        "walk.html",
        {
            "title": text(first.captions.title),
            "style": _style(first, theme) + read_part("walk.css"),
            "svg": _svg(first),
            "steps": "".join(f"<li>{text(words)}</li>\n" for words in first.captions.steps),
            "data": _pack(walks, drawings),
            "script": read_part("walk.js"),
        },
    )


def _svg(drawn: WalkDrawing) -> str:
    """A drawing with a group for each step."""
    parts = "".join(
        f'<g data-step="{step}">\n{body(drawn.drawing_of(shapes))}</g>\n'
        for step, shapes in enumerate(drawn.parts)
    )
    label = text(drawn.captions.title)
    size = f"0 0 {WIDTH} {number(drawn.height)}"
    return f'<svg viewBox="{size}" role="img" aria-label="{label}">\n{parts}</svg>\n'


def _pack(walks: WalkedAddresses, drawings: list[WalkDrawing]) -> str:
    """The drawings and their words, as base64 of zlib's deflate."""
    described = [
        {
            "label": printable(each.label),
            "vaddr": hex(each.walk.vaddr),
            "paddr": "" if each.walk.paddr is None else hex(each.walk.paddr),
            "svg": _svg(drawn),
            "steps": drawn.captions.steps,
        }
        for each, drawn in zip(walks.addresses, drawings, strict=True)
    ]
    line = invocation.physview(f"walk {walks.pid} ADDR --picture FILE.html")
    remedy = f"not in this page; draw it: {line}"
    data = {"walks": described, "asked": walks.asked, "hint": HINT, "remedy": remedy}
    return base64.b64encode(zlib.compress(json.dumps(data).encode(), 9)).decode()


def _style(drawn: WalkDrawing, theme: str) -> str:
    """The colours as variables, and the classes of shapes."""
    drawing = drawn.drawing()
    light, dark = (
        ":root{" + "".join(f"--{name}:{value};" for name, value in colours.items()) + "}\n"
        for colours in (drawing.colours("light"), drawing.colours("dark"))
    )
    rules = f":root{{--font:{FONT}}}\n{dark if theme == 'dark' else light}"
    if theme == "auto":
        rules += f"@media screen and (prefers-color-scheme:dark){{{dark}}}\n"
    rules += f"@media print{{{light}}}\n"
    rules += f"text{{font-family:{FONT}}}text.m{{font-family:{MONO}}}\n"
    rules += ".b{font-weight:600}.e{text-anchor:end}.i{text-anchor:middle}\n"
    for name in drawing.colours("light"):
        rules += f".{name}{{fill:var(--{name})}}.c.{name}{{fill:none;stroke:var(--{name})}}\n"
    return rules
