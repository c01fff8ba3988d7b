# SPDX-License-Identifier: GPL-2.0-or-later
"""The screen of watch. Only lines that have changed are drawn.

rich's Console draws them: it handles colours, wide characters and the alternate screen. rich's
Live is not used: it draws from its own thread, and it draws all lines each time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.cells import set_cell_size
from rich.segment import Segment
from rich.style import Style

from physview.analysis.watch import Reading
from physview.reporters import watch as reporter
from physview.reporters.drawing import open_console
from physview.reporters.watch import ASCII_BLOCKS, BLOCKS

if TYPE_CHECKING:
    Rows = list[tuple[str, str]]


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

KEYS = (
    ("q", "quit"),
    ("space", "pause"),
    ("+-", "interval"),
    ("asmwc", "sort"),
    ("↑↓", "scroll"),
    ("PgUp PgDn Home End", "too"),
)
HEAD, NOTE, TITLE, FOOT, CHANGED = "bold", "yellow", "reverse", "reverse", "green"
SMALL = 16
"""With fewer lines than this, the head of the screen is shorter, so that mappings have room."""


class State:
    """What the user has chosen, and what the screen needs to remember between readings.

    Args:
        interval: Seconds from one reading to the next, as the user chose them.
    """

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self.lengthened: float | None = None
        """The actual interval, if it is longer because a reading takes too long; else None."""
        self.paused = False
        self.sort = "a"
        self.first = 0
        self.page = 1
        self.own_share: float | None = None
        """Share of a CPU core that physview itself used since the previous reading."""
        self.remedy = ""
        """How to get frame numbers, if they are hidden."""

    def scroll(self, key: str, nr_rows: int) -> None:
        """Change which mapping is the first that is shown.

        Args:
            key: The key that the user pressed.
            nr_rows: Number of mappings.
        """
        steps = {
            "up": -1, "k": -1, "down": 1, "j": 1,
            "pageup": -self.page, "pagedown": self.page,
            "home": -nr_rows, "end": nr_rows,
        }  # fmt: skip
        self.first += steps.get(key, 0)
        self.clamp(nr_rows)

    def clamp(self, nr_rows: int) -> None:
        """Keep the screen full: do not scroll beyond the last mapping."""
        self.first = max(0, min(self.first, nr_rows - self.page))


class Screen:
    """The terminal on stdout, as a number of lines."""

    def __init__(self) -> None:
        self._console = open_console(sys.stdout, force_terminal=True)
        self._drawn: Rows = []
        self._plain = not _is_unicode()

    def enter(self) -> None:
        """Switch to the alternate screen."""
        self._drawn = []
        self._console.set_alt_screen(True)
        self._console.show_cursor(False)

    def leave(self) -> None:
        """Switch back to the screen that was there before."""
        self._console.show_cursor(True)
        self._console.set_alt_screen(False)

    def draw(self, reading: Reading, state: State) -> None:
        """Show a reading. Lines that have not changed are not written."""
        width, height = os.get_terminal_size(1)
        width, height = max(width, 1), max(height, 1)
        if (width, height) != tuple(self._console.size):
            self._drawn = []
        self._console.size = (width, height)
        rows = compose(reading, state, width, height, plain=self._plain)
        rows = [(set_cell_size(text, width), style) for text, style in rows]
        with self._console:  # collects all output for a single write
            for at, row in enumerate(rows):
                if at >= len(self._drawn) or row != self._drawn[at]:
                    segment = Segment(row[0], Style.parse(row[1]))
                    self._console.update_screen_lines([[segment]], 0, at)
        self._drawn = rows


def _is_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")


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
    state.page = max(1, height - 1 - len(lines))
    state.clamp(len(reading.vmas))
    order = _order(reading, state.sort)
    changed = _changed(reading)
    for at in order[state.first : state.first + state.page]:
        style = CHANGED if changed[at] else ""
        lines.append((reporter.row(reading, at, columns, room), style))
    lines += [("", "")] * (height - 1 - len(lines))
    lines = [*lines[: height - 1], (_foot(state, len(reading.vmas), width), FOOT)]
    if plain:
        lines = [(text.encode("ascii", "replace").decode(), style) for text, style in lines]
    return lines


def _head(reading: Reading, state: State, width: int, height: int, blocks: str) -> Rows:
    status = f"every {state.lengthened or state.interval:.3g} s"
    if state.paused:
        status = "paused"
    lines = [(f"{reporter.process_line(reading)}  {status}", HEAD)]
    lines.append((reporter.change_line(reading), ""))
    if height < SMALL:
        return lines + [(note, NOTE) for note in reporter.notes(reading)[: height > 8]]
    lines.append((reporter.fault_line(reading), ""))
    lines.append((_cost(reading, state), ""))
    if reading.ram:
        nr_lines = 1 if height < 40 else 3
        cells = width - 10
        lines += [(line, "") for line in reporter.ram_lines(reading.ram, width, nr_lines, blocks)]
        lines.append((" " * 9 + reporter.ram_legend(reading.ram, cells * nr_lines, blocks), "dim"))
    for note in reporter.notes(reading):
        lines.append((note, NOTE))
    if not reading.knows_frames and state.remedy:
        lines.append((state.remedy, NOTE))
    return lines


def _cost(reading: Reading, state: State) -> str:
    line = f"physview itself: {reading.cost_seconds * 1e3:.0f} ms per reading"
    if state.own_share is not None:
        line += f", {state.own_share:.1%} of a core"
    # Part of this line, so that the lines below do not move when the remark comes and goes.
    return f"{line}; too slow for {state.interval:g} s as asked" if state.lengthened else line


def _foot(state: State, nr_rows: int, width: int) -> str:
    last = min(nr_rows, state.first + state.page)
    text = f"{state.first + 1}-{last} of {nr_rows} by {SORTS[state.sort][0]}"
    for key, what in KEYS:
        longer = f"{text}  {key} {what}"
        if len(longer) > width:
            break
        text = longer
    return text


def _order(reading: Reading, sort: str) -> list[int]:
    """Return the indices of the mappings, sorted. Equal mappings stay in order of addresses."""
    import numpy as np

    values = np.asarray(SORTS[sort][1](reading))
    order: list[int] = np.argsort(-values, kind="stable").tolist()
    return order
