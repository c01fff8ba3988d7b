# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers that somebody typed, who may have typed thousands of digits."""

from __future__ import annotations


def bounded_int(digits: str, most: int, base: int = 10) -> int:
    """Read a number whose size is bounded: int() refuses more than 4,300 decimal digits.

    Args:
        digits: ASCII digits of the base, without sign and prefix.
        most: The largest number that is of use.
        base: 10 or 16.

    Returns:
        The number, or `most + 1` for any that is larger.

    >>> bounded_int("0" * 9000 + "12", 99), bounded_int("9" * 9000, 99)
    (12, 100)
    """
    significant = digits.lstrip("0") or "0"
    if len(significant) > len(str(most)):
        return most + 1
    return min(int(significant, base), most + 1)
