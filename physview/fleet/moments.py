# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the moments of --since and --until."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

from physview.errors import UsageError
from physview.text.durations import UNITS, parse_duration


def parse_moment(text: str, option: str, now: datetime | None = None) -> datetime:
    """Read a moment; without an offset it is UTC.

    Args:
        text: As 2026-01-31, 2026-01-31T12:00, 2026-01-31 12:00+01:00, or 7d (ago).
        option: The option, for the message.
        now: What "ago" counts from; by default the clock.

    Raises:
        UsageError: It is none.

    >>> print(parse_moment("2026-01-31T12:00Z", "--since"))
    2026-01-31 12:00:00+00:00
    >>> print(parse_moment("2d", "--since", datetime(2026, 1, 3, tzinfo=timezone.utc)))
    2026-01-01 00:00:00+00:00
    >>> print(parse_moment("90s", "--since", datetime(2026, 1, 3, tzinfo=timezone.utc)))
    2026-01-02 23:58:30+00:00
    """
    try:
        ago = parse_duration(text) if text[-1:] in UNITS else None
        if ago is not None:
            return (now or datetime.now(timezone.utc)) - timedelta(seconds=ago)
        # Python 3.10 does not know the Z.
        moment = datetime.fromisoformat(re.sub("[zZ]$", "+00:00", text))
        if moment.tzinfo is None:
            return moment.replace(tzinfo=timezone.utc)
        return moment.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        remedy = "give a day (2026-01-31), a moment (2026-01-31T12:00), or 7d or 12h ago"
        raise UsageError(f"{option}: '{text}' is no moment", "", remedy) from None
