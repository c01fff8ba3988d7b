# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the memory of several processes again and again, and finds the changes of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from physview.analysis.watch import MAX_KEPT, Reading, Watcher
from physview.errors import AccessDenied, NoUserMemory, ProcessGone
from physview.files.descriptor import Closable
from physview.runtime.resource_limits import allow_open_files

MIN_KEPT = 1000
"""Number of extents that are kept of each process, even if others have used all room."""


class ProcessesReading(NamedTuple):
    """Several processes at one moment.

    Args:
        time: Time of the reading, in seconds since 1970.
        seconds: Seconds since the previous reading; None for the first reading.
        readings: A reading of each process, in the order of pids. The first reading of a process
            has no changes.
        nr_new: Number of processes that the previous reading did not have.
        nr_gone: Number of processes that the previous reading had.
        nr_denied: Number of processes that this user may not examine.
        cost_seconds: Processor time that physview needed for the reading.
    """

    time: float
    seconds: float | None
    readings: list[Reading]
    nr_new: int
    nr_gone: int
    nr_denied: int
    cost_seconds: float

    @property
    def knows_frames(self) -> bool:
        """Whether frame numbers are shown."""
        return all(reading.knows_frames for reading in self.readings)


class ProcessesWatcher(Closable):
    """Reads a set of processes again and again. A context manager.

    Processes without user memory, such as kernel threads, are left out.

    Args:
        list_pids: Called before each reading: the pids of the processes.
        track_writes: As for `Watcher`.

    Raises:
        Unsupported: The kernel cannot track writes.
    """

    def __init__(
        self, list_pids: Callable[[], Iterable[int]], *, track_writes: bool = False
    ) -> None:
        self._list_pids = list_pids
        self._track_writes = track_writes
        self._watchers: dict[int, Watcher] = {}
        self._last_clock: float | None = None
        allow_open_files()

    def close(self) -> None:
        """Close the files of all processes. Closing twice is harmless."""
        for watcher in self._watchers.values():
            watcher.close()
        self._watchers.clear()

    def read(self) -> ProcessesReading:
        """Read all processes once, and compare each with its previous reading.

        Raises:
            PhysviewError: A file cannot be read, for example because too many are open.
        """
        clock, began = time.monotonic(), time.process_time()
        before = set(self._watchers)
        pids = sorted(set(self._list_pids()))
        for pid in before - set(pids):
            self._drop(pid)
        readings, nr_denied = [], 0
        for pid in pids:
            try:
                readings.append(self._read_process(pid))
            except (ProcessGone, NoUserMemory):
                self._drop(pid)
            except AccessDenied:
                self._drop(pid)
                nr_denied += 1
        reading = ProcessesReading(
            time=time.time(),
            seconds=None if self._last_clock is None else clock - self._last_clock,
            readings=readings,
            nr_new=len(set(self._watchers) - before),
            nr_gone=len(before - set(self._watchers)),
            nr_denied=nr_denied,
            cost_seconds=time.process_time() - began,
        )
        self._last_clock = clock
        return reading

    def _read_process(self, pid: int) -> Reading:
        others = sum(one.nr_kept for other, one in self._watchers.items() if other != pid)
        # Half, so that a process with many extents leaves room for the others.
        max_kept = max(MIN_KEPT, (MAX_KEPT - others) // 2)
        watcher = self._watchers.get(pid)
        if watcher is not None:
            watcher.max_kept = max_kept
            try:
                return watcher.read()
            except ProcessGone:  # or it ran another program, or the pid belongs to another process
                self._drop(pid)
        watcher = Watcher(pid, max_kept=max_kept, track_writes=self._track_writes)
        self._watchers[pid] = watcher
        return watcher.read()

    def _drop(self, pid: int) -> None:
        watcher = self._watchers.pop(pid, None)
        if watcher is not None:
            watcher.close()
