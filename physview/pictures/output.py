# SPDX-License-Identifier: GPL-2.0-or-later
"""Pictures as files: written whole or not at all, and never over what is there unasked."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable

from physview.errors import PhysviewError, UsageError
from physview.pictures.html import to_html
from physview.pictures.layout import lay_out
from physview.pictures.model import Picture
from physview.pictures.png import to_png
from physview.pictures.svg import to_svg

THEMES = ("light", "dark")


def _svg(picture: Picture, theme: str | None) -> bytes:
    return to_svg(lay_out(picture)[0], theme=theme or "auto").encode()


def _png(picture: Picture, theme: str | None) -> bytes:
    return to_png(lay_out(picture)[0], theme=theme or "light")


def _html(picture: Picture, theme: str | None) -> bytes:
    return to_html(picture, theme=theme or "auto").encode()


_WRITERS: dict[str, Callable[[Picture, str | None], bytes]] = {
    ".svg": _svg,
    ".png": _png,
    ".html": _html,
}
SUFFIXES = tuple(_WRITERS)
"""What the name of a picture can end in."""


def check_path(path: str, *, force: bool = False) -> None:
    """Find out whether a picture could be written, before much is read for it.

    Args:
        path: The file; its suffix is one of SUFFIXES.
        force: Whether it may be there already.

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
        from physview.pictures.png import check_pillow

        check_pillow()
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise PhysviewError(
            f"cannot write {path}", f"there is no folder {folder}", "make it first", path=path
        )
    if os.path.isdir(path):
        raise PhysviewError(
            f"cannot write {path}", "it is a folder", "name a file in it", path=path
        )
    if os.path.lexists(path) and not force:
        raise _exists(path)
    if not os.access(folder, os.W_OK | os.X_OK):
        why = f"the folder {folder} is not yours to write to"
        raise PhysviewError(f"cannot write {path}", why, "name another", path=path)


def _exists(path: str) -> PhysviewError:
    why, remedy = "it is there already", "name another, or write over it with --force"
    return PhysviewError(f"cannot write {path}", why, remedy, path=path)


def write_picture(
    picture: Picture, path: str, *, theme: str | None = None, force: bool = False
) -> int:
    """Write a picture to a file, whole or not at all.

    Args:
        picture: What to draw.
        path: The file; its suffix is one of SUFFIXES.
        theme: One of THEMES; None lets the viewer of an SVG or of a page choose, and is light in a
            PNG.
        force: Whether to write over what is there.

    Returns:
        How many bytes it has.

    Raises:
        As `check_path()`.
        OSError: It cannot be written.
    """
    check_path(path, force=force)
    data = _WRITERS[os.path.splitext(path)[1].lower()](picture, theme)
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path) or ".", prefix=".physview-")
    try:
        with open(handle, "wb") as file:
            file.write(data)
            os.fchmod(handle, 0o666 & ~_umask())
        if force:
            os.replace(temporary, path)
        else:
            _give_name(temporary, path)
    finally:
        if os.path.lexists(temporary):
            os.unlink(temporary)
    return len(data)


def _give_name(temporary: str, path: str) -> None:
    """Rename, but not over what came to be there meanwhile."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise _exists(path) from None
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            raise _exists(path) from None
        os.rename(temporary, path)


def _umask() -> int:
    """What new files are not to be allowed; it can only be read by setting it."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask
