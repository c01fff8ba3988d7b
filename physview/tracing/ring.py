# SPDX-License-Identifier: GPL-2.0-or-later
"""The records in a page of the kernel's trace buffer, as trace_pipe_raw hands it out.

The text of trace_pipe would have to be guessed apart: names may hold blanks, pointers are hashed,
and each event prints in its own way. In the buffer everything has its place.

Source: kernel/trace/ring_buffer.c, include/linux/ring_buffer.h, events/header_page
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

# The time of the first record, then how many bytes follow, above which are flags.
HEADER = struct.Struct("<QQ")
SIZE_MASK = (1 << 27) - 1

PADDING, TIME_EXTEND, TIME_STAMP = 29, 30, 31
# A time stamp has 59 bits; those above it are of the page's own time.
STAMP_MASK = (1 << 59) - 1

# Every record begins so: its event's number, flags, preemption count, thread.
COMMON = struct.Struct("<HBBi")


class Record(NamedTuple):
    """A record.

    Args:
        time_ns: When, by the buffer's clock.
        content: What it holds, from the event's number on.
    """

    time_ns: int
    content: bytes

    @property
    def number(self) -> int:
        """Which event it is of."""
        return int.from_bytes(self.content[:2], "little")

    @property
    def tid(self) -> int:
        """The thread that ran."""
        return int(COMMON.unpack_from(self.content)[3])


def iter_records(page: bytes) -> Iterator[Record]:
    """Yield the records of a page, in their order.

    Args:
        page: What one read of trace_pipe_raw gave.
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
            if not delta:  # nothing more on this page
                return
            time += delta
            at += 4 + more
        else:
            time += delta
            start, stop = (at + 4, at + 4 + 4 * kind) if kind else (at + 8, at + 4 + more)
            yield Record(time, page[start:stop])
            at = stop


class Stacks:
    """Brings the records of one processor together with their stacks, which follow them.

    An interrupt may come between the two, with a record and a stack of its own; so a stack belongs
    to the last record of its thread that has none.

    Args:
        number: The number of kernel_stack, whose records are the stacks.
        size_offset: Where in these is the number of addresses.
        first_offset: Where the first is.
    """

    def __init__(self, number: int, size_offset: int, first_offset: int) -> None:
        self._number = number
        self._size_offset = size_offset
        self._first_offset = first_offset
        self._waiting: list[Record] = []

    def feed(self, record: Record) -> tuple[Record, tuple[int, ...]] | None:
        """Take a record; return one that is whole now, with its stack, if there is any."""
        if record.number != self._number:
            self._waiting.append(record)
            return None
        for at in reversed(range(len(self._waiting))):
            if self._waiting[at].tid == record.tid:
                return self._waiting.pop(at), self._addresses(record.content)
        return None  # of a record that was lost

    def flush(self, before_ns: int | None = None) -> list[tuple[Record, tuple[int, ...]]]:
        """Give up waiting: records whose stack was lost, of before a time or all."""
        lost = [r for r in self._waiting if before_ns is None or r.time_ns < before_ns]
        self._waiting = [r for r in self._waiting if r not in lost]
        return [(record, ()) for record in lost]

    def _addresses(self, content: bytes) -> tuple[int, ...]:
        (nr,) = struct.unpack_from("<i", content, self._size_offset)
        room = (len(content) - self._first_offset) // 8
        found = struct.unpack_from(f"<{max(0, min(nr, room))}Q", content, self._first_offset)
        # Kernels before 5.2 end a stack with a marker.
        return tuple(address for address in found if address not in (0, (1 << 64) - 1))
