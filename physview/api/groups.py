# SPDX-License-Identifier: GPL-2.0-or-later
"""Groups of processes as a table: one sample of what `record` records."""

from __future__ import annotations

from typing import Any

from physview.memory.columns import Column, Field, Table, columns_of_rows
from physview.recording.groups import GroupReader
from physview.recording.schema import GROUPS, MOMENT

# Lists have no place in a table.
_KINDS = {"int32": "i4", "int64": "i8", "double": "f8", "word": "text", "text": "text"}
_FIELDS = [
    Field(column.name, _KINDS[column.kind], column.unit, column.meaning)
    for column in GROUPS[len(MOMENT) :]
    if column.kind in _KINDS
]


def groups(by: str = "program", *, max_groups: int = 1000) -> Table[dict[str, list[Any]]]:
    """Read the memory of all processes, added up by program, cgroup or process.

    Args:
        by: "program" (the process's name), "cgroup" (its memory cgroup) or "pid".
        max_groups: The number of groups to tell apart. The smaller ones are one row without a name,
            as are processes that you may not examine.

    Returns:
        A row for each group, the largest first, with the columns that `physview record` writes.
        Extents, folios and contiguous blocks need root.

    Raises:
        UsageError: There is no such grouping.
        PhysviewError: The core is not built, or the kernel has no pagemap.

    >>> table = groups("pid")
    >>> len(table) > 0, table.column_names[:2]
    (True, ['by', 'name'])
    """
    with GroupReader(by, max_groups=max_groups) as reader:
        found = reader.read()
    named = {**found, "name": ["" if name is None else name for name in found["name"]]}
    rows = list(zip(*(named[field.name] for field in _FIELDS), strict=True))
    columns = [
        _with_nulls(column, found["name"]) if column.name == "name" else column
        for column in columns_of_rows(_FIELDS, rows)
    ]
    source = "/proc/PID/pagemap, /proc/kpageflags and /proc/PID/stat"
    return Table("groups of processes", columns, found, source=source)


def _with_nulls(column: Column, values: list[Any]) -> Column:
    """A column of texts of which some are not known."""
    import numpy as np

    return column._replace(valid=np.array([value is not None for value in values], dtype=np.bool_))
