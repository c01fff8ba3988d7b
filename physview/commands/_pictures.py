# SPDX-License-Identifier: GPL-2.0-or-later
"""What the commands that draw have in common."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from physview.commands import _common
from physview.model import printable

if TYPE_CHECKING:
    from physview.pictures import Picture


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --theme and --force."""
    parser.add_argument(
        "--theme",
        choices=("light", "dark"),
        help="colours on light paper or on dark; by default an SVG and a page follow their viewer,"
        " and a PNG is light",
    )
    _common.add_force_option(parser)


def draw(args: argparse.Namespace, path: str, read: Callable[[], Picture]) -> None:
    """Read what is drawn, draw it, and say what came of it; nothing is written if that fails."""
    from physview.pictures import check_path, write_picture

    check_path(path, force=args.force)
    picture = read()
    size = write_picture(picture, path, theme=args.theme, force=args.force)
    if args.json:
        from physview.reporters import documents, picture_documents

        documents.write(picture_documents.picture_document(picture, path, size))
    else:
        sys.stdout.write(f"{printable(path)}: {picture.title}: {picture.summary}\n")
    if picture.missing:
        _common.say(f"physical memory is not drawn: {picture.missing}; {_common.root_remedy()}")
