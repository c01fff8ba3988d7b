# SPDX-License-Identifier: GPL-2.0-or-later
"""A reading of watch, as lines for the screen and for a pipe, and as a JSON document."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from physview.analysis.changes import Change
from physview.analysis.page_counts import RamMap
from physview.analysis.watch import GROUPS, Reading
from physview.model import PAGE_SIZE, Vma, printable
from physview.reporters import documents
from physview.reporters.fitting import WROTE, fitting
from physview.units import short_size

FIRST = "pages   first reading: changes are shown from the next reading on"
BLOCKS = " ▁▂▃▄▅▆▇█"
ASCII_BLOCKS = " .:-=+*#@"
NARROW = 80
"""Width of a narrow terminal."""

NEARLY_ALL = 63 / 64
"""Share of a character's frames from which on it is drawn as full."""


class WatchColumn(NamedTuple):
    """A column of the table of mappings.

    Args:
        title: The column's title.
        width: Width in characters.
        rank: The columns with the highest rank are left out first if the terminal is narrow.
        value: Makes the cell's text, from a reading and the index of a mapping.
    """

    title: str
    width: int
    rank: int
    value: Callable[[Reading, int], str]


def _format_pages(name: str) -> Callable[[Reading, int], str]:
    return lambda reading, at: short_size(int(reading.pages[name][at]) * PAGE_SIZE)


def _format_change(name: str) -> Callable[[Reading, int], str]:
    def value(reading: Reading, at: int) -> str:
        if reading.changes is None:
            return ""
        if name not in reading.changes:
            return "?"
        return short_size(int(reading.changes[name][at]) * PAGE_SIZE)

    return value


COLUMNS = (
    WatchColumn("start", 14, 2, lambda reading, at: f"{reading.vmas[at].start:#014x}"),
    WatchColumn("perm", 4, 3, lambda reading, at: reading.vmas[at].perms),
    WatchColumn("size", 5, 1, lambda r, at: short_size(r.vmas[at].end - r.vmas[at].start)),
    WatchColumn("mem", 5, 0, _format_pages("resident")),
    WatchColumn("swap", 5, 1, _format_pages("swapped")),
    WatchColumn("excl", 5, 4, _format_pages("exclusive")),
    WatchColumn("file", 5, 4, _format_pages("file")),
    WatchColumn("new", 5, 0, _format_change("new")),
    WatchColumn("gone", 5, 0, _format_change("gone")),
    WatchColumn("moved", 5, 0, _format_change("moved")),
    WatchColumn(WROTE, 5, 0, _format_change("written")),
    WatchColumn("out", 4, 3, _format_change("out")),
    WatchColumn("in", 4, 3, _format_change("in")),
)


def choose_columns(width: int, *, track_writes: bool) -> tuple[list[WatchColumn], int]:
    """Choose the columns that fit into a line.

    Args:
        width: The width of the line in characters.
        track_writes: Whether it is known which pages were written in place.

    Returns:
        The columns, and the number of characters that are left for the mapping's name.
    """
    known = [column for column in COLUMNS if track_writes or column.title != WROTE]
    return fitting(known, width)


def name_of(vma: Vma) -> str:
    """Return the name of a mapping."""
    return printable(vma.path) if vma.path else "[anonymous]"


def short_name(vma: Vma, room: int) -> str:
    """Return the name of a mapping, without its folder if the path is longer than `room`."""
    name = name_of(vma)
    if len(name) > room and "/" in name:
        name = name.removesuffix(" (deleted)").rpartition("/")[2]
    return name


def row(reading: Reading, at: int, columns: list[WatchColumn], room: int) -> str:
    """Make the line of the mapping with index `at`."""
    cells = [column.value(reading, at).rjust(column.width) for column in columns]
    return f"{' '.join(cells)} {short_name(reading.vmas[at], room)}"


def title_row(columns: list[WatchColumn]) -> str:
    """Make the line with the titles of the columns."""
    return " ".join(column.title.rjust(column.width) for column in columns) + " mapping"


def process_line(reading: Reading) -> str:
    """Make the line about the process: its name, pid and sizes."""
    mem, swap = (int(reading.pages[name].sum()) * PAGE_SIZE for name in ("resident", "swapped"))
    nr = len(reading.vmas)
    return (
        f"{printable(reading.name)} ({reading.pid})  mem {short_size(mem)}  swap {short_size(swap)}"
        f"  {nr} mapping{'' if nr == 1 else 's'}"
    )


def fault_line(reading: Reading) -> str:
    """Make the line about page faults, which the kernel counts."""
    total = f"{reading.nr_minor_faults} minor, {reading.nr_major_faults} major"
    if reading.new_faults is None or reading.seconds is None:
        return f"faults  {total} in total"
    minor, major = reading.new_faults
    return f"faults  {minor} minor, {major} major in {reading.seconds:.1f} s; {total} in total"


def change_line(reading: Reading) -> str:
    """Make the line about changes since the previous reading."""
    if reading.counts is None:
        return FIRST
    counts, sums = reading.counts, reading.nr_changed or {}
    moved = str(sums["moved"]) if reading.knows_frames else "?"
    copied = counts.get(Change.COPIED, 0)
    moved += f" ({copied} copied)" if copied else ""
    line = change_words(sums, moved, tracks_writes=reading.tracks_writes)
    other = sum(counts.values()) - sum(sums.values())
    return f"{line}, {other} other" if other else line


def change_words(sums: dict[str, int], moved: str, *, tracks_writes: bool) -> str:
    """Make the words about changed pages.

    Args:
        sums: Changed pages by `watch.GROUPS`.
        moved: The words for moved pages.
        tracks_writes: Whether pages that were written in place are known.
    """
    line = (
        f"pages   {sums['new']} new, {sums['gone']} gone, {moved} moved,"
        f" {sums['out']} swapped out, {sums['in']} in"
    )
    return f"{line}, {sums['written']} written in place" if tracks_writes else line


def notes(reading: Reading) -> list[str]:
    """Make lines that say what is not known, and why."""
    found = []
    if not reading.knows_frames:
        found.append("frame numbers are hidden: only root sees moved pages and places in RAM")
    elif reading.ram is None:
        found.append("/proc/iomem does not say where RAM is, so there is no map of it")
    elif reading.ram.nr_elsewhere:
        size = short_size(reading.ram.nr_elsewhere * PAGE_SIZE)
        found.append(f"{size} more are in the memory of devices, not in RAM")
    if reading.compared_to is not None:
        found.append(
            f"too many extents to keep: changes are shown only below {reading.compared_to:#x}"
        )
    return found


def steps(frames_per_character: int) -> list[int]:
    """Return from how many frames on a character is drawn a step higher: a logarithmic scale.

    The scale begins at one frame, however much RAM there is. On a linear scale a process of some
    megabytes would have the lowest step everywhere on a machine with many gigabytes.

    Args:
        frames_per_character: The number of frames for which a character stands.

    >>> steps(2816), steps(87_808)
    ([1, 4, 16, 64, 256, 1024], [1, 8, 64, 512, 4096, 32768])
    """
    nr_steps = len(BLOCKS) - 2  # without the blocks for nothing and for all
    shift = max(1, -(-(frames_per_character - 1).bit_length() // nr_steps))
    found = [1 << shift * at for at in range(nr_steps)]
    return [least for least in found if least < frames_per_character * NEARLY_ALL] or [1]


def _characters(ram: RamMap, nr_cells: int) -> tuple[int, int]:
    """Return how many characters there are, and the number of frames for which one stands."""
    nr_cells = max(1, min(nr_cells, len(ram.frames)))
    return nr_cells, -(-ram.nr_frames // nr_cells)


def density(ram: RamMap, nr_cells: int, blocks: str = BLOCKS) -> str:
    """Draw RAM as characters: each stands for a part of RAM, and its height for frames in it.

    Args:
        ram: The process's frames in RAM.
        nr_cells: Maximum number of characters.
        blocks: The characters, from no frame to all frames; `steps()` has the scale.
    """
    import numpy as np

    nr_cells, frames_each = _characters(ram, nr_cells)
    firsts = np.arange(nr_cells) * len(ram.frames) // nr_cells
    frames = np.add.reduceat(ram.frames, firsts)
    ends = np.minimum(np.append(firsts[1:], len(ram.frames)) * ram.cell_frames, ram.nr_frames)
    step = np.searchsorted(steps(frames_each), frames, side="right")
    is_full = (frames > 0) & (frames >= NEARLY_ALL * (ends - firsts * ram.cell_frames))
    step[is_full] = len(blocks) - 1
    return "".join(blocks[at] for at in step.tolist())


def ram_lines(ram: RamMap, width: int, nr_lines: int, blocks: str = BLOCKS) -> list[str]:
    """Draw RAM in lines of characters, from its first frame to its last."""
    head = f"RAM {short_size(ram.nr_frames * PAGE_SIZE):>4}"
    room = width - len(head) - 2
    cells = density(ram, room * nr_lines, blocks)
    room = -(-len(cells) // nr_lines)
    heads = [head] + [" " * len(head)] * (nr_lines - 1)
    return [f"{head}|{cells[i * room : (i + 1) * room]}|" for i, head in enumerate(heads)]


def ram_legend(ram: RamMap, nr_cells: int, blocks: str = BLOCKS) -> str:
    """Make the legend of the map: what a character stands for, and what its height means."""
    _, frames_each = _characters(ram, nr_cells)
    least = [f"{blocks[at]} {_round(nr)}" for at, nr in enumerate(steps(frames_each), 1)]
    scale, each = f"{' '.join(least)} {blocks[-1]} all", _round(frames_each)
    text = f"a character is {each}; the process has {scale}"
    return text if len(text) <= NARROW else f"each is {each}: {scale}"  # with terabytes of RAM


def _round(nr_frames: int) -> str:
    """Format a number of frames as a size, without a decimal that is 0."""
    return short_size(nr_frames * PAGE_SIZE).replace(".0", "")


def print_reading(reading: Reading, width: int) -> None:
    """Print a reading as plain text: what the screen shows, with all mappings."""
    lines = [process_line(reading), fault_line(reading), change_line(reading)]
    blocks = BLOCKS if _can_encode(BLOCKS) else ASCII_BLOCKS
    if reading.ram:
        room = min(width, 120)
        lines += ram_lines(reading.ram, room, 1, blocks)
        lines.append(ram_legend(reading.ram, room - 10, blocks))
    lines += notes(reading)
    columns, room = choose_columns(width, track_writes=reading.tracks_writes)
    lines.append(title_row(columns))
    lines += [row(reading, at, columns, room) for at in range(len(reading.vmas))]
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in [*lines, ""])


def _can_encode(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def print_document(reading: Reading) -> None:
    """Print a reading as one line of JSON."""
    documents.write_line(document(reading))


def document(reading: Reading) -> dict[str, Any]:
    """Make the JSON document of a reading (docs/json.md). Pages are base pages."""
    ram = reading.ram
    changes, counts = reading.changes, reading.counts
    mappings = []
    for at, vma in enumerate(reading.vmas):
        mapping: dict[str, Any] = {"mapping": documents.mapping(vma)}
        mapping |= {f"nr_{name}": int(column[at]) for name, column in reading.pages.items()}
        became = {name: int(column[at]) for name, column in (changes or {}).items()}
        mapping["changes"] = (
            None if changes is None else {name: became.get(name) for name in GROUPS}
        )
        mappings.append(mapping)
    return {
        "pid": reading.pid,
        "name": reading.name,
        "time": reading.time,
        "seconds": reading.seconds,
        "nr_minor_faults": reading.nr_minor_faults,
        "nr_major_faults": reading.nr_major_faults,
        "changes": None if counts is None else {c.value: nr for c, nr in counts.items()},
        "compared_to": None if reading.compared_to is None else hex(reading.compared_to),
        "ram": ram
        and {
            "cell_frames": ram.cell_frames,
            "nr_frames": ram.nr_frames,
            "nr_elsewhere": ram.nr_elsewhere,
            "cells": {at: nr for at, nr in enumerate(ram.frames.tolist()) if nr},
        },
        "cost_seconds": reading.cost_seconds,
        "mappings": mappings,
    }
