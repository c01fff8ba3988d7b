# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the moments of --since and --until."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

from physview.errors import UsageError

_AGO = re.compile(r"([0-9]{1,6})([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


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
    """
    try:
        if ago := _AGO.fullmatch(text):
            before = timedelta(**{_UNITS[ago[2]]: int(ago[1])})
            return (now or datetime.now(timezone.utc)) - before
        # Python 3.10 does not know the Z.
        moment = datetime.fromisoformat(re.sub("[zZ]$", "+00:00", text))
        if moment.tzinfo is None:
            return moment.replace(tzinfo=timezone.utc)
        return moment.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        remedy = "give a day (2026-01-31), a moment (2026-01-31T12:00), or 7d or 12h ago"
        raise UsageError(f"{option}: '{text}' is no moment", "", remedy) from None
