# SPDX-License-Identifier: GPL-2.0-or-later
"""Which threads an event source keeps events of, where its breakpoints hold for the whole machine.

The kernel tells of each thread that starts, ends or calls exec(). Each processor has a buffer of
its own for these records and the samples, so they have to be put in the order of time.

Source: perf_event_open(2); perf_event_task() and perf_event_comm() in kernel/events/core.c
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

RECORD_COMM, RECORD_EXIT, RECORD_FORK = 3, 4, 7
"""The kinds of records about threads: PERF_RECORD_… in include/uapi/linux/perf_event.h"""

_MISC_COMM_EXEC = 1 << 13
# Of a thread that starts or ends: the process, its parent, the thread, and the thread that made it.
_TIDS = struct.Struct("<IIII")


class Record(NamedTuple):
    """A record of the kernel.

    Args:
        time_ns: When it was made, in ns of CLOCK_MONOTONIC.
        kind: PERF_RECORD_…
        misc: Its flags.
        content: The rest of it.
    """

    time_ns: int
    kind: int
    misc: int
    content: bytes


class FollowedThreads:
    """The threads whose events are kept.

    Args:
        tids: The threads at the start.
        follow: Whether to keep those of the threads and processes that these start, too.
        from_exec: Whether a thread's events are kept only from its next exec() on.

    >>> threads = FollowedThreads([7], follow=True, from_exec=False)
    >>> threads.see(Record(1, RECORD_FORK, 0, _TIDS.pack(8, 7, 8, 7)))
    >>> threads.see(Record(2, RECORD_EXIT, 0, _TIDS.pack(7, 1, 7, 1)))
    >>> 8 in threads, 7 in threads
    (True, False)
    """

    def __init__(self, tids: Sequence[int], *, follow: bool, from_exec: bool) -> None:
        self._active: set[int] = set() if from_exec else set(tids)
        self._waiting: set[int] = set(tids) if from_exec else set()
        self._ended: set[int] = set()
        self._follow = follow

    def __contains__(self, tid: int) -> bool:
        """Whether events of the thread are kept now."""
        return tid in self._active

    def see(self, record: Record) -> None:
        """Take note of a thread that starts, ends or calls exec(). Other records are ignored."""
        if record.kind == RECORD_FORK:
            _, _, tid, parent = _TIDS.unpack_from(record.content)
            for threads in (self._active, self._waiting, self._ended):
                threads.discard(tid)  # an earlier thread had this number
            for threads in (self._active, self._waiting):
                if self._follow and parent in threads:
                    threads.add(tid)
        elif record.kind == RECORD_EXIT:
            tid = _TIDS.unpack_from(record.content)[2]
            for threads in (self._active, self._waiting):
                if tid in threads:
                    threads.discard(tid)
                    self._ended.add(tid)
        elif record.kind == RECORD_COMM and record.misc & _MISC_COMM_EXEC:
            _, tid = struct.unpack_from("<II", record.content)
            # exec() in another thread than the first ends the first, and takes over its number.
            if tid in self._waiting or tid in self._ended:
                self._waiting.discard(tid)
                self._ended.discard(tid)
                self._active.add(tid)


class Sorter:
    """Puts records of several buffers in the order of time.

    A record that is younger than HOLD_NS is held back: an older one may still be on its way in the
    buffer of another processor.
    """

    HOLD_NS = 20_000_000

    def __init__(self) -> None:
        self._held: list[Record] = []

    def sort(self, records: Iterable[Record], *, to_the_end: bool) -> list[Record]:
        """Return the records whose turn it is.

        Args:
            records: New records.
            to_the_end: Whether no further record will come, so that none is held back.
        """
        limit = time.monotonic_ns() - self.HOLD_NS
        held = sorted([*self._held, *records])
        nr_ready = len(held)
        if not to_the_end:
            nr_ready = sum(record.time_ns <= limit for record in held)
        self._held = held[nr_ready:]
        return held[:nr_ready]
