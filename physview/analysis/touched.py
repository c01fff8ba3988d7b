# SPDX-License-Identifier: GPL-2.0-or-later
"""The working set of a process: what it used in an interval, or in several one after the other."""

from __future__ import annotations

import dataclasses
import os
import select
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from physview.analysis.page_uses import History, PageRun, Sums, iter_runs, total_of
from physview.analysis.page_way import PageWay
from physview.analysis.referenced_way import Referenced
from physview.analysis.touched_ways import Accessed, SoftDirty, WriteProtected
from physview.errors import AccessDenied, NoUserMemory, ProcessGone, Unsupported, UsageError
from physview.files.descriptor import Descriptor
from physview.model import Vma
from physview.sources.procfs import MemoryMap, ProcDir

WAYS = ("auto", "accessed", "referenced", "idle", "soft-dirty", "wp-async")
ONLY_CLEARING = ("idle", "soft-dirty")

INTERRUPTED = "it was interrupted"
ENDED = "the process ended"


class MappingUse(NamedTuple):
    """A mapping with resident memory, and how much of it was used."""

    vma: Vma
    sums: Sums


class Interval(NamedTuple):
    """One interval: how long it was, and the sums of all pages."""

    seconds: float
    sums: Sums


@dataclasses.dataclass
class Touched:
    """What a process used.

    Args:
        pid: The process.
        name: Its name.
        by: The way by which it was found: one of WAYS.
        source: Who was asked.
        clears: Whether bits of the process were cleared.
        influence: What was changed of the process and of the machine.
        limits: What this way cannot tell.
        knows_reads: Whether pages that were only read count as touched.
        knows_writes: Whether `written` is known.
        knows_pages: Whether single pages are known, and not only sums of mappings.
        intervals: The intervals.
        mappings: The mappings at the end, those with resident memory, over all intervals.
        total: The sums of all pages over all intervals.
        ended_early: Why there are fewer or shorter intervals than wanted; "" if all are complete.
        why_not_accessed: Why "auto" did not choose the accessed bits; None if it did.
    """

    pid: int
    name: str
    by: str
    source: str
    clears: bool
    influence: str
    limits: tuple[str, ...]
    knows_reads: bool
    knows_writes: bool
    knows_pages: bool
    intervals: list[Interval] = dataclasses.field(default_factory=list)
    mappings: list[MappingUse] = dataclasses.field(default_factory=list)
    total: Sums = dataclasses.field(default_factory=Sums)
    ended_early: str = ""
    why_not_accessed: AccessDenied | Unsupported | None = None
    history: History | None = None
    vmas: list[Vma] = dataclasses.field(default_factory=list)

    @property
    def seconds(self) -> float:
        """The length of all intervals together."""
        return sum(interval.seconds for interval in self.intervals)

    def told(self, sums: Sums) -> dict[str, int | None]:
        """Sums by name; None for those that this way cannot tell."""
        found: dict[str, int | None] = vars(sums).copy()
        if not self.knows_writes:
            found["written"] = None
        if not self.knows_pages:
            found.update(dict.fromkeys(("new", "huge", "gone", "lost")))
        return found

    def iter_runs(self) -> Iterator[PageRun]:
        """Yield the pages, joined where they are alike.

        Raises:
            UsageError: Single pages are not known.
        """
        import numpy as np

        if self.history is None:
            why = "smaps has sums of mappings only"
            raise UsageError("single pages are not known", why, "use --by accessed, as root")
        cuts = np.unique(np.array([edge for vma in self.vmas for edge in vma[:2]], dtype=np.uint64))
        return iter_runs(self.history, cuts)


def check_way(by: str, *, clear: bool, track_writes: bool = False, source: str = "auto") -> None:
    """Check that options fit together.

    Raises:
        UsageError: They do not.
    """
    if by not in WAYS:
        raise UsageError(f"unknown way '{by}'", "", f"choose one of {', '.join(WAYS)}")
    if by in ONLY_CLEARING and not clear:
        why = "this way has to clear bits of the process first"
        raise UsageError(f"--by {by} needs --clear", why, "add that")
    if by == "wp-async" and clear:
        why = "clearing would take the process's own record of its writes away"
        raise UsageError("--by wp-async and --clear exclude each other", why, "leave out --clear")
    if track_writes and not (clear and by in ("auto", "accessed")):
        why = "it clears the soft-dirty bits beside the accessed bits"
        raise UsageError("--track-writes needs --clear and --by accessed", why, "add them")
    if source != "auto" and by not in ("auto", "accessed"):
        why = "no page tables are walked"
        raise UsageError(f"--by {by} and --source exclude each other", why, "leave out one")


def open_way(
    proc: ProcDir,
    by: str = "auto",
    *,
    clear: bool = False,
    track_writes: bool = False,
    source: str = "auto",
) -> PageWay | Referenced:
    """Open a way to see what a process uses.

    Args:
        proc: The process.
        by: One of WAYS. "auto" chooses the accessed bits where page tables can be walked, or else
            Referenced of smaps.
        clear: Whether bits may be cleared.
        track_writes: Whether to clear the soft-dirty bits, too.
        source: Who walks the page tables.

    Raises:
        UsageError: The options do not fit together.
        AccessDenied: This user may not.
        Unsupported: This machine has no such way.
    """
    check_way(by, clear=clear, track_writes=track_writes, source=source)
    if by == "referenced":
        return Referenced(proc, clears=clear)
    if by == "soft-dirty":
        return SoftDirty(proc)
    if by == "wp-async":
        return WriteProtected(proc)
    if by == "idle":
        from physview.analysis.idle_way import Idle

        return Idle(proc)
    try:
        return Accessed(proc, clears=clear, source=source, track_writes=track_writes)
    except (AccessDenied, Unsupported) as error:
        if by == "accessed" or track_writes or source != "auto":
            raise
        return Referenced(proc, clears=clear, why_not_accessed=error)


class _AddressSpace(Descriptor):
    """The memory that a process has now. A process that runs another program gets another one.

    Args:
        proc: The process.
    """

    def __init__(self, proc: ProcDir) -> None:
        self._proc = proc
        self._fd = proc.open_pagemap()
        try:
            self._pidfd = os.pidfd_open(proc.pid)
        except OSError:  # before Linux 5.3, or it is gone
            self._pidfd = -1

    def close(self) -> None:
        """Close the descriptors. Closing twice is harmless."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        super().close()

    def wait(self, seconds: float) -> str:
        """Wait until an interval is over; return why the wait ended early, or ""."""
        until = time.monotonic() + seconds
        poll = select.poll()
        if self._pidfd >= 0:
            poll.register(self._pidfd, select.POLLIN)
        try:
            while (left := until - time.monotonic()) > 0:
                if poll.poll(min(left, 3600) * 1000):
                    return ENDED
        except KeyboardInterrupt:
            return INTERRUPTED
        return ""

    def check(self) -> None:
        """Check that the process still has this memory: an open pagemap reads nothing otherwise.

        Raises:
            ProcessGone: It ended, or runs another program.
        """
        if not os.pread(self._fd, 8, 0):
            raise self._proc.gone()


def observe(
    proc: ProcDir,
    way: PageWay | Referenced,
    seconds: float,
    *,
    times: int = 1,
    counts: bool = False,
    on_interval: Callable[[int, Interval], None] | None = None,
) -> Touched:
    """See what a process uses.

    Args:
        proc: The process.
        way: The way, open.
        seconds: The length of an interval.
        times: The number of intervals.
        counts: Whether to count the intervals for each page.
        on_interval: Called with the number of each interval, and what it found.

    Returns:
        What was found: all intervals, or fewer if the process ended or the user interrupted.

    Raises:
        ProcessGone: The process ended in the first interval.
        PhysviewError: It cannot be read.
    """
    is_sums = isinstance(way, Referenced)
    if is_sums and times > 1:
        why = "smaps has sums of mappings only, which cannot be joined"
        raise UsageError("several intervals need single pages", why, "use --by accessed, as root")
    found = Touched(
        proc.pid,
        proc.comm(),
        way.name,
        way.source,
        way.clears,
        way.influence,
        way.limits,
        way.knows_reads,
        way.knows_writes,
        knows_pages=not is_sums,
        why_not_accessed=way.why_not_accessed if isinstance(way, Referenced) else None,
    )
    with _AddressSpace(proc) as space:
        for number in range(times):
            try:
                interval = _observe_once(space, way, seconds, found, counts=counts)
            except (ProcessGone, NoUserMemory):  # its exit status may still be there (a zombie)
                if not found.intervals:
                    raise
                found.ended_early = ENDED
                break
            if on_interval:
                on_interval(number, interval)
            if found.ended_early:
                break
    _add_mappings(found)
    return found


def _observe_once(
    space: _AddressSpace,
    way: PageWay | Referenced,
    seconds: float,
    found: Touched,
    *,
    counts: bool,
) -> Interval:
    """One interval, which is added to `found`."""
    way.begin()
    found.limits = way.limits
    began = time.monotonic()
    early = space.wait(seconds)
    took = time.monotonic() - began
    if isinstance(way, Referenced):
        mappings = [MappingUse(vma, sums) for vma, sums in way.end()]
        space.check()
        found.mappings = mappings
        sums = found.total = add_up(use.sums for use in found.mappings)
    else:
        uses = way.end()
        vmas = MemoryMap(way.proc).vmas
        space.check()
        found.vmas = vmas
        if found.history is None:
            found.history = History(counts=counts)
        found.history.add(uses)
        sums = total_of(uses)
    interval = Interval(took, sums)
    found.intervals.append(interval)
    found.ended_early = early
    return interval


def add_up(all_sums: Iterator[Sums]) -> Sums:
    """The sum of sums."""
    total = Sums()
    for sums in all_sums:
        for field in dataclasses.fields(Sums):
            name = field.name
            setattr(total, name, getattr(total, name) + getattr(sums, name))
    return total


def _add_mappings(found: Touched) -> None:
    """Add the mappings with resident memory, and the total."""
    if found.history is None:
        return
    vmas = found.vmas
    sums = found.history.sums([vma.start for vma in vmas], [vma.end for vma in vmas])
    found.mappings = [
        MappingUse(vma, each) for vma, each in zip(vmas, sums, strict=True) if each.resident
    ]
    found.total = found.history.total()
