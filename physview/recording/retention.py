# SPDX-License-Identifier: GPL-2.0-or-later
"""Removes old files of a dataset: those older than some days, and the oldest beyond a size."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence

from physview.recording.parts import Part


def expired(
    parts: Sequence[Part],
    today: str,
    *,
    keep_days: int | None = None,
    limit_bytes: int | None = None,
    in_use: Iterable[str] = (),
) -> list[Part]:
    """Choose the files to remove.

    Args:
        parts: The files of one machine, oldest first.
        today: The present date in UTC.
        keep_days: How many days are kept, without today; None for all.
        limit_bytes: The largest size of all files; None for no limit.
        in_use: The paths of files that are not complete yet, and stay.

    >>> parts = [Part("date=2026-01-01/a", 5), Part("date=2026-01-02/b", 5)]
    >>> [part.path for part in expired(parts, "2026-01-03", keep_days=1)]
    ['date=2026-01-01/a']
    >>> [part.path for part in expired(parts, "2026-01-03", limit_bytes=5)]
    ['date=2026-01-01/a']
    """
    kept = [part for part in parts if part.path not in set(in_use)]
    found = []
    if keep_days is not None:
        oldest = datetime.date.fromisoformat(today) - datetime.timedelta(days=keep_days)
        found = [part for part in kept if part.date < oldest.isoformat()]
        kept = kept[len(found) :]
    if limit_bytes is not None:
        total = sum(part.size for part in parts) - sum(part.size for part in found)
        for part in kept:
            if total <= limit_bytes:
                break
            found.append(part)
            total -= part.size
    return found
