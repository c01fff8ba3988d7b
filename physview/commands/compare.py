# SPDX-License-Identifier: GPL-2.0-or-later
"""Compare pagemap with walks of the page tables, page by page.

Every page that one of the sources knows gets a verdict. A verdict names the cause of a difference.
A BPF program walks the page tables, and the kernel module, too, if it is loaded: then a difference
says which of the three sources stands alone. Exits with 1 if a difference stays unexplained.
"""

from __future__ import annotations

import argparse

from physview.commands import _common, _progress
from physview.errors import AccessDenied, NoUserMemory, ProcessGone, UsageError
from physview.reporters import compare as reporter
from physview.reporters import documents
from physview.runtime.resolve_pid import find_pid
from physview.sources.procfs import ProcDir, list_pids

NAME = "compare"
HELP = "pagemap compared with walks of the page tables, page by page"


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "process", metavar="PID", nargs="?", help="a pid, self, or the name of one process"
    )
    _common.add_all_option(parser)
    _common.add_walker_option(parser, "each of the two that works here")
    _common.add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print the comparison."""
    if args.all is bool(args.process):
        raise UsageError("no process is named, or too many", "", "give one PID, or --all")
    return _compare_all(args) if args.all else _compare_one(args)


def _compare_one(args: argparse.Namespace) -> int:
    from physview.analysis.compare import Comparer

    with (
        ProcDir(find_pid(args.process)) as proc,
        Comparer(proc, source=args.source) as comparer,
        _progress.progress_bar("comparing pages") as progress,
    ):
        comparison = comparer.compare(progress)
    if args.json:
        documents.write(reporter.document(comparer.sources, proc.pid, comparison))
    else:
        reporter.print_table(f"process {proc.pid}", comparer.sources, comparison)
    return int(comparison.nr_unexplained > 0)


def _compare_all(args: argparse.Namespace) -> int:
    from physview.analysis.compare import Comparer, Comparison

    total = Comparison()
    sources: list[str] = []
    nr_compared = nr_denied = 0
    refused: AccessDenied | None = None
    pids = list_pids()
    with _progress.progress_bar("comparing processes") as progress:
        for number, pid in enumerate(pids):
            if progress:
                progress(number, len(pids))
            try:
                with ProcDir(pid) as proc, Comparer(proc, source=args.source) as comparer:
                    comparison = comparer.compare()
            except (ProcessGone, NoUserMemory):
                continue
            except AccessDenied as error:
                refused, nr_denied = error, nr_denied + 1
                continue
            sources, nr_compared = comparer.sources, nr_compared + 1
            if comparison.nr_unexplained and not args.json:
                reporter.print_table(f"process {pid}", sources, comparison)
            total.include(comparison)
    if not nr_compared and refused:
        raise refused
    if args.json:
        documents.write(reporter.document(sources, None, total))
    else:
        reporter.print_table(f"{nr_compared} processes", sources, total)
    _common.say_how_many_are_left_out(nr_denied)
    return int(total.nr_unexplained > 0)
