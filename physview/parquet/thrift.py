# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads and writes Thrift's compact protocol, the format of Parquet's headers, within limits.

Source: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from typing import Any

MAX_DEPTH = 8
"""The maximum nesting of structs and lists. Parquet's own headers have six levels."""

# Types of the compact protocol. A bool field in a struct has its value in its type.
TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
_NUMBERS = (I16, I32, I64)


class Damage(ValueError):
    """The data of a file are not as expected; the text says what is wrong."""


class Reader:
    """Reads values from bytes, and refuses data that would need too much memory or time.

    Args:
        data: The bytes.
        at: Offset of the first value.
        budget: The maximum number of values to read in all.

    Attributes:
        at: Offset of the next value.
        budget: The number of values that may still be read.

    Raises:
        Damage: By every method, if the data are not valid or exceed a limit.
    """

    def __init__(self, data: bytes | memoryview, at: int = 0, budget: int = 10_000) -> None:
        self._data = data
        self.at = at
        self.budget = budget

    def byte(self) -> int:
        """Read one byte."""
        if self.at >= len(self._data):
            raise Damage("a header ends too early")
        self.at += 1
        return self._data[self.at - 1]

    def unsigned(self) -> int:
        """Read an unsigned number of up to 64 bits."""
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 63:
                raise Damage("a number in a header is too long")
        return value

    def number(self) -> int:
        """Read a signed number in zigzag encoding."""
        value = self.unsigned()
        return (value >> 1) ^ -(value & 1)

    def binary(self) -> bytes:
        """Read a byte string."""
        size = self.unsigned()
        if size > len(self._data) - self.at:
            raise Damage("a text in a header is longer than the file")
        self.at += size
        return bytes(self._data[self.at - size : self.at])

    def begin_list(self) -> tuple[int, int]:
        """Read the header of a list: the type and the number of its items."""
        byte = self.byte()
        nr = byte >> 4 if byte >> 4 < 15 else self.unsigned()
        if nr > len(self._data) - self.at:
            raise Damage("a list in a header has more items than the file has room for")
        return byte & 0xF, nr

    def next_field(self, last: int) -> tuple[int, int]:
        """Read the header of the next field of a struct: its number and its type.

        Args:
            last: The number of the previous field; 0 for the first field.

        Returns:
            Number and type; (0, 0) at the end of the struct.
        """
        byte = self.byte()
        if byte == 0:
            return 0, 0
        number = last + (byte >> 4) if byte >> 4 else self.number()
        if not last < number < 1 << 15:  # all writers write fields in order
            raise Damage("fields of a header are not in order")
        return number, byte & 0xF

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Read a struct: its fields by number, as ints, bools, bytes, lists and dicts."""
        found: dict[int, Any] = {}
        last = 0
        while True:
            last, kind = self.next_field(last)
            if not kind:
                return found
            found[last] = kind == TRUE if kind in (TRUE, FALSE) else self.value(kind, depth + 1)

    def value(self, kind: int, depth: int = 0) -> Any:
        """Read a value of the type `kind`."""
        self.budget -= 1
        if self.budget < 0 or depth > MAX_DEPTH:
            raise Damage("a header has more values than any writer makes")
        if kind in _NUMBERS:
            return self.number()
        if kind == BINARY:
            return self.binary()
        if kind == STRUCT:
            return self.struct(depth)
        if kind in (LIST, SET):
            item, nr = self.begin_list()
            if nr > self.budget:
                raise Damage("a header has more values than any writer makes")
            return [self.value(item, depth + 1) for _ in range(nr)]
        if kind in (TRUE, FALSE, BYTE):
            return self.byte()
        if kind == DOUBLE:
            if len(self._data) - self.at < 8:
                raise Damage("a header ends too early")
            self.at += 8
            return 0.0  # skip it: physview needs no double
        raise Damage(f"a header has a value of the unknown type {kind}")


def write_struct(fields: dict[int, Any]) -> bytes:
    """Encode a struct.

    Args:
        fields: The fields by number. A value is an int (written as i64), an `I32Value` (written as
            i32), bytes, a dict (a struct), or a list of values of one of these types.

    >>> Reader(write_struct({1: I32Value(-3), 4: b"a", 9: [{1: 2}]})).struct()
    {1: -3, 4: b'a', 9: [{1: 2}]}
    """
    out = bytearray()
    last = 0
    for number, value in fields.items():
        kind = _kind(value)
        if 0 < number - last < 16:
            out.append((number - last) << 4 | kind)
        else:
            out.append(kind)
            out += _zigzag(number)
        out += _value(value)
        last = number
    out.append(0)
    return bytes(out)


class I32Value(int):
    """An int that is written as Thrift's i32 instead of i64."""


def _kind(value: Any) -> int:
    if isinstance(value, int):
        return I32 if isinstance(value, I32Value) else I64
    if isinstance(value, bytes):
        return BINARY
    return LIST if isinstance(value, list) else STRUCT


def _value(value: Any) -> bytes:
    if isinstance(value, int):
        return _zigzag(value)
    if isinstance(value, bytes):
        return _unsigned(len(value)) + value
    if isinstance(value, dict):
        return write_struct(value)
    nr, kind = len(value), _kind(value[0])
    head = bytes([nr << 4 | kind]) if nr < 15 else bytes([0xF0 | kind]) + _unsigned(nr)
    return head + b"".join(map(_value, value))


def _zigzag(value: int) -> bytes:
    return _unsigned(value << 1 if value >= 0 else (-value << 1) - 1)


def _unsigned(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
