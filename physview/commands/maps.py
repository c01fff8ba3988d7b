# SPDX-License-Identifier: GPL-2.0-or-later
"""Show the physical memory of each mapping of a process, and how contiguous this memory is.

Prints a line per mapping: how much is resident, swapped, shared, in large folios, and in how many
extents. The totals also show how much is in blocks that are contiguous and aligned. A wide
terminal shows more columns. -o names the columns, also those of smaps, such as PSS. --rollup prints
a line per process, from the kernel's own sums.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from physview.commands import _common
from physview.errors import AccessDenied, NoUserMemory, PhysviewError, ProcessGone, UsageError
from physview.units import short_size

if TYPE_CHECKING:
    from physview.commands._maps_reading import MapsReading

NAME = "maps"
HELP = "a process's mappings: resident, shared, swapped, how contiguous, in huge pages"


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "processes", metavar="PID", nargs="*", help="a pid, self, or the name of one process"
    )
    _common.add_cgroup_option(parser)
    _common.add_all_option(parser)
    parser.add_argument(
        "--rollup",
        action="store_true",
        help="print a line per process, not per mapping: the kernel's sums (smaps_rollup)",
    )
    parser.add_argument(
        "--frames",
        action="store_true",
        help="with --rollup: read the pages, too, for extents, contiguity and large folios",
    )
    parser.add_argument(
        "-o",
        "--columns",
        metavar="NAMES",
        help="the columns to show, separated by commas; +NAMES adds to those that are shown;"
        " 'help' lists them",
    )
    parser.add_argument(
        "--sort",
        metavar="COLUMN",
        help="largest first, texts in their order; +COLUMN: smallest first",
    )
    parser.add_argument(
        "--top",
        type=_common.count(),
        metavar="N",
        help="only the first N, by rss if there is no --sort",
    )
    parser.add_argument(
        "--name",
        metavar="GLOB",
        help="only mappings whose path or file name matches; with --rollup, processes",
    )
    parser.add_argument("--bytes", action="store_true", help="print sizes in bytes")
    parser.add_argument("--si", action="store_true", help="print sizes in powers of 1000")
    parser.add_argument(
        "--format", choices=("csv", "jsonl", "parquet"), help="write a record per line, in bytes"
    )
    parser.add_argument("--output", metavar="FILE", help="the file for Parquet")
    _common.add_force_option(parser)
    parser.add_argument(
        "--every",
        type=_common.duration(0.01, 86400),
        metavar="S",
        help="print again every S seconds (or 5m, 2h), until it is interrupted",
    )
    parser.add_argument(
        "--ticks", type=_common.count(), metavar="N", help="with --every: end after N times"
    )
    _common.add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print the mappings."""
    if args.columns is not None and args.columns.strip(" ").lower() == "help":
        from physview.reporters.maps_columns import column_lines

        print("\n".join(column_lines()))
        return 0
    _check(args)
    from physview.commands._maps_reading import MapsReading

    with MapsReading(args) as reading:
        tick = 0
        while _report(args, reading):
            tick += 1
            if args.every is None or tick == args.ticks:
                break
            time.sleep(args.every)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse options that exclude each other."""
    for one, other in (
        ("json", "format"),
        ("json", "every"),
        ("bytes", "si"),
        ("json", "bytes"),
        ("json", "si"),
        ("format", "bytes"),
        ("format", "si"),
    ):
        if getattr(args, one) not in (None, False) and getattr(args, other) not in (None, False):
            raise UsageError(f"--{one} and --{other} exclude each other", "", "leave out one")
    if args.frames and not args.rollup:
        raise UsageError("--frames needs --rollup", "", "add that, or leave out --frames")
    if args.ticks is not None and args.every is None:
        raise UsageError("--ticks needs --every", "", "add that, or leave out --ticks")
    _common.check_output(args, "--output")
    if args.format == "parquet" and args.every is not None:
        why = "a Parquet file is complete at its end only"
        raise UsageError("--every and --format parquet exclude each other", why, "use jsonl")


def _report(args: argparse.Namespace, reading: MapsReading) -> bool:
    """Print all processes once; return whether one could be read."""
    pids = _pids(args)
    nr_refused = nr_read = 0
    reading.begin(several=len(pids) > 1 or len(args.processes) > 1)
    with _progress_bar(args) as progress:
        for nr, (pid, word) in enumerate(pids.items()):
            if progress:
                progress(nr, len(pids))
            try:
                with nullcontext() if word is None else _common.attempt(word):
                    reading.read(pid)
                    nr_read += 1
            except (ProcessGone, NoUserMemory, AccessDenied) as error:
                nr_refused += isinstance(error, AccessDenied)
    if not nr_read and not args.processes:
        _fail_on_none(args, nr_refused)
    reading.end()
    if nr_read:
        _say_what_is_missing(args, reading, nr_refused)
    return nr_read > 0


def _progress_bar(
    args: argparse.Namespace,
) -> AbstractContextManager[Callable[[int, int | None], None] | None]:
    """Show how many processes were read, if nothing is printed before all of them were."""
    is_sorted = args.sort is not None or args.top is not None
    if not (args.rollup and is_sorted) and args.format != "parquet":
        return nullcontext()
    from physview.commands._progress import progress_bar

    return progress_bar("reading processes")


def _say_what_is_missing(args: argparse.Namespace, reading: MapsReading, nr_refused: int) -> None:
    if reading.hidden:
        _common.say(
            "frame numbers are hidden, so extents, contiguity, large folios and nodes are not"
            f" known; {_common.root_remedy()}"
        )
    elif reading.why_no_flags:
        _common.say(f"large folios are not known: {reading.why_no_flags}")
    if reading.hinted_bytes:
        remedy = "--frames" if args.rollup else "the column extents"
        _common.say(
            f"about {short_size(reading.hinted_bytes)} are missing: smaps of this kernel leaves out"
            f" huge pages that wait for a NUMA hint; with {remedy} they are counted"
        )
    if reading.nr_unsearched:
        _common.say(
            f"zero pages are not known in {reading.nr_unsearched} large mappings without resident"
            " memory: this kernel has no PAGEMAP_SCAN (Linux 6.7), so reading all of them would"
            " take long"
        )
    _common.say_how_many_are_left_out(nr_refused)
    if args.name is not None and not reading.nr_shown:
        what = "process" if args.rollup else "mapping"
        raise PhysviewError("nothing to show", f"the name of no {what} matches '{args.name}'")


def _pids(args: argparse.Namespace) -> dict[int | str, str | None]:
    """Return the processes, and the word with which the user named each; None if with no word."""
    _common.check_processes(args)
    if args.processes:
        return {**_common.find_pids(args.processes)}
    if args.all:
        from physview.sources.procfs import list_pids

        return dict.fromkeys(list_pids())
    _common.say_if_threaded(args.cgroup)
    return dict.fromkeys(_common.cgroup_pids(args.cgroup))


def _fail_on_none(args: argparse.Namespace, nr_refused: int) -> None:
    what = f"cgroup '{args.cgroup}'" if args.cgroup else "this machine"
    if nr_refused:
        why = f"you may not examine its {nr_refused} processes"
        raise AccessDenied(f"nothing to show of {what}", why, _common.root_remedy())
    raise PhysviewError(f"nothing to show of {what}", "it has no process with user memory")
