# SPDX-License-Identifier: GPL-2.0-or-later
"""What is drawn: the machine's frames by kind, a process's bands, and what connects them.

Nothing here knows how it is drawn. A picture of something else, as of what differs between two
moments, is made of the same: kinds of one's own, and runs of frames of them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from physview.errors import AccessDenied
from physview.memory.snapshot import Snapshot
from physview.model import PAGE_SIZE, printable
from physview.pictures import bands as bands_module
from physview.pictures.bands import Band, Links, Pages
from physview.pictures.grid import Grid, count_cells, make_grid
from physview.pictures.kinds import (
    MACHINE_KINDS,
    PROCESS_KINDS,
    Kind,
    index_of,
    machine_kind,
    rest_kind,
)
from physview.pictures.process_pages import Memory, read_memory
from physview.pictures.runs import overlay, read_runs
from physview.sources.procfs import ProcDir
from physview.sources.ram import Resource, ram_ranges, read_resources
from physview.units import pages_size, share, size_words

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from physview.pictures.runs import Runs

    Progress = Callable[[int, int | None], None]


class Frames(NamedTuple):
    """Physical memory, each frame of RAM once.

    Args:
        ram: (first frame, first frame after it), in order.
        runs: Structured array of `runs.RUN_DTYPE`: all of RAM, without what is laid over it.
        over: As `runs`, in any order: what the picture is about.
        grid: Where they are drawn.
        counts: int64 array, shape (rows, COLUMNS, kinds): what each cell has.
    """

    ram: list[tuple[int, int]]
    runs: Runs
    over: Runs
    grid: Grid
    counts: npt.NDArray[np.int64]

    @property
    def totals(self) -> list[int]:
        """How many frames of each kind there are."""
        totals: list[int] = self.counts.sum(axis=(0, 1)).tolist()
        return totals


class Space(NamedTuple):
    """A process's address space.

    Args:
        pid: The process.
        memory: Its mappings, and what they have.
        bands: Its mappings as they are drawn.
        profile: int64 array, shape (bands, PARTS, kinds): what a band has where.
        links: What connects them with frames; None where frames are not known.
    """

    pid: int
    memory: Pages
    bands: list[Band]
    profile: npt.NDArray[np.int64]
    links: Links | None


class Picture(NamedTuple):
    """All that is drawn.

    Args:
        title: What it is a picture of.
        subtitle: More of that, as the command line.
        origin: Where and when it was taken.
        summary: The figures that tell most, in words.
        kinds: What frames and pages can be.
        frames: Physical memory, or None where it cannot be seen.
        space: A process's address space, or None.
        scale: What a cell and a connector are.
        notes: What else has to be known to read it.
        missing: What is not drawn, and why; empty if all is.
    """

    title: str
    subtitle: str
    origin: str
    summary: str
    kinds: tuple[Kind, ...]
    frames: Frames | None
    space: Space | None
    scale: tuple[str, ...]
    notes: tuple[str, ...]
    missing: str


def make_frames(
    runs: Runs,
    over: Runs,
    ram: list[tuple[int, int]],
    kinds: tuple[Kind, ...],
    resources: list[Resource] | None,
) -> Frames:
    """Physical memory as cells.

    Args:
        runs: All of RAM by kind: array of `runs.RUN_DTYPE`, in order, each frame once.
        over: What lies over it, in any order; may be empty. Of a frame that is in several of these
            the first kind counts.
        ram: Where RAM is.
        kinds: What the runs' kinds are.
        resources: What lies in its holes, as of `ram.read_resources()`; None if not known.
    """
    grid = make_grid(ram, resources)
    return Frames(ram, runs, over, grid, count_cells(grid, overlay(runs, over), len(kinds)))


def picture_machine(*, progress: Progress | None = None) -> Picture:
    """Read what all frames of the machine are.

    Args:
        progress: Called with how many frames were read, and how many there are.

    Raises:
        AccessDenied: Flags and addresses are root's.
        Unsupported: The kernel was built without kpageflags.
        CoreUnavailable: The core is not built.
    """
    resources = read_resources()
    ram = ram_ranges(resources)
    runs = read_runs(ram, machine_kind, progress=progress)
    frames = make_frames(runs, runs[:0], ram, MACHINE_KINDS, resources)
    nr_all, nr_free = sum(frames.totals), frames.totals[index_of(MACHINE_KINDS, "free")]
    summary = (
        f"{pages_size(nr_all)} of RAM, {nr_all:,} frames of {size_words(PAGE_SIZE)};"
        f" {pages_size(nr_free)} free, {share(nr_free, nr_all)}"
    )
    return Picture(
        title=f"Physical memory of {os.uname().nodename}",
        subtitle="",
        origin=_origin(),
        summary=summary,
        kinds=MACHINE_KINDS,
        frames=frames,
        space=None,
        scale=(_cell_note(frames, False),),
        notes=(),
        missing="",
    )


def picture_process(
    pid: int | str = "self", *, with_mapcount: bool = False, progress: Progress | None = None
) -> Picture:
    """Read a process's address space, and what all frames of the machine are.

    Args:
        pid: Process id, or "self".
        with_mapcount: Whether to read, too, how often each of its frames is mapped; some kernels
            had a bug in telling that.
        progress: Called with how much was read, and how much there is or None.

    Returns:
        The picture; without frames where these are hidden from this user.

    Raises:
        As `Snapshot` and its `iter_extents()`.
    """
    with Snapshot(pid) as snapshot:
        title, subtitle = _names(snapshot.proc)
        memory = read_memory(snapshot, with_mapcount=with_mapcount, progress=progress)
        number = snapshot.pid
    bands = bands_module.make_bands(memory)
    frames, links, missing = None, None, ""
    scale: list[str] = []
    notes: list[str] = []
    if memory.knows_frames:
        try:
            resources = read_resources()
            ram = ram_ranges(resources)
        except AccessDenied as error:
            missing = str(error)
        else:
            runs = read_runs(ram, rest_kind, progress=progress)
            frames = make_frames(runs, memory.frames, ram, PROCESS_KINDS, resources)
            links, nr_outside = bands_module.make_links(memory, bands, frames.grid, ram)
            scale = [_cell_note(frames, True), _link_note(links)]
            if nr_outside:
                notes = [f"{nr_outside:,} pages lie outside of RAM: no frames are drawn for them."]
    else:
        missing = "frame numbers are told to root only"
        notes = ["Without them shared memory is told as files, and large folios are not told."]
    space = Space(number, memory, bands, bands_module.profiles(memory, bands), links)
    return Picture(
        title=f"{title}, process {number}",
        subtitle=subtitle,
        origin=_origin(),
        summary=_process_summary(memory, frames),
        kinds=PROCESS_KINDS,
        frames=frames,
        space=space,
        scale=tuple(scale),
        notes=tuple(notes),
        missing=missing,
    )


def _origin() -> str:
    host = os.uname()
    now = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return f"{printable(host.nodename)}  ·  Linux {host.release}  ·  {now}"


def _names(proc: ProcDir) -> tuple[str, str]:
    """The process's name and its command line."""
    words = os.fsdecode(proc.read("cmdline").removesuffix(b"\0")).split("\0")
    return printable(proc.comm()), " ".join(map(printable, words))


def _process_summary(memory: Memory, frames: Frames | None) -> str:
    nr_maps = len(memory.vmas)
    mappings = "1 mapping" if nr_maps == 1 else f"{nr_maps:,} mappings"
    resident = f"{pages_size(memory.nr_resident)} resident in {mappings}"
    alone = f"{pages_size(memory.nr_exclusive)} mapped by it alone"
    if frames is None:
        return f"{resident}, {alone}"
    nr_extents = int(memory.has_frames.sum())
    nr_ram = sum(end - first for first, end in frames.ram)
    return (
        f"{resident}, {alone}; {share(memory.nr_resident, nr_ram)} of {pages_size(nr_ram)} of RAM,"
        f" in {nr_extents:,} extents"
    )


def _cell_note(frames: Frames, has_subject: bool) -> str:
    cell, row = 1 << frames.grid.shift, 1 << frames.grid.row_shift
    page = size_words(PAGE_SIZE)
    what = f"{cell:,} frames of {page}, {size_words(cell * PAGE_SIZE)}"
    note = (
        f"Each cell is {what if cell > 1 else f'a frame of {page}'}; each row"
        f" {size_words(row * PAGE_SIZE)}. Its stripes are what the frames are, by their shares"
    )
    if has_subject:
        note += "; what is of this process takes a quarter of the cell at least."
    else:
        note += ", rounded to eighths."
    return note


def _link_note(links: Links) -> str:
    rows = "a row of cells" if links.nr_rows == 1 else f"{links.nr_rows} rows of cells"
    part = "a mapping" if links.nr_parts == 1 else f"1/{links.nr_parts} of a mapping"
    return f"Each connector bundles the pages of {part} in {rows}, as broad as they are many."
