# SPDX-License-Identifier: GPL-2.0-or-later
"""Counts the pages of a process by their flags, as tools/mm/page-types -p does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from physview import _ffi
from physview.entry_rules import is_swapped
from physview.memory.extents import Batch
from physview.memory.snapshot import Snapshot
from physview.model import NO_ENTRY, PAGE_SHIFT
from physview.sources.frame_flags import MIN_FRAMES, choose_flag_source, count_frames
from physview.sources.kpage import KpageFile
from physview.sources.page_flags import FlagFilter, expanded, well_known

# For fewer pages, threads cost more than they gain: even to import them takes milliseconds.
MIN_PAGES_FOR_THREADS = 1 << 20


class FlagCounts(NamedTuple):
    """Pages of a process by their flags.

    Args:
        by_flags: Number of base pages with each combination of flags. Pages for whose frame the
            kernel has no flags count under NO_ENTRY.
        nr_swapped: Number of swap entries.
        nr_special: Number of guards, markers and pages in migration.
        flag_source: Who told the flags: "kpageflags" or "bpf", as `MachineFrames.source`.
    """

    by_flags: dict[int, int]
    nr_swapped: int
    nr_special: int
    flag_source: str = "kpageflags"


def count_flags(
    snapshot: Snapshot,
    start: int = 0,
    end: int | None = None,
    *,
    where: FlagFilter | None = None,
    raw: bool = False,
    nr_threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> FlagCounts:
    """Count the pages of a range by flags. Needs no NumPy.

    Args:
        snapshot: The process.
        start: First address, page-aligned.
        end: First address after the range, page-aligned; None is the end of user memory.
        where: Only pages with these flags.
        raw: Whether to distinguish all flags, as `page_flags.expanded()` makes them, or only those
            that page-types shows without --raw. It is so if `where` names another flag.
        nr_threads: Number of threads that read; None chooses it by the resident memory.
        progress: Called with (pages counted, resident pages of the process).

    Raises:
        AccessDenied: The kernel shows flags only to root.
        ProcessGone: The process ended or ran another program meanwhile.
        UsageError: `where` names a flag of pagemap, and the snapshot has `frames_only`.
    """
    if raw or (where is not None and where.names_hidden):
        return _count_rows(snapshot, start, end, where, nr_threads, progress)
    nr_resident = snapshot.nr_resident
    if nr_threads is None and nr_resident < MIN_PAGES_FOR_THREADS:
        nr_threads = 1
    ffi, lib = _ffi.load()
    allocate = ffi.new_allocator(should_clear_after_alloc=False)
    zero_pfn = snapshot.reader.zero_pfn
    file = KpageFile("kpageflags")
    # Where BPF pays for the pages, it pays for their flags.
    flag_source = choose_flag_source("auto", MIN_FRAMES if snapshot.source == "bpf" else 0)

    def count(batch: Batch) -> tuple[dict[int, int], tuple[int, int, int]]:
        frames = allocate("struct pv_frames[]", batch.nr)
        nr_frames = lib.pv_frames_of(batch.extents, batch.nr, zero_pfn, frames)
        counts = count_frames(file, frames, nr_frames, flag_source).counts
        account = new_account(flags_fd=-1, zero_pfn=zero_pfn)
        lib.pv_account(account, batch.extents, batch.nr, NO_ENTRY)
        sums = account.sums
        others = (sums.nr_zero, sums.nr_swapped + sums.nr_swap_hidden, sums.nr_special)
        return counts, others

    by_flags: Counter[int] = Counter()
    nr_zero = nr_swapped = nr_special = 0
    try:
        for counts, others in snapshot.reader.map_batches(count, start, end, nr_threads=nr_threads):
            by_flags.update(counts)
            nr_zero += others[0]
            nr_swapped += others[1]
            nr_special += others[2]
            if progress:
                progress(by_flags.total(), nr_resident)
        if nr_zero:
            (value,) = file.count_range(zero_pfn, 1)
            by_flags[value] += nr_zero
    finally:
        file.close()
    chosen: Counter[int] = Counter()
    for flags, nr in by_flags.items():
        shown = flags if flags == NO_ENTRY else well_known(flags)
        if where is None or (flags != NO_ENTRY and where.matches(shown)):
            chosen[shown] += nr
    if where is not None:
        nr_swapped = nr_special = 0
    return FlagCounts(dict(chosen), nr_swapped, nr_special, flag_source)


def _count_rows(
    snapshot: Snapshot,
    start: int,
    end: int | None,
    where: FlagFilter | None,
    nr_threads: int | None,
    progress: Callable[[int, int], object] | None,
) -> FlagCounts:
    """Count by all flags, which need the pagemap entry of each page, too."""
    import numpy as np

    counts: Counter[int] = Counter()
    nr_swapped = nr_special = 0
    nr_resident = snapshot.nr_resident
    for batch in snapshot.iter_extents(
        start, end, columns=["flags"], where=where, raw=True, nr_threads=nr_threads
    ):
        rows = batch
        if where is None:
            without = batch[batch["pfn"] == np.uint64(NO_ENTRY)]
            swapped = is_swapped(without["entry"])
            nr_swapped += int(without["nr_pages"][swapped].sum())
            nr_special += int(without["nr_pages"][~swapped].sum())
            rows = batch[batch["pfn"] != np.uint64(NO_ENTRY)]
        values, index = np.unique(expanded(rows["flags"], rows["entry"]), return_inverse=True)
        sums = np.zeros(len(values), dtype=np.uint64)
        np.add.at(sums, index, rows["nr_pages"])
        counts.update(dict(zip(values.tolist(), sums.tolist(), strict=True)))
        if progress:
            progress(counts.total(), nr_resident)
    return FlagCounts(dict(counts), nr_swapped, nr_special)


def new_account(*, flags_fd: int, zero_pfn: int) -> Any:
    """Make an empty `struct pv_account` (csrc/cdef.h).

    Args:
        flags_fd: Descriptor of /proc/kpageflags; -1 without flags.
        zero_pfn: The zero page's frame; 0 if frame numbers are hidden.
    """
    ffi, _ = _ffi.load()
    account = ffi.new("struct pv_account *")
    account.page_shift = PAGE_SHIFT
    account.flags_fd = flags_fd
    account.zero_pfn = zero_pfn
    return account
