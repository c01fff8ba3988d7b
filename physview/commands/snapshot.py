# SPDX-License-Identifier: GPL-2.0-or-later
"""Save in a Parquet file which page of a process is in which frame, and what is known about it.

pandas, polars and DuckDB can open the file. physview diff shows what happened to the pages between
two snapshots.
"""

from __future__ import annotations

import argparse

from physview.commands import _common
from physview.reporters import documents
from physview.runtime.resolve_pid import find_pid

NAME = "snapshot"
HELP = "save a process's pages in a Parquet file"


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("process", metavar="PID", help="a pid, self, or the name of one process")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="the file to write")
    _common.add_columns_option(parser)
    _common.add_track_writes_option(
        parser, "let a later snapshot tell which pages were written since this one"
    )
    _common.add_force_option(parser)
    _common.add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Write the file."""
    _common.save_memory()
    columns = _common.parse_columns(args.columns)
    pid = find_pid(args.process)

    from physview.commands._progress import progress_bar
    from physview.memory.snapshot import Snapshot
    from physview.parquet.snapshot_file import write_snapshot

    with Snapshot(pid) as snapshot:
        if not snapshot.knows_frames:
            _common.say(
                "frame numbers are hidden, so the file says only which pages are there, and"
                f" nothing about frames; {_common.root_remedy()}"
            )
        with progress_bar("reading pages") as show:
            written = write_snapshot(
                snapshot,
                args.output,
                columns=columns,
                overwrite=args.force,
                track_writes=args.track_writes,
                progress=show,
            )
    _common.say_if_shared(args.output)
    _common.say_if_ksm_unknown()
    if args.json:
        documents.write_line(written._asdict())
    else:
        _common.print_written(written)
    return 0
