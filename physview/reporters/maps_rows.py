# SPDX-License-Identifier: GPL-2.0-or-later
"""Which rows `maps` shows, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from physview.analysis.usage import Usage
from physview.reporters.maps_columns import (
    Chunk,
    MapsColumn,
    find_column,
    value_of_usage,
    values_of_chunk,
)

T = TypeVar("T")


class Selection(NamedTuple):
    """Which rows are shown, and in which order.

    Args:
        name: A pattern for the names of mappings, or of processes; None: all.
        sort: The column to sort by; None: address order.
        ascending: Whether the smallest comes first.
        top: The number of rows; None: all.
    """

    name: str | None = None
    sort: MapsColumn | None = None
    ascending: bool = False
    top: int | None = None

    @classmethod
    def parse(cls, name: str | None, sort: str | None, top: int | None) -> Selection:
        """Make it of the options. "+" before the name of a column sorts ascending, "-" descending.

        Raises:
            UsageError: There is no such column.
        """
        if sort is None:
            column = None if top is None else find_column("rss")
        else:
            column = find_column(sort.lstrip("+-") if sort[:1] in ("+", "-") else sort)
        by_text = column is not None and column.is_text
        ascending = sort is not None and (sort.startswith("+") or by_text)
        return cls(name, column, ascending and not (sort or "").startswith("-"), top)

    def matches(self, name: str) -> bool:
        """Whether a name, or its part after the last "/", matches the pattern."""
        import fnmatch

        if self.name is None:
            return True
        last = name.removesuffix(" (deleted)").rpartition("/")[2]
        return any(fnmatch.fnmatchcase(text, self.name) for text in {name, last})

    def indexes(self, chunk: Chunk) -> Sequence[int]:
        """Which mappings of a chunk match."""
        if self.name is None:
            return range(chunk.nr)
        names = chunk.mappings.names()
        known = {name: self.matches(name) for name in set(names)}
        return [index for index, name in enumerate(names) if known[name]]

    def total(self, chunk: Chunk, indexes: Sequence[int]) -> Usage:
        """The sum of the mappings of a chunk that match."""
        if len(indexes) == chunk.nr:
            return chunk.total()
        total = Usage()
        for index in indexes:
            total.add(chunk.usage(index))
        return total

    def keys(self, chunk: Chunk, indexes: Sequence[int]) -> list[Any] | None:
        """The values by which mappings are sorted; None if they are not."""
        if self.sort is None:
            return None
        values = values_of_chunk(chunk, self.sort)
        return [values[index] for index in indexes]

    def key(self, total: Usage, about: dict[str, Any]) -> list[Any] | None:
        """The value by which a process is sorted; None if processes are not."""
        if self.sort is None:
            return None
        name = self.sort.members[0]
        return [about[name] if name in about else value_of_usage(total, self.sort)]


class Sorter(Generic[T]):
    """Holds rows back until all are known, if they are to be sorted.

    With `top` it holds a bounded number of rows.

    Args:
        selection: The order and the number of rows.
    """

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._held: list[tuple[Any, T]] = []

    def add(self, keys: list[Any] | None, rows: list[T]) -> list[T]:
        """Take rows; return those that can be shown now."""
        if keys is None:
            return rows
        self._held += zip(keys, rows, strict=True)
        top = self._selection.top
        if top is not None and len(self._held) > 2 * top + 1024:
            self._sort()
        return []

    def end(self) -> list[T]:
        """Return the rows that were held back."""
        self._sort()
        rows = [row for _, row in self._held]
        self._held = []
        return rows

    def _sort(self) -> None:
        known = [item for item in self._held if item[0] is not None]
        known.sort(key=lambda item: item[0], reverse=not self._selection.ascending)
        unknown = [item for item in self._held if item[0] is None]
        self._held = (known + unknown)[: self._selection.top]
