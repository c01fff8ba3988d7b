# SPDX-License-Identifier: GPL-2.0-or-later
"""A process's mappings as a table. Each line is printed as soon as it is known."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from physview.analysis.usage import KINDS, Folios, Sizes, Usage
from physview.model import printable
from physview.reporters.maps_columns import (
    BY_NAME,
    FRAMES,
    ROLLUP,
    SHOWN,
    Chunk,
    MapsColumn,
    formatter,
    is_needed,
    value_of_usage,
    values_of_chunk,
)
from physview.reporters.maps_rows import Selection, Sorter
from physview.units import mapping_name, short_size, terminal_width

MIN_NAME = 12
# Texts of so many different values are kept.
MAX_KNOWN = 1 << 16


def default_columns(*, rollup: bool, frames: bool) -> list[MapsColumn]:
    """The columns that are shown without -o, if the terminal is wide enough.

    Args:
        rollup: Whether there is a line per process.
        frames: Whether that line says what the frames tell, too.
    """
    if not rollup:
        return [BY_NAME["start"], BY_NAME["perm"], *SHOWN, BY_NAME["name"]]
    if frames:
        return [BY_NAME["pid"], *SHOWN, BY_NAME["command"]]
    return [BY_NAME[name] for name in ROLLUP.split(",")]


class _Cells(dict[Any, str]):
    """The cells of a column by value."""

    def __init__(self, make: Callable[[Any], str]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, value: Any) -> str:
        text = self._make(value)
        if len(self) < MAX_KNOWN:
            self[value] = text
        return text


class MapsTable:
    """Prints the table of `maps`.

    Args:
        columns: The columns.
        fixed: Whether all columns are shown, however narrow the terminal is.
        rollup: Print a line per process, not per mapping.
        several: Whether there may be more than one process.
        selection: Which rows are shown.
        unit: As in `formatter()`.
    """

    def __init__(
        self,
        columns: Sequence[MapsColumn],
        *,
        fixed: bool = False,
        rollup: bool,
        several: bool,
        selection: Selection = Selection(),  # noqa: B008 - immutable
        unit: str = "short",
    ) -> None:
        self._rollup = rollup
        self._several = several
        self._selection = selection
        self._unit = unit
        self._columns = list(columns)
        width = terminal_width()
        ranks = sorted({column.rank or 0 for column in columns}, reverse=True)
        for rank in [] if fixed else ranks:
            # Show as many ranks as leave enough room for the name.
            self._columns = [column for column in columns if (column.rank or 0) <= rank]
            if self._used() + 1 + MIN_NAME + 3 * rank <= width:
                break
        self._room = max(MIN_NAME, width - self._used() - 1)
        self._with_details = not fixed and is_needed(columns, FRAMES)
        self._cells: list[_Cells] = []
        self._sorter: Sorter[str] = Sorter(selection)
        # Processes that are sorted are printed at the end. So is all else then: meanwhile the
        # terminal may show how many were read.
        self._held: list[str] | None = [] if rollup and selection.sort else None
        self._about: dict[str, Any] = {}
        self._nr_processes = 0

    def _width(self, column: MapsColumn) -> int:
        if column.kind == "size" and self._unit == "bytes":
            return max(column.width, 13)
        return max(column.width, len(column.name))

    def _used(self) -> int:
        last = self._columns[-1]
        widths = [self._width(column) + 1 for column in self._columns[:-1]]
        return sum(widths) - 1 if last.is_text else sum(widths) + self._width(last)

    def _justified(self, column: MapsColumn, text: str) -> str:
        if column is self._columns[-1] and column.is_text:
            return text
        width = self._width(column)
        is_left = column.is_text and column.name not in ("pid", "inode", "offset", "nodes")
        return text.ljust(width) if is_left else text.rjust(width)

    def _cell(self, column: MapsColumn, *, knows_frames: bool) -> Callable[[Any], str]:
        make = formatter(column, self._unit, knows_frames=knows_frames)
        if column.name in ("name", "command"):
            is_last = column is self._columns[-1]
            room = self._room if is_last else self._width(column)
            return lambda name: self._justified(column, mapping_name(str(name), room))
        return lambda value: self._justified(column, make(value))

    def _make_cells(self, *, knows_frames: bool) -> list[_Cells]:
        if not self._cells:
            self._cells = [
                _Cells(self._cell(column, knows_frames=knows_frames)) for column in self._columns
            ]
        return self._cells

    def begin_process(self, pid: int, name: str, **about: Any) -> None:
        """Print the heading of a process."""
        self._about = {"pid": pid, "command": name, **about}
        self._nr_processes += 1
        if not self._rollup and self._several:
            separator = "\n" if self._nr_processes > 1 else ""
            sys.stdout.write(f"{separator}process {pid} ({printable(name)})\n")
        if not self._rollup or self._nr_processes == 1:
            titles = [self._justified(column, column.name) for column in self._columns]
            self._write_now_or_at_end(" ".join(titles).rstrip() + "\n")

    def add(self, chunk: Chunk, indexes: Sequence[int]) -> None:
        """Print the lines of mappings."""
        if self._rollup:
            return
        cells = []
        makers = self._make_cells(knows_frames=getattr(chunk, "knows_frames", True))
        for column, texts in zip(self._columns, makers, strict=True):
            if column.members[0] in self._about:
                cells.append([texts[self._about[column.members[0]]]] * chunk.nr)
            else:
                cells.append(list(map(texts.__getitem__, values_of_chunk(chunk, column))))
        lines = [" ".join(row) + "\n" for row in zip(*cells, strict=True)]
        if len(indexes) < chunk.nr:
            lines = [lines[index] for index in indexes]
        self._write(self._sorter.add(self._selection.keys(chunk, indexes), lines))

    def end_process(self, total: Usage | None, why: str = "", **about: Any) -> None:
        """Print the line of a process.

        Args:
            total: The sums; None if the process could not be read to the end.
            why: Why it could not.
            about: Further values of the process by the member of their column.
        """
        self._about |= about
        if not self._rollup:
            self._write(self._sorter.end())
        if total is None:
            words = f"{printable(self._about['command'])}: {printable(why)}"
            line = f"{self._about['pid']:>7} {words}\n"
            self._write_now_or_at_end(line.lstrip(" " * (not self._rollup)))
        elif self._rollup:
            line = self._total_line(total, self._about)
            self._write(self._sorter.add(self._selection.key(total, self._about), [line]))
        else:
            sys.stdout.write(self._total_line(total, self._labels("total", _mappings(total))))

    def end(self, total: Usage) -> None:
        """Print the totals of all processes."""
        if self._rollup:
            self._write(self._held or [])
            self._write(self._sorter.end())
        if self._nr_processes > 1:
            head = "total" if self._rollup else "all"
            sys.stdout.write("" if self._rollup else "\n")
            labels = self._labels(head, f"{self._nr_processes} processes")
            sys.stdout.write(self._total_line(total, labels))
        if self._nr_processes and self._with_details and total.contiguous is not None:
            sys.stdout.write("".join(f"{line}\n" for line in coverage_lines(total)))

    def _labels(self, first: str, last: str) -> dict[str, Any]:
        """The texts of a total's line, by the member of their column."""
        texts = [
            column.members[0]
            for column in self._columns
            if column.is_text and column.name != "nodes"
        ]
        if not texts:
            return {"": first}
        labels: dict[str, Any] = dict.fromkeys(texts, "")
        labels[texts[0]] = first
        if len(texts) > 1:
            labels[texts[-1]] = last
        return labels

    def _total_line(self, total: Usage, labels: dict[str, Any]) -> str:
        knows = not is_needed(self._columns, FRAMES) or total.nr_extents is not None
        cells = []
        for column in self._columns:
            name = column.members[0]
            if column.is_text and labels.get(name) == "":
                cells.append(self._justified(column, ""))
            elif column.is_text and name in labels and name not in ("pid", "name", "command"):
                cells.append(self._justified(column, labels[name]))
            else:
                value = labels[name] if name in labels else value_of_usage(total, column)
                cells.append(self._cell(column, knows_frames=knows)(value))
        return " ".join([*cells, labels.get("", "")]).rstrip() + "\n"

    def _write_now_or_at_end(self, text: str) -> None:
        if self._held is None:
            sys.stdout.write(text)
        else:
            self._held.append(text)

    def _write(self, lines: list[str]) -> None:
        if lines:
            sys.stdout.write("".join(lines))
            sys.stdout.flush()


def _mappings(total: Usage) -> str:
    return "1 mapping" if total.nr_vmas == 1 else f"{total.nr_vmas} mappings"


def coverage_lines(total: Usage) -> list[str]:
    """Make the lines that say how much is contiguous and how much is in large folios.

    Contiguous memory is listed by the size of the block, large folios by how they are mapped. The
    shares are those of all memory, and of anonymous memory or that of files, as in thpmaps.
    """
    present = total.resident_bytes + total.hugetlb_bytes
    lines = []
    if total.contiguous:
        lines.append("")
        lines.append("in contiguous blocks of at least this size, aligned to it in both spaces")
        lines += _wrapped(_shares(total.contiguous, present))
    folios = total.folios or {}
    for kind in KINDS:
        found = folios.get(kind)
        if found and found.total_bytes:
            lines.append("")
            whole = total.anon_bytes if kind == "anon" else total.file_bytes
            share = f"({_percent(found.total_bytes, present)} of all"
            share += f", {_percent(found.total_bytes, whole)} of {kind})"
            lines.append(f"in large folios, {kind}: {short_size(found.total_bytes)} {share}")
            lines += _folio_lines(found, present, whole)
    return lines


def _folio_lines(folios: Folios, present: int, of_kind: int) -> Iterable[str]:
    single = (("mapped by PMD", folios.pmd_bytes), ("mapped in part", folios.partial_bytes))
    by_size = (
        ("by PTE, aligned", folios.aligned),
        ("by PTE, unaligned", folios.unaligned),
        ("contiguous blocks within", folios.contiguous),
    )
    for title, size in single:
        if size:
            shares = f"({_percent(size, present)}, {_percent(size, of_kind)})"
            yield f"  {title}: {short_size(size)} {shares}"
    for title, sizes in by_size:
        if sizes:
            yield f"  {title}:"
            yield from _wrapped(_shares(sizes, present, of_kind), indent=4)


def _shares(sizes: Sizes, *wholes: int) -> list[str]:
    cells = []
    for size, nr in sorted(sizes.items()):
        shares = f"({', '.join(_percent(nr, whole) for whole in wholes)})"
        cells.append(f"{short_size(size):>4}: {short_size(nr):>5} {shares:<{8 * len(wholes) - 1}}")
    return cells


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _wrapped(cells: list[str], *, indent: int = 2) -> Iterable[str]:
    width = max(map(len, cells)) + 2
    per_line = max(1, (min(terminal_width(), 120) - indent) // width)
    for at in range(0, len(cells), per_line):
        yield (" " * indent + "  ".join(cells[at : at + per_line])).rstrip()
