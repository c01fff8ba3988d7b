# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages or extents, as a table, as JSON (docs/json.md) and as CSV.

Each line is printed as soon as it is known. The core makes the rows of the table and of CSV, which
takes a tenth of the time.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from physview.analysis.flag_counts import FlagCounts
from physview.model import NO_ENTRY, PAGE_SIZE, PagemapEntry, Vma, printable
from physview.sources.page_flags import expanded, flag_names
from physview.text.output import write_lines
from physview.text.quoting import escaped
from physview.units import PIPE_WIDTH, cut, short_size, terminal_width

if TYPE_CHECKING:
    from physview.memory.extents import Batch
    from physview.memory.listing import Listing
    from physview.memory.snapshot import Snapshot

PFN_WIDTH = 13  # csrc/listing_text.c


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
        raw: Whether to show all flags, as `page_flags.expanded()` makes them.
    """

    def __init__(
        self,
        vmas: Sequence[Vma],
        columns: Sequence[str],
        cgroups: Mapping[int, str],
        *,
        raw: bool,
    ) -> None:
        self.vmas = vmas
        self.columns = columns
        self.raw = raw
        self._cgroups = cgroups

    def iter_records(self, batches: Iterable[Any]) -> Iterator[PageRecord]:
        """Yield a record for each row, in the order of the rows."""
        for batch in batches:
            names = ("vaddr", "nr_pages", "entry", "pfn", "vma")
            columns = [batch[name].tolist() for name in names]
            found = [name for name in self.columns if name in batch.dtype.names]
            more = {name: batch[name].tolist() for name in found}
            for at, (vaddr, nr_pages, entry, pfn, vma) in enumerate(zip(*columns, strict=True)):
                known = pfn != NO_ENTRY
                cause, swap = (None, None) if known else _why(entry)
                yield PageRecord(
                    vaddr,
                    nr_pages,
                    pfn if known else None,
                    cause,
                    swap,
                    self._flags(more["flags"][at] if "flags" in more else NO_ENTRY, entry, known),
                    _number(more["mapcount"][at]) if "mapcount" in more else None,
                    self._cgroup(more["cgroup"][at]) if "cgroup" in more else None,
                    more["node"][at] if "node" in more and more["node"][at] >= 0 else None,
                    self.vmas[vma],
                )

    def _flags(self, flags: int, entry: int, has_frame: bool) -> tuple[str, ...] | None:
        if "flags" not in self.columns:
            return None
        if self.raw:
            return _flags(expanded(flags, entry))
        return _flags(flags) if has_frame else None

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


def print_pages(
    snapshot: Snapshot, listing: Listing, batches: Iterable[Batch], titles: list[str]
) -> None:
    """Print the extents or the pages, under a heading for each mapping.

    Args:
        snapshot: The process.
        listing: Makes the rows of the table.
        batches: The extents.
        titles: Titles of the columns, see `table_titles()`.
    """
    sys.stdout.write(f"  {' '.join(titles)}\n")
    headings = [f"{vma.start:#014x}-{vma.end:#014x} {vma}\n" for vma in snapshot.vmas]
    width = terminal_width()
    for text in listing.iter_pages(batches, snapshot.vmas, headings):
        sys.stdout.write(text if width >= PIPE_WIDTH else cut_lines(text, width))


def cut_lines(text: str, width: int) -> str:
    """Cut rows of a listing to a width. Headings, which are not indented, stay whole."""
    return "".join(
        line if len(line) <= width + 1 or not line.startswith(" ") else cut(line[:-1], width) + "\n"
        for line in re.findall("[^\n]*\n|[^\n]+", text)
    )


def table_titles(columns: Sequence[str], *, each: bool) -> list[str]:
    """Titles of the columns of the table."""
    titles = ["vaddr".ljust(14), "pages".rjust(8), "pfn".rjust(PFN_WIDTH)]
    if each:
        del titles[1]
    shown = [name for name in ("mapcount", "node") if name in columns]
    titles += ["maps" if name == "mapcount" else name for name in shown]
    return titles + [name for name in ("cgroup", "flags") if name in columns]


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
    from physview.reporters import documents

    mappings = [documents.mapping(vma) for vma in records.vmas]
    index = {vma.start: at for at, vma in enumerate(records.vmas)}
    head = {"source": source, "pid": pid, "mappings": mappings}
    with documents.stream(head, "extents") as add:
        for item in records.iter_records(batches):
            add({**_record_document(item), "mapping": index[item.vma.start]})


def write_json_lines(records: PageRecords, batches: Iterable[Any]) -> None:
    """Print one JSON object per line."""
    import json

    from physview.reporters.documents import mapping

    write_lines(
        json.dumps({**_record_document(item), "mapping": mapping(item.vma)}) + "\n"
        for item in records.iter_records(batches)
    )


def write_csv(snapshot: Snapshot, listing: Listing, batches: Iterable[Batch]) -> None:
    """Print comma-separated values with a header. "|" separates flags. Names are escaped."""
    sys.stdout.write(CSV_HEAD + "\n")
    ends = [f",{csv_cells(vma.perms, _escaped(vma.path))}\n" for vma in snapshot.vmas]
    for text in listing.iter_pages(batches, snapshot.vmas, ends):
        sys.stdout.write(text)


def csv_cells(*cells: str) -> str:
    """Join cells as CSV, with quotes where they are needed.

    >>> print(csv_cells("r--p", '/a,"b" c'))
    r--p,"/a,""b"" c"
    """
    return ",".join(
        '"' + cell.replace('"', '""') + '"' if set(cell) & set(',"\r\n') else cell for cell in cells
    )


def cgroup_names(paths: Mapping[int, str], style: str) -> dict[int, str]:
    """Quote the paths of cgroups for a format of `Listing`."""
    if style == "csv":
        return {inode: csv_cells(_escaped(path)) for inode, path in paths.items()}
    if style == "json":
        import json

        return {inode: json.dumps(path) for inode, path in paths.items()}
    return {inode: printable(path) for inode, path in paths.items()}


def _escaped(name: str) -> str:
    return escaped(name, encoding=sys.stdout.encoding or "ascii")


def write_summary_document(pid: int, source: str, counts: FlagCounts) -> None:
    """Print the JSON document of the number of pages by flags, largest number first."""
    from physview.reporters import documents

    rows = [
        {"flags": flag_names(flags), "nr_pages": nr}
        if flags == NO_ENTRY
        else {"flags": flag_names(flags), "value": hex(flags), "nr_pages": nr}
        for flags, nr in sorted(counts.by_flags.items(), key=lambda item: -item[1])
    ]
    document = {
        "source": source,
        "flag_source": counts.flag_source,
        "pid": pid,
        "nr_pages": sum(counts.by_flags.values()),
        "nr_swapped": counts.nr_swapped,
        "nr_special": counts.nr_special,
        "counts": rows,
    }
    documents.write(document)
