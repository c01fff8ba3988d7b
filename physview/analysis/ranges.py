# SPDX-License-Identifier: GPL-2.0-or-later
"""Translates a range of addresses into few items: single pages, and gaps of contiguous pages."""

from __future__ import annotations

from collections.abc import Iterator

from physview.model import PAGE_SIZE, Gap, Translation
from physview.process import Process


def iter_items(process: Process, start: int, end: int) -> Iterator[Translation | Gap]:
    """Yield a range's pages in address order and in constant memory.

    A page that has a physical address or a swap entry is a `Translation`. Other pages are gaps.
    Contiguous pages of the same mapping that have no physical address for the same cause are one
    `Gap`.

    Args:
        process: The process.
        start: First address.
        end: First address after the range.

    Raises:
        As `Process.iter_range()`.
    """
    pending: Gap | None = None
    for item in _iter_pieces(process, start, end):
        if not isinstance(item, Gap):
            if pending:
                yield pending
            pending = None
            yield item
        elif pending and (pending.cause, pending.vma) == (item.cause, item.vma):
            pending = pending._replace(end=item.end)
        else:
            if pending:
                yield pending
            pending = item
    if pending:
        yield pending


def _iter_pieces(process: Process, start: int, end: int) -> Iterator[Translation | Gap]:
    for piece in process.iter_range(start, end):
        if isinstance(piece, Gap):
            yield piece
            continue
        for page in piece:
            if page.cause is None or (page.entry and page.entry.swap):
                yield page
            else:
                yield Gap(page.vaddr, page.vaddr + PAGE_SIZE, page.cause, page.vma)
