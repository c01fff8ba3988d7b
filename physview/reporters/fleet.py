# SPDX-License-Identifier: GPL-2.0-or-later
"""Answers of a fleet, as a table, as records and as a JSON document (docs/json.md)."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import islice
from typing import Any, NamedTuple

from physview.fleet.answer import Answer, AnswerColumn, time_text
from physview.model import printable
from physview.reporters import documents
from physview.units import cut, short_size

MAX_TABLE = 10_000
"""The most rows of a table: rich keeps all of them in memory."""
MAX_CELL = 60
MACHINE_LETTERS = 8
_RIGHT = ("bytes", "count", "share", "change", "number")


class About(NamedTuple):
    """What was asked.

    Args:
        dataset, question, sql, engine, hosts: As on the command line.
        since, until: The time that was asked about.
        title, finding: What the question asks, and what a row tells.
        has_twins: Whether several machines have one name.
        in_bytes: Whether sizes are printed in bytes.
    """

    dataset: str
    question: str | None
    sql: str | None
    engine: str
    hosts: str
    since: datetime | None
    until: datetime | None
    title: str
    finding: str
    has_twins: bool
    in_bytes: bool


def shown_columns(columns: Iterable[AnswerColumn], has_twins: bool) -> list[int]:
    """The indexes of the columns for people: machines show only where a name is not enough."""
    return [at for at, column in enumerate(columns) if has_twins or column.kind != "machine"]


def cell(value: Any, kind: str, in_bytes: bool = False) -> str:
    """Format a value for people.

    >>> cell(0.5, "share"), cell(-0.25, "change"), cell(4096, "bytes"), cell(None, "count")
    ('50.0%', '-25.0%', '4K', '-')
    """
    if value is None:
        return short_size(None) if kind == "bytes" else "-"
    if isinstance(value, datetime):
        seconds = f":{value:%S}" if value.second else ""
        return f"{value:%Y-%m-%d %H:%M}{seconds}"
    if isinstance(value, list | dict):
        return printable(json.dumps(_jsonable(value)))
    if isinstance(value, bool) or not isinstance(value, int | float):
        text = printable(str(value))
        return text[:MACHINE_LETTERS] if kind == "machine" else cut(text, MAX_CELL)
    if kind == "share":
        return f"{100 * value:.1f}%"
    if kind == "change":
        return f"{100 * value:+.1f}%"
    if kind == "bytes" and not in_bytes:
        return f"-{short_size(int(-value))}" if value < 0 else short_size(int(value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def print_table(about: About, answer: Answer) -> int:
    """Print a table. Return the number of rows."""
    from rich.table import Table
    from rich.text import Text

    from physview.reporters.drawing import draw

    rows = list(islice(answer.rows, MAX_TABLE + 1))
    if about.title:
        sys.stdout.write(f"{about.title}. {about.finding}\n\n")
    if not rows:
        sys.stdout.write("nothing found\n")
        return 0
    kinds = _kinds(answer.columns, rows)
    shown = shown_columns(answer.columns, about.has_twins)
    table = Table(box=None, pad_edge=False)
    for at in shown:
        side: Any = "right" if kinds[at] in _RIGHT else "left"
        name = answer.columns[at].name
        title = Text(printable(name.replace("_", " ") if about.title else name))
        table.add_column(title, justify=side, no_wrap=True)
    for row in rows[:MAX_TABLE]:
        table.add_row(*(Text(cell(row[at], kinds[at], about.in_bytes)) for at in shown))
    draw(table)
    if len(rows) > MAX_TABLE:
        sys.stdout.write(f"… and more: a table has {MAX_TABLE} rows at most; see --format csv\n")
    return len(rows)


def _kinds(columns: Iterable[AnswerColumn], rows: list[tuple[Any, ...]]) -> list[str]:
    """The kinds of the columns. SQL does not tell them: a column with numbers is one of numbers."""
    kinds = []
    for at, column in enumerate(columns):
        value = next((row[at] for row in rows if row[at] is not None), None)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        kinds.append("number" if column.kind == "text" and is_number else column.kind)
    return kinds


def _jsonable(value: Any) -> Any:
    if isinstance(value, datetime):
        return time_text(value)
    if isinstance(value, list):
        return [_jsonable(each) for each in value]
    if isinstance(value, dict):
        return {name: _jsonable(each) for name, each in value.items()}
    return value


def document_rows(answer: Answer) -> Iterator[dict[str, Any]]:
    """Each row as an object."""
    names = [column.name for column in answer.columns]
    for row in answer.rows:
        yield dict(zip(names, map(_jsonable, row), strict=True))


def print_document(about: About, answer: Answer) -> int:
    """Print the JSON document. Return the number of rows."""
    head = {
        "dataset": about.dataset,
        "question": about.question,
        "sql": about.sql,
        "engine": about.engine,
        "hosts": about.hosts,
        "since": _jsonable(about.since),
        "until": _jsonable(about.until),
        "columns": [column.name for column in answer.columns],
    }
    nr = 0
    with documents.stream(head, "rows") as add:
        for row in document_rows(answer):
            add(row)
            nr += 1
    return nr


def print_records(form: str, answer: Answer) -> int:
    """Print CSV or JSON lines. Return the number of rows."""
    from physview.reporters.maps_records import csv_writer, json_lines_writer

    names = [column.name for column in answer.columns]
    write = csv_writer(names) if form == "csv" else json_lines_writer(names)
    nr = 0
    rows = iter(answer.rows)
    while part := list(islice(rows, 1000)):
        nr += len(part)
        write([tuple(_record_value(value, form) for value in row) for row in part])
    return nr


def _record_value(value: Any, form: str) -> Any:
    made = _jsonable(value)
    return json.dumps(made) if form == "csv" and isinstance(made, list | dict) else made
