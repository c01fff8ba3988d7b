# SPDX-License-Identifier: GPL-2.0-or-later
"""Show the physical memory of each mapping of a process, and how contiguous this memory is.

Prints a line per mapping: how much is resident, swapped, shared, in large folios, and in how many
extents. The totals also show how much is in blocks that are contiguous and aligned. A wide
terminal shows more columns.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from typing import TYPE_CHECKING

from physview.commands import _common
from physview.errors import AccessDenied, NoUserMemory, PhysviewError, ProcessGone, UsageError

if TYPE_CHECKING:
    from physview.analysis.usage import Usage, UsageReader
    from physview.reporters.maps import MapsDocument, MapsTable

    Report = MapsTable | MapsDocument

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
        "--rollup", action="store_true", help="print a line per process, not per mapping"
    )
    _common.add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print the mappings."""
    from physview.analysis.usage import Usage, UsageReader
    from physview.reporters import maps as reporter

    pids = _pids(args)
    report: Report
    with UsageReader() as reader:
        if args.json:
            report = reporter.MapsDocument(rollup=args.rollup)
        else:
            several = len(pids) > 1 or len(args.processes) > 1
            report = reporter.MapsTable(rollup=args.rollup, several=several)
        nr_refused = nr_read = 0
        hidden = False
        total = Usage()
        for pid, word in pids.items():
            try:
                with nullcontext() if word is None else _common.attempt(word):
                    hidden |= _report_process(pid, reader, report, total)
                    nr_read += 1
            except (ProcessGone, NoUserMemory, AccessDenied) as error:
                nr_refused += isinstance(error, AccessDenied)
        if not nr_read and not args.processes:
            _fail_on_none(args, nr_refused)
        report.end(total)
        if nr_read:
            _say_what_is_missing(hidden, nr_refused, reader.why_no_flags)
    return 0


def _report_process(pid: int | str, reader: UsageReader, report: Report, total: Usage) -> bool:
    """Report a process; return whether its frames are hidden."""
    from physview.analysis.usage import Usage
    from physview.memory.snapshot import Snapshot

    with Snapshot(pid) as snapshot:
        usages = reader.iter_usage(snapshot)
        own = Usage()
        report.begin_process(snapshot.pid, snapshot.proc.comm())
        try:
            for usage in usages:
                own.add(usage)
                report.add_mapping(usage)
        except PhysviewError as error:
            report.end_process(None, error.why)
            raise
        report.end_process(own)
        total.add(own)
        return not snapshot.knows_frames


def _pids(args: argparse.Namespace) -> dict[int | str, str | None]:
    """Return the processes, and the word with which the user named each; None if with no word."""
    chosen = sum([bool(args.processes), args.cgroup is not None, args.all])
    if chosen != 1:
        why = "give one of PID…, --cgroup PATH and --all"
        raise UsageError("which processes?", why)
    if args.processes:
        return {**_common.find_pids(args.processes)}
    if args.all:
        from physview.sources.procfs import list_pids

        return dict.fromkeys(list_pids())
    return dict.fromkeys(_common.cgroup_pids(args.cgroup))


def _fail_on_none(args: argparse.Namespace, nr_refused: int) -> None:
    what = f"cgroup '{args.cgroup}'" if args.cgroup else "this machine"
    if nr_refused:
        why = f"you may not examine its {nr_refused} processes"
        raise AccessDenied(f"nothing to show of {what}", why, _common.root_remedy())
    raise PhysviewError(f"nothing to show of {what}", "it has no process with user memory")


def _say_what_is_missing(hidden: bool, nr_refused: int, why_no_flags: AccessDenied | None) -> None:
    if hidden:
        _common.say(
            "frame numbers are hidden, so extents, contiguity, large folios and nodes are not"
            f" known; {_common.root_remedy()}"
        )
    elif why_no_flags:
        _common.say(f"large folios are not known: {why_no_flags}")
    _common.say_how_many_are_left_out(nr_refused)
