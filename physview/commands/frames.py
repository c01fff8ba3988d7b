# SPDX-License-Identifier: GPL-2.0-or-later
"""Show what the machine's frames are used for.

Counts frames by their use (which their flags tell), by zone, by node and by flags, and free blocks
by size. Mapped frames are in the page tables of processes. Needs root.
"""

from __future__ import annotations

import argparse

from physview.commands import _common, _pictures

NAME = "frames"
HELP = "the machine's frames by use, zone, node and flags, and free blocks by size"


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--flags", action="store_true", help="show every combination of flags, not only the first"
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="count frames separately that differ only in kernel-internal flags (bit 32 and up),"
        " or in being the head or the tail of a compound page",
    )
    parser.add_argument(
        "--picture", metavar="FILE", help="draw the frames instead: .svg, .png or .html"
    )
    _pictures.add_options(parser)
    _common.add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print the tables, or draw the frames."""
    if args.picture is not None:
        _draw(args)
        return 0
    _pictures.refuse_options(args)
    from physview.commands import _progress
    from physview.frames.machine import read_machine
    from physview.reporters import documents
    from physview.reporters import frames as reporter

    with _progress.progress_bar("counting frames") as progress:
        machine = read_machine(progress=progress)
    if args.json:
        documents.write(reporter.machine_document(machine))
    else:
        reporter.print_machine(machine, all_flags=args.flags, raw=args.raw)
    return 0


def _draw(args: argparse.Namespace) -> None:
    from physview.commands import _progress
    from physview.pictures import Picture, picture_machine

    def read() -> Picture:
        with _progress.progress_bar("reading frames") as progress:
            return picture_machine(progress=progress)

    _pictures.draw(args, args.picture, read)
