# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables of pages, written line by line as they come."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from physview.analysis.flag_counts import FlagCounts
from physview.kpage import flag_names
from physview.model import PAGE_SIZE, Cause, printable
from physview.output import write_lines
from physview.reporters.page_records import PageRecord, PageRecords
from physview.reporters.sizes import cut, short_size, terminal_width


def print_pages(records: PageRecords, batches: Iterable[Any]) -> None:
    """The extents, or pages, under a heading for each mapping."""
    heading = ["vaddr".ljust(12), "pages".rjust(8), "pfn".rjust(9)]
    if records.each:
        del heading[1]
    shown = [name for name in ("mapcount", "node") if name in records.columns]
    heading += ["maps" if name == "mapcount" else name for name in shown]
    heading += [name for name in ("cgroup", "flags") if name in records.columns]
    sys.stdout.write(f"  {' '.join(heading)}\n")
    write_lines(_iter_lines(records, batches, shown))


def _iter_lines(records: PageRecords, batches: Iterable[Any], shown: list[str]) -> Iterator[str]:
    width, start = terminal_width(), -1
    for record in records.iter_records(batches):
        if record.vma.start != start:
            start = record.vma.start
            yield f"{start:012x}-{record.vma.end:012x} {record.vma}\n"
        line = _line(record, records.each, shown)
        yield (line if len(line) <= width else cut(line, width)) + "\n"


def _line(record: PageRecord, each: bool, shown: list[str]) -> str:
    pfn = "-" if record.pfn is None else f"{record.pfn:x}"
    cells = [f"  {record.vaddr:012x}", f"{record.nr_pages:>8}", f"{pfn:>9}"]
    if each:
        del cells[1]
    for name in shown:
        value = getattr(record, name)
        cells.append(f"{'-' if value is None else value:>4}")
    if record.cgroup:
        cells.append(printable(record.cgroup))
    if record.cause:
        swap = f" (type {record.swap[0]}, offset {record.swap[1]:#x})" if record.swap else ""
        cells.append(record.cause + ("" if record.cause == Cause.GUARD.value else swap))
    elif record.flags is not None:
        cells.append(",".join(record.flags))
    return " ".join(cells).rstrip()


def print_summary(counts: FlagCounts) -> None:
    """How many pages have which flags, the most first; what page-types prints."""
    sys.stdout.write(f"{'flags':>18} {'pages':>10} {'size':>5}  names\n")
    for flags, nr in sorted(counts.by_flags.items(), key=lambda item: -item[1]):
        names = ",".join(flag_names(flags)) or "none"
        sys.stdout.write(f"{flags:#018x} {nr:>10} {short_size(nr * PAGE_SIZE):>5}  {names}\n")
    for words, nr in (("swapped", counts.nr_swapped), ("special", counts.nr_special)):
        if nr:
            sys.stdout.write(f"{words:>18} {nr:>10} {short_size(nr * PAGE_SIZE):>5}\n")
    total = sum(counts.by_flags.values()) + counts.nr_swapped + counts.nr_special
    sys.stdout.write(f"{'total':>18} {total:>10} {short_size(total * PAGE_SIZE):>5}\n")
