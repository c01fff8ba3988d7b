# SPDX-License-Identifier: GPL-2.0-or-later
"""Pictures as files: written whole or not at all, and never over what is there unasked."""

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
"""What the name of a picture can end in."""


def check_path(path: str, *, overwrite: bool = False, force: bool = False) -> None:
    """Find out whether a picture could be written, before much is read for it.

    Args:
        path: The file; its suffix is one of SUFFIXES.
        overwrite: Whether it may be there already.
        force: The earlier name of `overwrite`.

    Raises:
        UsageError: The suffix is none of them.
        PhysviewError: The file is there, or its folder is not or is not ours to write to; or what
            writes such files is not installed.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in _WRITERS:
        why = f"'{suffix}' is no kind of picture" if suffix else "its name does not tell the kind"
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
        theme: One of THEMES; None lets the viewer of an SVG or of a page choose, and is light in a
            PNG.
        overwrite: Whether to replace a file of this name.
        force: The earlier name of `overwrite`.

    Returns:
        How many bytes it has.

    Raises:
        As `check_path()`.
        PhysviewError: It cannot be written.
    """
    overwrite = overwrite or force
    check_path(path, overwrite=overwrite)
    data = _WRITERS[os.path.splitext(path)[1].lower()](picture, captions, theme)
    # A page holds every frame's number; what is drawn does not tell them.
    private = path.lower().endswith(".html")
    with whole_file(path, overwrite=overwrite, private=private) as file:
        file.write(data)
    return len(data)
