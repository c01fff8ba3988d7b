# SPDX-License-Identifier: GPL-2.0-or-later
"""The three tables as an engine shows them: all columns of the schema, and host and date."""

from __future__ import annotations

from typing import NamedTuple

from physview.recording import schema

DUCKDB_TYPES = {
    "time": "TIMESTAMP WITH TIME ZONE",
    "text": "VARCHAR",
    "word": "VARCHAR",
    "int16": "SMALLINT",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "double": "DOUBLE",
    "bool": "BOOLEAN",
    "int64s": "BIGINT[]",
    "doubles": "DOUBLE[]",
}
SPARK_TYPES = {
    "time": "timestamp",
    "text": "string",
    "word": "string",
    "int16": "smallint",
    "int32": "int",
    "int64": "bigint",
    "double": "double",
    "bool": "boolean",
    "int64s": "array<bigint>",
    "doubles": "array<double>",
}
IBIS_TYPES = {
    "time": "timestamp('UTC', 6)",
    "text": "string",
    "word": "string",
    "int16": "int16",
    "int32": "int32",
    "int64": "int64",
    "double": "float64",
    "bool": "boolean",
    "int64s": "array<int64>",
    "doubles": "array<float64>",
}
COUNTERS = frozenset({*schema.VMSTAT, "minor_faults", "major_faults"})
"""Columns that only grow, until the machine or the process ends."""
NUMBERS = ("int16", "int32", "int64", "double")


class KnownColumn(NamedTuple):
    """A column with numbers.

    Args:
        table: Its table.
        column: What the schema says of it.
    """

    table: str
    column: schema.Column


def number_columns() -> dict[str, KnownColumn]:
    """All columns with numbers by TABLE.COLUMN, and by COLUMN: groups first, then machine."""
    known: dict[str, KnownColumn] = {}
    for table in ("groups", "machine", "zones"):
        for column in schema.TABLES[table]:
            if column.kind in NUMBERS:
                found = KnownColumn(table, column)
                known.setdefault(column.name, found)
                known[f"{table}.{column.name}"] = found
    return known
