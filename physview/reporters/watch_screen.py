# SPDX-License-Identifier: GPL-2.0-or-later
"""The screen of watch: drawn line by line, and only the lines that are not there already.

rich's Console draws: it knows colours, wide characters and the alternate screen. Its Live would
draw from a thread of its own, and everything each time.
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
"""By key: the name of an order, and a number for each mapping, of which the largest comes first."""

KEYS = (
    ("q", "quit"),
    ("space", "pause"),
    ("+-", "interval"),
    ("asmwc", "sort"),
    ("↑↓", "scroll"),
    ("PgUp PgDn Home End", "as well"),
)
HEAD, NOTE, TITLE, FOOT, CHANGED = "bold", "yellow", "reverse", "reverse", "green"
SMALL = 16
"""With fewer lines than this the head says less, so that mappings have room."""


class State:
    """What the person has chosen.

    Args:
        interval: Seconds from one reading to the next, as asked for.
    """

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self.lengthened: float | None = None
        """What the interval is instead, because a reading costs too much."""
        self.paused = False
        self.sort = "a"
        self.first = 0
        self.page = 1
        self.own_share: float | None = None
        """What of a core we took ourselves since the last reading."""
        self.remedy = ""
        """How frame numbers would be shown."""

    def scroll(self, key: str, nr_rows: int) -> None:
        """Move the first mapping that is shown."""
        steps = {
            "up": -1, "k": -1, "down": 1, "j": 1,
            "pageup": -self.page, "pagedown": self.page,
            "home": -nr_rows, "end": nr_rows,
        }  # fmt: skip
        self.first += steps.get(key, 0)
        self.clamp(nr_rows)

    def clamp(self, nr_rows: int) -> None:
        """Keep the last page full, where there is as much."""
        self.first = max(0, min(self.first, nr_rows - self.page))


class Screen:
    """The terminal on stdout as a page of lines."""

    def __init__(self) -> None:
        self._console = open_console(sys.stdout, force_terminal=True)
        self._drawn: Rows = []
        self._plain = not _is_unicode()

    def enter(self) -> None:
        """Turn to the alternate screen."""
        self._drawn = []
        self._console.set_alt_screen(True)
        self._console.show_cursor(False)

    def leave(self) -> None:
        """Turn back to what was there before."""
        self._console.show_cursor(True)
        self._console.set_alt_screen(False)

    def draw(self, reading: Reading, state: State) -> None:
        """Show a reading; lines that are as they were are not written."""
        width, height = os.get_terminal_size(1)
        width, height = max(width, 1), max(height, 1)
        if (width, height) != tuple(self._console.size):
            self._drawn = []
        self._console.size = (width, height)
        rows = compose(reading, state, width, height, plain=self._plain)
        rows = [(set_cell_size(text, width), style) for text, style in rows]
        with self._console:  # one write
            for at, row in enumerate(rows):
                if at >= len(self._drawn) or row != self._drawn[at]:
                    segment = Segment(row[0], Style.parse(row[1]))
                    self._console.update_screen_lines([[segment]], 0, at)
        self._drawn = rows


def _is_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")


def compose(reading: Reading, state: State, width: int, height: int, *, plain: bool) -> Rows:
    """As many lines of text and their style as the terminal has.

    Args:
        reading: What is shown.
        state: How.
        width: Columns of the terminal.
        height: Its lines.
        plain: Only ASCII.
    """
    lines = _head(reading, state, width, height, BLOCKS if not plain else ASCII_BLOCKS)
    columns, room = reporter.choose_columns(width)
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
    line = f"physview itself: {reading.cost_seconds * 1e3:.0f} ms a reading"
    if state.own_share is not None:
        line += f", {state.own_share:.1%} of a core"
    # In this line, so that nothing moves when it comes and goes.
    return f"{line}; so not every {state.interval:g} s as asked" if state.lengthened else line


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
    """Indices of the mappings; those alike stay in the order of their addresses."""
    import numpy as np

    values = np.asarray(SORTS[sort][1](reading))
    order: list[int] = np.argsort(-values, kind="stable").tolist()
    return order
