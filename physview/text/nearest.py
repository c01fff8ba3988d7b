# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds which known names a user may have meant by an unknown one."""

from __future__ import annotations

from collections.abc import Iterable

NR_OFFERED = 3


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names that are most like a name, the most similar first.

    >>> nearest("mapcnt", ["flags", "mapcount", "cgroup"]), nearest("x", ["flags"])
    (['mapcount'], [])
    """
    import difflib

    names = {each.lower(): each for each in known}
    found = difflib.get_close_matches(name.lower(), names, NR_OFFERED)
    return [names[each] for each in found]


def offer(name: str, known: Iterable[str]) -> str:
    """Return the advice for an unknown name: the nearest names, or else all.

    >>> offer("flag", ["flags", "node"]), offer("x", ["flags", "node"])
    ('do you mean flags? All are flags, node', 'choose one of flags, node')
    """
    every = list(known)
    found = nearest(name, every)
    if not found:
        return f"choose one of {', '.join(every)}"
    return f"do you mean {' or '.join(found)}? All are {', '.join(every)}"
