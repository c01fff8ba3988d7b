# SPDX-License-Identifier: GPL-2.0-or-later
"""Sizes in few characters, and how many characters a line has."""

from __future__ import annotations

import os

from physview.output import ellipsis

PIPE_WIDTH = 1 << 16


def terminal_width() -> int:
    """Columns of the terminal on stdout; no end of them where there is none."""
    try:
        return int(os.environ.get("COLUMNS") or os.get_terminal_size(1).columns)
    except (ValueError, OSError):
        return PIPE_WIDTH


def cut(text: str, width: int) -> str:
    """A line, or what of it fits into so many columns."""
    if len(text) <= width:
        return text
    rest = ellipsis()
    return text[: max(0, width - len(rest))] + rest


def short_size(size_bytes: int | None) -> str:
    """A size in five characters.

    >>> [short_size(n) for n in (None, 0, 4096, 1536 << 10, 2000 << 20, 1 << 40)]
    ['?', '-', '4K', '1.5M', '2.0G', '1.0T']
    """
    if not size_bytes:
        return "?" if size_bytes is None else "-"
    value, unit = size_bytes / 1024, "K"
    for larger in "MGTPE":
        if value < 999.5:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f}{unit}" if unit == "K" or value >= 9.95 else f"{value:.1f}{unit}"
