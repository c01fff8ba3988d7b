# SPDX-License-Identifier: GPL-2.0-or-later
"""Lends columns to other programs through Arrow's PyCapsule protocol, without copying them.

The core makes Arrow's structures (csrc/arrow.c). They point into the memory of the NumPy arrays,
and keep these arrays alive until the last structure is released.

Source: https://arrow.apache.org/docs/format/CDataInterface/PyCapsuleInterface.html
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from physview import _ffi

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Arrow's name of each NumPy type, by its kind and its size in bytes.
FORMATS = {
    "u1": "C", "u2": "S", "u4": "I", "u8": "L",
    "i1": "c", "i2": "s", "i4": "i", "i8": "l",
    "f4": "f", "f8": "g",
    "b1": "b",
}  # fmt: skip


class Lent(NamedTuple):
    """A column to lend.

    Args:
        name: Its name.
        values: Array, shape (n,), contiguous; or int32 indices of `words`. Booleans are copied,
            because Arrow packs eight of them into a byte.
        valid: Bool array, shape (n,): which rows have a value; None if all have one.
        words: The texts that `values` refer to; None for a column of numbers.
        metadata: What is told of the column.
    """

    name: str
    values: npt.NDArray[Any]
    valid: npt.NDArray[np.bool_] | None
    words: Sequence[str] | None
    metadata: Mapping[str, str]


class _Owner:
    """Keeps everything that Arrow's structures point to."""

    def __init__(
        self, columns: Sequence[Lent], nr_rows: int, metadata: Mapping[str, str], *, rows: bool
    ) -> None:
        self._ffi, self._lib = _ffi.load()
        self._kept: list[Any] = []
        table = self._ffi.new("struct pv_columns *")
        entries = self._ffi.new("struct pv_column[]", max(1, len(columns)))
        for entry, column in zip(entries, columns, strict=False):
            self._describe(entry, column)
            if rows:
                self._lend(entry, column)
        table.nr_rows, table.nr, table.columns = nr_rows, len(columns), entries
        table.metadata = self._keep(encode_metadata(metadata))
        table.owner = self._ffi.cast("void *", id(self))
        self._kept.append(entries)
        self.table = table

    def _keep(self, data: bytes) -> Any:
        kept = self._ffi.new("char[]", data)
        self._kept.append(kept)
        return kept

    def _describe(self, entry: Any, column: Lent) -> None:
        import numpy as np

        kind = f"{column.values.dtype.kind}{column.values.dtype.itemsize}"
        entry.name = self._keep(column.name.encode(errors="backslashreplace"))
        entry.format = self._keep(FORMATS[kind].encode())
        entry.metadata = self._keep(encode_metadata(column.metadata))
        if column.valid is not None:  # a schema, too, says whether the column can have nulls
            entry.validity = self._address(np.packbits(column.valid, bitorder="little"))
        if column.words is not None:
            texts = [word.encode() for word in column.words]
            offsets = np.zeros(len(texts) + 1, dtype=np.int32)
            np.cumsum([len(text) for text in texts], out=offsets[1:])
            entry.nr_words = len(texts)
            entry.word_offsets = self._ffi.cast("int32_t *", self._address(offsets))
            entry.words = self._keep(b"".join(texts))

    def _lend(self, entry: Any, column: Lent) -> None:
        import numpy as np

        values = column.values
        if values.dtype == np.bool_:
            values = np.packbits(values, bitorder="little")
        entry.values = self._address(values)
        if column.valid is not None:
            entry.nr_null = len(column.valid) - int(np.count_nonzero(column.valid))

    def _address(self, array: npt.NDArray[Any]) -> Any:
        assert array.flags.c_contiguous
        self._kept.append(array)
        return self._ffi.cast("void *", array.__array_interface__["data"][0])

    def capsule(self, kind: str) -> Any:
        """Make a capsule of "stream" or of "schema" that keeps this object."""
        import ctypes

        _use_python()
        make, name = {
            "stream": (self._lib.pv_arrow_stream, self._lib.pv_arrow_stream_name()),
            "schema": (self._lib.pv_arrow_schema, self._lib.pv_arrow_schema_name()),
        }[kind]
        held = ctypes.py_object(self)
        ctypes.pythonapi.Py_IncRef(held)  # until the core calls Py_DecRef
        found = make(self.table)
        if not found:
            ctypes.pythonapi.Py_DecRef(held)
            raise MemoryError
        end = self._ffi.addressof(self._lib, f"pv_arrow_end_{kind}")
        pointers = (int(self._ffi.cast("uintptr_t", each)) for each in (found, name, end))
        new = ctypes.PYFUNCTYPE(ctypes.py_object, *[ctypes.c_void_p] * 3)
        return new(("PyCapsule_New", ctypes.pythonapi))(*pointers)


@functools.cache
def _use_python() -> None:
    """Tell the core how to let go of a Python object."""
    import ctypes

    ffi, lib = _ffi.load()
    functions = ffi.new("struct pv_python *")
    kinds = dict(ffi.typeof("struct pv_python").fields)
    for member, name in (
        ("is_initialized", "Py_IsInitialized"),
        ("lock", "PyGILState_Ensure"),
        ("unlock", "PyGILState_Release"),
        ("drop", "Py_DecRef"),
        ("pointer_of", "PyCapsule_GetPointer"),
    ):
        address = ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value
        setattr(functions, member, ffi.cast(kinds[member].type, address))
    lib.pv_arrow_use(functions)


def encode_metadata(pairs: Mapping[str, str]) -> bytes:
    """Encode names and values as Arrow's C data interface wants them.

    >>> encode_metadata({"unit": "bytes"}).hex(" ")
    '01 00 00 00 04 00 00 00 75 6e 69 74 05 00 00 00 62 79 74 65 73'
    """
    import struct

    parts = [struct.pack("=i", len(pairs))]
    for pair in pairs.items():
        for text in pair:
            data = text.encode(errors="backslashreplace")
            parts += [struct.pack("=i", len(data)), data]
    return b"".join(parts)


def stream(columns: Sequence[Lent], nr_rows: int, metadata: Mapping[str, str]) -> Any:
    """Make what `__arrow_c_stream__` returns: a capsule of one batch of rows.

    Args:
        columns: The columns, each of `nr_rows` rows.
        nr_rows: The number of rows.
        metadata: What is told of the table.

    Raises:
        CoreUnavailable: The core is not built.
    """
    return _Owner(columns, nr_rows, metadata, rows=True).capsule("stream")


def schema(columns: Sequence[Lent], metadata: Mapping[str, str]) -> Any:
    """Make what `__arrow_c_schema__` returns: a capsule that describes the columns.

    Args:
        columns: The columns; their rows are not looked at.
        metadata: What is told of the table.

    Raises:
        CoreUnavailable: The core is not built.
    """
    return _Owner(columns, 0, metadata, rows=False).capsule("schema")
