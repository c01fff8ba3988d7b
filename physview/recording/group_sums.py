# SPDX-License-Identifier: GPL-2.0-or-later
"""Adds processes up to groups, and groups to columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from physview.model import PAGE_SIZE
from physview.recording.process_list import Seen
from physview.recording.process_memory import SUMS, ProcessMemory
from physview.recording.schema import GROUPS, MOMENT, Columns

NAMES = [column.name for column in GROUPS[len(MOMENT) :]]
COUNTS = ("nr_processes", "nr_read", "nr_kept", "nr_stale", "nr_unread", "nr_denied")


class GroupSums:
    """The sums over a group of processes.

    Args:
        name: Name of the group; None stands for all other groups.

    Attributes:
        approx: Resident bytes by the kernel's counters, of all processes that may be examined.
        age, pid, and those of COUNTS: as the columns.
    """

    __slots__ = (*COUNTS, "_faults", "_folios", "_largest", "_sums", "age", "approx", "name", "pid")

    def __init__(self, name: str | None) -> None:
        self.name = name
        self.pid: int | None = None
        self.nr_processes = self.nr_read = self.nr_kept = self.nr_stale = 0
        self.nr_unread = self.nr_denied = 0
        self.age = 0.0
        self.approx = 0
        self._faults = (0, 0)
        self._sums: list[int | None] | None = None
        self._largest: int | None = None
        self._folios: dict[int, int] | None = None

    @property
    def is_denied(self) -> bool:
        """Whether none of its processes may be examined."""
        return not self.nr_processes

    def add(
        self,
        seen: Seen,
        memory: ProcessMemory | None,
        age: float | None,
        *,
        is_stale: bool,
        is_denied: bool,
    ) -> None:
        """Add a process.

        Args:
            seen: What its stat shows.
            memory: Its memory; None if it was not read so far.
            age: Seconds since its memory was read; None if it was read for this sample.
            is_stale: Whether it changed since its memory was read.
            is_denied: Whether it may not be examined.
        """
        if is_denied:
            self.nr_denied += 1
            return
        self.nr_processes += 1
        self.pid = seen.pid
        self.approx += seen.nr_resident * PAGE_SIZE
        self.add_faults(seen.minor_faults, seen.major_faults)
        if memory is None:
            self.nr_unread += 1
            return
        if age is None:
            self.nr_read += 1
        else:
            self.nr_kept += 1
            self.nr_stale += is_stale
            self.age = max(self.age, age)
        self._add_memory(memory.sums, memory.largest, memory.folios)

    def add_faults(self, minor: int, major: int) -> None:
        """Add page faults."""
        self._faults = self._faults[0] + minor, self._faults[1] + major

    def _add_memory(
        self,
        sums: tuple[int | None, ...] | list[int | None],
        largest: int | None,
        folios: dict[int, int] | None,
    ) -> None:
        if self._sums is None:
            self._sums, self._largest = list(sums), largest
            self._folios = None if folios is None else dict(folios)
            return
        self._sums = [
            None if one is None or other is None else one + other
            for one, other in zip(self._sums, sums, strict=True)
        ]
        unknown = self._largest is None or largest is None
        self._largest = None if unknown else max(self._largest or 0, largest or 0)
        if self._folios is None or folios is None:
            self._folios = None
        else:
            for order, size in folios.items():
                self._folios[order] = self._folios.get(order, 0) + size

    def join(self, other: GroupSums) -> None:
        """Add another group."""
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.age = max(self.age, other.age)
        self.approx += other.approx
        self.add_faults(*other._faults)
        if other._sums is not None:
            self._add_memory(other._sums, other._largest, other._folios)

    def row(self) -> dict[str, Any]:
        """The values by column. Those of memory are None if no process was read."""
        row: dict[str, Any] = dict(zip(SUMS, self._sums or [None] * len(SUMS), strict=True))
        row.update({name: getattr(self, name) for name in COUNTS})
        row["name"], row["age"] = self.name, self.age
        row["resident_approx"] = self.approx
        row["minor_faults"], row["major_faults"] = self._faults
        row["largest_extent"] = self._largest
        if self._folios is not None:
            orders = range(max(self._folios, default=0) + 1)
            row["folios_by_order"] = [self._folios.get(order, 0) for order in orders]
        return row


def columns_of(
    by: str, groups: Mapping[Any, GroupSums], max_groups: int, nr_hidden: int = 0
) -> Columns:
    """Make the columns of groups, the largest first.

    Groups beyond the limit, and those of which no process may be examined, are joined in one row
    without a name. That row comes last.

    Args:
        by: How processes are grouped.
        groups: The groups.
        max_groups: The limit.
        nr_hidden: Processes of unknown groups that may not be examined.
    """
    shown = [group for group in groups.values() if not group.is_denied]
    shown.sort(key=lambda group: group.approx, reverse=True)  # the others may be unknown
    others = GroupSums(None)
    others.nr_denied = nr_hidden
    for group in [*shown[max_groups:], *(group for group in groups.values() if group.is_denied)]:
        others.join(group)
    del shown[max_groups:]
    rows = []
    for group in shown:
        row = group.row()
        row["pid"] = group.pid if by == "pid" else None
        rows.append(row)
    if others.nr_processes or others.nr_denied:
        rows.append(others.row())
    columns = {name: [row.get(name) for row in rows] for name in NAMES}
    columns["by"] = [by] * len(rows)
    return columns
