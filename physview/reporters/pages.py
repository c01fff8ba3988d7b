# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages or extents, as a table, as JSON (docs/json.md) and as CSV.

Each line is printed as soon as it is known.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

from physview.analysis.flag_counts import FlagCounts
from physview.model import NO_ENTRY, PAGE_SIZE, Cause, PagemapEntry, Vma, printable
from physview.reporters import documents
from physview.reporters.documents import mapping
from physview.sources.page_flags import flag_names
from physview.text.output import write_lines
from physview.text.quoting import escaped
from physview.units import cut, pfn_text, short_size, terminal_width

PFN_WIDTH = 13


class PageRecord(NamedTuple):
    """An extent or a page. A member that does not apply, or that was not looked up, is None.

    Args:
        vaddr: Virtual address of the first page.
        nr_pages: Number of base pages.
        pfn: Frame number of the first page.
        cause: Why the pages have no frame number, as a value of `Cause`.
        swap: A swap entry's type and offset.
        flags: Names of the frames' flags.
        mapcount: How often each frame is mapped.
        cgroup: Path of the cgroup to which the frames are charged; "@inode" if that cgroup was
            removed.
        node: NUMA node.
        vma: The mapping.
    """

    vaddr: int
    nr_pages: int
    pfn: int | None
    cause: str | None
    swap: tuple[int, int] | None
    flags: tuple[str, ...] | None
    mapcount: int | None
    cgroup: str | None
    node: int | None
    vma: Vma

    @property
    def paddr(self) -> int | None:
        """Physical address of the first page."""
        return None if self.pfn is None else self.pfn * PAGE_SIZE


class PageRecords:
    """Makes records of the rows that `Snapshot.iter_extents()` yields.

    Args:
        vmas: The mappings. Rows name them by index.
        columns: Names of the columns that were looked up.
        cgroups: Paths of cgroups by inode.
        each: Whether a row is a page, not an extent.
    """

    def __init__(
        self,
        vmas: Sequence[Vma],
        columns: Sequence[str],
        cgroups: Mapping[int, str],
        *,
        each: bool,
    ) -> None:
        self.vmas = vmas
        self.columns = columns
        self.each = each
        self._cgroups = cgroups

    def iter_records(self, batches: Iterable[Any]) -> Iterator[PageRecord]:
        """Yield a record for each row, in the order of the rows."""
        for batch in batches:
            names = ("vaddr", "nr_pages", "entry", "pfn", "vma")
            columns = [batch[name].tolist() for name in names]
            more = {name: batch[name].tolist() for name in self.columns}
            for at, (vaddr, nr_pages, entry, pfn, vma) in enumerate(zip(*columns, strict=True)):
                known = pfn != NO_ENTRY
                cause, swap = (None, None) if known else _why(entry)
                yield PageRecord(
                    vaddr,
                    nr_pages,
                    pfn if known else None,
                    cause,
                    swap,
                    _flags(more["flags"][at]) if known and "flags" in more else None,
                    _number(more["mapcount"][at]) if "mapcount" in more else None,
                    self._cgroup(more["cgroup"][at]) if "cgroup" in more else None,
                    more["node"][at] if "node" in more and more["node"][at] >= 0 else None,
                    self.vmas[vma],
                )

    def _cgroup(self, inode: int) -> str | None:
        if inode in (NO_ENTRY, 0):  # 0: charged to no cgroup
            return None
        return self._cgroups.get(inode, f"@{inode}")


@functools.cache
def _flags(value: int) -> tuple[str, ...]:
    return tuple(flag_names(value))


def _number(value: int) -> int | None:
    return None if value == NO_ENTRY else value


def _why(raw: int) -> tuple[str | None, tuple[int, int] | None]:
    entry = PagemapEntry(raw)
    return entry.cause.value if entry.cause else None, entry.swap


def print_pages(records: PageRecords, batches: Iterable[Any]) -> None:
    """Print the extents or the pages, under a heading for each mapping."""
    heading = ["vaddr".ljust(14), "pages".rjust(8), "pfn".rjust(PFN_WIDTH)]
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
            yield f"{start:#014x}-{record.vma.end:#014x} {record.vma}\n"
        line = _line(record, records.each, shown)
        yield (line if len(line) <= width else cut(line, width)) + "\n"


def _line(record: PageRecord, each: bool, shown: list[str]) -> str:
    pfn = "-" if record.pfn is None else pfn_text(record.pfn)
    cells = [f"  {record.vaddr:#014x}", f"{record.nr_pages:>8}", pfn.rjust(PFN_WIDTH)]
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
    """Print the number of pages by flags, largest number first, as page-types does."""
    sys.stdout.write(f"{'flags':>18} {'pages':>10} {'size':>5}  names\n")
    for flags, nr in sorted(counts.by_flags.items(), key=lambda item: -item[1]):
        names = ",".join(flag_names(flags)) or "none"
        sys.stdout.write(f"{flags:#018x} {nr:>10} {short_size(nr * PAGE_SIZE):>5}  {names}\n")
    for words, nr in (("swapped", counts.nr_swapped), ("special", counts.nr_special)):
        if nr:
            sys.stdout.write(f"{words:>18} {nr:>10} {short_size(nr * PAGE_SIZE):>5}\n")
    total = sum(counts.by_flags.values()) + counts.nr_swapped + counts.nr_special
    sys.stdout.write(f"{'total':>18} {total:>10} {short_size(total * PAGE_SIZE):>5}\n")


CSV_HEAD = (
    "vaddr,nr_pages,paddr,pfn,cause,swap_type,swap_offset,flags,mapcount,cgroup,node,perms,path"
)


def _record_document(item: PageRecord) -> dict[str, Any]:
    """Make the JSON members of an extent or a page."""
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


def write_document(pid: int, source: str, records: PageRecords, batches: Iterable[Any]) -> None:
    """Print the JSON document: the mappings, and the extents. An extent has its mapping's index."""
    mappings = [mapping(vma) for vma in records.vmas]
    index = {vma.start: at for at, vma in enumerate(records.vmas)}
    head = {"source": source, "pid": pid, "mappings": mappings}
    with documents.stream(head, "extents") as add:
        for item in records.iter_records(batches):
            add({**_record_document(item), "mapping": index[item.vma.start]})


def write_json_lines(records: PageRecords, batches: Iterable[Any]) -> None:
    """Print one JSON object per line."""
    write_lines(
        json.dumps({**_record_document(item), "mapping": mapping(item.vma)}) + "\n"
        for item in records.iter_records(batches)
    )


def write_csv(records: PageRecords, batches: Iterable[Any]) -> None:
    """Print comma-separated values with a header. "|" separates flags. Names are escaped."""
    write_lines(_iter_csv(records, batches))


def _iter_csv(records: PageRecords, batches: Iterable[Any]) -> Iterator[str]:
    import csv

    # writerow() returns what write() returns. str() as write() returns the line unchanged.
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


def write_summary_document(pid: int, source: str, counts: FlagCounts) -> None:
    """Print the JSON document of the number of pages by flags, largest number first."""
    rows = [
        {"flags": flag_names(flags), "nr_pages": nr}
        if flags == NO_ENTRY
        else {"flags": flag_names(flags), "value": hex(flags), "nr_pages": nr}
        for flags, nr in sorted(counts.by_flags.items(), key=lambda item: -item[1])
    ]
    document = {
        "source": source,
        "pid": pid,
        "nr_pages": sum(counts.by_flags.values()),
        "nr_swapped": counts.nr_swapped,
        "nr_special": counts.nr_special,
        "counts": rows,
    }
    documents.write(document)
