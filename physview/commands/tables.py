# SPDX-License-Identifier: GPL-2.0-or-later
"""Count the page tables of processes: how many, how full, and what they cost.

For one process: the tables of each level, with their entries, and a histogram of filled entries.
For several processes: a line for each, and the totals, in which a table that several processes
share counts once. The sizes are compared with VmPTE of /proc/PID/status, and each difference gets
a named cause. A BPF program reads the tables: this needs root. Exits with 1 if a difference stays
unexplained.
"""

from __future__ import annotations

import argparse

from physview.commands import _common, _progress
from physview.errors import UsageError

NAME = "tables"
HELP = "a process's page tables: their number and size, how full they are, and what they cost"


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "processes", metavar="PID", nargs="*", help="a pid, self, or the name of one process"
    )
    _common.add_all_option(parser)
    _common.add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print the page tables."""
    if args.all is bool(args.processes):
        raise UsageError("no process is named, or too many", "", "give one PID or more, or --all")
    pids = None if args.all else _common.find_pids(args.processes)

    from physview.analysis.shared_tables import read_tables
    from physview.reporters import documents
    from physview.reporters import tables as reporter

    with _progress.progress_bar("reading page tables") as progress:
        report = read_tables(
            None if pids is None else list(pids),
            progress=progress,
            on_error=None if pids is None else lambda pid, error: _common.fail(pids[pid], error),
        )
    if args.all:  # the largest first
        report.processes.sort(key=lambda each: -each.tables.size_bytes)
    if args.json:
        documents.write(reporter.document(report))
    elif args.all or len(report.processes) > 1:
        reporter.print_processes(report)
    elif report.processes:
        reporter.print_process(report)
    _common.say_how_many_are_left_out(report.nr_denied)
    return int(report.nr_unexplained > 0)
