# SPDX-License-Identifier: GPL-2.0-or-later
"""An answer: rows, and what is in their columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime, timezone
from decimal import Decimal
from itertools import chain
from math import isfinite
from typing import Any, NamedTuple

OTHERS = "(all others)"
"""Stands for the name of the group that joins all groups beyond the limit of `record`."""


class AnswerColumn(NamedTuple):
    """A column of an answer.

    Args:
        name: Its name in data.
        kind: text, machine, time, bytes, count, share (0 to 1), change (of a share), or number.
        meaning: What it says.
    """

    name: str
    kind: str
    meaning: str


class Answer(NamedTuple):
    """An answer.

    Args:
        columns: The columns.
        rows: The rows, each a tuple of plain values: text, numbers, datetimes in UTC, or None.
    """

    columns: Sequence[AnswerColumn]
    rows: Iterable[tuple[Any, ...]]

    def collect(self) -> Answer:
        """The same answer, with its rows in a list. The first rows can fail as all can."""
        return Answer(self.columns, list(self.rows))

    def begun(self) -> Answer:
        """The same answer, whose first row was made. So the engine's error comes before a table."""
        rows = iter(self.rows)
        first = list(next_or_nothing(rows))
        return Answer(self.columns, chain(first, rows))


def next_or_nothing(rows: Iterator[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """Yield the next row, if there is one."""
    for row in rows:
        yield row
        return


def plain(value: Any) -> Any:
    """Make a value of an engine one of text, bool, int, float, datetime, list, dict and None.

    >>> plain(Decimal("3")), plain(float("nan")), plain(b"\\xff"), plain((1, Decimal("0.5")))
    (3, None, 'ff', [1, 0.5])
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, datetime):
        return value.replace(tzinfo=timezone.utc) if value.tzinfo is None else _utc(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {str(name): plain(each) for name, each in value.items()}
    return str(value)


def _utc(value: datetime) -> datetime:
    return value.astimezone(timezone.utc)


def unique_names(names: Sequence[str]) -> list[str]:
    """Number the names of columns that occur again, as a JSON object has each name once.

    >>> unique_names(["a", "b", "a"])
    ['a', 'b', 'a_2']
    """
    made: list[str] = []
    for name in names:
        number, wanted = 2, name
        while wanted in made:
            wanted, number = f"{name}_{number}", number + 1
        made.append(wanted)
    return made


def time_text(value: datetime) -> str:
    """Format a moment for programs, as 2026-01-05T13:00:00Z.

    >>> time_text(datetime(2026, 1, 5, 13, tzinfo=timezone.utc))
    '2026-01-05T13:00:00Z'
    """
    return value.isoformat().replace("+00:00", "Z")
