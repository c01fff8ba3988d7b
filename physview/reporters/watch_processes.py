# SPDX-License-Identifier: GPL-2.0-or-later
"""A reading of several processes, as lines for the screen and for a pipe, and as JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from physview.analysis.watch import GROUPS, Reading
from physview.analysis.watch_processes import ProcessesReading
from physview.model import PAGE_SIZE, printable
from physview.reporters import documents
from physview.reporters.fitting import WROTE, fitting
from physview.reporters.watch import FIRST, change_words
from physview.units import short_size


class ProcessColumn(NamedTuple):
    """A column of the table of processes.

    Args:
        title: The column's title.
        width: Width in characters.
        rank: The columns with the highest rank are left out first if the terminal is narrow.
        value: Makes the cell's text from a process's reading.
    """

    title: str
    width: int
    rank: int
    value: Callable[[Reading], str]


def _format_pages(name: str) -> Callable[[Reading], str]:
    return lambda reading: short_size(int(reading.pages[name].sum()) * PAGE_SIZE)


def _format_change(name: str) -> Callable[[Reading], str]:
    def value(reading: Reading) -> str:
        counts = reading.nr_changed
        if counts is None:
            return ""
        if name == "moved" and not reading.knows_frames:
            return "?"
        return short_size(counts[name] * PAGE_SIZE)

    return value


def _format_faults(reading: Reading) -> str:
    return "" if reading.new_faults is None else str(sum(reading.new_faults))


COLUMNS = (
    ProcessColumn("pid", 7, 0, lambda reading: str(reading.pid)),
    ProcessColumn("mem", 5, 0, _format_pages("resident")),
    ProcessColumn("swap", 5, 1, _format_pages("swapped")),
    ProcessColumn("excl", 5, 3, _format_pages("exclusive")),
    ProcessColumn("file", 5, 3, _format_pages("file")),
    ProcessColumn("new", 5, 0, _format_change("new")),
    ProcessColumn("gone", 5, 0, _format_change("gone")),
    ProcessColumn("moved", 5, 0, _format_change("moved")),
    ProcessColumn(WROTE, 5, 0, _format_change("written")),
    ProcessColumn("out", 4, 2, _format_change("out")),
    ProcessColumn("in", 4, 2, _format_change("in")),
    ProcessColumn("faults", 6, 1, _format_faults),
)


def choose_columns(width: int, *, track_writes: bool) -> tuple[list[ProcessColumn], int]:
    """Choose the columns that fit into a line, as `watch.choose_columns()` does."""
    known = [column for column in COLUMNS if track_writes or column.title != WROTE]
    return fitting(known, width)


def row(reading: Reading, columns: list[ProcessColumn]) -> str:
    """Make the line of a process."""
    cells = [column.value(reading).rjust(column.width) for column in columns]
    return f"{' '.join(cells)} {printable(reading.name)}"


def title_row(columns: list[ProcessColumn]) -> str:
    """Make the line with the titles of the columns."""
    return " ".join(column.title.rjust(column.width) for column in columns) + " name"


def summary_line(reading: ProcessesReading) -> str:
    """Make the line about all processes: their number and sizes.

    Memory that several processes share counts once for each.
    """
    nr = len(reading.readings)
    mem, swap = (
        sum(int(one.pages[name].sum()) for one in reading.readings) * PAGE_SIZE
        for name in ("resident", "swapped")
    )
    line = f"{nr} process{'' if nr == 1 else 'es'}  mem {short_size(mem)}  swap {short_size(swap)}"
    return line + "  (shared memory counts for each)" if nr > 1 else line


def change_line(reading: ProcessesReading) -> str:
    """Make the line about changes since the previous reading."""
    if reading.seconds is None:
        return FIRST
    sums = dict.fromkeys(GROUPS, 0)
    for one in reading.readings:
        for name, nr in (one.nr_changed or {}).items():
            sums[name] += nr
    moved = str(sums["moved"]) if reading.knows_frames else "?"
    tracks_writes = any(one.tracks_writes for one in reading.readings)
    line = change_words(sums, moved, tracks_writes=tracks_writes)
    return f"{line}; {reading.nr_new} processes new, {reading.nr_gone} gone"


def notes(reading: ProcessesReading) -> list[str]:
    """Make lines that say what is not known, and why."""
    found = []
    if not reading.knows_frames:
        found.append("frame numbers are hidden: only root sees moved pages")
    if reading.nr_denied:
        one = reading.nr_denied == 1
        words, them = (
            ("1 process is", "it") if one else (f"{reading.nr_denied} processes are", "them")
        )
        found.append(f"{words} left out: you may not examine {them}")
    nr = sum(one.compared_to is not None for one in reading.readings)
    if nr:
        found.append(f"too many extents to keep: only a part of {nr} processes is compared")
    return found


def print_reading(reading: ProcessesReading, width: int, *, track_writes: bool) -> None:
    """Print a reading as plain text, the process with the most memory first."""
    columns, _ = choose_columns(width, track_writes=track_writes)
    lines = [summary_line(reading), change_line(reading), *notes(reading), title_row(columns)]
    largest = sorted(reading.readings, key=lambda one: -int(one.pages["resident"].sum()))
    lines += [row(one, columns) for one in largest]
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in [*lines, ""])


def print_document(reading: ProcessesReading) -> None:
    """Print a reading as one line of JSON (docs/json.md). Pages are base pages."""
    documents.write_line(
        {
            "time": reading.time,
            "seconds": reading.seconds,
            "nr_new": reading.nr_new,
            "nr_gone": reading.nr_gone,
            "nr_denied": reading.nr_denied,
            "cost_seconds": reading.cost_seconds,
            "processes": [_process(one) for one in reading.readings],
        }
    )


def _process(reading: Reading) -> dict[str, Any]:
    counts = reading.counts
    return {
        "pid": reading.pid,
        "name": reading.name,
        **{f"nr_{name}": int(column.sum()) for name, column in reading.pages.items()},
        "nr_minor_faults": reading.nr_minor_faults,
        "nr_major_faults": reading.nr_major_faults,
        "changes": None if counts is None else {c.value: nr for c, nr in counts.items()},
        "compared_to": None if reading.compared_to is None else hex(reading.compared_to),
    }
