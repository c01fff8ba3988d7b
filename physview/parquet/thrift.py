# SPDX-License-Identifier: GPL-2.0-or-later
"""The compact protocol of Thrift, which Parquet's headers are in: read within bounds, and written.

Source: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from typing import Any

MAX_DEPTH = 8
"""How many structs and lists of Parquet's lie in each other: six do."""

# Types of the compact protocol; a bool in a struct is its own type.
TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
_NUMBERS = (I16, I32, I64)


class Damage(ValueError):
    """What is read is not what was expected; the text says what it is."""


class Reader:
    """Reads from bytes, and refuses what would take more than it is worth.

    Args:
        data: What is read.
        at: Where to begin.
        budget: How many values may be read in all.

    Attributes:
        at: Where the next value begins.
    """

    def __init__(self, data: bytes | memoryview, at: int = 0, budget: int = 10_000) -> None:
        self._data = data
        self.at = at
        self.budget = budget

    def byte(self) -> int:
        """One byte."""
        if self.at >= len(self._data):
            raise Damage("a header ends too early")
        self.at += 1
        return self._data[self.at - 1]

    def unsigned(self) -> int:
        """A number without a sign, of up to 64 bits."""
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
        """A number with a sign, as zigzag."""
        value = self.unsigned()
        return (value >> 1) ^ -(value & 1)

    def binary(self) -> bytes:
        """A string of bytes."""
        size = self.unsigned()
        if size > len(self._data) - self.at:
            raise Damage("a text in a header is longer than the file")
        self.at += size
        return bytes(self._data[self.at - size : self.at])

    def begin_list(self) -> tuple[int, int]:
        """Type and number of the items that follow."""
        byte = self.byte()
        nr = byte >> 4 if byte >> 4 < 15 else self.unsigned()
        if nr > len(self._data) - self.at:
            raise Damage("a list in a header has more items than the file has room for")
        return byte & 0xF, nr

    def next_field(self, last: int) -> tuple[int, int]:
        """Number and type of the next field of a struct; type 0 at its end.

        Args:
            last: The number of the field before; 0 at the beginning.
        """
        byte = self.byte()
        if byte == 0:
            return 0, 0
        number = last + (byte >> 4) if byte >> 4 else self.number()
        if not last < number < 1 << 15:  # writers put them in order
            raise Damage("fields of a header are not in order")
        return number, byte & 0xF

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """A struct as its fields by number: ints, bytes, lists and structs."""
        found: dict[int, Any] = {}
        last = 0
        while True:
            last, kind = self.next_field(last)
            if not kind:
                return found
            found[last] = kind == TRUE if kind in (TRUE, FALSE) else self.value(kind, depth + 1)

    def value(self, kind: int, depth: int = 0) -> Any:
        """A value of a type."""
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
            return 0.0  # nothing here needs one
        raise Damage(f"a header has a value of the unknown type {kind}")


def write_struct(fields: dict[int, Any]) -> bytes:
    """A struct of ints, which become i64, bytes, lists of one kind of these, and structs.

    Parquet's i32 are told by `I32Value`.

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
    """A number that Thrift has 32 bits for."""


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
