# SPDX-License-Identifier: GPL-2.0-or-later
"""Show which processes map a frame and where, and what the frame is if no process maps it.

A decimal number is a frame number. A number with 0x is a physical address, as translate prints it;
it may point anywhere into its page. All processes are searched once. Needs root. Exits with 1 if
any of the frames is mapped by no process.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from typing import TYPE_CHECKING

from physview.commands import _common
from physview.errors import UsageError
from physview.model import PAGE_SHIFT, PAGE_SIZE
from physview.text.digits import bounded_int

if TYPE_CHECKING:
    from physview.reporters.owners import FrameRange

NAME = "owners"
HELP = "which processes map a frame, and what the frame is if none does"

# A limit, because all findings are kept in memory until they are printed.
MAX_FRAMES = 1 << 20
MAX_PFN = 1 << (64 - PAGE_SHIFT)


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "frames",
        metavar="PFN|0xPADDR",
        nargs="+",
        help="a frame number in decimal, or a physical address as 0x…; START-END for a range of"
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
    ranges = [_parse(word) for word in args.frames]
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
    found = (group for frames in ranges for group in ownership.groups(frames.first, frames.end))
    return int(any(group.nr_owned < group.nr_frames for group in found))


def _find_pids(words: list[str]) -> dict[int, str]:
    found = _common.find_pids(words)
    return {os.getpid() if isinstance(pid, str) else pid: word for pid, word in found.items()}


def _say_who_was_missed(nr_gone: int, nr_denied: int) -> None:
    if nr_gone:
        _common.say(f"{nr_gone} {_processes(nr_gone)} ended before they could be examined")
    if nr_denied:
        _common.say(
            f"{nr_denied} {_processes(nr_denied)} could not be examined: this user may not look"
            " into them, even as root"
        )


def _processes(nr: int) -> str:
    return "process" if nr == 1 else "processes"


def _parse(word: str) -> FrameRange:
    """Read PFN, 0xPADDR or a range of either.

    Raises:
        UsageError: The word is none of these.
    """
    from physview.reporters.owners import FrameRange

    start, dash, stop = word.partition("-")
    if not start or (dash and not stop):
        raise _no_frame(word)
    first, offset = _parse_one(start, word)
    if not dash:
        if first == MAX_PFN:
            raise _no_frame(word, "its address would have more than 64 bits")
        return FrameRange(first, first + 1, offset)
    if start[:2].lower() != stop[:2].lower() and "0x" in (start[:2].lower(), stop[:2].lower()):
        raise _no_frame(word, "one end is a frame number, the other an address")
    end, end_offset = _parse_one(stop, word)
    if end_offset:
        end += 1
    if (first, offset) >= (end, 0):
        raise _no_frame(word, "it ends before it starts, or is empty")
    return FrameRange(first, end, 0)


def _parse_one(text: str, word: str) -> tuple[int, int]:
    """Read a frame number or an address: (frame number, offset in the frame)."""
    if re.fullmatch("0[xX][0-9a-fA-F]+", text):
        pfn, offset = divmod(bounded_int(text[2:], 1 << 65, 16), PAGE_SIZE)
    elif re.fullmatch("[0-9]+", text):
        pfn, offset = bounded_int(text, 1 << 65), 0
    elif re.fullmatch("[0-9a-fA-F]+", text):
        raise _no_frame(word, "a hexadecimal address needs 0x", f"write 0x{text}")
    else:
        raise _no_frame(word)
    if pfn > MAX_PFN:
        raise _no_frame(word, "its address would have more than 64 bits")
    return pfn, offset


def _no_frame(
    word: str, why: str = "", remedy: str = "write a frame number, or a physical address as 0x…"
) -> UsageError:
    return UsageError(f"'{word}' is no frame", why, remedy)
