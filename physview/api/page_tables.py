# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables as tables: a walk for one address, all tables of processes, and a comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from physview.memory.columns import Field, Table, columns_of_rows
from physview.sources.procfs import ProcDir

if TYPE_CHECKING:
    from physview.analysis.compare import Comparison
    from physview.analysis.shared_tables import TableReport
    from physview.model import Walk

_WALK_FIELDS = (
    Field("level", "text", "", "pgd, p4d, pud, pmd or pte"),
    Field("address", "u8", "address", "physical address of the entry"),
    Field("entry", "u8", "bits", "the entry as it is in memory"),
    Field("span_bytes", "u8", "bytes", "size of the address space that the entry maps"),
    Field("is_folded", "b1", "", "whether the kernel does not use this level"),
    Field("is_leaf", "b1", "", "whether the entry maps a page, so that the walk ends here"),
)


def walk(pid: int | str, vaddr: int, *, source: str = "auto") -> Table[Walk]:
    """Walk the page tables for one virtual address, as the processor does. It needs root.

    Args:
        pid: Process id, or "self".
        vaddr: Virtual address.
        source: "kmod" (the kernel module), "bpf" (a BPF program) or "auto": the module if it is
            loaded, or else BPF.

    Returns:
        A row for each level, from the root down to the last that has an entry. `answer` has the
        physical address, the kind and size of the page, and the swap entry.

    Raises:
        ProcessGone: There is no such process.
        AccessDenied: This user may not examine the process, or may not load BPF programs.
        Unsupported: The source does not work on this machine.

    Source: the page tables; csrc/kmod/uapi/physicalview.h

    >>> import physview
    >>> try:
    ...     table = physview.walk("self", id(physview))
    ... except (physview.AccessDenied, physview.Unsupported):  # without root or BPF
    ...     pass
    ... else:
    ...     assert table["level"][0] == "pgd"
    """
    from physview.sources.choice import open_page_tables

    with ProcDir(pid) as proc, open_page_tables(proc, source) as tables_of_process:
        found = tables_of_process.walk(vaddr)
        pid, source = proc.pid, tables_of_process.name
    columns = columns_of_rows(_WALK_FIELDS, found.levels)
    return Table(f"walk for {vaddr:#x}", columns, found, pid=pid, source=source)


_TABLE_FIELDS = (
    Field("pid", "i4", "", "process id"),
    Field("name", "text", "", "name of the process in the kernel"),
    Field("level", "text", "", "pgd, p4d, pud, pmd or pte"),
    Field("span_bytes", "u8", "bytes", "how much memory one entry is for"),
    Field("nr_tables", "u8", "", "number of tables"),
    Field("size_bytes", "u8", "bytes", "memory of these tables"),
    Field("nr_empty", "u8", "", "tables without an entry"),
    Field("nr_to_table", "u8", "", "entries that lead to a table of the next level"),
    Field("nr_pages", "u8", "", "entries that map a page, of span_bytes"),
    Field("nr_swapped", "u8", "", "entries of pages in swap"),
    Field("nr_special", "u8", "", "guards, markers, pages in migration"),
)


def tables(
    pids: int | str | Sequence[int | str] | None = "self",
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Table[TableReport]:
    """Count the page tables of processes. It needs root and BPF.

    Args:
        pids: A process, by its pid or as "self", or several; None means all.
        progress: Called with the number of processes that were read, and the number of all.

    Returns:
        A row for each process and level. `answer` has more: shared tables, and VmPTE explained.

    Raises:
        The errors of `read_tables()`.

    Source: the page tables; VmPTE in /proc/PID/status

    >>> import physview
    >>> try:
    ...     table = physview.tables("self")
    ... except (physview.AccessDenied, physview.Unsupported):  # without root or BPF
    ...     pass
    ... else:
    ...     assert table["nr_tables"].min() >= 1
    """
    from physview.analysis.shared_tables import read_tables

    chosen = [pids] if isinstance(pids, (int, str)) else pids
    report = read_tables(chosen, progress=progress)
    rows = [
        (
            process.pid,
            process.name,
            level.name,
            level.span_bytes,
            level.nr_tables,
            level.size_bytes,
            level.nr_empty,
            level.nr_to_table,
            level.nr_pages,
            level.nr_swapped,
            level.nr_special,
        )
        for process in report.processes
        for level in process.tables.levels
    ]
    pid = report.processes[0].pid if isinstance(pids, (int, str)) else None
    columns = columns_of_rows(_TABLE_FIELDS, rows)
    return Table("page tables", columns, report, pid=pid, source="bpf")


_COMPARE_FIELDS = (
    Field("verdict", "text", "", "what was found"),
    Field("is_explained", "b1", "", "whether the sources agree, or the cause is known"),
    Field("nr_pages", "u8", "pages", "number of pages"),
    Field("example", "u8", "address", "virtual address of the first of them"),
    Field("text", "text", "", "the verdict in words"),
)


def compare(
    pid: int | str = "self",
    *,
    source: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> Table[Comparison]:
    """Compare pagemap with walks of the page tables, page by page. It needs root.

    Args:
        pid: Process id, or "self".
        source: Who walks the page tables: "kmod", "bpf", or "auto": each of them that works here.
        progress: Called with the number of pages that are done, and an estimate of all.

    Returns:
        A row for each verdict. `answer.nr_unexplained` is the number of pages on which the sources
        differ for no known reason.

    Raises:
        ProcessGone: The process ended or ran another program meanwhile.
        AccessDenied: This user may not examine the process, or may not load BPF programs.
        Unsupported: No source that walks page tables works on this machine.

    Source: /proc/PID/pagemap, the page tables

    >>> import physview
    >>> try:
    ...     table = physview.compare("self")
    ... except (physview.AccessDenied, physview.Unsupported):  # without root or BPF
    ...     pass
    ... else:
    ...     assert table["nr_pages"].sum() == table.answer.nr_pages
    """
    from physview.analysis.compare import Comparer

    with ProcDir(pid) as proc, Comparer(proc, source=source) as comparer:
        found = comparer.compare(progress)
        pid, source = proc.pid, ", ".join(comparer.sources)
    rows = [
        (
            verdict.value,
            verdict.explained,
            nr,
            next(iter(found.examples[verdict]), None),
            verdict.text,
        )
        for verdict, nr in found.counts.items()
    ]
    columns = columns_of_rows(_COMPARE_FIELDS, rows)
    return Table("comparison", columns, found, pid=pid, source=source)
