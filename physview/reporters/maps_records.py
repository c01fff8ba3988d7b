# SPDX-License-Identifier: GPL-2.0-or-later
"""The rows of `maps` for programs: JSON (docs/json.md), CSV, JSON lines and Parquet."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any

from physview.analysis.usage import Folios, Sizes, Usage
from physview.analysis.usage_chunk import UsageChunk
from physview.reporters.documents import errors_member, mapping
from physview.reporters.maps_columns import Chunk, MapsColumn, value_of_usage, values_of_chunk
from physview.reporters.maps_rows import Selection, Sorter
from physview.text.output import write_lines
from physview.text.quoting import escaped

IN_HEX = {"start": "starts", "end": "ends"}
NUMBERS = {"offset": "offsets", "inode": "inodes"}


def _values(chunk: Chunk, column: MapsColumn, about: dict[str, Any]) -> list[Any]:
    """The values of a column as programs want them: numbers where there are numbers."""
    name = column.members[0]
    if name in about:
        return [about[name]] * chunk.nr
    if name in IN_HEX:
        return list(map(hex, getattr(chunk.mappings, IN_HEX[name])))
    if name in NUMBERS:
        values: list[Any] = getattr(chunk.mappings, NUMBERS[name])()
        return values
    if name == "nodes":
        return list(map(_by_name, chunk.nodes())) if isinstance(chunk, UsageChunk) else []
    return values_of_chunk(chunk, column)


def _value(total: Usage, column: MapsColumn, about: dict[str, Any]) -> Any:
    name = column.members[0]
    if name in about:
        return about[name]
    return _by_name(total.nodes) if name == "nodes" else value_of_usage(total, column)


class _Report:
    """What the reports of this module share."""

    def __init__(
        self, columns: Sequence[MapsColumn], *, rollup: bool, selection: Selection
    ) -> None:
        self._columns = list(columns)
        self._rollup = rollup
        self._selection = selection
        self._sorter: Sorter[Any] = Sorter(selection)
        self._about: dict[str, Any] = {}

    def begin_process(self, pid: int, name: str, **about: Any) -> None:
        """Take the name of a process."""
        self._about = {"pid": pid, "command": name, **about}

    def _rows(self, chunk: Chunk, indexes: Sequence[int]) -> list[tuple[Any, ...]]:
        columns = [_values(chunk, column, self._about) for column in self._columns]
        rows = list(zip(*columns, strict=True))
        return rows if len(indexes) == chunk.nr else [rows[index] for index in indexes]

    def _row(self, total: Usage) -> tuple[Any, ...]:
        return tuple(_value(total, column, self._about) for column in self._columns)


class MapsRecords(_Report):
    """Passes on a record for each mapping, or for each process.

    Args:
        columns: The columns.
        rollup: A record per process, not per mapping.
        selection: Which rows are shown.
        write: Called with records, each a tuple with the values of `names`.
    """

    def __init__(
        self,
        columns: Sequence[MapsColumn],
        *,
        rollup: bool,
        selection: Selection,
        write: Callable[[list[tuple[Any, ...]]], None],
    ) -> None:
        super().__init__(columns, rollup=rollup, selection=selection)
        self._write = write

    def add(self, chunk: Chunk, indexes: Sequence[int]) -> None:
        """Write the records of mappings."""
        if not self._rollup:
            rows = self._rows(chunk, indexes)
            self._write(self._sorter.add(self._selection.keys(chunk, indexes), rows))

    def end_process(self, total: Usage | None, why: str = "", **about: Any) -> None:
        """Write the record of a process. The arguments are those of `MapsTable.end_process()`."""
        self._about |= about
        if not self._rollup:
            self._write(self._sorter.end())
        elif total is not None:
            key = self._selection.key(total, self._about)
            self._write(self._sorter.add(key, [self._row(total)]))

    def end(self, total: Usage) -> None:
        """Write the records that were held back. There is none of the total."""
        self._write(self._sorter.end())


def csv_writer(names: Sequence[str]) -> Callable[[Iterable[tuple[Any, ...]]], None]:
    """Print the head of CSV; return what prints records. Names in them are escaped."""
    import csv

    # writerow() returns what write() returns. str() as write() returns the line unchanged.
    row: Callable[[Iterable[Any]], str] = csv.writer(
        SimpleNamespace(write=str), lineterminator="\n"
    ).writerow
    name = functools.cache(functools.partial(escaped, encoding=sys.stdout.encoding or "ascii"))

    def plain(value: Any) -> Any:
        if isinstance(value, str):
            return name(value)
        return nodes_words(value) if isinstance(value, dict) else value

    sys.stdout.write(row(names))
    return lambda records: write_lines(row(map(plain, record)) for record in records)


def json_lines_writer(names: Sequence[str]) -> Callable[[Iterable[tuple[Any, ...]]], None]:
    """Return what prints records as one JSON object per line."""
    return lambda records: write_lines(
        json.dumps(dict(zip(names, record, strict=True))) + "\n" for record in records
    )


def plain_rows(rows: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Make each value of records one that fits into a column."""
    return [
        tuple(_text(value) if isinstance(value, str | dict) else value for value in row)
        for row in rows
    ]


def _text(value: str | dict[str, int]) -> str:
    return escaped(value) if isinstance(value, str) else nodes_words(value)


def nodes_words(nodes: dict[str, int]) -> str:
    """The memory by node in one word: "0=4096|1=8192"."""
    return "|".join(f"{node}={size}" for node, size in nodes.items())


SIZES = (
    "size_bytes",
    "resident_bytes",
    "swapped_bytes",
    "special_bytes",
    "device_bytes",
    "file_bytes",
    "exclusive_bytes",
    "shared_bytes",
    "zero_bytes",
    "hugetlb_bytes",
    "huge_bytes",
    "anon_huge_bytes",
    "nr_extents",
    "mean_bytes",
    "largest_bytes",
)


def usage(item: Usage) -> dict[str, Any]:
    """Make the members of the JSON document for a mapping or for a total."""
    document = {name: getattr(item, name) for name in SIZES}
    document["largest_vaddr"] = None if item.largest_vaddr is None else hex(item.largest_vaddr)
    document["alignment_bytes"] = item.alignment_bytes
    document["contiguous"] = _by_name(item.contiguous)
    document["folios"] = (
        {kind: _folios(found) for kind, found in item.folios.items()} if item.folios else None
    )
    document["nodes"] = _by_name(item.nodes)
    return document


def _by_name(sizes: Sizes | None) -> dict[str, int] | None:
    return None if sizes is None else {str(key): size for key, size in sorted(sizes.items())}


def _folios(found: Folios) -> dict[str, Any]:
    return {
        "pmd_bytes": found.pmd_bytes,
        "aligned": _by_name(found.aligned),
        "unaligned": _by_name(found.unaligned),
        "partial_bytes": found.partial_bytes,
        "contiguous": _by_name(found.contiguous),
    }


class MapsDocument(_Report):
    """Prints the JSON document of `maps`.

    Its form is {"processes": [{"pid", "name", "mappings", "total"}], "total"}.

    Args:
        columns: The members of mappings and totals; None: those of `usage()`.
        rollup: Leave out the mappings: "mappings" is null.
        selection: Which mappings or processes are shown.
    """

    def __init__(
        self,
        columns: Sequence[MapsColumn] | None,
        *,
        rollup: bool,
        selection: Selection,
    ) -> None:
        super().__init__(columns or (), rollup=rollup, selection=selection)
        self._processes: Sorter[str] = Sorter(selection)
        self._separator = '{"processes": [\n'
        self._inner = ""

    def begin_process(self, pid: int, name: str, **about: Any) -> None:
        """Print the first members of a process."""
        super().begin_process(pid, name, **about)
        self._head = json.dumps({"pid": pid, "name": name})[:-1]
        self._inner = "\n"
        if not self._rollup:
            self._begin(f'{self._head}, "mappings": [')

    def _begin(self, text: str) -> None:
        sys.stdout.write(self._separator + text)
        self._separator = ",\n"

    def add(self, chunk: Chunk, indexes: Sequence[int]) -> None:
        """Print mappings."""
        if self._rollup:
            return
        if self._columns:
            names = [column.name for column in self._columns]
            rows = [dict(zip(names, row, strict=True)) for row in self._rows(chunk, indexes)]
        else:
            vmas = chunk.mappings.vmas()
            rows = [
                {"mapping": mapping(vmas[index]), **usage(chunk.usage(index))} for index in indexes
            ]
        lines = list(map(json.dumps, rows))
        self._write(self._sorter.add(self._selection.keys(chunk, indexes), lines))

    def _write(self, lines: list[str]) -> None:
        if lines:
            sys.stdout.write(self._inner + ",\n".join(lines))
            self._inner = ",\n"
            sys.stdout.flush()

    def end_process(self, total: Usage | None, why: str = "", **about: Any) -> None:
        """Print a process's total. The arguments are those of `MapsTable.end_process()`."""
        self._about |= about
        text = f'"total": {json.dumps(total and self._total(total))}}}'
        if not self._rollup:
            self._write(self._sorter.end())
            sys.stdout.write(f"\n], {text}")
            return
        key = self._selection.key(total, self._about) if total else None
        key = [None] if self._selection.sort and not key else key
        for line in self._processes.add(key, [f'{self._head}, "mappings": null, {text}']):
            self._begin(line)

    def _total(self, total: Usage) -> dict[str, Any]:
        if not self._columns:
            return usage(total)
        shown = [column for column in self._columns if not column.is_text or column.name == "nodes"]
        return {column.name: _value(total, column, self._about) for column in shown}

    def end(self, total: Usage) -> None:
        """Print the total of all processes, and the end of the document."""
        for line in self._processes.end():
            self._begin(line)
        if self._separator.startswith("{"):
            sys.stdout.write(self._separator)
        self._about = {"tables": None}
        sys.stdout.write(f'\n], "total": {json.dumps(self._total(total))}, {errors_member()}}}\n')
