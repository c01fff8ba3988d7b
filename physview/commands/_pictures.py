# SPDX-License-Identifier: GPL-2.0-or-later
"""What the commands that draw have in common."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from physview.commands import _common
from physview.errors import UsageError
from physview.model import printable

if TYPE_CHECKING:
    from physview.pictures import Picture


def refuse_options(args: argparse.Namespace) -> None:
    """Refuse what is about a picture where none is asked for.

    Raises:
        UsageError: There is such an option.
    """
    if args.theme or args.force:
        raise UsageError("--theme and --force are about a picture", "", "name one with --picture")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --theme and --force."""
    parser.add_argument(
        "--theme",
        choices=("light", "dark"),
        help="colours on light paper or on dark; by default an SVG and a page follow their viewer,"
        " and a PNG is light",
    )
    _common.add_force_option(parser)


def draw(
    args: argparse.Namespace, path: str, read: Callable[[], Picture], *, remedy: str | None = None
) -> None:
    """Read what is drawn, draw it, and say what came of it; nothing is written if that fails.

    Args:
        args: With what `add_options()` added, and json.
        path: The picture's file.
        read: Makes the picture.
        remedy: What gets frames where they are missing; by default to be root.
    """
    from physview.pictures import check_path, write_picture

    check_path(path, overwrite=args.force)
    picture = read()
    size = write_picture(picture, path, theme=args.theme, overwrite=args.force)
    if args.json:
        from physview.reporters import documents
        from physview.reporters import picture as reporter

        documents.write(reporter.picture_document(picture, path, size))
    else:
        sys.stdout.write(f"{printable(path)}: {picture.title}: {picture.summary}\n")
    _common.say_if_shared(path)
    if picture.missing:
        _common.say(
            f"physical memory is not drawn: {picture.missing}; {remedy or _common.root_remedy()}"
        )
