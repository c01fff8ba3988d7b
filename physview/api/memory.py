# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory of a process as tables: its extents, and its mappings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from physview.memory.columns import Column, Field, Table, columns_of_rows, numbers, words, words_of
from physview.memory.snapshot import Snapshot
from physview.model import NO_ENTRY, Vma

if TYPE_CHECKING:
    from physview.analysis.usage import Usage
    from physview.memory.rows import Rows
    from physview.sources.page_flags import FlagFilter

VMA_FIELDS = (
    Field("start", "u8", "address", "first address of the mapping"),
    Field("end", "u8", "address", "first address after the mapping"),
    Field("perms", "text", "", "permissions of the mapping"),
    Field("path", "text", "", "path of the mapping"),
)


def vma_row(vma: Vma) -> tuple[int, int, str, str]:
    """The values of VMA_FIELDS."""
    return vma.start, vma.end, vma.perms, vma.path


def extents(
    pid: int | str = "self",
    *,
    start: int = 0,
    end: int | None = None,
    columns: Iterable[str] = (),
    where: FlagFilter | str | None = None,
    each_page: bool = False,
    source: str = "pagemap",
) -> Table[list[Vma]]:
    """Read the pages and swap entries of a process as extents.

    An extent is contiguous in the address space, and its frames or swap slots are contiguous, too.
    The process runs while it is read. For constant memory, use `Snapshot.iter_extents()`.

    Args:
        pid: Process id, or "self".
        start: First address, page-aligned.
        end: First address after the range, page-aligned; None is the end of user space.
        columns: Optional columns: "flags" (with "flag_names"), "mapcount", "cgroup", "node". Each
            costs one more read for every frame, and all but "node" need root.
        where: Only frames with these flags, such as "anon,!thp".
        each_page: Whether each page is a row of its own.
        source: As for `Snapshot`.

    Returns:
        A row for each extent, in address order. `answer` are the mappings: the column "mapping" has
        their indices. If there is no frame number, "pfn" is null and "cause" says why.

    Raises:
        The errors of `Snapshot` and of `Snapshot.iter_extents()`.

    Source: /proc/PID/pagemap, PAGEMAP_SCAN, /proc/kpageflags, /proc/kpagecount, /proc/kpagecgroup

    >>> table = extents("self")
    >>> table.column_names[:4], int(table["nr_pages"].sum()) > 100
    (['vaddr', 'nr_pages', 'pfn', 'cause'], True)
    """
    import numpy as np

    from physview.memory.rows import BASE_DTYPE, COLUMNS, iter_each
    from physview.sources.page_flags import FlagFilter

    wanted = list(dict.fromkeys(columns))
    chosen = FlagFilter.parse(where) if isinstance(where, str) else where
    with Snapshot(pid, source=source) as snapshot:
        zero_pfn = snapshot.reader.zero_pfn
        batches: list[Rows] = []
        for batch in snapshot.iter_extents(start, end, columns=wanted, where=chosen):
            batches += iter_each(batch, zero_pfn) if each_page else [batch]
        vmas = list(snapshot.vmas)
        pid, source = snapshot.pid, snapshot.source
    empty = np.empty(0, dtype=[*BASE_DTYPE, *((name, COLUMNS[name]) for name in wanted)])
    rows = np.concatenate(batches) if batches else empty
    title = "pages" if each_page else "extents"
    return Table(title, _row_columns(rows, vmas), vmas, pid=pid, source=source)


def _row_columns(rows: Rows, vmas: Sequence[Vma]) -> list[Column]:
    """The columns of rows, with the names and meanings of those of a snapshot file."""
    import numpy as np

    from physview.entry_rules import swap_offset, swap_type
    from physview.memory.causes import alike, cause_word

    none = np.uint64(NO_ENTRY)
    has_slot = rows["swap"] != none
    slots = np.where(has_slot, rows["swap"], 0).astype(np.uint64)
    vma = rows["vma"].astype(np.intp)
    columns = [
        numbers("vaddr", rows["vaddr"], "address", "virtual address of the first page"),
        numbers("nr_pages", rows["nr_pages"], "pages", "number of contiguous base pages"),
        numbers("pfn", rows["pfn"], "frame", "the first page's frame", none=NO_ENTRY),
        words_of("cause", alike(rows["entry"]), cause_word, "why there is no frame"),
        Column(
            "swap_type", swap_type(slots).astype(np.uint8), "", "type of the swap entry", has_slot
        ),
        Column(
            "swap_offset", swap_offset(slots), "pages", "the first page's offset in swap", has_slot
        ),
        numbers("entry", rows["entry"], "bits", "the first page's entry in /proc/PID/pagemap"),
        numbers("mapping", rows["vma"], "", "index of the mapping"),
        words("perms", vma, [each.perms for each in vmas], "permissions of the mapping"),
        words("path", vma, [each.path for each in vmas], "path of the mapping"),
    ]
    return columns + [
        column
        for name in rows.dtype.names or ()
        if name in _OPTIONAL
        for column in _OPTIONAL[name](rows[name])
    ]


def flag_columns(values: Any) -> list[Column]:
    """The columns "flags" and "flag_names" of values of kpageflags; NO_ENTRY is no value."""
    from physview.sources.page_flags import flag_names

    def text(value: int) -> str | None:
        return None if value == NO_ENTRY else "|".join(flag_names(value))

    return [
        numbers("flags", values, "bits", "the flags in /proc/kpageflags", none=NO_ENTRY),
        words_of("flag_names", values, text, "names of these flags, separated by a bar"),
    ]


def _cgroup_columns(values: Any) -> list[Column]:
    from physview.sources.cgroups import cgroup_paths

    paths = cgroup_paths()

    def text(inode: int) -> str | None:
        return None if inode in (NO_ENTRY, 0) else paths.get(inode, f"@{inode}")

    return [words_of("cgroup", values, text, "memory cgroup that the frames are charged to")]


def _mapcount_columns(values: Any) -> list[Column]:
    return [numbers("mapcount", values, "", "how often each frame is mapped", none=NO_ENTRY)]


def _node_columns(values: Any) -> list[Column]:
    return [numbers("node", values, "", "NUMA node", none=-1)]


_OPTIONAL: dict[str, Callable[[Any], list[Column]]] = {
    "flags": flag_columns,
    "mapcount": _mapcount_columns,
    "cgroup": _cgroup_columns,
    "node": _node_columns,
}

_SIZES = (
    ("size_bytes", "virtual size"),
    ("resident_bytes", "resident memory, without zero pages and hugetlb"),
    ("swapped_bytes", "memory in swap entries"),
    ("special_bytes", "guards, markers, and pages in migration"),
    ("device_bytes", "present memory that is no RAM, such as that of a DAX file system"),
    ("file_bytes", "the part of resident_bytes that is of files, or shared memory"),
    ("exclusive_bytes", "resident memory that is certainly mapped only here"),
    ("shared_bytes", "resident memory that may be mapped elsewhere, too"),
    ("zero_bytes", "pages that map the zero page"),
    ("hugetlb_bytes", "pages of hugetlbfs"),
    ("huge_bytes", "memory that is mapped by PMD, as huge pages"),
    ("anon_huge_bytes", "the anonymous part of huge_bytes"),
    ("thp_bytes", "memory in large folios"),
    ("largest_bytes", "size of the largest extent"),
    ("mean_bytes", "mean size of an extent"),
)
_MAP_FIELDS = (
    *VMA_FIELDS,
    Field("offset", "u8", "bytes", "offset in the file"),
    Field("device", "text", "", "device of the file system"),
    Field("inode", "u8", "", "inode number of the file"),
    *(Field(name, "u8", "bytes", meaning) for name, meaning in _SIZES),
    Field("nr_extents", "u8", "", "number of extents"),
)


def maps(
    pid: int | str = "self", *, with_flags: bool = True, with_smaps: bool = False
) -> Table[list[Usage]]:
    """Read the physical memory of each mapping of a process.

    Args:
        pid: Process id, or "self".
        with_flags: Whether to read the flags of frames, if this user may. Without them, large
            folios are not known.
        with_smaps: Whether to read smaps, too. It takes longer, and adds its sizes as columns, such
            as "pss_bytes" and "private_dirty_bytes", and "vm_flags".

    Returns:
        A row for each mapping, in address order. What needs frame numbers or flags is null if they
        are hidden. `answer` has more: blocks and folios by size, and NUMA nodes.

    Raises:
        The errors of `Snapshot`.

    Source: /proc/PID/maps or smaps, /proc/PID/pagemap, PAGEMAP_SCAN, /proc/kpageflags

    >>> table = maps("self")
    >>> "[stack]" in table["path"], bool((table["size_bytes"] > 0).all())
    (True, True)
    """
    from physview.analysis.usage_reader import UsageReader

    with Snapshot(pid) as snapshot, UsageReader(with_flags=with_flags) as reader:
        found = list(reader.iter_usage(snapshot, with_smaps=with_smaps))
        pid, source = snapshot.pid, snapshot.source
    columns = columns_of_rows(_MAP_FIELDS, map(_usage_row, found))
    if with_smaps:
        columns += _smaps_columns(found)
        source += " and smaps"
    return Table("mappings", columns, found, pid=pid, source=source)


def _usage_row(usage: Usage) -> list[Any]:
    vma = usage.vma
    assert vma is not None
    sizes = (getattr(usage, name) for name, _ in _SIZES)
    where = (vma.offset, vma.device, vma.inode or None)
    return [*vma_row(vma), *where, *sizes, usage.nr_extents]


def _smaps_columns(found: Sequence[Usage]) -> list[Column]:
    """The sizes of smaps, by its own names."""
    from physview.sources.mappings import SIZES

    fields = [
        Field("thp_eligible", "u8", "", "THPeligible in smaps: whether huge pages are allowed")
        if name == "THPeligible"
        else Field(f"{name.lower()}_bytes", "u8", "bytes", f"{name} in smaps")
        for name in SIZES
    ]
    fields.append(Field("vm_flags", "text", "", "VmFlags in smaps"))
    rows = ([*map((usage.smaps or {}).get, SIZES), usage.flags] for usage in found)
    return columns_of_rows(fields, rows)
