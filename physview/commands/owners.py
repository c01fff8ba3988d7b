# SPDX-License-Identifier: GPL-2.0-or-later
"""Show which processes map a frame and where, and what the frame is if no process maps it.

pfn:0x… is a frame number. A number without pfn: is a physical address, as translate prints it; it
may point anywhere into its page. A number that may be either is refused: write pfn:0x… or
paddr:0x…. All processes are searched once. Needs root. Exits with 1 if any of the frames is mapped
by no process.
"""

from __future__ import annotations

import argparse
import os
import sys

from physview.commands import _common, _numbers
from physview.errors import UsageError
from physview.runtime import privileges

NAME = "owners"
HELP = "which processes map a frame, and what the frame is if none does"

# A limit, because all findings are kept in memory until they are printed.
MAX_FRAMES = 1 << 20


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "frames",
        metavar="FRAME",
        nargs="+",
        help="a frame number as pfn:0x…, or a physical address as 0x…; START-END for a range of"
        " either, END excluded",
    )
    parser.add_argument(
        "--pid",
        action="append",
        metavar="PID",
        help="examine only this process: a pid, self, or the name of one; may be repeated",
    )
    _common.add_frame_source_option(parser)
    _common.add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print who maps the frames."""
    ranges = [_numbers.parse_frames(word) for word in args.frames]
    if sum(frames.end - frames.first for frames in ranges) > MAX_FRAMES:
        raise UsageError("too many frames", f"more than {MAX_FRAMES}", "ask about parts of them")
    pids = _find_pids(args.pid) if args.pid else None

    from physview.commands import _progress
    from physview.frames.owners import find_owners
    from physview.reporters import documents
    from physview.reporters import owners as reporter
    from physview.sources.ram import read_resources

    with _progress.progress_bar("examining processes") as progress:
        bounds = [(frames.first, frames.end) for frames in ranges]
        ownership = find_owners(
            bounds,
            None if pids is None else list(pids),
            progress=progress,
            source=args.source,
            on_error=None if pids is None else lambda pid, error: _common.fail(pids[pid], error),
        )
    resources = read_resources()
    if args.json:
        documents.write(reporter.document(ranges, ownership, resources))
    elif pids is None or ownership.nr_processes:
        for frames in ranges:
            groups = ownership.groups(frames.first, frames.end)
            for line in reporter.iter_lines(frames, groups, resources, only_some=bool(pids)):
                sys.stdout.write(line + "\n")
    _say_who_was_missed(ownership.nr_gone, ownership.nr_denied)
    if pids is None or ownership.nr_processes:  # else nothing was said of any frame
        _common.say_if_ksm_unknown()
    found = (group for frames in ranges for group in ownership.groups(frames.first, frames.end))
    return int(any(group.nr_owned < group.nr_frames for group in found))


def _find_pids(words: list[str]) -> dict[int, str]:
    found = _common.find_pids(words)
    return {os.getpid() if isinstance(pid, str) else pid: word for pid, word in found.items()}


def _say_who_was_missed(nr_gone: int, nr_denied: int) -> None:
    if nr_gone:
        _common.say(f"{nr_gone} {_processes(nr_gone)} ended before they could be examined")
    if nr_denied:
        remedy = privileges.root_remedy("SYS_PTRACE")
        _common.say(
            f"{nr_denied} {_processes(nr_denied)} could not be examined: you may not look into"
            f" {'it' if nr_denied == 1 else 'them'}; {remedy}"
        )


def _processes(nr: int) -> str:
    return "process" if nr == 1 else "processes"
