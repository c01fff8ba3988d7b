# SPDX-License-Identifier: GPL-2.0-or-later
"""Keep a process's memory in a Parquet file: which page is in which frame, and what of it is known.

pandas, polars and DuckDB open it; physview diff says what became of the pages between two of them.
"""

from __future__ import annotations

import argparse
import json
import sys

from physview.commands import _common
from physview.runtime.resolve_pid import find_pid

NAME = "snapshot"
HELP = "keep a process's pages in a Parquet file"


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("process", metavar="PID", help="a pid, self, or the name of one process")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="where to")
    _common.add_columns_option(parser)
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
                "frame numbers are hidden, and all that hangs on them; the file tells only which"
                f" pages are there; {_common.root_remedy()}"
            )
        with progress_bar("reading pages") as show:
            written = write_snapshot(
                snapshot, args.output, columns=columns, overwrite=args.force, progress=show
            )
    _common.say_if_shared(args.output)
    if args.json:
        sys.stdout.write(json.dumps(written._asdict()) + "\n")
    else:
        _common.print_written(written)
    return 0
