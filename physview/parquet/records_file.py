# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes the records of a command to a Parquet file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from physview.files.atomic_file import whole_file
from physview.runtime.extras import need

ROWS_IN_GROUP = 1 << 14


@contextlib.contextmanager
def records_file(
    path: str, fields: Sequence[tuple[str, str]], *, overwrite: bool = False
) -> Iterator[Callable[[Sequence[tuple[Any, ...]]], None]]:
    """Write a file of records, completely or not at all. Only its owner can read it.

    Args:
        path: The file.
        fields: The name of each field, and its Arrow type, such as "uint64".
        overwrite: Whether to replace an existing file of this name.

    Yields:
        What writes records, each a tuple with a value for each field.

    Raises:
        PhysviewError: The file exists, or cannot be written.
        Unsupported: pyarrow is not installed.
    """
    what = f"cannot write {path}"
    arrow, parquet = need("pyarrow", what), need("pyarrow.parquet", what)
    schema = arrow.schema([arrow.field(name, getattr(arrow, kind)()) for name, kind in fields])
    held: list[tuple[Any, ...]] = []
    with (
        whole_file(path, overwrite=overwrite) as file,
        parquet.ParquetWriter(file, schema, compression="zstd") as writer,
    ):

        def flush() -> None:
            columns = zip(*held, strict=True)
            arrays = [
                arrow.array(values, field.type)
                for values, field in zip(columns, schema, strict=True)
            ]
            writer.write_table(arrow.table(arrays, schema=schema))
            held.clear()

        def write(records: Sequence[tuple[Any, ...]]) -> None:
            held.extend(records)
            if len(held) >= ROWS_IN_GROUP:
                flush()

        yield write
        if held:
            flush()
