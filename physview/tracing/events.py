# SPDX-License-Identifier: GPL-2.0-or-later
"""Trace events: their data types, and a parser of the kernel's format description of their fields.

The format files are events/SUBSYSTEM/EVENT/format in tracefs.
"""

from __future__ import annotations

import ast
import os
import re
import struct
from collections.abc import Mapping
from typing import NamedTuple

Value = int | str | tuple[int, ...]


class StackFrame(NamedTuple):
    """One function of a kernel stack.

    Args:
        address: The return address within the function. For the innermost function, the address of
            the present instruction.
        symbol: The function's name; "" if it is unknown.
        offset: The address's offset from the function's beginning, in bytes.
        module: The kernel module that contains the function; "" for the kernel itself.
    """

    address: int
    symbol: str
    offset: int
    module: str

    def __str__(self) -> str:
        if not self.symbol:
            return f"{self.address:#x}"
        return f"{self.symbol} [{self.module}]" if self.module else self.symbol


class Event(NamedTuple):
    """One event in the kernel.

    Args:
        time_ns: The time in nanoseconds of CLOCK_MONOTONIC.
        cpu: The processor's number.
        tid: The running thread; 0 if the processor was idle.
        comm: The thread's name; "" if it is no longer known.
        name: The name of the event or of the probed function.
        fields: The event's values by the kernel's field names. Flags are text, arrays are tuples.
        addresses: The names of the fields that are virtual addresses.
        in_hex: The names of the fields that read best in hexadecimal. All addresses are among them.
        stack: The kernel functions, innermost first; empty if no stacks are recorded.
    """

    time_ns: int
    cpu: int
    tid: int
    comm: str
    name: str
    fields: dict[str, Value]
    addresses: frozenset[str]
    in_hex: frozenset[str]
    stack: tuple[StackFrame, ...]

    def number(self, field: str) -> int:
        """The value of a field; 0 if the event does not have it, or if it is no number."""
        value = self.fields.get(field)
        return value if isinstance(value, int) else 0


class RawEvent(NamedTuple):
    """An event as a source returns it: the stack is addresses, without function names.

    The members are as in `Event`. `comm` is None if the source does not know the thread's name.
    """

    time_ns: int
    cpu: int
    tid: int
    comm: str | None
    name: str
    fields: dict[str, Value]
    addresses: frozenset[str]
    in_hex: frozenset[str]
    stack: tuple[int, ...]


class Losses(NamedTuple):
    """Counts of lost events.

    Args:
        overrun: The number of events lost because a buffer was full.
        throttled: How often the kernel paused tracing because events came too fast.
    """

    overrun: int
    throttled: int


# The sizes in bytes of C types, and whether they have a sign. The kernel stores every argument of a
# system call in 8 bytes, without extending its sign.
# Source: syscall_enter_define_fields() in kernel/trace/trace_syscalls.c, include/linux/types.h
_TYPES = {
    **dict.fromkeys(("int", "pid_t", "clockid_t", "timer_t", "mqd_t", "key_t"), (4, True)),
    **dict.fromkeys(("s32", "__s32", "key_serial_t", "rwf_t"), (4, True)),
    **dict.fromkeys(("unsigned int", "unsigned", "u32", "__u32"), (4, False)),
    **dict.fromkeys(("uid_t", "gid_t", "qid_t"), (4, False)),
    **dict.fromkeys(("short", "s16", "__s16"), (2, True)),
    **dict.fromkeys(("unsigned short", "umode_t", "u16", "__u16", "__be16", "__le16"), (2, False)),
    **dict.fromkeys(("unsigned char", "u8", "__u8", "uint8_t", "bool"), (1, False)),
    **dict.fromkeys(("s8", "__s8", "signed char"), (1, True)),
    **dict.fromkeys(("long", "loff_t", "off_t", "ssize_t", "s64", "__s64"), (8, True)),
    **dict.fromkeys(("unsigned long", "size_t", "u64", "__u64", "dma_addr_t"), (8, False)),
}
_DYNAMIC = re.compile(r"__(?:data|rel)_loc ")


class Field(NamedTuple):
    """One field of an event's records. The members are those of a line in the format file."""

    name: str
    kind: str
    offset: int
    size: int
    signed: bool

    def decode(self, record: bytes) -> Value:
        """Return the field's value in a record."""
        if _DYNAMIC.match(self.kind):
            (where,) = struct.unpack_from("<I", record, self.offset)
            start, size = where & 0xFFFF, where >> 16
            if self.kind.startswith("__rel_loc"):
                start += self.offset + self.size
            return self._several(record[start : start + size])
        content = record[self.offset : self.offset + self.size]
        if self.is_array or self.size not in (1, 2, 4, 8):
            return self._several(content)
        size, signed = _TYPES.get(self.element, (self.size, self.signed))
        return int.from_bytes(content[:size], "little", signed=signed)

    @property
    def is_array(self) -> bool:
        """Whether the field is an array of a size that the format tells."""
        return self.kind.endswith("]") and not _DYNAMIC.match(self.kind)

    @property
    def element(self) -> str:
        """The C type of the field, or of the elements of the array."""
        kind = _DYNAMIC.sub("", self.kind).partition("[")[0]
        return kind.removeprefix("const ").strip(" ")

    def _several(self, content: bytes) -> Value:
        """Return an array's value: text, numbers, or bytes in hexadecimal."""
        if self.element == "char":
            return os.fsdecode(content.split(b"\0")[0])
        size, signed = _TYPES.get(self.element, (self._element_size(), self.signed))
        if size == 1 or len(content) % size:
            return content.hex()
        starts = range(0, len(content), size)
        return tuple(
            int.from_bytes(content[at : at + size], "little", signed=signed) for at in starts
        )

    def _element_size(self) -> int:
        length = re.search(r"\[(\d+)\]$", self.kind)
        size = self.size // int(length[1]) if length and int(length[1]) else 0
        return size if size in (2, 4, 8) else 1


class Format(NamedTuple):
    """The layout of an event's records.

    Args:
        name: The event's name.
        number: The event's number, with which its records begin.
        fields: The event's own fields, in the kernel's order.
        addresses: The names of the fields that are virtual addresses.
        in_hex: The names of these, and of the other fields that the kernel prints in hexadecimal.
        flags: For each field of flags, the value and name of each flag, in the kernel's order.
    """

    name: str
    number: int
    fields: tuple[Field, ...]
    addresses: frozenset[str]
    in_hex: frozenset[str]
    flags: Mapping[str, tuple[tuple[int, str], ...]]

    def decode(self, record: bytes) -> dict[str, Value]:
        """Return a record's values by field names. Flags are text, made of the flags' names."""
        fields = {field.name: field.decode(record) for field in self.fields}
        for name, flags in self.flags.items():
            value = fields.get(name)
            if isinstance(value, int):
                fields[name] = flag_text(value, flags)
        return fields


def flag_text(value: int, flags: tuple[tuple[int, str], ...]) -> str:
    """Return flags as text, in the format of the kernel's trace_print_flags_seq().

    >>> flag_text(7, ((6, "SIX"), (2, "TWO"))), flag_text(0, ())
    ('SIX|0x1', 'none')
    """
    names = []
    for mask, name in flags:
        if mask and value & mask == mask:
            names.append(name)
            value &= ~mask
    if value:
        names.append(hex(value))
    return "|".join(names) or "none"


_FLAGS = re.compile(r"__print_flags\(REC->(\w+),[^{]*((?:\{[^}]*\},?\s*)+)")
_FLAG = re.compile(r"\{([^{}]*),\s*\"([^\"]*)\"\s*\}")
_CAST = re.compile(r"\(\s*(?:unsigned|long|int|gfp_t)(?:\s+(?:long|int))?\s*\)")


def _parse_flags(printed: str) -> dict[str, tuple[tuple[int, str], ...]]:
    """Return the flags' names of each field whose format gives their values as constants."""
    found = {}
    for match in _FLAGS.finditer(printed):
        try:
            found[match[1]] = tuple(
                (_constant(expression), name) for expression, name in _FLAG.findall(match[2])
            )
        except (ValueError, SyntaxError):  # not a constant: the field stays a number
            continue
    return found


def _constant(expression: str) -> int:
    """Return the value of a constant expression in C.

    >>> _constant("( unsigned long)((( gfp_t)(0x400u|0x800u)) & ~((gfp_t)(((1UL))) << (10)))")
    2048
    """
    text = re.sub(r"\b(0x[0-9a-fA-F]+|[0-9]+)[uUlL]+", r"\1", _CAST.sub("", expression))
    return _value(ast.parse(text.strip(" "), mode="eval").body)


def _value(node: ast.expr) -> int:
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.UnaryOp(op=ast.Invert(), operand=operand):
            return ~_value(operand)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _value(left) | _value(right)
        case ast.BinOp(left=left, op=ast.BitAnd(), right=right):
            return _value(left) & _value(right)
        case ast.BinOp(left=left, op=ast.LShift(), right=right):
            return _value(left) << _value(right)
    raise ValueError("not a constant")


_FIELD = re.compile(
    r"field:(?P<kind>.*?)\s*\b(?P<name>\w+)(?P<array>\[[^\]]*\])?;\s*"
    r"offset:(?P<offset>\d+);\s*size:(?P<size>\d+);\s*signed:(?P<signed>\d)"
)
# Fields that repeat the probe's location. The stack tells it already.
_HIDDEN = ("__probe_ip", "__probe_func", "__probe_ret_ip")
# The kernel prints frame numbers in hexadecimal or in decimal, depending on the event. physview
# always prints them in hexadecimal.
_PFN = re.compile(r"(?:^|_)pfn$")
# Fields of type unsigned long by these names are virtual addresses. Others that the kernel prints
# in hexadecimal are flags, error codes, page table entries, and addresses of devices.
_ADDRESSES = frozenset(
    (
        *("addr", "address", "call_site", "ip", "start_ip", "regs_ip", "abort_ip", "sa_handler"),
        *("start", "end", "vstart", "vend", "va_start", "va_end", "vm_start", "vm_end"),
    )
)


def parse_format(data: bytes) -> Format:
    r"""Parse events/SUBSYSTEM/EVENT/format. Source: f_show() in kernel/trace/trace_events.c

    >>> text = b"name: a\nID: 7\nformat:\n\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n"
    >>> text += b"\n\tfield:const void * p;\toffset:8;\tsize:8;\tsigned:0;\n\nprint fmt: \"p=%p\""
    >>> parse_format(text).decode(bytes(8) + b"\x10" + bytes(7))
    {'p': 16}
    """
    text = data.decode("utf-8", "replace")
    name = re.search(r"^name: (.*)$", text, re.MULTILINE)
    number = re.search(r"^ID: (\d+)$", text, re.MULTILINE)
    if not name or not number:
        raise ValueError("not the format of an event")
    printed = text.partition("print fmt:")[2].split('",')[0]
    by_pointer = set(re.findall(r"(\w+)=%p", printed))
    in_hex = set(re.findall(r"(\w+)=(?:0x)?%[0-9]*l*[xX]", printed, re.IGNORECASE))
    fields = [
        Field(
            match["name"],
            f"{match['kind']}{match['array'] or ''}",
            int(match["offset"]),
            int(match["size"]),
            match["signed"] == "1",
        )
        for match in _FIELD.finditer(text)
    ]
    own = tuple(f for f in fields if not f.name.startswith("common_") and f.name not in _HIDDEN)
    addresses = {f.name for f in own if _is_address(f, by_pointer)}
    in_hex = {f.name for f in own if f.name in in_hex or _PFN.search(f.name)} | addresses
    if "%lx" in printed:  # the elements of arrays have no names there
        in_hex |= {f.name for f in own if f.is_array and f.element == "unsigned long"}
    flags = _parse_flags(text.partition("print fmt:")[2])
    return Format(name[1], int(number[1]), own, frozenset(addresses), frozenset(in_hex), flags)


def _is_address(field: Field, by_pointer: set[str]) -> bool:
    """Whether a field is a virtual address.

    Args:
        field: The field.
        by_pointer: The names of the fields that the kernel prints as pointers.
    """
    if field.size != 8 or field.is_array:
        return False
    named = field.element == "unsigned long" and field.name in _ADDRESSES
    return field.kind.endswith("*") or field.name in by_pointer or named
