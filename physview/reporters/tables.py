# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables of processes, as tables and as a JSON document (docs/json.md)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from physview.analysis.shared_tables import SharedTable, TableReport
from physview.analysis.tables import (
    FILLED,
    NR_ENTRIES,
    ProcessTables,
    PteCause,
    TableCounts,
    TableLevel,
)
from physview.model import PAGE_SIZE, printable
from physview.reporters.frames import WIDE, table_width, write_table
from physview.units import column_size, cut, short_size, size_words, terminal_width

MIN_NAME = 12
NR_SHARED_SHOWN = 10
NR_DIFFERENCES_SHOWN = 10


def print_process(report: TableReport) -> None:
    """Print the page tables of one process.

    Args:
        report: The report on this process.
    """
    (process,) = report.processes
    _write(f"process {process.pid} ({printable(process.name)}): {_summary(process.tables)}\n")
    _write_counts(process.tables)
    _write_shared(report.shared)
    _write("\n")
    _write_equation(process)


def print_processes(report: TableReport) -> None:
    """Print a line for each process, and the totals."""
    _write_lines(report)
    _write(f"\nall processes, each table once: {_summary(report.total)}\n")
    _write_counts(report.total)
    _write_shared(report.shared)
    _write("\n")
    _write_differences(report.processes)
    _write(f"VmPTE is unexplained for {report.nr_unexplained} of {_processes(report)}\n")


def _write(text: str) -> None:
    sys.stdout.write(text)


def _processes(report: TableReport) -> str:
    nr = len(report.processes)
    return "1 process" if nr == 1 else f"{nr} processes"


def _size(size_bytes: int) -> str:
    # A pgd can be smaller than a page: arm64 has some of 16 bytes.
    return column_size(size_bytes)


def _count(number: int) -> str:
    return str(number) if number else "-"


def _cost(tables: TableCounts, per_bytes: int) -> float | None:
    """The bytes of tables for so many bytes that they map; None if they map nothing."""
    mapped = tables.mapped_bytes
    return tables.size_bytes * per_bytes / mapped if mapped else None


def _short_cost(cost: float | None) -> str:
    """Format a cost in at most five characters.

    >>> [_short_cost(each) for each in (None, 4.0, 2100.0, 1 << 20)]
    ['-', '4B', '2.1K', '1.0M']
    """
    if cost is None:
        return "-"
    unit, *larger = ("B", "K", "M", "G")
    while cost >= 999.5 and larger:
        unit, *larger = larger
        cost /= 1024
    return f"{cost:.0f}{unit}" if unit == "B" or cost >= 9.95 else f"{cost:.1f}{unit}"


def _summary(tables: TableCounts) -> str:
    nr = tables.nr_tables
    words = f"{nr} page tables, {_size(tables.size_bytes)}"
    if tables.nr_empty:
        words += f"\n{tables.nr_empty} of them are empty, {_size(tables.empty_bytes)}"
    per_page = _cost(tables, PAGE_SIZE)
    if per_page is None:
        return f"{words}\nthe tables map nothing"
    kib_per_mib = per_page * 1024 / PAGE_SIZE
    return (
        f"{words}\nthe tables map {_size(tables.mapped_bytes)}: {kib_per_mib:.1f} KiB of tables per"
        f" MiB, {per_page:.1f} bytes per {PAGE_SIZE // 1024} KiB"
    )


def _write_counts(tables: TableCounts) -> None:
    """Print the tables by level, and the histogram."""
    edge = table_width()
    is_wide = edge is None or edge >= WIDE
    header = ["level", "tables", "size", "empty", "to tables", "pages", "swapped", "special"]
    rows = [_level_row(level) for level in tables.levels]
    if tables.nr_deposited:
        size = _size(tables.nr_deposited * PAGE_SIZE)
        rows.append(["deposited", str(tables.nr_deposited), size, *[""] * 5])
    size, empty = _size(tables.size_bytes), _count(tables.nr_empty)
    rows.append(["total", str(tables.nr_tables), size, empty, *[""] * 4])
    if is_wide:
        spans = [size_words(level.span_bytes) for level in tables.levels]
        spans += [""] * (len(rows) - len(spans))
        header.append("an entry spans")
        rows = [[*row, span] for row, span in zip(rows, spans, strict=True)]
    _write("\n")
    write_table(header, rows, (0,))
    for nr, why in (
        (sum(level.nr_unstable for level in tables.levels), "changed during each reading"),
        (sum(level.nr_gone for level in tables.levels), "went away before the reading"),
    ):
        if nr:
            _write(f"{nr} more {'table' if nr == 1 else 'tables'} {why}\n")
    _write(f"\nnumber of tables by filled entries, of {NR_ENTRIES}{_of_pgd(tables)}\n")
    titles = [str(low) if low == high else f"{low}-{high}" for low, high in FILLED]
    filled = [[level.name, *map(_count, level.filled)] for level in tables.levels]
    write_table(["level", *titles], filled, (0,))


def _of_pgd(tables: TableCounts) -> str:
    """What is different about the entries of the pgd, by which the title ends."""
    if os.uname().machine == "x86_64":
        return "; in the pgd only user space's"
    nr = tables.levels[0].nr_entries
    return f"; the pgd has {nr}" if nr != NR_ENTRIES else ""


def _level_row(level: TableLevel) -> list[str]:
    return [
        level.name,
        str(level.nr_tables),
        _size(level.size_bytes),
        *map(_count, (level.nr_empty, level.nr_to_table, level.nr_pages)),
        *map(_count, (level.nr_swapped, level.nr_special)),
    ]


def _write_shared(shared: list[SharedTable]) -> None:
    if not shared:
        return
    saved = sum(len(table.places) - 1 for table in shared) * PAGE_SIZE
    tables = "1 table stands" if len(shared) == 1 else f"{len(shared)} tables stand"
    _write(f"\n{tables} in several places, which saves {_size(saved)}\n")
    for table in shared[:NR_SHARED_SHOWN]:
        places = ", ".join(f"process {place.pid} at {place.vaddr:#x}" for place in table.places)
        entries = "1 entry" if table.nr_filled == 1 else f"{table.nr_filled} entries"
        line = f"{table.level} at {table.paddr:#x}, {entries}: {places}"
        edge = table_width()
        _write((line if edge is None else cut(line, edge)) + "\n")
    if len(shared) > NR_SHARED_SHOWN:
        _write(f"… and {len(shared) - NR_SHARED_SHOWN} more: --json lists all\n")


def _kib(size_bytes: int) -> str:
    return f"{size_bytes // 1024} KiB"


def _write_equation(process: ProcessTables) -> None:
    """Print how VmPTE follows from the tables: in bytes if the pgd is smaller than 1 KiB."""
    parts = [
        (process.tables.size_bytes, "the tables above"),
        *((nr, cause.text) for cause, nr in process.differences.items()),
        (process.vm_pte_bytes, f"VmPTE in /proc/{process.pid}/status"),
    ]
    is_whole = all(nr % 1024 == 0 for nr, _ in parts)
    lines = [(_kib(nr) if is_whole else f"{nr} bytes", text) for nr, text in parts]
    width = max(len(size) for size, _ in lines)
    for size, text in lines:
        _write(f"{size.rjust(width)}  {text}\n")
    _write(f"{_kib(process.unexplained_bytes)} unexplained\n")


def _differs(process: ProcessTables) -> tuple[PteCause, int] | None:
    """The cause and size of a difference that is not the same in every process."""
    for cause in (PteCause.CHANGED, PteCause.UNEXPLAINED):
        if cause in process.differences:
            return cause, process.differences[cause]
    return None


def _write_differences(processes: list[ProcessTables]) -> None:
    found = [(process, differs) for process in processes if (differs := _differs(process))]
    for process, (cause, size) in found[:NR_DIFFERENCES_SHOWN]:
        sign = "+" if size > 0 else "-"
        _write(f"process {process.pid}: {sign}{_kib(abs(size))} in VmPTE: {cause.text}\n")
    if len(found) > NR_DIFFERENCES_SHOWN:
        _write(f"… and {len(found) - NR_DIFFERENCES_SHOWN} more: --json lists all\n")


class TablesColumn(NamedTuple):
    """A column of numbers in the table of processes.

    Args:
        title: The column's title.
        width: Width in characters.
        rank: The columns with the highest rank are left out first if the terminal is narrow.
        value: Makes the cell's text from the tables of a process or of all, and VmPTE.
    """

    title: str
    width: int
    rank: int
    value: Callable[[TableCounts, int], str]


def _of_level(name: str) -> Callable[[TableCounts, int], str]:
    def value(tables: TableCounts, _: int) -> str:
        return _count(sum(each.nr_tables for each in tables.levels if each.name == name))

    return value


def _per_page(tables: TableCounts, _: int) -> str:
    cost = _cost(tables, PAGE_SIZE)
    return "-" if cost is None else f"{cost:.1f}"


COLUMNS = (
    TablesColumn("tables", 7, 0, lambda tables, _: _count(tables.nr_tables)),
    TablesColumn("size", 5, 0, lambda tables, _: short_size(tables.size_bytes)),
    TablesColumn("p4d", 4, 4, _of_level("p4d")),
    TablesColumn("pud", 4, 2, _of_level("pud")),
    TablesColumn("pmd", 5, 1, _of_level("pmd")),
    TablesColumn("pte", 6, 1, _of_level("pte")),
    TablesColumn("deposited", 9, 2, lambda tables, _: _count(tables.nr_deposited)),
    TablesColumn("empty", 5, 0, lambda tables, _: _count(tables.nr_empty)),
    TablesColumn("mapped", 6, 0, lambda tables, _: short_size(tables.mapped_bytes)),
    TablesColumn("per MiB", 7, 0, lambda tables, _: _short_cost(_cost(tables, 1 << 20))),
    TablesColumn("per page", 8, 3, _per_page),
    TablesColumn("VmPTE", 5, 0, lambda _, vm_pte: short_size(vm_pte)),
)
DIFFERS_WIDTH = 7


def _write_lines(report: TableReport) -> None:
    edge = terminal_width()
    has_p4d = any(level.name == "p4d" for level in report.total.levels)
    known = [column for column in COLUMNS if has_p4d or column.title != "p4d"]
    # Show as many ranks as leave enough room for the process's name.
    for rank in range(max(column.rank for column in known), -1, -1):
        columns = [column for column in known if column.rank <= rank]
        used = len("    pid") + sum(column.width + 1 for column in columns) + DIFFERS_WIDTH + 1
        if used + 1 + MIN_NAME + 4 * rank <= edge:
            break
    room = max(MIN_NAME, edge - used - 1)

    def line(head: str, cells: list[str], differs: str, name: str) -> None:
        widths = (column.width for column in columns)
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        text = " ".join([head.rjust(7), *padded, differs.rjust(DIFFERS_WIDTH), cut(name, room)])
        _write(text.rstrip() + "\n")

    line("pid", [column.title for column in columns], "differs", "name")
    for process in report.processes:
        cells = [column.value(process.tables, process.vm_pte_bytes) for column in columns]
        line(str(process.pid), cells, _differs_cell(process), _name(process))
    own = [each for each in report.processes if each.same_memory_as is None]
    vm_pte = sum(each.vm_pte_bytes for each in own)
    line("total", [each.value(report.total, vm_pte) for each in columns], "", _processes(report))


def _differs_cell(process: ProcessTables) -> str:
    differs = _differs(process)
    if not differs:
        return "-"
    sign = "+" if differs[1] > 0 else "-"
    return sign + short_size(abs(differs[1])) + ("" if differs[0].explained else "?")


def _name(process: ProcessTables) -> str:
    name = printable(process.name)
    same = process.same_memory_as
    return name if same is None else f"{name} (the memory of process {same})"


def document(report: TableReport) -> dict[str, Any]:
    """Make the JSON document of page tables."""
    return {
        "processes": [_process(process) for process in report.processes],
        "total": _tables(report.total),
        "shared": [
            {
                "level": table.level,
                "paddr": hex(table.paddr),
                "nr_filled": table.nr_filled,
                "places": [{"pid": place.pid, "vaddr": hex(place.vaddr)} for place in table.places],
            }
            for table in report.shared
        ],
        "nr_unexplained": report.nr_unexplained,
        "nr_gone": report.nr_gone,
        "nr_denied": report.nr_denied,
    }


def _process(process: ProcessTables) -> dict[str, Any]:
    return {
        "pid": process.pid,
        "name": process.name,
        "same_memory_as": process.same_memory_as,
        "root": hex(process.root),
        **_tables(process.tables),
        "vm_pte_bytes": process.vm_pte_bytes,
        "differences": [
            {"cause": cause.value, "explained": cause.explained, "bytes": size}
            for cause, size in process.differences.items()
        ],
    }


def _tables(tables: TableCounts) -> dict[str, Any]:
    return {
        "nr_tables": tables.nr_tables,
        "size_bytes": tables.size_bytes,
        "nr_deposited": tables.nr_deposited,
        "nr_empty": tables.nr_empty,
        "empty_bytes": tables.empty_bytes,
        "mapped_bytes": tables.mapped_bytes,
        "levels": [
            {
                "name": level.name,
                "span_bytes": level.span_bytes,
                "nr_entries": level.nr_entries,
                "nr_tables": level.nr_tables,
                "size_bytes": level.size_bytes,
                "nr_unstable": level.nr_unstable,
                "nr_gone": level.nr_gone,
                "entries": {
                    "nr_to_table": level.nr_to_table,
                    "nr_pages": level.nr_pages,
                    "nr_swapped": level.nr_swapped,
                    "nr_special": level.nr_special,
                },
                "filled": [
                    {"min": low, "max": high, "nr_tables": nr}
                    for (low, high), nr in zip(FILLED, level.filled, strict=True)
                ],
            }
            for level in tables.levels
        ],
    }
