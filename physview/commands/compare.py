# SPDX-License-Identifier: GPL-2.0-or-later
"""Hold pagemap against the kernel module's walk of the page tables, page by page.

Every page that either knows something of gets a verdict, and every difference a name. Needs the
kernel module. Exits with 1 if a difference stays unexplained.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from physview.commands import _common
from physview.lookup import find_pid
from physview.procfs import ProcDir
from physview.reporters import documents

NAME = "compare"
HELP = "pagemap against the module's walk, page by page; needs the kernel module"


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("process", metavar="PID", help="a pid, self, or the name of one process")
    _common.add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print the comparison."""
    from physview.analysis.compare import Comparer

    proc = ProcDir(find_pid(args.process))
    start = time.monotonic()
    try:
        comparer = Comparer(proc)
        try:
            with _progress() as progress:
                comparison = comparer.compare(progress)
        finally:
            comparer.close()
    finally:
        proc.close()
    seconds = time.monotonic() - start
    if args.json:
        documents.write(documents.comparison(proc.pid, comparison, seconds))
    else:
        from physview.reporters import tables

        tables.print_comparison(proc.pid, comparison, seconds)
    return int(comparison.nr_unexplained > 0)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    """Show on a terminal how far it is."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("comparing mappings", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
