# SPDX-License-Identifier: GPL-2.0-or-later
"""Translated addresses and ranges, as lines of text: the same on a terminal and in a pipe."""

from __future__ import annotations

from physview.model import Gap, Translation


def address_line(translation: Translation) -> str:
    """Format a virtual address and its physical address.

    >>> address_line(Translation(0x1000, 0x9000, None))
    '0x0000000000001000 -> 0x0000000000009000'
    """
    paddr = "UNKNOWN" if translation.paddr is None else f"{translation.paddr:#018x}"
    return f"{translation.vaddr:#018x} -> {paddr}"


def translation_line(translation: Translation) -> str:
    """Format an address, its physical address, its mapping, and the cause if there is none."""
    parts = [
        f"{address_line(translation):<40}",
        str(translation.vma or ""),
        translation.explanation,
    ]
    return "  ".join(filter(None, parts)).rstrip()


def gap_line(gap: Gap) -> str:
    """Format contiguous pages that have no physical address, all for the same cause."""
    pages = "1 page" if gap.nr_pages == 1 else f"{gap.nr_pages} pages"
    parts = [
        f"{gap.start:#018x}-{gap.end:#018x} -> UNKNOWN",
        str(gap.vma or ""),
        f"{gap.cause.text} ({pages})",
    ]
    return "  ".join(filter(None, parts))
