# SPDX-License-Identifier: GPL-2.0-or-later
"""What a picture shows, as data: the frames of the machine, and the address space of a process.

The model holds no words (`captions` has them) and no positions (`layout` has them). A picture of
something else has the same parts: kinds of its own, and runs of frames of these kinds.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from physview.pictures.bands import Band, DrawnPages, Links
from physview.pictures.grid import Grid, count_cells, make_grid
from physview.pictures.kinds import Kind
from physview.pictures.runs import overlay
from physview.sources.ram import Resource

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from physview.pictures.runs import Runs


class DrawnFrames(NamedTuple):
    """Physical memory, each frame of RAM once.

    Args:
        ram: (first frame, first frame after it), in order.
        has_resources: Whether it is known where RAM is. Otherwise `ram` has the frames that are
            named, with some around them.
        runs: Structured array of `runs.RUN_DTYPE`: all of RAM, without the frames in `over`.
        over: As `runs`, in any order: the frames that the picture is about.
        grid: The cells.
        counts: int64 array, shape (rows, CELLS_PER_ROW, kinds): frames of each kind in each cell.
    """

    ram: list[tuple[int, int]]
    has_resources: bool
    runs: Runs
    over: Runs
    grid: Grid
    counts: npt.NDArray[np.int64]

    @property
    def totals(self) -> list[int]:
        """Frames of each kind."""
        totals: list[int] = self.counts.sum(axis=(0, 1)).tolist()
        return totals


class Space(NamedTuple):
    """A process's address space.

    Args:
        pid: The process.
        pages: Its mappings and their pages.
        bands: Its mappings as they are drawn.
        profile: int64 array, shape (bands, PARTS, kinds): pages of each kind in each part.
        links: The connectors to frames; None where frames are not known.
        nr_outside: Pages in frames outside of RAM. No links lead to these.
    """

    pid: int
    pages: DrawnPages
    bands: list[Band]
    profile: npt.NDArray[np.int64]
    links: Links | None
    nr_outside: int = 0


class MachineSubject(NamedTuple):
    """The machine that a picture shows.

    Args:
        host: Its name.
        kernel: Its release.
        time: When it was read, with a time zone.
    """

    host: str
    kernel: str
    time: datetime


class ProcessSubject(NamedTuple):
    """The process that a picture shows.

    Args:
        machine: Where it runs.
        pid: Its process id.
        name: Its name, as the kernel has it.
        arguments: Its command line.
    """

    machine: MachineSubject
    pid: int
    name: str
    arguments: list[str]


class SnapshotSubject(NamedTuple):
    """One of the two snapshots that a picture compares.

    Args:
        machine: Where and when it was taken.
        path: The file.
        pid: Its process.
        name: The process's name.
        process: Equal for two snapshots of the same process.
        knows_frames: Whether it has frame numbers.
    """

    machine: MachineSubject
    path: str
    pid: int
    name: str
    process: Any
    knows_frames: bool


class DiffSubject(NamedTuple):
    """The two snapshots that a picture compares."""

    before: SnapshotSubject
    after: SnapshotSubject


Subject: TypeAlias = MachineSubject | ProcessSubject | DiffSubject


class Picture(NamedTuple):
    """What a picture shows.

    Args:
        subject: What it is a picture of; None if it is something else, which `captions` does not
            know.
        kinds: The kinds of its frames and pages.
        frames: Physical memory, or None where frames are not known.
        space: A process's address space, or None.
        refusal: The error why the frames could not be read; empty if there was none.
    """

    subject: Subject | None
    kinds: tuple[Kind, ...]
    frames: DrawnFrames | None
    space: Space | None
    refusal: str = ""

    @property
    def is_diff(self) -> bool:
        """Whether it compares two times: it has kinds of frames that pages have left."""
        return any(kind.is_past for kind in self.kinds)

    def _repr_html_(self) -> str:
        """The picture for a notebook: an SVG that is an image of its own.

        So its style does not reach the rest of the page, and nothing in it can run.
        """
        from base64 import b64encode

        from physview.pictures.layout import lay_out
        from physview.pictures.svg import to_svg

        data = b64encode(to_svg(lay_out(self)[0]).encode()).decode()
        return f'<img style="max-width:100%" alt="physview" src="data:image/svg+xml;base64,{data}">'


def make_frames(
    runs: Runs,
    over: Runs,
    ram: list[tuple[int, int]],
    kinds: tuple[Kind, ...],
    resources: list[Resource] | None,
) -> DrawnFrames:
    """Count physical memory in cells.

    Args:
        runs: All of RAM by kind: array of `runs.RUN_DTYPE`, in order, each frame once.
        over: The frames that replace those in `runs`, in any order; may be empty. A frame that
            is in several of them is of the first of their kinds.
        ram: Where RAM is.
        kinds: The kinds that the runs have.
        resources: What lies in the holes of RAM, from `ram.read_resources()`; None if not known.
    """
    grid = make_grid(ram, resources)
    counts = count_cells(grid, overlay(runs, over), len(kinds))
    return DrawnFrames(ram, resources is not None, runs, over, grid, counts)
