# SPDX-License-Identifier: GPL-2.0-or-later
"""The screen of watch for one process: what it has, what changed, and its mappings."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from physview.analysis.watch import Reading
from physview.reporters import watch as reporter
from physview.reporters.screen import CHANGED, HEAD, NOTE, SMALL, TITLE, State, fill, nr_feet
from physview.reporters.watch import ASCII_BLOCKS, BLOCKS

if TYPE_CHECKING:
    from physview.reporters.screen import Rows


def _indices(reading: Reading) -> Any:
    import numpy as np

    return np.arange(len(reading.vmas))


def _sizes(reading: Reading) -> Any:
    return [vma.end - vma.start for vma in reading.vmas]


def _changed(reading: Reading) -> Any:
    import numpy as np

    return sum((reading.changes or {}).values(), np.zeros(len(reading.vmas), dtype=np.int64))


SORTS: dict[str, tuple[str, Callable[[Reading], Any]]] = {
    "a": ("address", lambda reading: -_indices(reading)),
    "s": ("size", _sizes),
    "m": ("mem", lambda reading: reading.pages["resident"]),
    "w": ("swap", lambda reading: reading.pages["swapped"]),
    "c": ("change", _changed),
}
"""Sort orders by key: the order's name, and a function that gives each mapping a number.

The mapping with the largest number comes first.
"""

ORDERS = {key: name for key, (name, _) in SORTS.items()}


def compose(reading: Reading, state: State, width: int, height: int, *, plain: bool) -> Rows:
    """Make the lines of the screen: the text and the style of each.

    Args:
        reading: The reading to show.
        state: The order, the scroll position and the interval.
        width: Width of the terminal in characters.
        height: Number of lines of the terminal, and of the result.
        plain: Whether to use only ASCII characters.
    """
    lines = _head(reading, state, width, height, BLOCKS if not plain else ASCII_BLOCKS)
    columns, room = reporter.choose_columns(width, track_writes=reading.tracks_writes)
    lines.append((reporter.title_row(columns), TITLE))
    lines = lines[: max(0, height - 2)]
    state.page = max(1, height - nr_feet(height) - len(lines))
    state.clamp(len(reading.vmas))
    order = _order(reading, state.sort)[state.first : state.first + state.page]
    changed = _changed(reading)
    rows = [
        (reporter.row(reading, at, columns, room), CHANGED if changed[at] else "") for at in order
    ]
    return fill(lines, rows, state, len(reading.vmas), width, height)


def _head(reading: Reading, state: State, width: int, height: int, blocks: str) -> Rows:
    lines = [(f"{reporter.process_line(reading)}  {state.status}", HEAD)]
    lines.append((reporter.change_line(reading), ""))
    if height < SMALL:
        return lines + [(note, NOTE) for note in reporter.notes(reading)[: height > 8]]
    lines.append((reporter.fault_line(reading), ""))
    lines.append((state.cost(reading.cost_seconds), ""))
    if reading.ram:
        nr_lines = 1 if height < 40 else 3
        cells = width - 10
        lines += [(line, "") for line in reporter.ram_lines(reading.ram, width, nr_lines, blocks)]
        lines.append((reporter.ram_legend(reading.ram, cells * nr_lines, blocks), "dim"))
    for note in reporter.notes(reading):
        lines.append((note, NOTE))
    if not reading.knows_frames and state.remedy:
        lines.append((state.remedy, NOTE))
    return lines


def _order(reading: Reading, sort: str) -> list[int]:
    """Return the indices of the mappings, sorted. Equal mappings stay in order of addresses."""
    import numpy as np

    values = np.asarray(SORTS[sort][1](reading))
    order: list[int] = np.argsort(-values, kind="stable").tolist()
    return order
