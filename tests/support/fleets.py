# SPDX-License-Identifier: GPL-2.0-or-later
"""Small generated fleets for tests, and the answers of engines as rows by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from fleet_generate import Fleet, generate

from physview.fleet import questions
from physview.fleet.dataset import Dataset, Selection
from physview.fleet.duckdb_engine import DuckDbEngine
from physview.fleet.expressions import Options, open_tables

# What a page, a terminal and a spreadsheet could take for more than a name.
HOSTILE = '<script>alert("x")</script>\x1b[31m|=1+1,\u202e\r/%41'
SMALL = Fleet(hosts=9, days=2, programs=6, interval=300, hostile="")


def make(folder: Path, **about: Any) -> list[dict[str, Any]]:
    """Make a fleet, and return the planted events."""
    return [event.document() for event in generate(folder, SMALL._replace(**about))]


def ask(engine: Any, name: str, **options: Any) -> list[dict[str, Any]]:
    """The rows of an answer."""
    columns, expression = questions.build(questions.find(name), open_tables(), Options(**options))
    names = [column.name for column in columns]
    return [dict(zip(names, row, strict=True)) for row in engine.run(columns, expression).rows]


def ask_duckdb(
    folder: Path, name: str, *, hosts: str = "*", **options: Any
) -> list[dict[str, Any]]:
    """The rows of an answer by DuckDB."""
    with DuckDbEngine(Dataset(str(folder), Selection(hosts))) as engine:
        return ask(engine, name, **options)


def parts(folder: Path, table: str = "groups", host: str = "*", date: str = "*") -> list[Path]:
    """The files of a dataset."""
    return sorted(folder.glob(f"{table}/host={host}/date={date}/*.parquet"))


def rewritten(path: Path, **metadata: str) -> None:
    """Change the metadata of a file."""
    table = pq.read_table(path, partitioning=None)
    known = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    pq.write_table(table.replace_schema_metadata({**known, **metadata}), path)


def iter_events(events: list[dict[str, Any]], kind: str) -> Iterator[dict[str, Any]]:
    """The planted events of a kind."""
    return (event for event in events if event["kind"] == kind)
