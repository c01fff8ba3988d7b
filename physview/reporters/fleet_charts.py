# SPDX-License-Identifier: GPL-2.0-or-later
"""Plots of a fleet as SVG that needs no script: lines over time, and hosts by hours.

Names come from the recorded machines: each of them passes through text().
"""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import pairwise

from physview.fleet.report import Plot
from physview.pictures.svg import number, text
from physview.reporters.fleet import cell
from physview.units import cut

WIDTH = 1000
LEFT, RIGHT, TOP = 150.0, 16.0, 10.0
HEIGHT = 220.0
AXIS = 24.0
ROW = 16.0
MAX_ROWS = 40
NR_TICKS = 4
NR_COLOURS = 6
NR_SHADES = 5
NAME_LETTERS = 22


def draw_plot(plot: Plot, first: datetime | None, last: datetime | None) -> str:
    """Draw a plot as an SVG element, with its legend if it has lines.

    Args:
        plot: The values.
        first, last: The time of the whole report.
    """
    moments = [moment for values in plot.points.values() for moment in values]
    known = [moment for moment in (first, last) if moment is not None]
    return (_lines if plot.kind == "lines" else _heat)(plot, [*moments, *known])


MAX_LABELS = 8
LABEL = 40.0  # the width of a label
TIMES = [timedelta(minutes=each) for each in (1, 5, 10, 30, 60, 180, 360)]


class _TimeAxis:
    """Places of moments, and the days below the plot."""

    def __init__(self, moments: list[datetime], height: float) -> None:
        self.first, self.last = min(moments), max(moments)
        self._span = max(1.0, (self.last - self.first).total_seconds())
        self._height = height

    def place(self, moment: datetime) -> float:
        share = (moment - self.first).total_seconds() / self._span
        return LEFT + (WIDTH - LEFT - RIGHT) * share

    def draw(self) -> str:
        """Lines and labels: at some midnights, or at the hours or minutes of a short time."""
        days = round(self._span / 86400 / 8)
        step = next((each for each in TIMES if each * MAX_LABELS >= timedelta(0, self._span)), None)
        step = step or timedelta(days=max(1, days))
        at = self.first.replace(hour=0, minute=0, second=0, microsecond=0)
        drawn = []
        while at <= self.last:
            if at >= self.first:
                x = number(self.place(at))
                words = f"{at:%m-%d}" if not at.hour and not at.minute else f"{at:%H:%M}"
                if self.place(at) > WIDTH - LABEL / 2:
                    words = ""
                drawn.append(
                    f'<path class="grid" d="M{x} {TOP}V{number(self._height)}"/>'
                    f'<text x="{x}" y="{number(self._height + 16)}">{words}</text>\n'
                )
            at += step
        return "".join(drawn)


def _svg(height: float, title: str, parts: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {number(height)}" role="img" aria-label="{text(title)}">\n'
        f"{parts}</svg>\n"
    )


def _lines(plot: Plot, ends: list[datetime]) -> str:
    """A line for each name. A line is broken where samples are missing."""
    moments = [moment for values in plot.points.values() for moment in values]
    axis = _TimeAxis(ends, HEIGHT)
    top = 1.0 if plot.unit == "share" else max(max(v.values()) for v in plot.points.values())
    top = top or 1.0
    parts = [axis.draw()]
    for tick in range(NR_TICKS + 1):
        y = HEIGHT - (HEIGHT - TOP) * tick / NR_TICKS
        label = text(cell(top * tick / NR_TICKS, plot.unit))
        parts.append(
            f'<path class="grid" d="M{number(LEFT)} {number(y)}H{number(WIDTH - RIGHT)}"/>'
            f'<text class="end" x="{number(LEFT - 6)}" y="{number(y + 4)}">{label}</text>\n'
        )
    gap = _usual_step(sorted(set(moments))) * 1.5
    legend = []
    for index, (name, values) in enumerate(plot.points.items()):
        colour = f"s{index % NR_COLOURS}"
        parts.append(f'<path class="line {colour}" d="{_path(values, axis, top, gap)}">')
        parts.append(f"<title>{text(name)}</title></path>\n")
        legend.append(f'<li><i class="{colour}"></i>{text(name)}</li>\n')
    drawn = _svg(HEIGHT + AXIS, plot.title, "".join(parts))
    return f'{drawn}<ul class="legend">\n{"".join(legend)}</ul>\n'


def _usual_step(moments: list[datetime]) -> timedelta:
    steps = sorted(second - first for first, second in pairwise(moments))
    return steps[len(steps) // 2] if steps else timedelta(minutes=5)


def _path(values: dict[datetime, float], axis: _TimeAxis, top: float, gap: timedelta) -> str:
    drawn = []
    before: datetime | None = None
    for moment in sorted(values):
        x = number(axis.place(moment))
        y = number(HEIGHT - (HEIGHT - TOP) * min(1.0, values[moment] / top))
        pen = "M" if before is None or moment - before > gap else "L"
        drawn.append(f"{pen}{x} {y}")
        before = moment
    # A single sample has no line: "h1" makes it a dot.
    return "".join(drawn) + ("h1" if len(values) == 1 else "")


def _heat(plot: Plot, ends: list[datetime]) -> str:
    """A row for each host, a box for each hour: the darker, the more."""
    rows = sorted(plot.points, key=lambda name: -sum(plot.points[name].values()))[:MAX_ROWS]
    rows.sort()
    moments = [moment for name in rows for moment in plot.points[name]]
    step = _usual_step(sorted(set(moments)))
    height = TOP + ROW * len(rows)
    axis = _TimeAxis([*ends, max(moments) + step], height)
    most = max(max(plot.points[name].values()) for name in rows) or 1
    parts = [axis.draw()]
    for index, name in enumerate(rows):
        y = TOP + ROW * index
        label = text(cut(name, NAME_LETTERS))
        parts.append(
            f'<text class="end" x="{number(LEFT - 6)}" y="{number(y + 12)}">{label}</text>\n'
        )
        for moment, value in sorted(plot.points[name].items()):
            if not value:
                continue
            x = axis.place(moment)
            width = max(1.0, axis.place(moment + step) - x)
            shade = 1 + min(NR_SHADES - 1, int(NR_SHADES * value / most))
            words = f"{name}, {cell(moment, 'time')}: {cell(value, plot.unit)}"
            parts.append(
                f'<rect class="h{shade}" x="{number(x)}" y="{number(y + 1)}"'
                f' width="{number(width)}" height="{number(ROW - 2)}">'
                f"<title>{text(words)}</title></rect>\n"
            )
    more = len(plot.points) - len(rows)
    note = f"<p>{more} more hosts with less are not drawn.</p>\n" if more else ""
    return _svg(height + AXIS, plot.title, "".join(parts)) + note
