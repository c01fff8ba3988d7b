# SPDX-License-Identifier: GPL-2.0-or-later
"""Addresses and ranges as lines, the same on a terminal and in a pipe."""

from __future__ import annotations

from physview.model import Gap, Translation


def address_line(translation: Translation) -> str:
    """One address and where it is.

    >>> address_line(Translation(0x1000, 0x9000, None))
    '0x0000000000001000 -> 0x0000000000009000'
    """
    paddr = "UNKNOWN" if translation.paddr is None else f"{translation.paddr:#018x}"
    return f"{translation.vaddr:#018x} -> {paddr}"


def translation_line(translation: Translation) -> str:
    """One address, where it is, what lies there, and why it is nowhere."""
    parts = [
        f"{address_line(translation):<40}",
        str(translation.vma or ""),
        translation.explanation,
    ]
    return "  ".join(filter(None, parts)).rstrip()


def gap_line(gap: Gap) -> str:
    """Pages in a row that are nowhere, all for one cause."""
    pages = "1 page" if gap.nr_pages == 1 else f"{gap.nr_pages} pages"
    parts = [
        f"{gap.start:#018x}-{gap.end:#018x} -> UNKNOWN",
        str(gap.vma or ""),
        f"{gap.cause.text} ({pages})",
    ]
    return "  ".join(filter(None, parts))
