# SPDX-License-Identifier: GPL-2.0-or-later
"""What can be read as a table. It is apart from the tables, which take longer to import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from physview.memory.columns import Table


class Columnar:
    """What can be read as a table. A subclass has `table()`; programs for tables take it as it is.

    pandas, polars, DuckDB and pyarrow call `__arrow_c_stream__()`. The columns are not copied.
    """

    def table(self) -> Table[Any]:
        """Make the table."""
        raise NotImplementedError

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """Lend the columns as a stream of one batch, in Arrow's PyCapsule protocol.

        Args:
            requested_schema: Ignored, as the protocol allows: the types are those of the columns.
        """
        from physview.memory import arrow

        table = self.table()
        return arrow.stream(table._lent(), len(table), table._metadata())

    def __arrow_c_schema__(self) -> object:
        """Describe the columns, in Arrow's PyCapsule protocol."""
        from physview.memory import arrow

        table = self.table()
        return arrow.schema(table._lent(), table._metadata())

    def _repr_html_(self) -> str:
        """The first rows as HTML, for notebooks. Names from outside are escaped."""
        return self.table()._html()
