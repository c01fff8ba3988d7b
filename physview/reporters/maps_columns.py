# SPDX-License-Identifier: GPL-2.0-or-later
"""The columns of `maps`: their names, where their values come from, and how they are printed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from physview.analysis.smaps_chunk import SmapsChunk
from physview.analysis.usage import Sizes, Usage
from physview.analysis.usage_chunk import UsageChunk
from physview.errors import UsageError
from physview.text.nearest import nearest
from physview.units import short_size, si_size

Chunk = UsageChunk | SmapsChunk
Source = str
# What has to be read. "either" is known to pagemap and to smaps.
MAPS, FRAMES, SMAPS, EITHER, PROCESS = "maps", "frames", "smaps", "either", "process"


class MapsColumn(NamedTuple):
    """A column of `maps`.

    Args:
        name: The name for -o and the title.
        width: Width in characters.
        rank: The columns with the highest rank are left out first if the terminal is narrow; None:
            shown only if it is asked for.
        needs: MAPS, FRAMES, SMAPS, EITHER or PROCESS.
        kind: "size", "count", "share" or "text".
        members: Members of `Usage`, or sizes of smaps, whose sum is the value.
        help: What the value is.
    """

    name: str
    width: int
    rank: int | None
    needs: Source
    kind: str
    members: tuple[str, ...]
    help: str

    @property
    def is_text(self) -> bool:
        """Whether the values are texts."""
        return self.kind == "text"


def _column(
    name: str, width: int, rank: int | None, needs: Source, kind: str, members: str, text: str
) -> MapsColumn:
    return MapsColumn(name, width, rank, needs, kind, tuple(members.split(" ")), text)


COLUMNS = (
    _column("pid", 7, None, PROCESS, "text", "pid", "the process"),
    _column("start", 14, None, MAPS, "text", "start", "first address"),
    _column("end", 14, None, MAPS, "text", "end", "first address after the mapping"),
    _column("perm", 4, None, MAPS, "text", "perm", "permissions; s: shared, p: private"),
    _column("offset", 8, None, MAPS, "text", "offset", "offset in the file"),
    _column("dev", 6, None, MAPS, "text", "dev", "device of the file, major:minor"),
    _column("inode", 8, None, MAPS, "text", "inode", "inode of the file"),
    _column("size", 5, 0, MAPS, "size", "size_bytes", "size of the address range"),
    _column("rss", 5, 0, EITHER, "size", "resident_bytes", "resident: Rss of smaps"),
    _column("pss", 5, None, SMAPS, "size", "Pss", "resident, each page divided by its users"),
    _column(
        "uss", 5, None, SMAPS, "size", "Private_Clean Private_Dirty", "resident, mapped only once"
    ),
    _column("swap", 5, 0, EITHER, "size", "swapped_bytes", "swapped"),
    _column("swappss", 7, None, SMAPS, "size", "SwapPss", "swapped, divided by its users"),
    _column("shared", 6, 0, EITHER, "size", "shared_bytes", "resident, may be mapped elsewhere"),
    _column("excl", 5, 3, EITHER, "size", "exclusive_bytes", "resident, mapped only here"),
    _column("anon", 5, None, EITHER, "size", "anon_bytes", "resident, anonymous"),
    _column("file", 5, None, EITHER, "size", "file_bytes", "resident, of files or shared memory"),
    _column("referenced", 10, None, SMAPS, "size", "Referenced", "marked as used"),
    _column("dirty", 5, None, SMAPS, "size", "Shared_Dirty Private_Dirty", "written to"),
    _column("pssdirty", 8, None, SMAPS, "size", "Pss_Dirty", "dirty, divided by its users"),
    _column("ksm", 5, None, SMAPS, "size", "KSM", "merged by KSM"),
    _column("lazyfree", 8, None, SMAPS, "size", "LazyFree", "given up by MADV_FREE"),
    _column("locked", 6, None, SMAPS, "size", "Locked", "locked by mlock()"),
    _column("zero", 5, 4, FRAMES, "size", "zero_bytes", "maps the zero page"),
    _column("huge", 5, 1, EITHER, "size", "huge_bytes", "mapped by PMD, as huge pages"),
    _column("folios", 6, 0, FRAMES, "size", "thp_bytes", "in large folios"),
    _column("special", 7, None, FRAMES, "size", "special_bytes", "guards, markers, in migration"),
    _column("device", 6, None, FRAMES, "size", "device_bytes", "present, but no RAM, as with DAX"),
    _column("extents", 7, 0, FRAMES, "count", "nr_extents", "number of contiguous pieces"),
    _column("mean", 5, 1, FRAMES, "size", "mean_bytes", "mean size of an extent"),
    _column("largest", 7, 0, FRAMES, "size", "largest_bytes", "size of the largest extent"),
    _column("align", 5, 3, FRAMES, "size", "alignment_bytes", "alignment of the largest extent"),
    _column("64K", 4, 2, FRAMES, "share", "coverage_64k", "share in contiguous blocks of 64 KiB"),
    _column("nodes", 5, 4, FRAMES, "text", "nodes", "by NUMA node"),
    _column(
        "thpeligible", 11, None, SMAPS, "count", "THPeligible", "1: huge pages are possible here"
    ),
    _column("vmflags", 20, None, SMAPS, "text", "vmflags", "VmFlags of smaps"),
    _column("tables", 6, None, PROCESS, "size", "tables", "page tables: VmPTE; with --rollup"),
    _column("command", 12, None, PROCESS, "text", "command", "name of the process"),
    _column("name", 12, None, MAPS, "text", "name", "the mapping's file or name"),
)
TIME = MapsColumn("time", 0, None, PROCESS, "text", ("time",), "when it was read")
BY_NAME = {column.name.lower(): column for column in COLUMNS}
SHOWN = [column for column in COLUMNS if column.rank is not None]
ROLLUP = "pid,size,rss,pss,uss,swap,swappss,shared,anon,dirty,command"


def find_column(name: str) -> MapsColumn:
    """The column with a name, in upper or lower case.

    Raises:
        UsageError: There is no such column.
    """
    found = BY_NAME.get(name.lower())
    if found:
        return found
    names = [column.name for column in COLUMNS]
    if near := nearest(name, names):
        remedy = f"did you mean {' or '.join(near)}?"
    else:
        remedy = f"choose from {','.join(names)}"
    raise UsageError(f"no column '{name}'", "", remedy)


def parse_columns(text: str, default: Sequence[MapsColumn]) -> tuple[list[MapsColumn], bool]:
    """Read -o: names separated by commas; with + before them, they are added to the default.

    Returns:
        The columns, each once, and whether the default is among them.

    Raises:
        UsageError: A name is not known, or there is none.
    """
    adds = text.startswith("+")
    names = [name.strip(" ") for name in text.removeprefix("+").split(",")]
    found = [find_column(name) for name in names if name]
    if not found:
        raise UsageError("-o names no column", "", "give names such as -o +pss")
    if adds:
        more = [column for column in found if column not in default]
        last = default[-1:] if default and default[-1].is_text else []
        found = [*default[: len(default) - len(last)], *more, *last]
    return list(dict.fromkeys(found)), adds


def is_needed(columns: Iterable[MapsColumn], needs: Source) -> bool:
    """Whether a column needs this to be read."""
    return any(column.needs == needs for column in columns)


def values_of_chunk(chunk: Chunk, column: MapsColumn) -> list[Any]:
    """The values of a column for each mapping. Texts are as the kernel has them."""
    mappings = chunk.mappings
    name = column.members[0]
    if column.kind == "text":
        return _TEXTS[name](chunk)
    if len(column.members) == 1:
        return chunk.column(name)
    parts = (mappings.sizes(part) for part in column.members)
    return [None if None in sizes else sum(sizes) for sizes in zip(*parts, strict=True)]


def value_of_usage(usage: Usage, column: MapsColumn) -> Any:
    """The value of a column for a total."""
    name = column.members[0]
    if name == "coverage_64k":
        present = usage.resident_bytes + usage.hugetlb_bytes
        if usage.contiguous is None or not present:
            return None
        return usage.contiguous.get(65536, 0) / present
    if name == "nodes":
        return nodes_text(usage.nodes)
    if column.needs == SMAPS:
        sizes = [(usage.smaps or {}).get(part) for part in column.members]
        return None if None in sizes else sum(size or 0 for size in sizes)
    return getattr(usage, name)


def nodes_text(nodes: Sizes | None) -> str | None:
    """The memory by node, such as "N0" or "N0=4K,N1=8K"; None if it is not known."""
    if nodes is None:
        return None
    if len(nodes) == 1:
        return f"N{next(iter(nodes))}"
    return ",".join(f"N{node}={short_size(size)}" for node, size in nodes.items())


def _hex(values: list[int], width: int) -> list[str]:
    return [f"{value:#0{width}x}" for value in values]


_TEXTS: dict[str, Callable[[Any], list[Any]]] = {
    "start": lambda chunk: _hex(chunk.mappings.starts, 14),
    "end": lambda chunk: _hex(chunk.mappings.ends, 14),
    "perm": lambda chunk: chunk.mappings.perms(),
    "offset": lambda chunk: _hex(chunk.mappings.offsets(), 3),
    "dev": lambda chunk: chunk.mappings.devices(),
    "inode": lambda chunk: list(map(str, chunk.mappings.inodes())),
    "vmflags": lambda chunk: chunk.mappings.flags(),
    "name": lambda chunk: chunk.mappings.names(),
    "nodes": lambda chunk: list(map(nodes_text, chunk.nodes())),
}


# Without resident memory these have no value, though frames are known.
_OF_RESIDENT = ("mean", "align", "64K")


def formatter(column: MapsColumn, unit: str, *, knows_frames: bool) -> Callable[[Any], str]:
    """Return what makes a cell's text of a value.

    Args:
        column: The column.
        unit: For sizes: "short" (powers of 1024), "si" (powers of 1000), or "bytes".
        knows_frames: Whether frame numbers are known.
    """
    if column.kind == "text":
        return lambda text: "?" if text is None else str(text) or "-"
    if column.kind == "share":
        form: Callable[[Any], str] = "{:.0%}".format
    elif column.kind == "size" and unit != "bytes":
        form = si_size if unit == "si" else short_size
    else:
        form = str
    nothing = "-" if knows_frames and column.name in _OF_RESIDENT else "?"
    is_share = column.kind == "share"
    return lambda value: nothing if value is None else form(value) if value or is_share else "-"


def column_lines() -> list[str]:
    """A line for each column: its name, and what it is."""
    return [f"{column.name:<12} {column.help}" for column in COLUMNS]
