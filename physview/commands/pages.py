# SPDX-License-Identifier: GPL-2.0-or-later
"""Show the pages of a process: where they are, and what the kernel says about their frames.

Prints a line per extent. An extent is a number of pages with the same properties that are
contiguous in both address spaces, virtual and physical. --each prints a line per page. --summary
only counts the pages by their flags.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from physview.commands import _common, _numbers
from physview.errors import AccessDenied, UsageError
from physview.model import PAGE_SIZE
from physview.runtime import invocation
from physview.runtime.resolve_pid import find_pid
from physview.sources.tagged_pointers import untagged_range

if TYPE_CHECKING:
    from physview.memory.snapshot import Snapshot
    from physview.sources.page_flags import FlagFilter

NAME = "pages"
HELP = "a process's pages: frames, flags, map counts, cgroups, nodes; or counts by flags"


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("process", metavar="PID", help="a pid, self, or the name of one process")
    parser.add_argument("range", metavar="START-END", nargs="?", help="only these addresses")
    parser.add_argument("--each", action="store_true", help="print a line per page, not per extent")
    parser.add_argument(
        "--summary", action="store_true", help="count the pages by their flags, as page-types does"
    )
    parser.add_argument(
        "--flags",
        metavar="FLAGS",
        action="append",
        help="only pages with these flags: a,!b (a without b), a|b (one of them), =a,b (these and"
        " no others), a,b=a (of these only a); may be repeated",
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="show all flags, also kernel-internal ones, and those of pagemap, such as soft_dirty",
    )
    _common.add_columns_option(parser)
    parser.add_argument(
        "--format", choices=("csv", "jsonl", "parquet"), help="write a record per extent"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="the file for Parquet")
    _common.add_force_option(parser)
    _common.add_frame_source_option(parser)
    _common.add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print the pages."""
    from physview.sources.page_flags import SOFT_DIRTY, FlagFilter

    where = None if args.flags is None else FlagFilter.parse(*args.flags)
    _check(args, where)
    start, end = _range(args.range)
    columns = _common.parse_columns(args.columns)
    pid = find_pid(args.process)
    # Only pagemap has all bits of the entries: flags such as soft_dirty, and what Parquet keeps.
    needs_bits = args.format == "parquet" or args.raw
    if where is not None:
        needs_bits |= where.names_pagemap or (where.names_hidden and args.source != "bpf")
        args.raw |= where.names_hidden

    if where is not None and where.named & SOFT_DIRTY:
        _say_if_no_soft_dirty()

    from physview.memory.snapshot import Snapshot

    source = "pagemap" if needs_bits else args.source
    with Snapshot(pid, source=source, frames_only=not needs_bits) as snapshot:
        if args.summary:
            _summarize(args, snapshot, start, end, where)
        else:
            if not snapshot.knows_frames:
                columns = _without_frames(columns, args, where)
            _list(args, snapshot, (start, end), columns, where)
    _common.say_if_ksm_unknown()
    return 0


def _say_if_no_soft_dirty() -> None:
    from physview.sources import soft_dirty

    if not soft_dirty.is_supported():
        _common.say(
            "no page has the flag soft_dirty, because this kernel has none"
            f" (CONFIG_MEM_SOFT_DIRTY); {invocation.physview('watch PID')} tells what changes"
        )


def _without_frames(
    columns: list[str], args: argparse.Namespace, where: FlagFilter | None
) -> list[str]:
    """The columns that are left if frame numbers are hidden: the flags of pagemap."""
    if where is not None and where.needs_frames:
        raise AccessDenied(
            "cannot select by flags", "frame numbers are hidden", _common.root_remedy()
        )
    _common.say(
        f"frame numbers are hidden, so nothing is known about frames; {_common.root_remedy()}"
    )
    return ["flags"] if args.raw and "flags" in columns and args.format != "parquet" else []


def _list(
    args: argparse.Namespace,
    snapshot: Snapshot,
    within: tuple[int, int | None],
    columns: list[str],
    where: FlagFilter | None,
) -> None:
    if args.format in (None, "csv") and not args.json:
        _write_text(args, snapshot, within, columns, where)
        return
    looked_up = columns if snapshot.knows_frames else []
    batches = snapshot.iter_extents(*within, columns=looked_up, where=where, raw=args.raw)
    if args.each:
        batches = _iter_each(batches)
    if args.format == "parquet":
        from physview.parquet.snapshot_file import write_rows

        _common.save_memory()
        written = write_rows(snapshot, batches, args.output, columns=columns, overwrite=args.force)
        _common.say_if_shared(args.output)
        _common.print_written(written)
    else:
        _write_json(args, snapshot, batches, columns)


def _write_text(
    args: argparse.Namespace,
    snapshot: Snapshot,
    within: tuple[int, int | None],
    columns: list[str],
    where: FlagFilter | None,
) -> None:
    from physview.memory.listing import Listing
    from physview.reporters import pages as reporter
    from physview.sources.cgroups import cgroup_paths

    style = args.format or "table"
    cgroups = cgroup_paths() if "cgroup" in columns else {}
    listing = Listing(
        columns,
        style=style,
        each=args.each,
        raw=args.raw,
        where=where,
        zero_pfn=snapshot.reader.zero_pfn,
        cgroups=reporter.cgroup_names(cgroups, style),
        knows_frames=snapshot.knows_frames,
    )
    batches = snapshot.reader.iter_batches(*within)
    if style == "csv":
        reporter.write_csv(snapshot, listing, batches)
    else:
        titles = reporter.table_titles(columns, each=args.each)
        reporter.print_pages(snapshot, listing, batches, titles)


def _check(args: argparse.Namespace, where: FlagFilter | None) -> None:
    if args.summary and (args.each or args.format):
        other = "--each" if args.each else "--format"
        raise UsageError(f"--summary and {other} exclude each other", "", "leave out one")
    if args.json and args.format:
        raise UsageError("--json and --format exclude each other", "", "leave out one")
    if args.format == "parquet" and args.source == "bpf":
        why = "a Parquet file has all bits of the entries, and only pagemap knows them"
        raise UsageError(
            "--source bpf and --format parquet exclude each other", why, "leave out one"
        )
    names_pagemap = where is not None and where.names_pagemap
    if args.source == "bpf" and (args.raw or names_pagemap):
        option = "--raw" if args.raw else "--flags"
        why = "only pagemap knows flags such as soft_dirty and file"
        raise UsageError(f"--source bpf and {option} exclude each other", why, "leave out one")
    _common.check_output(args, "-o")


def _range(text: str | None) -> tuple[int, int | None]:
    if text is None:
        return 0, None
    found = _numbers.parse_range(text)
    if found is None:
        raise UsageError(f"'{text}' is no range", "", "write START-END")
    start, end = untagged_range(*found)
    _common.say_if_tagged(int((start, end) != found))
    return start - start % PAGE_SIZE, end + -end % PAGE_SIZE


def _summarize(
    args: argparse.Namespace,
    snapshot: Snapshot,
    start: int,
    end: int | None,
    where: FlagFilter | None,
) -> None:
    from physview.analysis.flag_counts import count_flags
    from physview.commands._progress import progress_bar
    from physview.reporters import pages as reporter

    if not snapshot.knows_frames:
        raise AccessDenied(
            "cannot count by flags", "frame numbers are hidden", _common.root_remedy()
        )
    with progress_bar("counting pages") as progress:
        counts = count_flags(snapshot, start, end, where=where, raw=args.raw, progress=progress)
    if args.json:
        reporter.write_summary_document(snapshot.pid, snapshot.source, counts)
    else:
        reporter.print_summary(counts)


def _iter_each(batches: Iterator[Any]) -> Iterator[Any]:
    """Yield a row for each page, in batches of constant size."""
    from physview.memory.rows import iter_each

    for batch in batches:
        yield from iter_each(batch)


def _write_json(
    args: argparse.Namespace, snapshot: Snapshot, batches: Iterator[Any], columns: list[str]
) -> None:
    from physview.reporters import pages as reporter
    from physview.sources.cgroups import cgroup_paths

    cgroups = cgroup_paths() if "cgroup" in columns else {}
    records = reporter.PageRecords(snapshot.vmas, columns, cgroups, raw=args.raw)
    if args.json:
        reporter.write_document(snapshot.pid, snapshot.source, records, batches)
    else:
        reporter.write_json_lines(records, batches)
