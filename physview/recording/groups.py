# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the memory of all processes, added up by program, cgroup or pid."""

from __future__ import annotations

from physview.files.descriptor import Closable
from physview.recording.schema import Columns


class GroupReader(Closable):
    """Reads groups of processes again and again. A context manager.

    A process whose resident size, faults and start time have not changed keeps its values. So most
    readings after the first one are cheap.

    Args:
        by: One of schema.GROUPINGS.
        max_groups: The number of groups to tell apart. All smaller ones are one group without a
            name.
    """

    def __init__(self, by: str = "program", *, max_groups: int = 1000) -> None:
        raise NotImplementedError

    def read(self, max_seconds: float | None = None) -> Columns:
        """Read all processes once.

        Args:
            max_seconds: Processor time to spend on reading memory. Processes for which no time is
                left keep their values, or are counted in nr_unread. None reads all that changed.

        Returns:
            The columns of schema.GROUPS without those of schema.MOMENT, largest group first.
        """
        raise NotImplementedError


def read_groups(by: str = "program", *, max_groups: int = 1000) -> Columns:
    """Read all processes once, as `GroupReader.read()`."""
    with GroupReader(by, max_groups=max_groups) as reader:
        return reader.read()
