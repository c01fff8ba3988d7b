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
from physview.pictures.svg import to_svg

THEMES = ("light", "dark")


def _svg(picture: Picture, captions: Captions | None, theme: str | None) -> bytes:
    return to_svg(lay_out(picture, captions)[0], theme=theme or "auto").encode()


def _png(picture: Picture, captions: Captions | None, theme: str | None) -> bytes:
    return to_png(lay_out(picture, captions)[0], theme=theme or "light")


def _html(picture: Picture, captions: Captions | None, theme: str | None) -> bytes:
    return to_html(picture, captions, theme=theme or "auto").encode()


_WRITERS: dict[str, Callable[[Picture, Captions | None, str | None], bytes]] = {
    ".svg": _svg,
    ".png": _png,
    ".html": _html,
}
SUFFIXES = tuple(_WRITERS)
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
    if suffix not in _WRITERS:
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
    overwrite = overwrite or force
    check_path(path, overwrite=overwrite)
    data = _WRITERS[os.path.splitext(path)[1].lower()](picture, captions, theme)
    # A page has all frame numbers; an SVG or a PNG shows none of them.
    private = path.lower().endswith(".html")
    with whole_file(path, overwrite=overwrite, private=private) as file:
        file.write(data)
    return len(data)
