# SPDX-License-Identifier: GPL-2.0-or-later
"""The screen of watch for several processes, as top shows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from physview.analysis.watch import Reading
from physview.analysis.watch_processes import ProcessesReading
from physview.reporters import watch_processes as reporter
from physview.reporters.screen import CHANGED, HEAD, NOTE, SMALL, TITLE, State, fill, nr_feet

if TYPE_CHECKING:
    from physview.reporters.screen import Rows


def _changed(reading: Reading) -> int:
    return sum((reading.nr_changed or {}).values())


SORTS: dict[str, tuple[str, Callable[[Reading], int]]] = {
    "m": ("mem", lambda reading: int(reading.pages["resident"].sum())),
    "w": ("swap", lambda reading: int(reading.pages["swapped"].sum())),
    "c": ("change", _changed),
    "f": ("faults", lambda reading: sum(reading.new_faults or ())),
    "i": ("pid", lambda reading: -reading.pid),
}
"""Sort orders by key: the order's name, and a function that gives each process a number.

The process with the largest number comes first.
"""

ORDERS = {key: name for key, (name, _) in SORTS.items()}


def compose(
    reading: ProcessesReading, state: State, width: int, height: int, *, track_writes: bool
) -> Rows:
    """Make the lines of the screen: the text and the style of each.

    Args:
        reading: The reading to show.
        state: The order, the scroll position and the interval.
        width: Width of the terminal in characters.
        height: Number of lines of the terminal, and of the result.
        track_writes: Whether pages that were written in place are known.
    """
    lines = [(f"{reporter.summary_line(reading)}  {state.status}", HEAD)]
    lines.append((reporter.change_line(reading), ""))
    if height >= SMALL:
        lines.append((state.cost(reading.cost_seconds), ""))
    notes = reporter.notes(reading)
    if not reading.knows_frames and state.remedy:
        notes.append(state.remedy)
    lines += [(note, NOTE) for note in notes]
    columns, _ = reporter.choose_columns(width, track_writes=track_writes)
    lines.append((reporter.title_row(columns), TITLE))
    lines = lines[: max(0, height - 2)]
    state.page = max(1, height - nr_feet(height) - len(lines))
    state.clamp(len(reading.readings))
    order = sorted(reading.readings, key=lambda one: -SORTS[state.sort][1](one))
    shown = order[state.first : state.first + state.page]
    rows = [(reporter.row(one, columns), CHANGED if _changed(one) else "") for one in shown]
    return fill(lines, rows, state, len(order), width, height)
