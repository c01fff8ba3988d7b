# SPDX-License-Identifier: GPL-2.0-or-later
"""The files of a dataset: their paths, and what is in them."""

from __future__ import annotations

import datetime
import re
import secrets
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import quote

from physview.recording.schema import METADATA, TABLES, VERSION, arrow_schema
from physview.runtime.version import __version__

ROWS_IN_GROUP = 50_000
"""The largest number of rows of a row group."""

_PART = re.compile(r"part-([0-9a-f]{8})-[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}\.parquet")
_DATE = re.compile(r"date=(\d{4}-\d{2}-\d{2})")
CONSTANT = ("machine", "boot", "kernel")
"""The columns that are the same in all rows of a file."""


class About(NamedTuple):
    """What all rows of a file have in common.

    Args:
        host: The name of the host.
        machine: The machine's hash.
        boot: The id of the boot.
        kernel: The version of the kernel.
    """

    host: str
    machine: str
    boot: str
    kernel: str

    def metadata(self) -> dict[str, str]:
        """The key-value metadata of a file."""
        values = (str(VERSION), __version__, *self)
        return dict(zip(METADATA, values, strict=True))


class Part(NamedTuple):
    """A file of a dataset.

    Args:
        path: Its path in the dataset.
        size: Its bytes.
    """

    path: str
    size: int

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.path.rpartition("/")[2]

    @property
    def date(self) -> str:
        """The date of its rows."""
        match = _DATE.search(self.path)
        return match[1] if match else ""


def date_of(time: int) -> str:
    """The date in UTC of a time in microseconds.

    >>> date_of(86_400_000_000 * 365)
    '1971-01-01'
    """
    return _utc(time).strftime("%Y-%m-%d")


def _utc(time: int) -> datetime.datetime:
    return datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=time)


def host_folder(host: str) -> str:
    """The name of a host's folder. Hive escapes names by percent signs, too.

    >>> host_folder("a/b c"), host_folder("")
    ('host=a%2Fb%20c', 'host=__HIVE_DEFAULT_PARTITION__')
    """
    return f"host={quote(host, safe='') or '__HIVE_DEFAULT_PARTITION__'}"


def new_path(table: str, about: About, time: int) -> str:
    """Choose the path of a new file, which no other file has.

    Args:
        table: The table.
        about: The host and the machine.
        time: The time of the first row.
    """
    moment = _utc(time).strftime("%Y%m%dT%H%M%SZ")
    name = f"part-{about.machine[:8]}-{moment}-{secrets.token_hex(4)}.parquet"
    return f"{table}/{host_folder(about.host)}/date={date_of(time)}/{name}"


def is_part(name: str, machine: str | None = None) -> bool:
    """Whether a file name is that of a recorded file, of a certain machine if one is given.

    >>> is_part("part-00112233-20260102T030405Z-a1b2c3d4.parquet", "0011223344556677")
    True
    """
    match = _PART.fullmatch(name)
    return match is not None and (machine is None or match[1] == machine[:8])


def check_path(path: str) -> bool:
    """Whether a path is that of a recorded file in a dataset."""
    words = path.split("/")
    return (
        len(words) == 4
        and words[0] in TABLES
        and words[1].startswith("host=")
        and _DATE.fullmatch(words[2]) is not None
        and is_part(words[3])
    )


def write(file: BinaryIO, table: str, rows: Any, about: About) -> None:
    """Write a file of Parquet.

    Args:
        file: The file.
        table: The table.
        rows: A pyarrow.Table of the rows, without the columns of CONSTANT.
        about: The values of these columns.
    """
    import pyarrow
    import pyarrow.parquet

    schema = arrow_schema(table, pyarrow, about.metadata())
    columns = []
    for field in schema:
        if field.name in CONSTANT:
            value = pyarrow.array([getattr(about, field.name)], field.type.value_type)
            indices = pyarrow.repeat(pyarrow.scalar(0, pyarrow.int32()), rows.num_rows)
            columns.append(pyarrow.DictionaryArray.from_arrays(indices, value))
        else:
            column = rows.column(field.name).combine_chunks()
            columns.append(column.cast(field.type))
    pyarrow.parquet.write_table(
        pyarrow.Table.from_arrays(columns, schema=schema),
        file,
        compression="zstd",
        row_group_size=ROWS_IN_GROUP,
    )
