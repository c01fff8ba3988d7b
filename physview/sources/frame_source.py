# SPDX-License-Identifier: GPL-2.0-or-later
"""Chooses who tells the frames of a process: pagemap, or a BPF program that walks the page tables.

Both tell the same frames and swap entries. Only pagemap tells the other bits of an entry:
soft-dirty, exclusive, write-protected by userfaultfd, and file. So the choice is for answers that
need none of these bits.
"""

from __future__ import annotations

from physview.errors import AccessDenied, PhysviewError, UsageError

FRAME_SOURCES = ("auto", "pagemap", "bpf")

# To load the program takes as long as reading so many pages from pagemap.
MIN_PAGES = 1 << 18


def choose_frame_source(source: str, nr_pages: int) -> str:
    """Choose who tells the frames.

    Args:
        source: "pagemap", "bpf", or "auto": BPF if it is available and faster.
        nr_pages: About how many pages there are to read.

    Returns:
        "pagemap" or "bpf".

    Raises:
        UsageError: There is no such source.
        AccessDenied: `source` is "bpf", and this user may not load BPF programs.
        Unsupported: `source` is "bpf", and it does not work on this machine.
    """
    if source not in FRAME_SOURCES:
        remedy = f"choose one of {', '.join(FRAME_SOURCES)}"
        raise UsageError(f"unknown source '{source}'", "", remedy)
    if source == "pagemap" or (source == "auto" and nr_pages < MIN_PAGES):
        return "pagemap"
    from physview.sources import bpf

    try:
        bpf.load()
    except PhysviewError as error:
        if source == "auto":
            return "pagemap"
        remedy = "use --source pagemap"
        if isinstance(error, AccessDenied):
            remedy = f"{error.remedy}, or {remedy}"
        raise type(error)("cannot walk page tables by BPF", error.why, remedy) from None
    return "bpf"
