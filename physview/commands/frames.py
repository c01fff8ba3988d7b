# SPDX-License-Identifier: GPL-2.0-or-later
"""Show what the frames of the machine are used for.

What they are used for, told by their flags; zones and nodes; free blocks by size; and how many
frames have which flags. Mapped is what processes have in their page tables. Needs root.
"""

from __future__ import annotations

import argparse

from physview.commands import _common, _pictures

NAME = "frames"
HELP = "the machine: frames by use, zone, node and flags, and free blocks by size"


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--flags", action="store_true", help="every combination of flags, not the first few"
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="keep apart what differs only in flags that are the kernel's own (bit 32 and up), or"
        " in being the head or the tail of a compound page",
    )
    parser.add_argument("--picture", metavar="FILE", help="draw them instead: .svg, .png or .html")
    _pictures.add_options(parser)
    _common.add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print the tables, or draw."""
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
