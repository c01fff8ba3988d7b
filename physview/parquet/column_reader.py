# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads columns of numbers from an untrusted Parquet file, in bounded memory.

Arrow trusts the sizes in the headers of a file: a page of one kilobyte may claim that it unpacks to
2 GiB. So Arrow never gets the file itself. This module reads the headers and checks them against
limits, which are far above the sizes in physview's own files. Then it copies the bytes of one row
group into a small file in memory, with a new footer, and Arrow unpacks the small file.

Source: https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

from physview.files.descriptor import Descriptor
from physview.parquet.thrift import LIST, STRUCT, Damage, I32Value, Reader, write_struct
from physview.runtime.extras import need

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Limits. They are well above the sizes that `snapshot_file.write_rows()` writes for the largest
# processes.
MAX_FOOTER_BYTES = 24 << 20
MAX_GROUPS = 1 << 12
MAX_ROWS_IN_GROUP = 1 << 16
MAX_COLUMNS = 64
# Eight bytes per row for the values, the same for a dictionary, and the bits that mark null rows.
MAX_CHUNK_BYTES = 2 * 8 * MAX_ROWS_IN_GROUP + (1 << 16)
# The maximum number of values in the header of a column or a page.
_VALUES_IN_COLUMN = 120

MAGIC = b"PAR1"
_INT32, _INT64 = 1, 2
_DATA_PAGE, _DICTIONARY_PAGE = 0, 2
_PLAIN, _PLAIN_DICTIONARY, _RLE, _RLE_DICTIONARY = 0, 2, 3, 8
_CODECS = (0, 1, 6)  # none, snappy, zstd
_OPTIONAL = 1
# NumPy's name of a type, by Parquet's physical and converted type.
_KINDS = {
    (_INT32, 11): "uint8",
    (_INT32, 13): "uint32",
    (_INT64, 14): "uint64",
    (_INT32, None): "int32",
    (_INT32, 17): "int32",
}


class StoredColumn(NamedTuple):
    """A column of the file.

    Args:
        at: Index of the column.
        kind: NumPy's name of its type; empty for types that this module does not read, such as
            text.
        element: The column's description in the file: type, repetition, name and converted type.
    """

    at: int
    kind: str
    element: dict[int, Any]


class Values(NamedTuple):
    """The values of one column in one row group.

    Args:
        data: Array, shape (n,): the values; the value of a null is meaningless.
        is_known: Bool array, shape (n,): False for a null.
    """

    data: npt.NDArray[Any]
    is_known: npt.NDArray[np.bool_]


class ParquetInput(Descriptor):
    """An untrusted Parquet file, open for reading. A context manager.

    Args:
        path: The file.
        key: Key of the metadata to keep.

    Attributes:
        columns: The columns by name.
        metadata: The metadata under `key`; empty if there are none.
        nr_rows: Number of rows in the file.
        nr_groups: Number of row groups.

    Raises:
        OSError: The file cannot be opened or read.
        Damage: The file is not a Parquet file, is damaged, or uses features that physview never
            writes.
    """

    def __init__(self, path: str, key: bytes) -> None:
        # O_NONBLOCK: opening a FIFO must not block.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        self._fd = os.open(path, flags)
        try:
            info = os.fstat(self._fd)
            if not stat.S_ISREG(info.st_mode):
                raise Damage("it is not a regular file")
            self._read_footer(info.st_size, key)
        except BaseException:
            self.close()
            raise

    def _read(self, at: int, size: int) -> bytes:
        parts = []
        while size:
            part = os.pread(self._fd, size, at)
            if not part:
                raise Damage("it ends too early")
            parts.append(part)
            at, size = at + len(part), size - len(part)
        return b"".join(parts)

    def _read_footer(self, size: int, key: bytes) -> None:
        if size < 12 or self._read(0, 4) != MAGIC:
            raise Damage("it does not begin as a Parquet file")
        tail = self._read(size - 8, 8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != MAGIC or length > size - 12:
            raise Damage("it does not end as a Parquet file")
        if length > MAX_FOOTER_BYTES:
            raise Damage(f"its footer has {length} bytes, more than {MAX_FOOTER_BYTES}")
        self._end = size - 8 - length
        footer = self._read(self._end, length)
        reader = Reader(footer)
        self.metadata: dict[bytes, bytes] = {}
        self.columns: dict[str, StoredColumn] = {}
        self._groups: list[bytes] = []
        self.nr_rows = 0
        number, nr_declared = 0, None
        while True:
            number, kind = reader.next_field(number)
            reader.budget = 10_000
            if not kind:
                break
            if number == 2:
                self._read_columns(reader.value(kind))
            elif number == 3:
                nr_declared = reader.value(kind)
            elif number == 4:
                self._read_groups(reader, kind, footer)
            elif number == 5:
                self._read_metadata(reader, kind, key)
            else:
                reader.value(kind)
        if not self.columns or self.nr_rows != nr_declared:
            raise Damage("its footer contradicts itself")

    def _read_columns(self, elements: Any) -> None:
        if not _are_structs(elements) or len(elements) > MAX_COLUMNS + 1:
            raise Damage("its footer does not describe its columns")
        root, *leaves = elements
        if _number(root, 5) != len(leaves):
            raise Damage("its columns are nested")
        for index, element in enumerate(leaves):
            name = element.get(4)
            if element.get(5) or not isinstance(name, bytes) or _number(element, 3) > _OPTIONAL:
                raise Damage("its columns are nested")
            kind = _KINDS.get((element.get(1, 0), element.get(6)), "")
            text = name.decode("utf-8", "replace")
            if text in self.columns:
                raise Damage("two columns have the same name")
            self.columns[text] = StoredColumn(index, kind, element)

    def _read_groups(self, reader: Reader, kind: int, footer: bytes) -> None:
        """Check the number of rows of each group, and keep the bytes that describe the group.

        `read_group()` parses these bytes again, so that the parsed headers need no memory.
        """
        item, nr = reader.begin_list() if kind == LIST else (0, 0)
        if nr > MAX_GROUPS or (nr and item != STRUCT):
            raise Damage(f"it has {nr} groups of rows, more than {MAX_GROUPS}")
        for _ in range(nr):
            start = reader.at
            reader.budget = _VALUES_IN_COLUMN * MAX_COLUMNS
            nr_rows = _number(reader.struct(), 3)
            if not 0 < nr_rows <= MAX_ROWS_IN_GROUP:
                raise Damage(f"a group has {nr_rows} rows, not from 1 to {MAX_ROWS_IN_GROUP}")
            self.nr_rows += nr_rows
            self._groups.append(footer[start : reader.at])

    def _read_metadata(self, reader: Reader, kind: int, key: bytes) -> None:
        item, nr = reader.begin_list() if kind == LIST else (0, 0)
        if nr > MAX_COLUMNS or item != STRUCT:
            raise Damage("its metadata are damaged")
        for _ in range(nr):
            pair = reader.struct()
            if pair.get(1) == key and isinstance(pair.get(2), bytes):
                self.metadata[key] = pair[2]

    @property
    def nr_groups(self) -> int:
        """The number of row groups."""
        return len(self._groups)

    def read_group(self, at: int, names: list[str]) -> dict[str, Values]:
        """Read columns of a row group.

        Args:
            at: Index of the group.
            names: Names of the columns. Each column must have a kind.

        Returns:
            The values of the columns by name.

        Raises:
            OSError: The file cannot be read.
            Damage: The group is damaged.
        """
        group = Reader(self._groups[at], budget=_VALUES_IN_COLUMN * MAX_COLUMNS).struct()
        nr_rows, chunks = _number(group, 3), group.get(1)
        if not _are_structs(chunks) or len(chunks) != len(self.columns):
            raise Damage("a group has more or fewer columns than the file")
        small, described = bytearray(MAGIC), []
        for name in names:
            about = chunks[self.columns[name].at].get(3)
            if not isinstance(about, dict):
                raise Damage(f"the place of column {name} is missing")
            start, size = self._locate(about)
            data = self._read(start, size)
            first_data = _check_pages(data, nr_rows, name)
            described.append(_chunk(about, name, nr_rows, len(small), size, first_data))
            small += data
        elements = [self.columns[name].element for name in names]
        return _unpack(bytes(small + _footer(elements, described, nr_rows)), names, nr_rows)

    def _locate(self, about: dict[int, Any]) -> tuple[int, int]:
        """The offset and the size in bytes of a column in the file."""
        start, size = _number(about, 9), _number(about, 7)
        if 0 < _number(about, 11) < start:  # the dictionary is before the values
            start = _number(about, 11)
        if start < len(MAGIC) or not 0 < size <= min(MAX_CHUNK_BYTES, self._end - start):
            raise Damage("a column lies outside the file's data, or is too large")
        if _number(about, 4) not in _CODECS:
            raise Damage("a column has a compression that no snapshot uses")
        return start, size


def _number(fields: dict[int, Any], number: int) -> int:
    value = fields.get(number, 0)
    if isinstance(value, bool) or not isinstance(value, int):
        raise Damage("a number is missing in a header")
    return value


def _are_structs(value: Any) -> TypeGuard[list[dict[int, Any]]]:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _check_pages(data: bytes, nr_rows: int, name: str) -> int:
    """Check the page headers of a column.

    Returns:
        The offset in `data` of the first page with values.
    """
    at = nr_found = nr_bytes = 0
    first_data = -1
    has_dictionary = False
    while at < len(data):
        start, reader = at, Reader(data, at, _VALUES_IN_COLUMN)
        page = reader.struct()
        size, packed = _number(page, 2), _number(page, 3)
        nr_bytes += size
        if size < 0 or not 0 <= packed <= len(data) - reader.at or nr_bytes > MAX_CHUNK_BYTES:
            raise Damage(f"a page of column {name} has too many bytes")
        at = reader.at + packed
        if _number(page, 1) == _DICTIONARY_PAGE and start == 0:
            has_dictionary = True
            about, is_data = page.get(7), False
            encodings: tuple[int, ...] = (_PLAIN, _PLAIN_DICTIONARY)
        elif _number(page, 1) == _DATA_PAGE:
            about, is_data = page.get(5), True
            encodings = (_PLAIN, *((_PLAIN_DICTIONARY, _RLE_DICTIONARY) if has_dictionary else ()))
            first_data = start if first_data < 0 else first_data
        else:
            raise Damage(f"a page of column {name} has a type that no snapshot uses")
        if not isinstance(about, dict) or _number(about, 2) not in encodings:
            raise Damage(f"a page of column {name} has an encoding that no snapshot uses")
        nr = _number(about, 1)
        if not 0 <= nr <= nr_rows:
            raise Damage(f"a page of column {name} has {nr} values")
        nr_found += nr if is_data else 0
    if nr_found != nr_rows:
        raise Damage(f"column {name} has {nr_found} values for {nr_rows} rows")
    return first_data


def _chunk(
    about: dict[int, Any], name: str, nr_rows: int, start: int, size: int, first_data: int
) -> dict[int, Any]:
    """Describe a column's data, for the footer of a small file that has this column only.

    Args:
        about: What the original file's footer says of the column.
        name: The column.
        nr_rows: The number of rows.
        start: Where the column's data begins in the small file.
        size: The size of the data in bytes.
        first_data: Where the first page of values begins in the data, after a dictionary.
    """
    encodings = [I32Value(each) for each in (_PLAIN, _RLE, _RLE_DICTIONARY)]
    described = {
        1: I32Value(_number(about, 1)),
        2: encodings,
        3: [name.encode()],
        4: I32Value(_number(about, 4)),
        5: nr_rows,
        6: MAX_CHUNK_BYTES,
        7: size,
        9: start + first_data,
    }
    if first_data:
        described[11] = start
    return {2: start, 3: described}


def _footer(elements: list[dict[int, Any]], chunks: list[dict[int, Any]], nr_rows: int) -> bytes:
    schema: list[dict[int, Any]] = [{4: b"schema", 5: I32Value(len(elements))}]
    for element in elements:
        leaf: dict[int, Any] = {1: I32Value(element[1]), 3: I32Value(_number(element, 3))}
        leaf[4] = element[4]
        if 6 in element:
            leaf[6] = I32Value(_number(element, 6))
        schema.append(leaf)
    group = {1: chunks, 2: len(chunks) * MAX_CHUNK_BYTES, 3: nr_rows}
    footer = write_struct({1: I32Value(2), 2: schema, 3: nr_rows, 4: [group]})
    return footer + len(footer).to_bytes(4, "little") + MAGIC


def _unpack(data: bytes, names: list[str], nr_rows: int) -> dict[str, Values]:
    """Unpack a small file with Arrow into NumPy arrays."""
    what = "cannot read a snapshot"
    arrow, parquet = need("pyarrow", what), need("pyarrow.parquet", what)
    try:
        with parquet.ParquetFile(arrow.BufferReader(data), page_checksum_verification=True) as file:
            table = file.read_row_group(0, use_threads=False)
            found = {name: _to_numpy(table.column(name).chunks) for name in names}
    except MemoryError:  # ArrowMemoryError is a MemoryError, too
        raise
    except (arrow.ArrowException, OSError, ValueError, KeyError) as error:
        # For bad contents Arrow may raise OSError, too, but without errno.
        if isinstance(error, OSError) and error.errno:
            raise
        raise Damage(_first_line(error)) from None
    if any(len(values.data) != nr_rows for values in found.values()):
        raise Damage("a column has more or fewer rows than its header says")
    return found


def _to_numpy(chunks: list[Any]) -> Values:
    """Convert chunks of Arrow to NumPy arrays.

    Arrow's own conversion is not used, because it imports pandas if pandas is installed.
    """
    import numpy as np

    data: list[npt.NDArray[Any]] = []
    known: list[npt.NDArray[np.bool_]] = []
    for chunk in chunks:
        nr, start = len(chunk), chunk.offset
        valid, values = chunk.buffers()
        if values is None:  # Arrow may omit the buffer if all values are null
            values = bytes((start + nr) * np.dtype(str(chunk.type)).itemsize)
        data.append(np.frombuffer(values, str(chunk.type))[start : start + nr])
        if valid is None:
            known.append(np.ones(nr, dtype=bool))
        else:
            bits = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")
            known.append(bits[start : start + nr].astype(bool))
    return Values(np.concatenate(data), np.concatenate(known))


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
