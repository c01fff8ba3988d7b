# SPDX-License-Identifier: GPL-2.0-or-later
"""Parses numbers from untrusted text, which may have thousands of digits."""

from __future__ import annotations


def bounded_int(digits: str, most: int, base: int = 10) -> int:
    """Convert digits to a number, however many digits there are.

    int() raises ValueError for more than 4,300 decimal digits. This function does not.

    Args:
        digits: ASCII digits of the base, without a sign or prefix.
        most: The largest number that the caller can use.
        base: 10 or 16.

    Returns:
        The number; `most + 1` for every number above `most`.

    >>> bounded_int("0" * 9000 + "12", 99), bounded_int("9" * 9000, 99)
    (12, 100)
    """
    significant = digits.lstrip("0") or "0"
    if len(significant) > len(str(most)):
        return most + 1
    return min(int(significant, base), most + 1)
