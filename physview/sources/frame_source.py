# SPDX-License-Identifier: GPL-2.0-or-later
"""Chooses who tells the frames of a process: pagemap, or a BPF program that walks the page tables.

Both tell the same frames and swap entries. Only pagemap tells the other bits of an entry:
soft-dirty, exclusive, write-protected by userfaultfd, and file. So the choice is for answers that
need none of these bits.
"""

from __future__ import annotations

from collections.abc import Callable

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

    def load() -> None:
        from physview.sources import bpf

        bpf.load()

    what = "cannot walk page tables by BPF"
    return choose_bpf_or("pagemap", source, pays=nr_pages >= MIN_PAGES, load=load, what=what)


def choose_bpf_or(
    other: str, source: str, *, pays: bool, load: Callable[[], None], what: str
) -> str:
    """Choose a BPF program or another source, which tells the same.

    Args:
        other: The name of the other source.
        source: `other`, "bpf", or "auto": BPF if it pays and is available.
        pays: Whether BPF is faster.
        load: Loads the program, or fails.
        what: What fails if it fails, for the message.

    Returns:
        `other` or "bpf".

    Raises:
        As `choose_frame_source()`.
    """
    known = ("auto", other, "bpf")
    if source not in known:
        remedy = f"choose one of {', '.join(known)}"
        raise UsageError(f"unknown source '{source}'", "", remedy)
    if source == other or (source == "auto" and not pays):
        return other
    try:
        load()
    except PhysviewError as error:
        if source == "auto":
            return other
        remedy = f"use --source {other}"
        if isinstance(error, AccessDenied):
            remedy = f"{error.remedy}, or {remedy}"
        raise type(error)(what, error.why, remedy) from None
    return "bpf"
