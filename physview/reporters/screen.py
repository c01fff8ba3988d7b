# SPDX-License-Identifier: GPL-2.0-or-later
"""A screen of lines on the terminal, and what its user has chosen. Only changed lines are drawn.

rich's Console draws them: it handles colours, wide characters and the alternate screen. rich's
Live is not used: it draws from its own thread, and it draws all lines each time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from rich.cells import set_cell_size
from rich.segment import Segment
from rich.style import Style

from physview.reporters.drawing import open_console

if TYPE_CHECKING:
    Rows = list[tuple[str, str]]

HEAD, NOTE, TITLE, FOOT, CHANGED = "bold", "yellow", "reverse", "reverse", "green"
SMALL = 16
"""With fewer lines than this, the head of the screen is shorter, so that the table has room."""


class State:
    """What the user has chosen, and what the screen needs to remember between readings.

    Args:
        interval: Seconds from one reading to the next, as the user chose them.
        orders: The orders of the table, by the keys that choose them. The first is the default.
    """

    def __init__(self, interval: float, orders: Mapping[str, str]) -> None:
        self.interval = interval
        self.orders = orders
        self.lengthened: float | None = None
        """The actual interval, if it is longer because a reading takes too long; else None."""
        self.paused = False
        self.sort = next(iter(orders))
        self.first = 0
        self.page = 1
        self.own_share: float | None = None
        """Share of a CPU core that physview itself used since the previous reading."""
        self.remedy = ""
        """How to get frame numbers, if they are hidden."""

    @property
    def status(self) -> str:
        """A few words for the head of the screen: the interval, or that the user has paused."""
        return "paused" if self.paused else f"every {self.lengthened or self.interval:.3g} s"

    def cost(self, cost_seconds: float) -> str:
        """Make the line about physview's own processor time.

        Args:
            cost_seconds: The processor time of the last reading.
        """
        line = f"physview itself: {cost_seconds * 1e3:.0f} ms per reading"
        if self.own_share is not None:
            line += f", {self.own_share:.1%} of a core"
        # Part of this line, so that the lines below do not move when the remark comes and goes.
        return f"{line}; too slow for {self.interval:g} s as asked" if self.lengthened else line

    def feet(self, nr_rows: int, width: int, height: int) -> list[str]:
        """Make the last lines: what is shown and in which order, and the keys with their names.

        Args:
            nr_rows: Number of all rows of the table.
            width: Width of the terminal in characters. Keys that do not fit are left out.
            height: Number of lines of the terminal, as for `nr_feet()`.
        """
        last = min(nr_rows, self.first + self.page)
        shown = f"{min(self.first + 1, nr_rows)}-{last} of {nr_rows} by {self.orders[self.sort]}"
        sort = [f"{key} {name}" for key, name in self.orders.items()]
        general = ["q quit", "space pause", "+- interval"]
        scroll = ["↑↓ scroll", "PgUp PgDn Home End too"]
        if nr_feet(height) == 1:
            sort = [f"{''.join(self.orders)} sort"]
            return [_fitting([shown, *general, *sort, *scroll], width)]
        sort[0] = f"sort by: {sort[0]}"
        return [_fitting(sort, width), _fitting([shown, *general, *scroll], width)]

    def scroll(self, key: str, nr_rows: int) -> None:
        """Change which row of the table is the first that is shown.

        Args:
            key: The key that the user pressed.
            nr_rows: Number of rows.
        """
        steps = {
            "up": -1, "k": -1, "down": 1, "j": 1,
            "pageup": -self.page, "pagedown": self.page,
            "home": -nr_rows, "end": nr_rows,
        }  # fmt: skip
        self.first += steps.get(key, 0)
        self.clamp(nr_rows)

    def clamp(self, nr_rows: int) -> None:
        """Keep the screen full: do not scroll beyond the last row."""
        self.first = max(0, min(self.first, nr_rows - self.page))


def nr_feet(height: int) -> int:
    """Return how many lines there are below the table, for a terminal of this many lines."""
    return 1 if height < SMALL else 2


def _fitting(parts: list[str], width: int) -> str:
    """Join the first part and as many of the others as fit."""
    text = parts[0]
    for part in parts[1:]:
        longer = f"{text}  {part}"
        if len(longer) > width:
            break
        text = longer
    return text


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

    def draw(self, compose: Callable[[int, int, bool], Rows]) -> None:
        """Show lines. Those that have not changed are not written.

        Args:
            compose: Makes the lines, the text and the style of each, from the width and height of
                the terminal, and whether to use only ASCII characters.
        """
        width, height = os.get_terminal_size(1)
        width, height = max(width, 1), max(height, 1)
        if (width, height) != tuple(self._console.size):
            self._drawn = []
        self._console.size = (width, height)
        rows = compose(width, height, self._plain)
        if self._plain:
            rows = [(text.encode("ascii", "replace").decode(), style) for text, style in rows]
        rows = [(set_cell_size(text, width), style) for text, style in rows]
        with self._console:  # collects all output for a single write
            for at, row in enumerate(rows):
                if at >= len(self._drawn) or row != self._drawn[at]:
                    segment = Segment(row[0], Style.parse(row[1]))
                    self._console.update_screen_lines([[segment]], 0, at)
        self._drawn = rows


def _is_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")


def fill(lines: Rows, rows: Rows, state: State, nr_rows: int, width: int, height: int) -> Rows:
    """Complete a screen: the lines above the table, the table, and the line below it.

    Args:
        lines: The lines above the table, and its title.
        rows: The rows of the table that are shown, at most `state.page`.
        state: What the user has chosen.
        nr_rows: Number of all rows.
        width: Width of the terminal in characters.
        height: Number of lines of the terminal, and of the result.
    """
    feet = [(text, FOOT) for text in state.feet(nr_rows, width, height)]
    room = max(0, height - len(feet))
    lines = lines + rows
    lines += [("", "")] * (room - len(lines))
    return [*lines[:room], *feet]
