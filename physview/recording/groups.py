# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the memory of all processes, added up by program, cgroup or pid."""

from __future__ import annotations

import contextlib
import math
import time
from collections import OrderedDict
from typing import Any

from physview.analysis.usage_reader import UsageReader
from physview.errors import AccessDenied, PhysviewError, UsageError
from physview.files.descriptor import Closable
from physview.recording.group_sums import GroupSums, columns_of
from physview.recording.process_list import ProcessList, Seen, cgroup_of, name_text, read_small
from physview.recording.process_memory import ProcessMemory, has_core_and_pagemap, read_memory
from physview.recording.schema import GROUPINGS, Columns
from physview.text.nearest import offer

RETRY_SECONDS = 60.0
"""A process that may not be examined is tried again after this time, if it did not change."""
REFRESH_SECONDS = 600.0
"""A process is read again after this time, even if it did not change: its frames may have moved."""
MAX_ENDED = 4096
"""The number of groups for which the faults of ended processes are kept."""
FIRST_GUESS = 0.001, 4e-7
"""What reading a process costs before it was read once: seconds, and seconds per resident page."""


class _Known:
    """What is kept of a process from one reading to the next."""

    __slots__ = ("cgroup", "cost", "denied_at", "memory", "read_as", "read_at", "seen")

    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        self.cgroup = b""
        self.memory: ProcessMemory | None = None
        self.read_as: Any = None  # its `changes` when it was read
        self.read_at = _clock()  # until it is read: when it was first seen
        self.denied_at: float | None = None
        self.cost = FIRST_GUESS[0] + FIRST_GUESS[1] * seen.nr_resident

    def priority(self, now: float) -> tuple[int, float]:
        """What to read first: what changed much and long ago, and then what did not change.

        What changed counts per second of reading, and its square root, so that one large process,
        which changes all the time, does not take the time of all others. New processes count as
        changed, so that many short-lived ones do not take that time either.
        """
        seen, age = self.seen, now - self.read_at
        if self.read_as == seen.changes:
            return 0, age
        faults, nr_resident = 0, 0
        if self.memory is not None:
            faults, _, _, nr_resident, _ = self.read_as
        changed = abs(seen.nr_resident - nr_resident) + seen.minor_faults - faults
        return 1, math.sqrt(changed + 1) * (age + 1) / max(self.cost, 1e-6)


class GroupReader(Closable):
    """Reads groups of processes again and again. A context manager.

    A process whose resident size, faults and start time have not changed keeps its values. So most
    readings after the first one are cheap.

    Args:
        by: One of schema.GROUPINGS.
        max_groups: The number of groups to tell apart. All smaller ones are one group without a
            name.

    Attributes:
        nr_groups: The number of groups in the last reading, before smaller ones were joined.
        nr_gone: Processes of the last reading that ended while they were read.
        why_no_flags: Why large folios are not known; None if they are.
        trouble: Which process could not be read unexpectedly, and why; empty if none. It kept its
            values. Whoever says this empties it.

    Raises:
        UsageError: There is no such grouping.
        PhysviewError: The core is not built, or the kernel has no pagemap.
    """

    def __init__(self, by: str = "program", *, max_groups: int = 1000) -> None:
        if by not in GROUPINGS:
            raise UsageError(f"no grouping '{by}'", "", offer(by, GROUPINGS))
        has_core_and_pagemap()
        self._by = by
        self._max_groups = max_groups
        self._reader = UsageReader()
        self._list = ProcessList()
        self._known: dict[int, _Known] = {}
        self._ended: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self.why_no_flags = self._reader.why_no_flags
        self.nr_groups = 0
        self.nr_gone = 0
        self.trouble = ""

    def close(self) -> None:
        """Close all files. Closing twice is harmless."""
        self._reader.close()

    def read(self, max_seconds: float | None = None) -> Columns:
        """Read all processes once.

        Args:
            max_seconds: Processor time to spend on reading memory. Processes for which no time is
                left keep their values, or are counted in nr_unread. None reads all that changed.

        Returns:
            The columns of schema.GROUPS without those of schema.MOMENT, largest group first.

        Raises:
            OSError: /proc cannot be listed.
        """
        now = _clock()
        self._update_list()
        read = self._read_changed(now, max_seconds)
        groups: dict[Any, GroupSums] = {}
        for known in self._known.values():
            key = known.seen.pid if self._by == "pid" else self._name(known)
            group = groups.get(key)
            if group is None:
                group = groups[key] = GroupSums(self._name(known))
            is_stale = known.read_as != known.seen.changes
            age = None if known.seen.pid in read else now - known.read_at
            group.add(
                known.seen, known.memory, age, is_stale=is_stale,
                is_denied=known.denied_at is not None,
            )  # fmt: skip
        for name, faults in self._ended.items():
            if name in groups:
                groups[name].add_faults(*faults)
        self.nr_groups = len(groups)
        return columns_of(self._by, groups, self._max_groups, len(self._list.hidden))

    def denied(self) -> list[int]:
        """The processes that the last reading left out, because this user may not examine them."""
        known = (pid for pid, known in self._known.items() if known.denied_at is not None)
        return sorted([*known, *self._list.hidden])

    def _update_list(self) -> None:
        """List the processes; forget those that ended."""
        living: dict[int, _Known] = {}
        for seen in self._list.read():
            known = self._known.get(seen.pid)
            if known is None or known.seen.start_time != seen.start_time:
                known = _Known(seen)
            elif known.seen.name != seen.name:  # it ran another program
                self._keep_faults(known)
            known.seen = seen
            if self._by == "cgroup":
                with contextlib.suppress(OSError):  # it ended
                    known.cgroup = cgroup_of(read_small(f"/proc/{seen.pid}/cgroup"))
            living[seen.pid] = known
        for pid, known in self._known.items():
            if living.get(pid) is not known:
                self._keep_faults(known)
        self._known = living

    def _keep_faults(self, known: _Known) -> None:
        if self._by == "pid" or known.denied_at is not None:
            return
        name = self._name(known)
        minor, major = self._ended.pop(name, (0, 0))
        seen = known.seen
        self._ended[name] = minor + seen.minor_faults, major + seen.major_faults
        if len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)

    def _name(self, known: _Known) -> str:
        return name_text(known.cgroup if self._by == "cgroup" else known.seen.name)

    def _read_changed(self, now: float, max_seconds: float | None) -> set[int]:
        """Read the memory of processes, the most important first. Returns the pids."""
        due = [known for known in self._known.values() if _is_due(known, now)]
        if max_seconds is not None:
            due.sort(key=lambda known: known.priority(now), reverse=True)
        read: set[int] = set()
        self.nr_gone = 0
        began = time.thread_time()
        spent = 0.0
        for known in due:
            # The first one is read in any case, so that a large process is read some time.
            if max_seconds is not None and (
                spent + known.cost > max_seconds if read else max_seconds <= 0
            ):
                continue
            if self._read_one(known):
                read.add(known.seen.pid)
            before, spent = spent, time.thread_time() - began
            known.cost = spent - before
        return read

    def _read_one(self, known: _Known) -> bool:
        seen, now = known.seen, _clock()
        try:
            memory = read_memory(self._reader, seen.pid, seen.start_time)
        except AccessDenied:
            known.denied_at, known.memory, known.read_as = now, None, seen.changes
            return False
        except ProcessLookupError:  # ProcessGone, NoUserMemory, or the kernel's own ESRCH
            memory = None
        except (PhysviewError, OSError) as error:
            why = error if isinstance(error, PhysviewError) else error.strerror or error
            self.trouble = f"process {seen.pid} could not be read: {why}"
            return False
        if memory is None:  # the next list will not have it
            self.nr_gone += 1
            return False
        known.denied_at = None
        known.memory, known.read_as, known.read_at = memory, seen.changes, now
        return True


def _is_due(known: _Known, now: float) -> bool:
    if known.denied_at is not None:
        return now - known.denied_at > RETRY_SECONDS or known.read_as[4] != known.seen.name
    if known.memory is None or known.read_as != known.seen.changes:
        return True
    return now - known.read_at > REFRESH_SECONDS


def _clock() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def read_groups(by: str = "program", *, max_groups: int = 1000) -> Columns:
    """Read all processes once, as `GroupReader.read()`.

    Args:
        by: As for `GroupReader`.
        max_groups: As for `GroupReader`.

    Raises:
        UsageError: There is no such grouping.
        PhysviewError: The core is not built, or the kernel has no pagemap.
    """
    with GroupReader(by, max_groups=max_groups) as reader:
        return reader.read()
