# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables: columns of NumPy arrays that other programs can take over through Arrow.

Every result that is a table is one of these, or is a `Columnar`, which can make one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from physview.errors import UsageError
from physview.memory.columnar import Columnar
from physview.model import NO_ENTRY
from physview.text.quoting import escaped, printable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from physview.errors import PhysviewError

A = TypeVar("A")

HTML_ROWS = 20
"""How many rows and errors a notebook shows of a table."""

HEX_UNITS = ("address", "frame", "bits")
"""Units whose numbers are shown in hexadecimal, as the commands show them."""


class Column(NamedTuple):
    """A column of a table.

    Args:
        name: Its name.
        values: Array, shape (n,), contiguous: numbers, or int32 indices of `words`. Where there is
            no value, it has any number; it is NO_ENTRY in a column of addresses and frames.
        unit: "bytes", "pages", "address", "frame", "bits" (flags), "seconds", or "".
        meaning: What the column tells, in a few words.
        valid: Bool array, shape (n,): which rows have a value; None if all have one.
        words: The texts that `values` refer to, escaped as by `quoting.escaped()`; None for a
            column of numbers.
    """

    name: str
    values: npt.NDArray[Any]
    unit: str = ""
    meaning: str = ""
    valid: npt.NDArray[np.bool_] | None = None
    words: Sequence[str] | None = None

    def item(self, row: int) -> int | float | bool | str | None:
        """The value in a row; None if it has none."""
        if self.valid is not None and not self.valid[row]:
            return None
        if self.words is not None:
            return self.words[int(self.values[row])]
        value: int | float | bool = self.values[row].item()
        return value


class Table(Columnar, Generic[A]):
    """Columns of equal length, with names and units.

    pandas, polars, DuckDB and pyarrow take it as it is: `polars.DataFrame(result)`,
    `pandas.DataFrame.from_arrow(result)`, `duckdb.sql("from result")`, `pyarrow.table(result)`. The
    columns are not copied. A value that is not known is null there, None in a row, and a
    placeholder in the NumPy array: `valid()` says which values are known.

    Names from outside, such as paths, are escaped so that they are printable, and can be restored
    by `quoting.unescaped()`.

    Args:
        title: What the rows are, such as "extents".
        columns: The columns, all of one length.
        answer: The result as objects.
        pid: The process, if the table is of one.
        source: Who told what is in the table.
        errors: What could not be read. The rows are the rest.

    >>> import numpy as np
    >>> sizes = Column("size", np.array([4096, 0], dtype=np.uint64), "bytes", "how large it is")
    >>> table = Table("samples", [sizes], None, pid=7, source="pagemap")
    >>> table
    <Table of samples of process 7, from pagemap: 2 rows; size>
    >>> table["size"].sum(), list(table)[0]
    (np.uint64(4096), {'size': 4096})
    """

    def __init__(
        self,
        title: str,
        columns: Iterable[Column],
        answer: A,
        *,
        pid: int | None = None,
        source: str = "",
        errors: Sequence[PhysviewError] = (),
    ) -> None:
        self.title = title
        self.columns: Mapping[str, Column] = {column.name: column for column in columns}
        self.answer = answer
        self.pid = pid
        self.source = source
        self.errors = tuple(errors)

    def table(self) -> Table[A]:
        """Return this table."""
        return self

    @property
    def column_names(self) -> list[str]:
        """The names of the columns, in order."""
        return list(self.columns)

    def __len__(self) -> int:
        """The number of rows."""
        return next((len(column.values) for column in self.columns.values()), 0)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """The values of a column as an array, shape (n,). Texts are objects: str, or None.

        Raises:
            UsageError: There is no such column.
        """
        import numpy as np

        column = self._column(name)
        if column.words is None:
            return column.values
        words = np.array([*column.words, None], dtype=object)
        chosen: npt.NDArray[Any] = words[column.values]
        if column.valid is not None:
            chosen[~column.valid] = None
        return chosen

    def valid(self, name: str) -> npt.NDArray[np.bool_]:
        """Which rows have a value in a column: bool array, shape (n,).

        Raises:
            UsageError: There is no such column.
        """
        import numpy as np

        column = self._column(name)
        return np.ones(len(self), dtype=np.bool_) if column.valid is None else column.valid

    def _column(self, name: str) -> Column:
        if name not in self.columns:
            raise UsageError(f"no column '{name}'", "", f"choose one of {', '.join(self.columns)}")
        return self.columns[name]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the rows as dictionaries. A value that is not known is None."""
        columns = list(self.columns.values())
        for row in range(len(self)):
            yield {column.name: column.item(row) for column in columns}

    def __repr__(self) -> str:
        names = printable(", ".join(self.columns))
        return f"<Table of {self._heading()}: {len(self)} rows; {names}>"

    def _heading(self) -> str:
        of = f" of process {self.pid}" if self.pid is not None else ""
        by = f", from {printable(self.source)}" if self.source else ""
        return f"{printable(self.title)}{of}{by}"

    def _lent(self) -> list[Any]:
        from physview.memory.arrow import Lent

        return [
            Lent(
                column.name,
                column.values,
                column.valid,
                column.words,
                {"meaning": column.meaning} | ({"unit": column.unit} if column.unit else {}),
            )
            for column in self.columns.values()
        ]

    def _metadata(self) -> dict[str, str]:
        about = {"title": self.title, "source": self.source}
        return about if self.pid is None else about | {"pid": str(self.pid)}

    def _html(self) -> str:
        columns = list(self.columns.values())
        head = "".join(
            f'<th title="{_text(column.meaning)}">{_text(column.name)}</th>' for column in columns
        )
        body = "".join(
            "<tr>" + "".join(_cell(column, row) for column in columns) + "</tr>"
            for row in range(min(len(self), HTML_ROWS))
        )
        nr_more = len(self) - HTML_ROWS
        more = f"<p>and {nr_more} more rows</p>" if nr_more > 0 else ""
        failed = "".join(f"<p>{_text(str(error))}</p>" for error in self.errors[:HTML_ROWS])
        nr_failed = len(self.errors) - HTML_ROWS
        failed += f"<p>and {nr_failed} more errors</p>" if nr_failed > 0 else ""
        caption = f"<caption>{_text(self._heading())}: {len(self)} rows</caption>"
        table = f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        return f"<div>{table}{more}{failed}</div>"


def _text(text: str) -> str:
    """Text from outside, for HTML."""
    from html import escape

    return escape(printable(text))


def _cell(column: Column, row: int) -> str:
    value = column.item(row)
    if value is None:
        return "<td></td>"
    if isinstance(value, str):
        return f'<td style="text-align:left">{_text(value)}</td>'
    return f"<td>{value:#x}</td>" if column.unit in HEX_UNITS else f"<td>{value}</td>"


def numbers(
    name: str,
    values: npt.NDArray[Any],
    unit: str = "",
    meaning: str = "",
    *,
    none: int | None = None,
) -> Column:
    """Make a column of an array.

    Args:
        name: Its name.
        values: Array, shape (n,). It is copied only if it is not contiguous.
        unit: As in `Column`.
        meaning: As in `Column`.
        none: The value that means "not known"; None if all are known.
    """
    import numpy as np

    values = np.ascontiguousarray(values)
    valid = None
    if none is not None:
        valid = values != values.dtype.type(none)
    return Column(name, values, unit, meaning, valid)


def words(
    name: str, codes: npt.NDArray[Any], texts: Sequence[str | None], meaning: str = ""
) -> Column:
    """Make a column of texts that repeat.

    Args:
        name: Its name.
        codes: Integer array, shape (n,): for each row the index of its text.
        texts: The texts as they came from outside; None for rows without a text.
        meaning: As in `Column`.
    """
    import numpy as np

    at = {
        text: number for number, text in enumerate(t for t in dict.fromkeys(texts) if t is not None)
    }
    of_text = np.array([at.get(text, -1) if text is not None else -1 for text in texts], np.int32)
    numbers_of_rows = of_text[codes] if len(of_text) else np.empty(0, dtype=np.int32)
    valid = numbers_of_rows >= 0 if None in texts else None
    if valid is not None:
        numbers_of_rows[~valid] = 0
    return Column(name, numbers_of_rows, "", meaning, valid, [escaped(text) for text in at])


def words_of(
    name: str, values: npt.NDArray[Any], text: Callable[[int], str | None], meaning: str = ""
) -> Column:
    """Make a column of texts from numbers. `text` is called once for each distinct number."""
    import numpy as np

    different, codes = np.unique(values, return_inverse=True)
    return words(name, codes, [text(int(value)) for value in different], meaning)


class Field(NamedTuple):
    """A column of `table_of_rows()`.

    Args:
        name: Its name.
        kind: A NumPy type such as "u8", or "text".
        unit: As in `Column`.
        meaning: As in `Column`.
    """

    name: str
    kind: str
    unit: str
    meaning: str


def columns_of_rows(fields: Sequence[Field], rows: Iterable[Sequence[Any]]) -> list[Column]:
    """Make columns of a few rows of Python objects. None becomes a value that is not known.

    Args:
        fields: The columns.
        rows: The rows, each with a value for every field.

    >>> rows = [(4096, "a"), (None, "b")]
    >>> fields = [Field("size", "u8", "bytes", "its size"), Field("name", "text", "", "its name")]
    >>> [column.item(1) for column in columns_of_rows(fields, rows)]
    [None, 'b']
    """
    import numpy as np

    by_field = list(zip(*rows, strict=True)) or [()] * len(fields)
    columns = []
    for field, values in zip(fields, by_field, strict=True):
        if field.kind == "text":
            texts = list(dict.fromkeys(values))
            at = {text: number for number, text in enumerate(texts)}
            codes = np.fromiter((at[value] for value in values), np.intp, len(values))
            columns.append(words(field.name, codes, texts, field.meaning))
            continue
        dtype = np.dtype(field.kind)
        placeholder = _placeholder(dtype)
        filled = [placeholder if value is None else value for value in values]
        valid = None
        if None in values:
            valid = np.array([value is not None for value in values], dtype=np.bool_)
        array = np.array(filled, dtype=dtype)
        columns.append(Column(field.name, array, field.unit, field.meaning, valid))
    return columns


def _placeholder(dtype: np.dtype[Any]) -> int | float:
    if dtype.kind == "u":
        return NO_ENTRY >> (64 - 8 * dtype.itemsize)
    return -1 if dtype.kind == "i" else float("nan")
