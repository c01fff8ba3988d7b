# SPDX-License-Identifier: GPL-2.0-or-later
"""Compare pagemap with the kernel module's walk of the page tables, page by page.

Every page that one of the two sources knows gets a verdict. A verdict names the cause of a
difference. Needs the kernel module. Exits with 1 if a difference stays unexplained.
"""

from __future__ import annotations

import argparse

from physview.commands import _common, _progress
from physview.reporters import compare as reporter
from physview.reporters import documents
from physview.runtime.resolve_pid import find_pid
from physview.sources.procfs import ProcDir

NAME = "compare"
HELP = "pagemap compared with the module's walk, page by page; needs the kernel module"


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("process", metavar="PID", help="a pid, self, or the name of one process")
    _common.add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print the comparison."""
    from physview.analysis.compare import Comparer

    with (
        ProcDir(find_pid(args.process)) as proc,
        Comparer(proc) as comparer,
        _progress.progress_bar("comparing pages") as progress,
    ):
        comparison = comparer.compare(progress)
    if args.json:
        documents.write(reporter.document(proc.pid, comparison))
    else:
        reporter.print_table(proc.pid, comparison)
    return int(comparison.nr_unexplained > 0)
