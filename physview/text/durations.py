# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads durations. All options of all commands take the same forms."""

from __future__ import annotations

import re

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
"""Seconds by the letter after a number."""
EXAMPLES = "10s, 5m, 2h or 1d"

_FORM = re.compile(r"([0-9.]{1,20}(?:e-?[0-9]{1,2})?)([smhdw]?)", re.ASCII)


def parse_duration(text: str, unit: int = 1) -> float | None:
    """Read a duration such as "90", "1.5m", "2h" or "1d", in seconds.

    Args:
        text: A number, and a letter of UNITS or nothing.
        unit: Seconds that a number without a letter counts.

    Returns:
        Seconds; None if the text is no duration.

    >>> parse_duration("90"), parse_duration("1.5m"), parse_duration("2h"), parse_duration("2", 60)
    (90.0, 90.0, 7200.0, 120.0)
    >>> parse_duration("2 h"), parse_duration("-1"), parse_duration("nan"), parse_duration("1.2.3")
    (None, None, None, None)
    """
    match = _FORM.fullmatch(text)
    if not match:
        return None
    try:
        number = float(match[1])
    except ValueError:
        return None
    return number * UNITS.get(match[2], unit)


def duration_text(seconds: float) -> str:
    """Write a duration as `parse_duration()` reads it, with the largest unit that fits.

    >>> duration_text(86400), duration_text(5400), duration_text(0.01), duration_text(0)
    ('1d', '90m', '0.01s', '0s')
    """
    for letter in ("w", "d", "h", "m"):
        number, rest = divmod(seconds, UNITS[letter])
        if number and not rest:
            return f"{number:.0f}{letter}"
    return f"{seconds:.10g}s"
