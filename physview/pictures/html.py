# SPDX-License-Identifier: GPL-2.0-or-later
"""A picture as an interactive page: one file that loads nothing else.

The page is made of page.html, page.css, the scripts beside this file, the drawing and the data.
"""

from __future__ import annotations

from importlib import resources

from physview.pictures.captions import Captions
from physview.pictures.layout import MARGIN, WIDTH, lay_out, legend_groups
from physview.pictures.model import Picture
from physview.pictures.pack import pack
from physview.pictures.svg import FONT, body, number, style, text

SCRIPTS = ("data.js", "links.js", "view.js", "page.js")


def to_html(picture: Picture, captions: Captions | None = None, *, theme: str = "auto") -> str:
    """Write a picture as an HTML document.

    Args:
        picture: What to draw.
        captions: Its words; by default those of `captions.describe()`.
        theme: "light", "dark" or "auto": what the viewer prefers.
    """
    drawing, layout = lay_out(picture, captions, with_frames=False)
    size = f"0 0 {number(drawing.width)} {number(drawing.height)}"
    parts = {
        "title": text(drawing.title),
        "theme": theme,
        "style": read_part("page.css")
        + _sizes()
        + _variables(drawing.colours("light"), drawing.colours("dark"), theme)
        + style(drawing, theme),
        "legend": _legend(picture),
        "svg": f'<svg viewBox="{size}" role="img" aria-label="{text(drawing.title)}">\n'
        f"{body(drawing)}</svg>",
        "script": "".join(map(read_part, SCRIPTS)),
        "data": pack(picture, layout),
    }
    return fill_page("page.html", parts)


def fill_page(name: str, parts: dict[str, str]) -> str:
    """Put parts into the placeholders of a page, such as {{title}}.

    Args:
        name: The page's file, beside this one.
        parts: By the names of the placeholders.
    """
    # One pass, so that "{{" in a part is not taken for a placeholder.
    pieces = read_part(name).split("{{")
    filled = [pieces[0]]
    for piece in pieces[1:]:
        placeholder, _, rest = piece.partition("}}")
        filled += [parts[placeholder], rest]
    return "".join(filled)


def read_part(name: str) -> str:
    """The text of a file beside this one."""
    return resources.files("physview.pictures").joinpath(name).read_text("utf-8")


def _legend(picture: Picture) -> str:
    """The legend: its place at the top of the page can be seen without scrolling."""
    groups = []
    for name, entries in legend_groups(picture).items():
        items = "".join(
            f'<li><i style="background:var(--{entry.kind.slug})"></i>{text(entry.kind.label)}'
            f" <small>{text(entry.amount)}</small></li>\n"
            for entry in entries
        )
        groups.append(f"<li><strong>{text(name)}</strong>\n<ul>\n{items}</ul></li>\n")
    return "".join(groups)


def _sizes() -> str:
    """The sizes and the typeface of the drawing, for page.css."""
    return f":root{{--width:{WIDTH}px;--margin:{MARGIN}px;--font:{FONT}}}\n"


def _variables(light: dict[str, str], dark: dict[str, str], theme: str) -> str:
    """The colours for the scripts, which draw with them."""

    def rule(colours: dict[str, str]) -> str:
        return ":root{" + "".join(f"--{name}:{value};" for name, value in colours.items()) + "}\n"

    if theme != "auto":
        return rule(light if theme == "light" else dark)
    return rule(light) + "@media(prefers-color-scheme:dark){" + rule(dark) + "}\n"
