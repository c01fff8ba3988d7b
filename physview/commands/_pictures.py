# SPDX-License-Identifier: GPL-2.0-or-later
"""What commands that draw a picture share."""

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
    """Refuse the options of a picture where no picture is drawn.

    Raises:
        UsageError: Such an option is given.
    """
    if args.theme or args.force:
        raise UsageError("--theme and --force need a picture", "", "name its file with --picture")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --theme and --force."""
    parser.add_argument(
        "--theme",
        choices=("light", "dark"),
        help="colours for a light or a dark background; by default SVG and HTML follow the"
        " viewer's setting, and PNG is light",
    )
    _common.add_force_option(parser)


def draw(
    args: argparse.Namespace, path: str, read: Callable[[], Picture], *, remedy: str | None = None
) -> None:
    """Read the data, write the picture, and print a summary. If reading fails, nothing is written.

    Args:
        args: The command's arguments, with --json and those of `add_options()`.
        path: The picture's file.
        read: Reads the data and makes the picture.
        remedy: How to get frame numbers if they are hidden; by default: run as root.
    """
    from physview.pictures import check_path, describe, write_picture

    check_path(path, overwrite=args.force)
    picture = read()
    captions = describe(picture)
    size = write_picture(picture, path, captions=captions, theme=args.theme, overwrite=args.force)
    if args.json:
        from physview.reporters import documents
        from physview.reporters import picture as reporter

        documents.write(reporter.picture_document(picture, captions, path, size))
    else:
        sys.stdout.write(f"{printable(path)}: {captions.title}: {captions.summary}\n")
    _common.say_if_shared(path)
    if captions.missing:
        _common.say(
            f"physical memory is not drawn: {captions.missing}; {remedy or _common.root_remedy()}"
        )
