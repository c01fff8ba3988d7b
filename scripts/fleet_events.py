# SPDX-License-Identifier: GPL-2.0-or-later
"""The events that the generator plants: what happens where, and when."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any, NamedTuple

HOUR = 3600


class Shape(NamedTuple):
    """The samples of each host.

    Args:
        nr: Number of samples.
        interval: Seconds between them.
        start: When the first one is taken, in seconds since 1970.
        programs: The names of the programs.
        hosts: The number of hosts.
    """

    nr: int
    interval: int
    start: int
    programs: list[str]
    hosts: int

    def hour(self, share: float) -> int:
        """The first sample of the hour at this share of all time."""
        hour = int(share * self.nr * self.interval / HOUR)
        return min(self.nr - 1, -(-hour * HOUR // self.interval))

    def moment(self, sample: int) -> datetime:
        """When a sample was taken, by a right clock."""
        return datetime.fromtimestamp(self.start + sample * self.interval, timezone.utc)


class Event(NamedTuple):
    """A planted event.

    Args:
        kind: One of leak, thp-loss, swap, page-tables, no-2m, kernel, clock.
        host_index, host: The host.
        program: Index of the program, or None if it is about the machine.
        first, last: The samples, of which `last` is not included.
        shape: The samples of the host.
    """

    kind: str
    host_index: int
    host: str
    program: int | None
    first: int
    last: int
    shape: Shape

    def document(self) -> dict[str, Any]:
        """The event for people and tests."""
        return {
            "kind": self.kind,
            "host": self.host,
            "program": None if self.program is None else self.shape.programs[self.program],
            "from": self.shape.moment(self.first).isoformat(),
            "until": self.shape.moment(self.last).isoformat(),
        }


def host_name(index: int, hosts: int) -> str:
    """The name of a host. Of eight hosts or more, the last two have one name."""
    return f"node-{index - 1 if hosts >= 8 and index == hosts - 1 else index:03}"


def plan(shape: Shape) -> list[Event]:
    """Choose where and when the events happen."""
    hosts = shape.hosts
    planned = [
        ("leak", 1, 3, 0.40, 1.0),
        ("thp-loss", 2, 0, 0.50, 1.0),
        ("swap", 3, 1, 0.60, 0.70),
        ("page-tables", 4, 2, 0.30, 1.0),
        ("no-2m", 5, None, 0.55, 0.65),
        ("clock", 6, None, 0.45, 0.50),
        *(("kernel", index, None, 0.50, 1.0) for index in range(0, hosts, 4)),
    ]
    return [
        Event(
            kind,
            host % hosts,
            host_name(host % hosts, hosts),
            None if program is None else program % len(shape.programs),
            shape.hour(first),
            shape.nr if last == 1 else shape.hour(last),
            shape,
        )
        for kind, host, program, first, last in planned
    ]
