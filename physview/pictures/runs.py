# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs: contiguous frames of one kind. All of RAM is held as runs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from physview import _ffi
from physview.pictures.kinds import TELLING
from physview.sources.kpage import FRAMES_DTYPE, KpageFile

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Runs = npt.NDArray[np.void]

RUN_DTYPE = [("pfn", "u8"), ("nr", "u8"), ("kind", "u1")]
"""A run: the first frame number, the number of frames, and the index of the kind."""

# Frames that one thread reads at a time: about 20 ms.
SLICE = 1 << 18


def read_runs(
    ram: list[tuple[int, int]],
    kind_of: Callable[[int], int],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Runs:
    """Read the flags of all frames of RAM.

    Args:
        ram: (first frame, first frame after it), in order.
        kind_of: Gets the flags of a frame that are in TELLING, and returns the index of its kind.
        progress: Called with how many frames were read, and how many there are.

    Returns:
        Structured array of RUN_DTYPE, in order; every frame of RAM is in one.

    Raises:
        AccessDenied: Only root may read flags.
        Unsupported: The kernel was built without kpageflags.
    """
    import numpy as np

    def read(part: tuple[int, int]) -> Runs:
        return _read_slice(file, part[0], part[1], kind_of)

    slices = [(at, min(SLICE, end - at)) for first, end in ram for at in range(first, end, SLICE)]
    nr_all = sum(nr for _, nr in slices)
    found: list[Runs] = [np.empty(0, dtype=RUN_DTYPE)]
    nr_done = 0
    file = KpageFile("kpageflags")
    try:
        with ThreadPoolExecutor(_ffi.nr_threads()) as pool:
            try:
                for runs in pool.map(read, slices):
                    found.append(runs)
                    nr_done += int(runs["nr"].sum())
                    if progress:
                        progress(nr_done, nr_all)
            finally:
                pool.shutdown(cancel_futures=True)
    finally:
        file.close()
    return join_runs(np.concatenate(found))


def _read_slice(file: KpageFile, first: int, nr: int, kind_of: Callable[[int], int]) -> Runs:
    import numpy as np

    frames = np.array([(first, nr)], dtype=FRAMES_DTYPE)
    batches = []
    for pieces in file.iter_pieces(frames):
        # First by all flags that decide a kind, then by kind: this leaves fewer to look up.
        values = pieces["value"] & np.uint64(TELLING)
        begins = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
        runs = np.empty(len(begins), dtype=RUN_DTYPE)
        runs["pfn"] = pieces["pfn"][begins]
        runs["nr"] = np.add.reduceat(pieces["nr"], begins)
        distinct, where = np.unique(values[begins], return_inverse=True)
        kinds = [kind_of(int(value)) for value in distinct]
        runs["kind"] = np.array(kinds, dtype=np.uint8)[where]
        batches.append(join_runs(runs))
    return np.concatenate(batches)


def join_runs(runs: Runs) -> Runs:
    """Merge contiguous runs of the same kind."""
    import numpy as np

    if len(runs) < 2:
        return runs
    goes_on = (runs["pfn"] + runs["nr"])[:-1] == runs["pfn"][1:]
    goes_on &= runs["kind"][:-1] == runs["kind"][1:]
    firsts = np.flatnonzero(np.concatenate([[True], ~goes_on]))
    joined = runs[firsts]
    joined["nr"] = np.add.reduceat(runs["nr"], firsts)
    return joined


def overlay(runs: Runs, over: Runs) -> Runs:
    """Replace frames of runs by those of other runs: `over` decides the kind of a frame in both.

    Args:
        runs: In order, each frame once.
        over: In any order. A frame that is in several of them is of the first of their kinds.
            Frames that are not in `runs` are left out.

    Returns:
        The frames of `runs`, in order.
    """
    import numpy as np

    if not len(over) or not len(runs):
        return runs
    over = over[np.argsort(over["pfn"])]  # sorted values are found faster
    run_ends, over_ends = runs["pfn"] + runs["nr"], over["pfn"] + over["nr"]
    edges = np.sort(np.concatenate([runs["pfn"], run_ends, over["pfn"], over_ends]), kind="stable")
    edges = edges[np.concatenate([[True], edges[1:] != edges[:-1]])]
    pieces = np.empty(len(edges) - 1, dtype=RUN_DTYPE)
    pieces["pfn"], pieces["nr"] = edges[:-1], np.diff(edges)
    below = np.searchsorted(runs["pfn"], edges[:-1], side="right") - 1
    is_ram = (below >= 0) & (edges[:-1] < run_ends[below])
    pieces["kind"] = runs["kind"][below]
    for kind in np.unique(over["kind"])[::-1]:
        mine = over["kind"] == kind
        # How many runs of this kind begin at each edge, less those that end there.
        steps = np.bincount(np.searchsorted(edges, over["pfn"][mine]), minlength=len(edges))
        steps -= np.bincount(np.searchsorted(edges, over_ends[mine]), minlength=len(edges))
        pieces["kind"][np.cumsum(steps)[:-1] > 0] = kind
    kept: Runs = pieces[is_ram]
    return join_runs(kept)
