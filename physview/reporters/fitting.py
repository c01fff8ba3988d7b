# SPDX-License-Identifier: GPL-2.0-or-later
"""Chooses which columns of watch's tables fit into a line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

MIN_NAME = 12
WROTE = "wrote"
"""The title of the column of pages that were written in place; shown only if writes are tracked."""


class FittingColumn(Protocol):
    """A column of a table that may be left out."""

    @property
    def width(self) -> int:
        """Width in characters."""

    @property
    def rank(self) -> int:
        """The columns with the highest rank are left out first."""


C = TypeVar("C", bound=FittingColumn)


def fitting(known: Sequence[C], width: int) -> tuple[list[C], int]:
    """Choose the columns that fit into a line, and leave room for a name after them.

    Args:
        known: All columns.
        width: The width of the line in characters.

    Returns:
        The columns, and the number of characters that are left for the name.
    """
    columns: list[C] = []
    room = width
    for rank in range(max(column.rank for column in known), -1, -1):
        columns = [column for column in known if column.rank <= rank]
        room = width - sum(column.width + 1 for column in columns)
        if room >= MIN_NAME:
            break
    return columns, max(room, 0)
