# SPDX-License-Identifier: GPL-2.0-or-later
"""Pictures as files: written whole or not at all; a file that exists is kept, unless force."""

from __future__ import annotations

import os
from collections.abc import Callable

from physview.errors import UsageError
from physview.files.atomic_file import check_target, whole_file
from physview.pictures.captions import Captions
from physview.pictures.html import to_html
from physview.pictures.layout import lay_out
from physview.pictures.model import Picture
from physview.pictures.png import need_pillow, to_png
from physview.pictures.shapes import Drawing
from physview.pictures.svg import to_svg

THEMES = ("light", "dark")


SUFFIXES = (".svg", ".png", ".html")
"""The suffixes that the name of a picture can have."""


def check_path(path: str, *, overwrite: bool = False, force: bool = False) -> None:
    """Check that a picture can be written, before its data is read.

    Args:
        path: The file; its suffix is one of SUFFIXES.
        overwrite: Whether the file may exist.
        force: The earlier name of `overwrite`.

    Raises:
        UsageError: The suffix is not one of them.
        PhysviewError: The file exists, its folder does not or cannot be written to, or a package
            for this format is not installed.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in SUFFIXES:
        why = f"'{suffix}' is no kind of picture" if suffix else "the name has no suffix"
        raise UsageError(f"cannot draw '{path}'", why, f"end it in {', '.join(SUFFIXES)}")
    if suffix == ".png":
        need_pillow()
    check_target(path, overwrite=overwrite or force)


def write_picture(
    picture: Picture,
    path: str,
    *,
    captions: Captions | None = None,
    theme: str | None = None,
    overwrite: bool = False,
    force: bool = False,
) -> int:
    """Write a picture to a file, whole or not at all.

    Args:
        picture: What to draw.
        path: The file; its suffix is one of SUFFIXES.
        captions: Its words; by default those of `captions.describe()`.
        theme: One of THEMES. With None the viewer of an SVG or of a page chooses, and a PNG is
            light.
        overwrite: Whether to replace a file of this name.
        force: The earlier name of `overwrite`.

    Returns:
        The size of the file in bytes.

    Raises:
        As `check_path()`.
        PhysviewError: It cannot be written.
    """
    # A page has all frame numbers; an SVG or a PNG shows none of them.
    private = path.lower().endswith(".html")
    return write_drawing(
        path,
        lambda: lay_out(picture, captions)[0],
        lambda theme: to_html(picture, captions, theme=theme),
        theme=theme,
        overwrite=overwrite or force,
        private=private,
    )


def write_drawing(
    path: str,
    drawing: Callable[[], Drawing],
    page: Callable[[str], str],
    *,
    theme: str | None,
    overwrite: bool,
    private: bool = False,
) -> int:
    """Write a drawing to a file, whole or not at all.

    Args:
        path: The file; its suffix is one of SUFFIXES.
        drawing: Makes what an SVG or a PNG shows.
        page: Makes the HTML page, with a theme.
        theme: As for `write_picture()`.
        overwrite: Whether to replace a file of this name.
        private: Whether only its owner may read the file.

    Returns:
        The size of the file in bytes.

    Raises:
        As `write_picture()`.
    """
    check_path(path, overwrite=overwrite)
    suffix = os.path.splitext(path)[1].lower()
    if suffix == ".html":
        data = page(theme or "auto").encode()
    elif suffix == ".svg":
        data = to_svg(drawing(), theme=theme or "auto").encode()
    else:
        data = to_png(drawing(), theme=theme or "light")
    with whole_file(path, overwrite=overwrite, private=private) as file:
        file.write(data)
    return len(data)
