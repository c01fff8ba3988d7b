# SPDX-License-Identifier: GPL-2.0-or-later
"""Counts frames by their flags: asks the kernel for every frame, or, with BPF, for a few of them.

To tell the flags of a frame, /proc/kpageflags takes 100 ns. A BPF program copies the kernel's
description of a frame in a tenth of this time. Frames whose descriptions are alike in all on which
flags depend have the same flags (csrc/page_key.c). So the kernel is asked for a few frames of each
kind, and for all frames of which something is unusual. All names of flags are still the kernel's.

Source: stable_page_flags() in fs/proc/page.c
"""

from __future__ import annotations

from typing import Any, NamedTuple

from physview import _ffi
from physview.sources.frame_source import choose_bpf_or
from physview.sources.kpage import MAX_VALUES, KpageFile
from physview.sources.ram import read_buddyinfo

FLAG_SOURCES = ("auto", "kpageflags", "bpf")

# To load the program takes as long as reading half of so many frames.
MIN_FRAMES = 1 << 17


class FrameCounts(NamedTuple):
    """Frames by their value in kpageflags.

    Args:
        counts: Number of frames by value. Frames that do not exist count under NO_ENTRY.
        nr_alike: Number of frames whose value is that of another frame, because BPF showed that
            both are alike.
    """

    counts: dict[int, int]
    nr_alike: int


def choose_flag_source(source: str, nr_frames: int) -> str:
    """Choose who tells the flags of frames.

    Args:
        source: "kpageflags", "bpf", or "auto": BPF if it is available and faster.
        nr_frames: About how many frames there are to read.

    Returns:
        "kpageflags" or "bpf".

    Raises:
        UsageError: There is no such source.
        AccessDenied: `source` is "bpf", and this user may not load BPF programs.
        Unsupported: `source` is "bpf", and it does not work on this machine.
    """

    def load() -> None:
        from physview.sources import bpf

        bpf.load_for_frames()

    what = "cannot read the flags of frames by BPF"
    return choose_bpf_or("kpageflags", source, pays=nr_frames >= MIN_FRAMES, load=load, what=what)


def read_max_order() -> int:
    """The order of the largest free blocks; 0 if this is not known."""
    return max(0, max(map(len, read_buddyinfo().values()), default=0) - 1)


def count_frames(
    file: KpageFile, runs: Any, nr_runs: int, source: str, *, max_order: int = 0
) -> FrameCounts:
    """Count the frames of runs by their value.

    Args:
        file: kpageflags of this machine.
        runs: Buffer of the core, `struct pv_frames[]`.
        nr_runs: The number of runs.
        source: What `choose_flag_source()` returned.
        max_order: 2**max_order frames are the largest free block; 0 if that is not known. Then the
            kernel is asked for each frame that nobody uses.
    """
    if source == "kpageflags":
        return FrameCounts(file.count_buffer(runs, nr_runs), 0)
    from physview.sources import bpf

    ffi, lib = file.core
    counts = ffi.new("struct pv_count[]", MAX_VALUES)
    nr_alike = ffi.new("uint64_t *")
    with bpf.borrowed_program() as program:
        nr = lib.pv_bpf_count(
            program, file.fd, runs, nr_runs, max_order, counts, MAX_VALUES, nr_alike
        )
    _ffi.check(nr, "/proc/kpageflags")
    found = {counts[i].value: counts[i].nr for i in range(nr)}
    return FrameCounts(file.without_false(found), nr_alike[0])
