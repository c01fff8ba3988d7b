# SPDX-License-Identifier: GPL-2.0-or-later
"""Draw where a process's memory is: its mappings, the machine's frames, and what connects them.

FILE ends in .svg, .png or .html. The .html file is an interactive page: point at a cell, zoom to a
frame, find an address. Without root, only the virtual half is drawn.
"""

from __future__ import annotations

import argparse

from physview.commands import _common, _pictures
from physview.runtime.resolve_pid import find_pid

NAME = "picture"
HELP = "a process's memory as a picture: SVG, PNG, or an interactive page"


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("process", metavar="PID", help="a pid, self, or the name of one process")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        required=True,
        help="the file to write: .svg, .png or .html",
    )
    parser.add_argument(
        "--mapcount",
        action="store_true",
        help="also look up how often each frame is mapped, and show it in the .html page",
    )
    _pictures.add_options(parser)
    _common.add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Write the picture."""
    from physview.commands import _progress
    from physview.pictures import Picture, picture_process

    pid = find_pid(args.process)

    def read() -> Picture:
        with _progress.progress_bar("reading memory") as progress:
            return picture_process(pid, with_mapcount=args.mapcount, progress=progress)

    _pictures.draw(args, args.output, read)
    _common.say_if_ksm_unknown()
    return 0
