# SPDX-License-Identifier: GPL-2.0-or-later
"""The documents of pages, written as they come. docs/json.md describes them."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

from physview import output
from physview.analysis.flag_counts import FlagCounts
from physview.kpage import flag_names
from physview.model import NO_ENTRY
from physview.quoting import escaped
from physview.reporters.documents import mapping
from physview.reporters.page_records import PageRecord, PageRecords

CSV_HEAD = (
    "vaddr,nr_pages,paddr,pfn,cause,swap_type,swap_offset,flags,mapcount,cgroup,node,perms,path"
)


def record(item: PageRecord) -> dict[str, Any]:
    """An extent or a page."""
    return {
        "vaddr": hex(item.vaddr),
        "nr_pages": item.nr_pages,
        "paddr": None if item.paddr is None else hex(item.paddr),
        "pfn": item.pfn,
        "cause": item.cause,
        "swap": {"type": item.swap[0], "offset": item.swap[1]} if item.swap else None,
        "flags": item.flags,
        "mapcount": item.mapcount,
        "cgroup": item.cgroup,
        "node": item.node,
    }


def write_pages(pid: int, records: PageRecords, batches: Iterable[Any]) -> None:
    """The document: the mappings, and the extents with the index of theirs."""
    mappings = [mapping(vma) for vma in records.vmas]
    index = {vma.start: at for at, vma in enumerate(records.vmas)}
    head = json.dumps({"pid": pid, "mappings": mappings, "extents": []})
    sys.stdout.write(head[: -len("]}")])
    separator = "\n"
    for item in records.iter_records(batches):
        document = {**record(item), "mapping": index[item.vma.start]}
        sys.stdout.write(separator + json.dumps(document))
        separator = ",\n"
    sys.stdout.write("\n]}\n")


def write_lines(records: PageRecords, batches: Iterable[Any]) -> None:
    """A JSON object a line."""
    output.write_lines(
        json.dumps({**record(item), "mapping": mapping(item.vma)}) + "\n"
        for item in records.iter_records(batches)
    )


def write_csv(records: PageRecords, batches: Iterable[Any]) -> None:
    """Comma-separated values with a header; flags with | between them, names escaped."""
    output.write_lines(_iter_csv(records, batches))


def _iter_csv(records: PageRecords, batches: Iterable[Any]) -> Iterator[str]:
    import csv

    # A row is what write() returns, and str() returns the line it is given.
    row: Callable[[Iterable[Any]], str] = csv.writer(
        SimpleNamespace(write=str), lineterminator="\n"
    ).writerow
    name = functools.cache(functools.partial(escaped, encoding=sys.stdout.encoding or "ascii"))
    yield row(CSV_HEAD.split(","))
    for item in records.iter_records(batches):
        yield row(
            (
                hex(item.vaddr),
                item.nr_pages,
                None if item.paddr is None else hex(item.paddr),
                item.pfn,
                item.cause,
                *(item.swap or (None, None)),
                None if item.flags is None else "|".join(item.flags),
                item.mapcount,
                item.cgroup and name(item.cgroup),
                item.node,
                item.vma.perms,
                name(item.vma.path),
            )
        )


def write_summary(pid: int, counts: FlagCounts) -> None:
    """The document of counts by flags, the most first."""
    rows = [
        {"flags": flag_names(flags), "nr_pages": nr}
        if flags == NO_ENTRY
        else {"flags": flag_names(flags), "value": hex(flags), "nr_pages": nr}
        for flags, nr in sorted(counts.by_flags.items(), key=lambda item: -item[1])
    ]
    document = {
        "pid": pid,
        "nr_pages": sum(counts.by_flags.values()),
        "nr_swapped": counts.nr_swapped,
        "nr_special": counts.nr_special,
        "counts": rows,
    }
    json.dump(document, sys.stdout, indent=1)
    sys.stdout.write("\n")
