# SPDX-License-Identifier: GPL-2.0-or-later
"""Show where virtual addresses of a process are in physical memory.

Prints a line per address: the physical address, and what is mapped there. If there is no physical
address, the line shows the cause. For a range, each page with a physical address has its own line;
contiguous pages without one share a line. On arm64 a tag in an address's top byte is ignored, as
the processor ignores it. Exits with 1 if any address has no physical address.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from itertools import groupby

from physview.analysis.ranges import iter_items
from physview.commands import _common, _numbers
from physview.errors import UsageError
from physview.model import Cause, Gap, Translation
from physview.process import Process
from physview.reporters import documents
from physview.reporters import translate as reporter
from physview.runtime.resolve_pid import find_pid
from physview.sources.tagged_pointers import untagged, untagged_range

NAME = "translate"
HELP = "physical addresses of a process's virtual ones, or the cause if there is none"

Target = int | tuple[int, int]


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("process", metavar="PID", help="a pid, self, or the name of one process")
    parser.add_argument(
        "addresses",
        metavar="ADDR",
        nargs="+",
        help="an address, 0x…; START-END for all pages of a range, END excluded; - reads"
        " addresses from stdin, one per line",
    )
    _common.add_source_option(parser)
    _common.add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print the translations."""
    targets = list(_iter_targets(args.addresses))
    pid = find_pid(args.process)
    _common.say_if_core_is_missing(args.source)
    counts: dict[Cause, int] = {}
    with Process(pid, source=args.source) as process:
        items = _count(_iter_answers(process, targets), counts)
        if args.json:
            documents.write_stream(process.source, process.pid, documents.iter_entries(items))
        else:
            for item in items:
                sys.stdout.write(_line(item))
    _common.say_if_tagged(sum(map(_is_tagged, targets)))
    return int(_common.say_cause_counts(counts))


def _iter_targets(words: Iterable[str]) -> Iterator[Target]:
    for word in words:
        if word == "-":
            yield from _iter_stdin_targets()
        else:
            yield _parse(word)


def _iter_stdin_targets() -> Iterator[Target]:
    if sys.stdin is None:
        raise UsageError("cannot read addresses", "standard input is closed")
    for number, line in enumerate(sys.stdin.buffer, 1):
        word = line.decode("ascii", "backslashreplace").strip()
        if not word:
            continue
        try:
            yield _parse(word)
        except UsageError as error:
            raise UsageError(f"stdin line {number}", str(error)) from None


def _parse(word: str) -> Target:
    return _numbers.parse_range(word) or _numbers.parse_address(word)


def _is_tagged(target: Target) -> bool:
    if isinstance(target, tuple):
        return untagged_range(*target) != target
    return untagged(target) != target


def _iter_answers(process: Process, targets: list[Target]) -> Iterator[Translation | Gap]:
    for is_address, group in groupby(targets, lambda target: isinstance(target, int)):
        if is_address:
            addresses = [target for target in group if isinstance(target, int)]
            yield from process.translate_many(addresses, with_vma=True)
        else:
            for target in group:
                if isinstance(target, tuple):
                    yield from iter_items(process, *target)


def _count(
    items: Iterable[Translation | Gap], counts: dict[Cause, int]
) -> Iterator[Translation | Gap]:
    for item in items:
        if item.cause:
            nr_pages = item.nr_pages if isinstance(item, Gap) else 1
            counts[item.cause] = counts.get(item.cause, 0) + nr_pages
        yield item


def _line(item: Translation | Gap) -> str:
    line = reporter.gap_line(item) if isinstance(item, Gap) else reporter.translation_line(item)
    return line + "\n"
