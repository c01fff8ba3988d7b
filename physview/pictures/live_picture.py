# SPDX-License-Identifier: GPL-2.0-or-later
"""Pictures of the machine and of a process as they are now."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime

from physview.errors import AccessDenied
from physview.memory.snapshot import Snapshot
from physview.pictures.bands import make_bands, make_links, profiles
from physview.pictures.kinds import MACHINE_KINDS, PROCESS_KINDS, machine_kind, rest_kind
from physview.pictures.model import (
    MachineSubject,
    Picture,
    ProcessSubject,
    Space,
    make_frames,
)
from physview.pictures.process_pages import read_process_pages
from physview.pictures.runs import read_runs
from physview.sources.procfs import ProcDir
from physview.sources.ram import ram_ranges, read_resources

Progress = Callable[[int, int | None], None]


def picture_machine(*, progress: Progress | None = None) -> Picture:
    """Read the kind of each frame of the machine.

    Args:
        progress: Called with how many frames were read, and how many there are.

    Raises:
        AccessDenied: Only root may read flags and addresses.
        Unsupported: The kernel was built without kpageflags.
        CoreUnavailable: The core is not built.
    """
    resources = read_resources()
    ram = ram_ranges(resources)
    runs = read_runs(ram, machine_kind, progress=progress)
    frames = make_frames(runs, runs[:0], ram, MACHINE_KINDS, resources)
    return Picture(_this_machine(), MACHINE_KINDS, frames, None)


def picture_process(
    pid: int | str = "self", *, with_mapcount: bool = False, progress: Progress | None = None
) -> Picture:
    """Read a process's address space, and the kind of each frame of the machine.

    Args:
        pid: Process id, or "self".
        with_mapcount: Whether to read also how often each of its frames is mapped. Some kernels
            had a bug in this file.
        progress: Called with how much was read, and how much there is or None.

    Returns:
        The picture; without frames if this user may not see them.

    Raises:
        As `Snapshot` and its `iter_extents()`.
    """
    with Snapshot(pid) as snapshot:
        name, arguments = _names(snapshot.proc)
        pages = read_process_pages(snapshot, with_mapcount=with_mapcount, progress=progress)
        number = snapshot.pid
    bands = make_bands(pages)
    frames, links, nr_outside, refusal = None, None, 0, ""
    if pages.knows_frames:
        try:
            resources = read_resources()
            ram = ram_ranges(resources)
        except AccessDenied as error:
            refusal = str(error)
        else:
            runs = read_runs(ram, rest_kind, progress=progress)
            frames = make_frames(runs, pages.frames, ram, PROCESS_KINDS, resources)
            links, nr_outside = make_links(pages, bands, frames.grid, ram)
    space = Space(number, pages, bands, profiles(pages, bands), links, nr_outside)
    subject = ProcessSubject(_this_machine(), number, name, arguments)
    return Picture(subject, PROCESS_KINDS, frames, space, refusal)


def _this_machine() -> MachineSubject:
    host = os.uname()
    return MachineSubject(host.nodename, host.release, datetime.now().astimezone())


def _names(proc: ProcDir) -> tuple[str, list[str]]:
    """The process's name and its command line."""
    words = os.fsdecode(proc.read("cmdline").removesuffix(b"\0")).split("\0")
    return proc.comm(), words
