# SPDX-License-Identifier: GPL-2.0-or-later
"""A parser of the pages of the kernel's trace buffer, as trace_pipe_raw returns them.

The text of trace_pipe can't be parsed reliably: names may contain spaces, pointers are hashed, and
each event has its own text format. The binary records have fixed offsets.

Source: kernel/trace/ring_buffer.c, include/linux/ring_buffer.h, events/header_page
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

# The time of the first record; then the size of the page's data in bytes, with flags in the upper
# bits.
HEADER = struct.Struct("<QQ")
SIZE_MASK = (1 << 27) - 1

PADDING, TIME_EXTEND, TIME_STAMP = 29, 30, 31
# A time stamp has 59 bits. The upper bits come from the page's own time.
STAMP_MASK = (1 << 59) - 1

# The beginning of every record: the event's number, flags, the preemption count, the thread.
COMMON = struct.Struct("<HBBi")


class Record(NamedTuple):
    """A record of one event.

    Args:
        time_ns: The time in nanoseconds, by the buffer's clock.
        content: The record's bytes, from the event's number on.
    """

    time_ns: int
    content: bytes

    @property
    def number(self) -> int:
        """The event's number."""
        return int.from_bytes(self.content[:2], "little")

    @property
    def tid(self) -> int:
        """The running thread."""
        return int(COMMON.unpack_from(self.content)[3])


def iter_records(page: bytes) -> Iterator[Record]:
    """Yield the records of a page, in their order.

    Args:
        page: The bytes that one read of trace_pipe_raw returned.
    """
    time, size = HEADER.unpack_from(page)
    at, end = HEADER.size, HEADER.size + (size & SIZE_MASK)
    while at + 4 <= min(end, len(page)):
        (word,) = struct.unpack_from("<I", page, at)
        kind, delta = word & 31, word >> 5
        more = int.from_bytes(page[at + 4 : at + 8], "little")
        if kind == TIME_STAMP:
            time = (time & ~STAMP_MASK) | (delta + (more << 27))
            at += 8
        elif kind == TIME_EXTEND:
            time += delta + (more << 27)
            at += 8
        elif kind == PADDING:
            if not delta:  # the end of this page's data
                return
            time += delta
            at += 4 + more
        else:
            time += delta
            start, stop = (at + 4, at + 4 + 4 * kind) if kind else (at + 8, at + 4 + more)
            yield Record(time, page[start:stop])
            at = stop


class StackMatcher:
    """Matches the records of one processor with their stacks, which follow as separate records.

    An interrupt can come between a record and its stack, with its own record and stack. A stack
    therefore belongs to the last record of its thread that has no stack yet.

    Args:
        number: The event number of kernel_stack, whose records are the stacks.
        size_offset: The offset of the number of addresses in a stack's record.
        first_offset: The offset of the first address in a stack's record.
    """

    def __init__(self, number: int, size_offset: int, first_offset: int) -> None:
        self._number = number
        self._size_offset = size_offset
        self._first_offset = first_offset
        self._waiting: list[Record] = []

    def feed(self, record: Record) -> tuple[Record, tuple[int, ...]] | None:
        """Take one record. If it is a stack, return the record it belongs to, with the stack."""
        if record.number != self._number:
            self._waiting.append(record)
            return None
        for at in reversed(range(len(self._waiting))):
            if self._waiting[at].tid == record.tid:
                return self._waiting.pop(at), self._addresses(record.content)
        return None  # the record of this stack was lost

    def flush(self, before_ns: int | None = None) -> list[tuple[Record, tuple[int, ...]]]:
        """Return the records whose stacks were lost: all, or only those before a time."""
        lost = [r for r in self._waiting if before_ns is None or r.time_ns < before_ns]
        self._waiting = [r for r in self._waiting if r not in lost]
        return [(record, ()) for record in lost]

    def _addresses(self, content: bytes) -> tuple[int, ...]:
        (nr,) = struct.unpack_from("<i", content, self._size_offset)
        room = (len(content) - self._first_offset) // 8
        found = struct.unpack_from(f"<{max(0, min(nr, room))}Q", content, self._first_offset)
        # Kernels before 5.2 end a stack with a marker.
        return tuple(address for address in found if address not in (0, (1 << 64) - 1))
