# SPDX-License-Identifier: GPL-2.0-or-later
"""What watch says of a reading: lines for the screen and for a pipe, and documents."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from physview.analysis.changes import Change
from physview.analysis.page_counts import RamMap
from physview.analysis.watch import GROUPS, Reading
from physview.model import PAGE_SIZE, Vma, printable
from physview.reporters import documents
from physview.units import short_size

MIN_NAME = 12
BLOCKS = " ▁▂▃▄▅▆▇█"
ASCII_BLOCKS = " .:-=+*#@"
STEPS = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 63 / 64)
"""From what share of a cell on it is drawn higher than anything at all."""


class Column(NamedTuple):
    """A column of the mappings; those of the lowest rank are the last to be left out."""

    title: str
    width: int
    rank: int
    value: Callable[[Reading, int], str]


def _has(name: str) -> Callable[[Reading, int], str]:
    return lambda reading, at: short_size(int(reading.pages[name][at]) * PAGE_SIZE)


def _became(name: str) -> Callable[[Reading, int], str]:
    def value(reading: Reading, at: int) -> str:
        if reading.changes is None:
            return ""
        if name not in reading.changes:
            return "?"
        return short_size(int(reading.changes[name][at]) * PAGE_SIZE)

    return value


COLUMNS = (
    Column("start", 12, 2, lambda reading, at: f"{reading.vmas[at].start:012x}"),
    Column("perm", 4, 3, lambda reading, at: reading.vmas[at].perms),
    Column("size", 5, 1, lambda r, at: short_size(r.vmas[at].end - r.vmas[at].start)),
    Column("mem", 5, 0, _has("resident")),
    Column("swap", 5, 1, _has("swapped")),
    Column("excl", 5, 4, _has("exclusive")),
    Column("file", 5, 4, _has("file")),
    Column("new", 5, 0, _became("new")),
    Column("gone", 5, 0, _became("gone")),
    Column("moved", 5, 0, _became("moved")),
    Column("out", 4, 3, _became("out")),
    Column("in", 4, 3, _became("in")),
)


def choose_columns(width: int) -> tuple[list[Column], int]:
    """The columns that fit into a line, and what is left for the name behind them."""
    columns: list[Column] = []
    for rank in range(max(column.rank for column in COLUMNS), -1, -1):
        columns = [column for column in COLUMNS if column.rank <= rank]
        room = width - sum(column.width + 1 for column in columns)
        if room >= MIN_NAME:
            break
    return columns, max(room, 0)


def name_of(vma: Vma) -> str:
    """A mapping's name in a line of its own."""
    return printable(vma.path) if vma.path else "[anonymous]"


def short_name(vma: Vma, room: int) -> str:
    """The name, without its folder where that does not fit."""
    name = name_of(vma)
    if len(name) > room and "/" in name:
        name = name.removesuffix(" (deleted)").rpartition("/")[2]
    return name


def row(reading: Reading, at: int, columns: list[Column], room: int) -> str:
    """One mapping."""
    cells = [column.value(reading, at).rjust(column.width) for column in columns]
    return f"{' '.join(cells)} {short_name(reading.vmas[at], room)}"


def title_row(columns: list[Column]) -> str:
    """What stands over the mappings."""
    return " ".join(column.title.rjust(column.width) for column in columns) + " mapping"


def process_line(reading: Reading) -> str:
    """Which process, and what it has."""
    mem, swap = (int(reading.pages[name].sum()) * PAGE_SIZE for name in ("resident", "swapped"))
    nr = len(reading.vmas)
    return (
        f"{printable(reading.name)} ({reading.pid})  mem {short_size(mem)}  swap {short_size(swap)}"
        f"  {nr} mapping{'' if nr == 1 else 's'}"
    )


def fault_line(reading: Reading) -> str:
    """The kernel's own count of page faults."""
    total = f"{reading.nr_minor_faults} minor, {reading.nr_major_faults} major"
    if reading.new_faults is None or reading.seconds is None:
        return f"faults  {total} in all"
    minor, major = reading.new_faults
    return f"faults  {minor} minor, {major} major in {reading.seconds:.1f} s; {total} in all"


def change_line(reading: Reading) -> str:
    """What became of the pages since the reading before."""
    if reading.counts is None:
        return "pages   the first reading: what changes is seen from the next on"
    counts = reading.counts
    sums = {name: sum(counts.get(c, 0) for c in members) for name, members in GROUPS.items()}
    moved = str(sums["moved"]) if reading.knows_frames else "?"
    copied = counts.get(Change.COPIED, 0)
    moved += f" ({copied} copied)" if copied else ""
    line = (
        f"pages   {sums['new']} new, {sums['gone']} gone, {moved} moved,"
        f" {sums['out']} swapped out, {sums['in']} in"
    )
    other = sum(counts.values()) - sum(sums.values())
    return f"{line}, {other} other" if other else line


def notes(reading: Reading) -> list[str]:
    """What is not known, and why."""
    found = []
    if not reading.knows_frames:
        found.append(
            "frame numbers are hidden: what moved, and where in RAM it is, is root's to see"
        )
    elif reading.ram is None:
        found.append("/proc/iomem does not tell where RAM is: no map of it")
    elif reading.ram.nr_elsewhere:
        size = short_size(reading.ram.nr_elsewhere * PAGE_SIZE)
        found.append(f"{size} more are in memory of devices, not in RAM")
    if reading.compared_to is not None:
        found.append(
            f"too many extents to keep: changes are told below {reading.compared_to:#x} only"
        )
    return found


def density(ram: RamMap, nr_cells: int, blocks: str = BLOCKS) -> str:
    """A character for each part of RAM: how much of it is the process's, after STEPS."""
    import numpy as np

    nr_cells = min(nr_cells, len(ram.frames))
    firsts = np.arange(nr_cells) * len(ram.frames) // nr_cells
    frames = np.add.reduceat(ram.frames, firsts)
    ends = np.minimum(np.append(firsts[1:], len(ram.frames)) * ram.cell_frames, ram.nr_frames)
    share = frames / (ends - firsts * ram.cell_frames)
    step = np.where(frames > 0, 1 + np.searchsorted(STEPS, share, side="right"), 0)
    return "".join(blocks[at] for at in step.tolist())


def ram_lines(ram: RamMap, width: int, nr_lines: int, blocks: str = BLOCKS) -> list[str]:
    """RAM as lines of characters, from its first frame to its last."""
    head = f"RAM {short_size(ram.nr_frames * PAGE_SIZE):>4}"
    room = width - len(head) - 2
    cells = density(ram, room * nr_lines, blocks)
    room = -(-len(cells) // nr_lines)
    heads = [head] + [" " * len(head)] * (nr_lines - 1)
    return [f"{head}|{cells[i * room : (i + 1) * room]}|" for i, head in enumerate(heads)]


def ram_legend(ram: RamMap, nr_cells: int, blocks: str = BLOCKS) -> str:
    """What a character of the map is, and what its height means."""
    size = short_size(ram.nr_frames * PAGE_SIZE // max(1, min(nr_cells, len(ram.frames))))
    shares = f"{blocks[1]} some {blocks[4]} 1/16 {blocks[6]} 1/4 {blocks[7]} 1/2 {blocks[8]} all"
    return f"a character is {size}; of that {shares}"


def print_reading(reading: Reading, width: int) -> None:
    """A reading as plain text: what the screen shows, with every mapping."""
    lines = [process_line(reading), fault_line(reading), change_line(reading)]
    blocks = BLOCKS if _can_encode(BLOCKS) else ASCII_BLOCKS
    if reading.ram:
        room = min(width, 120)
        lines += ram_lines(reading.ram, room, 1, blocks)
        lines.append(f"        {ram_legend(reading.ram, room - 10, blocks)}")
    lines += notes(reading)
    columns, room = choose_columns(width)
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
    """A reading as one line of JSON."""
    sys.stdout.write(json.dumps(document(reading)) + "\n")


def document(reading: Reading) -> dict[str, Any]:
    """A reading, as docs/json.md has it; pages are base pages."""
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
