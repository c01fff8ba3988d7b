# SPDX-License-Identifier: GPL-2.0-or-later
"""Show which pages a process uses in an interval: its working set.

Looks at the process twice, and prints a line per mapping: how much of its resident memory was
touched and written between the two looks, how much was not, and how much nobody can tell. The
output also says what was changed of the process, and what the chosen way cannot see. By default
nothing is changed: only pages whose accessed bit was clear before can be told. With --clear the
bits are cleared first, so that every page can be told.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from typing import TYPE_CHECKING, Any

from physview.commands import _common
from physview.errors import UsageError

if TYPE_CHECKING:
    from physview.analysis.page_way import PageWay
    from physview.analysis.referenced_way import Referenced
    from physview.analysis.touched import Touched

NAME = "touched"
HELP = "a process's working set: which pages it used and wrote in an interval"

_RECORDS_AT_ONCE = 4096


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("process", metavar="PID", help="a pid, self, or the name of one process")
    parser.add_argument(
        "--for",
        dest="seconds",
        type=_common.duration(0, 86400),
        default=1.0,
        metavar="S",
        help="the length of the interval: seconds, or as 5m, 2h (default: 1)",
    )
    parser.add_argument(
        "--times",
        type=_common.count(10000),
        default=1,
        metavar="N",
        help="N intervals, one after the other; pages are counted in each",
    )
    parser.add_argument(
        "--clear",
        action="store_true",
        help="clear the bits of the process first, which tells every page; reclaim then takes the"
        " process's memory for unused",
    )
    parser.add_argument(
        "--by",
        choices=("auto", "accessed", "referenced", "idle", "soft-dirty", "wp-async"),
        default="auto",
        help="what is looked at: accessed (bits of the page tables, read by a walk), referenced"
        " (the sums of smaps; needs no root), idle (the idle bitmap of frames), soft-dirty"
        " (writes), wp-async (writes to memory that the process registered with userfaultfd), or"
        " auto: accessed, or else referenced",
    )
    _common.add_walker_option(parser, "bpf, or else kmod")
    _common.add_track_writes_option(parser, "with --clear: tell every write, and flush the TLB")
    parser.add_argument(
        "--top",
        type=_common.count(),
        metavar="N",
        help="only the N mappings of which most was touched",
    )
    parser.add_argument(
        "--pages", action="store_true", help="with --format: a record for pages that are alike"
    )
    parser.add_argument(
        "--format", choices=("csv", "jsonl", "parquet"), help="write a record per line, in bytes"
    )
    parser.add_argument("--output", metavar="FILE", help="the file for Parquet")
    parser.add_argument(
        "--picture",
        metavar="FILE",
        help="draw the pages by heat: in how many intervals each was used (.svg, .png, .html)",
    )
    from physview.commands import _pictures

    _pictures.add_options(parser)
    _common.add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print what the process used."""
    _check(args)
    from physview.analysis.touched import INTERRUPTED, observe, open_way
    from physview.runtime.resolve_pid import find_pid
    from physview.sources.procfs import ProcDir

    with ProcDir(find_pid(args.process)) as proc:
        proc.living_stat("pagemap")
        options = {"clear": args.clear, "track_writes": args.track_writes, "source": args.source}
        with open_way(proc, args.by, **options) as way:
            _check_pages(args, way)
            counts = args.times > 1
            touched = observe(proc, way, args.seconds, times=args.times, counts=counts)
    _report(args, touched)
    if touched.ended_early:
        intervals = f"{len(touched.intervals)} of {args.times} intervals"
        if args.times == 1:
            intervals = "this interval"
        early = f"{touched.ended_early} after {touched.seconds:.3g} s"
        _common.say(f"{early}: the report is of {intervals}")
    if touched.why_not_accessed:
        error = touched.why_not_accessed
        _common.say(f"only sums of mappings are known: {error.why}; {_remedy(error)}")
    if touched.ended_early == INTERRUPTED:
        sys.stdout.flush()
        raise KeyboardInterrupt
    return 0


def _remedy(error: Any) -> str:
    from physview.errors import AccessDenied

    return _common.root_remedy() if isinstance(error, AccessDenied) else error.remedy


def _check(args: argparse.Namespace) -> None:
    """Refuse options that do not fit together, before anything is read."""
    from physview.analysis.touched import check_way

    check_way(args.by, clear=args.clear, track_writes=args.track_writes, source=args.source)
    if args.json and args.format:
        raise UsageError("--json and --format exclude each other", "", "leave out one")
    if args.pages and args.top is not None:
        raise UsageError("--pages and --top exclude each other", "", "leave out one")
    if args.pages and not args.format:
        raise UsageError("--pages needs --format", "", "add that, or leave out --pages")
    if args.picture is None and args.format != "parquet":
        from physview.commands import _pictures

        _pictures.refuse_options(args)
    if args.picture is not None:
        from physview.pictures import check_path

        if args.format:
            raise UsageError("--picture and --format exclude each other", "", "leave out one")
        check_path(args.picture, overwrite=args.force)
    if args.format == "parquet" and args.output is None:
        raise UsageError("Parquet is written to a file", "", "name it with --output FILE")
    if args.format != "parquet" and args.output is not None:
        why = "add that, or leave out --output"
        raise UsageError("--output needs --format parquet", "", why)


def _check_pages(args: argparse.Namespace, way: PageWay | Referenced) -> None:
    """Refuse what needs single pages, before the interval, if this way has sums only."""
    from physview.analysis.referenced_way import Referenced

    if not isinstance(way, Referenced):
        return
    for wanted, words in (
        (args.times > 1, "several intervals need"),
        (args.pages, "--pages needs"),
        (args.picture, "--picture needs"),
    ):
        if wanted:
            error = way.why_not_accessed
            why = error.why if error else "smaps has sums of mappings only"
            remedy = _remedy(error) if error else "use --by accessed, as root"
            raise UsageError(f"{words} single pages", why, remedy)


def _report(args: argparse.Namespace, touched: Touched) -> None:
    from physview.reporters import documents
    from physview.reporters import touched as reporter

    if args.format:
        _write_records(args, touched)
        return
    if args.picture is not None:
        _draw(args, touched)
    if args.json:
        documents.write(reporter.document(touched, args.top, args.picture))
        return
    reporter.print_heading(touched, args.times)
    if args.times > 1:
        reporter.print_intervals(touched)
    reporter.print_mappings(touched, args.top)
    reporter.print_summary(touched)


def _draw(args: argparse.Namespace, touched: Touched) -> None:
    from physview.pictures.heat import write_heat

    write_heat(touched, args.picture, theme=args.theme, overwrite=args.force)
    _common.say_if_shared(args.picture)


def _write_records(args: argparse.Namespace, touched: Touched) -> None:
    """Write a record of each mapping, or of pages that are alike."""
    from physview.reporters import maps_records
    from physview.reporters import touched as reporter

    fields = reporter.PAGE_FIELDS if args.pages else reporter.MAPPING_FIELDS
    records = (
        reporter.page_records(touched)
        if args.pages
        else iter(reporter.mapping_records(touched, args.top))
    )
    names = reporter.names_of(fields)
    if args.format == "parquet":
        from physview.parquet.records_file import records_file

        _common.save_memory()
        with records_file(args.output, fields, overwrite=args.force) as write:
            while some := [*itertools.islice(records, _RECORDS_AT_ONCE)]:
                write(maps_records.plain_rows(some))
        _common.say_if_shared(args.output)
    elif args.format == "csv":
        maps_records.csv_writer(names)(records)
    else:
        maps_records.json_lines_writer(names)(records)
