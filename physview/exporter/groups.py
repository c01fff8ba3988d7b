# SPDX-License-Identifier: GPL-2.0-or-later
"""Joins all groups but the largest ones, and counts faults so that no counter goes back."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

from physview.exporter.labels import OTHER, label_of
from physview.recording.schema import Columns

Key = tuple[str, int | None]
FAULTS = ("minor_faults", "major_faults")
_MAXIMA = ("largest_extent", "age")
_ALWAYS = ("nr_processes", "nr_read", "nr_kept", "nr_stale", "nr_unread", "nr_denied", *FAULTS)
_NOT_SUMMED = ("by", "name", "pid", "folios_by_order", *_ALWAYS)
MAX_COUNTERS = 10_000
"""Groups whose counters are kept. Those that were not seen for longest are dropped first."""


class Row(NamedTuple):
    """A group as it is exported.

    Args:
        label: The label `group`.
        pid: The process, if a group is a process.
        values: The values by the name of the column; None for one that is not known.
    """

    label: str
    pid: int | None
    values: dict[str, Any]


class GroupRows:
    """Makes rows of bounded number from readings of all groups, and keeps the counters.

    A counter of Prometheus must not go back, but the faults of a group do: when a process ends, and
    for OTHER also when a group becomes one of the largest. So what is counted is the growth from
    one reading to the next, under the label that the group has in that reading. Each fault counts
    once.

    Args:
        top: Number of groups that keep their own label: the largest by resident memory.
        encoding: The encoding of the output.
    """

    def __init__(self, top: int, encoding: str = "utf-8") -> None:
        self._top = top
        self._encoding = encoding
        self._before: dict[tuple[str | None, int | None], list[int]] = {}
        self._counters: OrderedDict[Key, list[int]] = OrderedDict()

    def rows(self, columns: Columns) -> list[Row]:
        """Make the rows of a reading, OTHER last.

        Args:
            columns: The groups as `GroupReader.read()` returns them, largest first.
        """
        found: dict[Key, Row] = {}
        before, self._before = self._before, {}
        for index, name in enumerate(columns["name"]):
            pid = columns["pid"][index]
            is_other = name is None or index >= self._top
            key: Key = (OTHER, None) if is_other else (label_of(name, self._encoding), pid)
            values = {column: items[index] for column, items in columns.items()}
            faults = [values[column] or 0 for column in FAULTS]
            self._before[name, pid] = faults
            self._count(key, _growth(before.get((name, pid)), faults))
            if key in found:
                _join(found[key].values, values)
            else:
                found[key] = Row(*key, values)
        for key, row in found.items():
            row.values.update(zip(FAULTS, self._counters[key], strict=True))
        while len(self._counters) > max(MAX_COUNTERS, len(found)):
            self._counters.popitem(last=False)
        return sorted(found.values(), key=lambda row: row.label == OTHER)

    def _count(self, key: Key, growth: list[int]) -> None:
        counter = self._counters.setdefault(key, [0] * len(FAULTS))
        self._counters.move_to_end(key)
        for at, more in enumerate(growth):
            counter[at] += more


def _growth(before: list[int] | None, now: list[int]) -> list[int]:
    """What was added since the last reading.

    If it is less than before, a process left the group, or another process has the pid. Then it is
    not known how much of it is new, and nothing is added: too few are better than too many.
    """
    if before is None:
        return now
    return [max(0, new - old) for old, new in zip(before, now, strict=True)]


def _join(values: dict[str, Any], more: dict[str, Any]) -> None:
    """Add the values of a group to those of another."""
    for column in _ALWAYS:
        values[column] += more[column]
    if more["resident"] is None:  # none of its processes was read
        return
    was_read = values["resident"] is not None
    for column, value in more.items():
        old = values[column]
        if column in _NOT_SUMMED:
            continue
        if not was_read:
            values[column] = value
        elif old is None or value is None:
            values[column] = None
        else:
            values[column] = max(old, value) if column in _MAXIMA else old + value
