# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds which known names a user may have meant by an unknown one."""

from __future__ import annotations

from collections.abc import Iterable

NR_OFFERED = 3
MIN_PART = 3
"""So many letters of a name are enough to find it."""


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names that are most like a name or contain it, the most similar first.

    >>> nearest("mapcnt", ["flags", "mapcount", "cgroup"]), nearest("x", ["flags", "axes"])
    (['mapcount'], [])
    >>> nearest("fault", ["pgfault", "size", "thp_fault_alloc"])
    ['pgfault', 'thp_fault_alloc']
    """
    import difflib

    names = {each.lower(): each for each in known}
    word = name.lower()
    found = difflib.get_close_matches(word, names, NR_OFFERED)
    if len(word) >= MIN_PART:
        found += [each for each in names if word in each and each not in found]
    return [names[each] for each in found[:NR_OFFERED]]


def offer(name: str, known: Iterable[str], where: str = "") -> str:
    """Return the advice for an unknown name: the nearest names, or else all.

    Args:
        name: The unknown name.
        known: The known names, the most useful ones first.
        where: What lists the names, if they are too many for a line.

    >>> offer("flag", ["flags", "node"]), offer("x", ["flags", "node"])
    ('do you mean flags? All are flags, node', 'choose one of flags, node')
    >>> offer("flag", ["flags", "node"], "help"), offer("x", ["flags", "node"], "help")
    ('do you mean flags? help lists all', 'choose one such as flags or node; help lists all')
    """
    every = list(known)
    found = nearest(name, every)
    if not where:
        return (
            f"do you mean {' or '.join(found)}? All are {', '.join(every)}"
            if found
            else f"choose one of {', '.join(every)}"
        )
    if found:
        return f"do you mean {' or '.join(found)}? {where} lists all"
    return f"choose one such as {' or '.join(every[:2])}; {where} lists all"
