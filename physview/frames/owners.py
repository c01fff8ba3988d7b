# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds which processes map given frames, and what these frames are used for.

The kernel cannot tell which processes map a frame. So this module reads the pagemaps of all
processes, once for all frames in question. With BPF, it searches the page tables of all processes
instead, and then reads only the processes in which a frame was found. The processes run meanwhile,
so the result is not atomic: two processes may have been read at different moments. A process that
starts meanwhile is missing.

Source: /proc/PID/pagemap or the page tables, /proc/kpageflags
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from physview import _ffi
from physview.errors import AccessDenied, NoUserMemory, PhysviewError, ProcessGone
from physview.frames.machine import Use, use_of
from physview.memory.extents import ExtentReader
from physview.model import NO_ENTRY, PAGE_SIZE, PM_PFRAME_MASK, PM_PRESENT, Vma
from physview.runtime.privileges import root_remedy
from physview.sources.frame_source import choose_frame_source
from physview.sources.kpage import FRAMES_DTYPE, KpageFile
from physview.sources.memory_blocks import read_online_ram
from physview.sources.procfs import ALL, ProcDir, list_pids

if TYPE_CHECKING:
    import numpy.typing as npt

OWNED_DTYPE = [("pfn", "u8"), ("nr", "u8"), ("vaddr", "u8"), ("nr_pages", "u8")]
"""Contiguous frames that contiguous pages map.

pfn: the first frame number. nr: the number of frames. vaddr: address of the first page. nr_pages:
the number of pages.
"""

# The maximum number of tries to read a process. A try fails if the process runs another program
# (exec) while it is read; then the new program is read.
TRIES = 3

# Processes that a thread searches at a time.
PIDS_AT_ONCE = 16
# So many processes are worth loading the BPF program, however little memory they have.
MIN_PROCESSES = 16


class FrameOwner(NamedTuple):
    """A process that maps a run of contiguous frames in one mapping.

    Args:
        pid: The process.
        comm: Name of the process in the kernel.
        sharers: Pids of other processes with the same address space (vfork, CLONE_VM).
        vma: The mapping.
        vaddr: Virtual address of the first frame.
        pfn: The first frame.
        nr_frames: The number of frames.
        nr_pages: The number of pages that map these frames: equal to nr_frames, except for the zero
            page, which any number of pages may map.
    """

    pid: int
    comm: str
    sharers: tuple[int, ...]
    vma: Vma
    vaddr: int
    pfn: int
    nr_frames: int
    nr_pages: int

    def clipped(self, first: int, end: int) -> FrameOwner:
        """Keep only the part for the frames from `first` up to, but not including, `end`."""
        low, high = max(first, self.pfn), min(end, self.pfn + self.nr_frames)
        if (low, high) == (self.pfn, self.pfn + self.nr_frames):
            return self
        vaddr = self.vaddr + (low - self.pfn) * PAGE_SIZE
        return self._replace(vaddr=vaddr, pfn=low, nr_frames=high - low, nr_pages=high - low)


class FlagRun(NamedTuple):
    """A run of contiguous frames with the same flags.

    Args:
        pfn: The first frame.
        nr_frames: The number of frames.
        flags: Their value in kpageflags; NO_ENTRY if these frames do not exist.
    """

    pfn: int
    nr_frames: int
    flags: int


class FrameGroup(NamedTuple):
    """A run of contiguous frames with the same use.

    Args:
        pfn: The first frame.
        nr_frames: The number of frames.
        use: What the frames are used for.
        flags: Flags of kpageflags that all of these frames have; NO_ENTRY if they do not exist.
        owners: Who maps these frames; each owner is clipped to the group.
    """

    pfn: int
    nr_frames: int
    use: Use
    flags: int
    owners: list[FrameOwner]

    @property
    def nr_owned(self) -> int:
        """The number of frames that at least one process maps."""
        nr, at = 0, self.pfn
        for owner in self.owners:  # sorted by frame number
            end = owner.pfn + owner.nr_frames
            nr += max(0, end - max(at, owner.pfn))
            at = max(at, end)
        return nr


class Ownership(NamedTuple):
    """Who maps the frames in question.

    Args:
        flag_runs: The frames with their flags, sorted by frame number.
        owners: Who maps the frames, sorted by frame number, pid and address.
        nr_processes: The number of processes that were read.
        nr_gone: The number of processes that ended while they were read, or ran another program
            each time (see TRIES).
        nr_denied: The number of processes that this user may not examine.
        source: Who told the frames of the processes: "pagemap" or "bpf".
    """

    flag_runs: list[FlagRun]
    owners: list[FrameOwner]
    nr_processes: int
    nr_gone: int
    nr_denied: int
    source: str

    def groups(self, first: int, end: int) -> list[FrameGroup]:
        """Group frames by their use.

        Args:
            first: The first frame number. The frames must be among those in question.
            end: The first frame number after the frames.

        Returns:
            The groups, sorted by frame number.
        """
        groups: list[tuple[int, int, Use, int]] = []
        at = max(0, bisect.bisect(self.flag_runs, (first, end, NO_ENTRY)) - 1)
        for run in self.flag_runs[at:]:
            low, high = max(first, run.pfn), min(end, run.pfn + run.nr_frames)
            if run.pfn >= end:
                break
            if low >= high:
                continue
            use = use_of(run.flags)
            if groups and groups[-1][1:3] == (low, use):
                groups[-1] = (groups[-1][0], high, use, groups[-1][3] & run.flags)
            else:
                groups.append((low, high, use, run.flags))
        largest = max((owner.nr_frames for owner in self.owners), default=0)
        starts = [owner.pfn for owner in self.owners]
        return [
            FrameGroup(
                low,
                high - low,
                use,
                flags,
                [
                    owner.clipped(low, high)
                    for owner in self.owners[
                        bisect.bisect(starts, low - largest) : bisect.bisect_left(starts, high)
                    ]
                    if owner.pfn + owner.nr_frames > low
                ],
            )
            for low, high, use, flags in groups
        ]


class _ProcessFrames(NamedTuple):
    """The frames in question that one process maps."""

    pid: int
    comm: str
    owned: list[tuple[Vma, int, int, int, int]]  # mapping, pfn, nr, vaddr, nr_pages


def find_owners(
    ranges: Iterable[tuple[int, int]],
    pids: Sequence[int] | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
    source: str = "auto",
    on_error: Callable[[int, PhysviewError], None] | None = None,
) -> Ownership:
    """Find who maps frames, and what these frames are used for.

    Args:
        ranges: Ranges of frames as (first frame, first frame after the range). Ranges may overlap;
            each frame is looked up once.
        pids: The processes to read; None means all processes that are visible in /proc.
        progress: Called with the number of processes that were read, and the number of all.
        source: Who tells the frames of the processes: "pagemap", "bpf" (a BPF program walks the
            page tables), or "auto": BPF if it is available and faster. Both tell the same.
        on_error: Called with each of `pids` that cannot be read, and the error; the others are
            still read. None raises the error.

    Raises:
        AccessDenied: Only root may see frame numbers; or `source` is "bpf", and this user may not
            load BPF programs.
        Unsupported: `source` is "bpf", and it does not work on this machine.
        UsageError: There is no such source.
        ProcessGone: One of `pids` is gone.
        NoUserMemory: One of `pids` has no user memory: it is a kernel thread or a zombie.
        CoreUnavailable: The core is not built.
    """
    runs, is_ram = _runs(ranges, read_online_ram())
    if not len(runs):
        return Ownership([], [], 0, 0, 0, "pagemap")
    if pids is not None and on_error is None:
        on_error = _raise
    pids = list_pids() if pids is None else list(pids)
    source = _choose_source(source, pids)
    flags = KpageFile("kpageflags")  # open it first: an unprivileged user gets the error at once
    try:
        search = _FrameSearch(runs, pids, on_error=on_error, source=source)
        found = search.run(progress)
        # Read the flags after the processes. Otherwise a frame that was free first, and was mapped
        # meanwhile, would be reported as free although it has an owner.
        flag_runs = [
            # A hole may have a value, too, because the kernel may have page structures for it.
            FlagRun(pfn, nr, value if value or is_ram[run] else NO_ENTRY)
            for pieces in flags.iter_pieces(runs)
            for run, pfn, nr, value in pieces.tolist()
        ]
    finally:
        flags.close()
    owners = [
        FrameOwner(one.pid, one.comm, sharers, vma, vaddr, pfn, nr, nr_pages)
        for one, sharers in _without_sharers(found)
        for vma, pfn, nr, vaddr, nr_pages in one.owned
    ]
    owners.sort(key=lambda owner: (owner.pfn, owner.pid, owner.vaddr))
    counts = search.nr_processes, search.nr_gone, search.nr_denied
    return Ownership(flag_runs, owners, *counts, source)


def _raise(_pid: int, error: PhysviewError) -> None:
    raise error


def _choose_source(source: str, pids: Sequence[int]) -> str:
    """Choose who tells the frames of all processes, as `choose_frame_source()` does."""
    nr_pages = NO_ENTRY if len(pids) >= MIN_PROCESSES else 0
    if source == "auto" and not nr_pages:
        nr_pages = sum(map(_nr_resident, pids))
    return choose_frame_source(source, nr_pages)


def _nr_resident(pid: int) -> int:
    """The approximate number of resident pages; 0 for a process that cannot be read."""
    try:
        with ProcDir(pid) as proc:
            return proc.nr_resident()
    except OSError:
        return 0


def _runs(
    ranges: Iterable[tuple[int, int]], ram: list[tuple[int, int]]
) -> tuple[npt.NDArray[Any], list[bool]]:
    """Sort ranges, merge those that overlap, and cut them at the borders of RAM.

    Returns:
        Structured array of FRAMES_DTYPE, and for each run whether it is RAM.
    """
    import numpy as np

    joined: list[tuple[int, int]] = []
    for first, end in sorted(ranges):
        if joined and first <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((first, end))
    cuts = sorted({cut for piece in ram for cut in piece})
    pieces = [
        piece
        for first, end in joined
        for piece in pairwise([first, *(cut for cut in cuts if first < cut < end), end])
    ]
    is_ram = [any(low <= first < high for low, high in ram) for first, _ in pieces]
    runs = np.array([(first, end - first) for first, end in pieces], dtype=FRAMES_DTYPE)
    return runs, is_ram


class _FrameSearch:
    """Searches processes for runs of frames, in several threads: the core releases the GIL.

    Args:
        runs: Structured array of FRAMES_DTYPE, sorted by pfn.
        pids: The processes.
        on_error: Called with the error of a process; None only counts it.
        source: "pagemap" or "bpf".
    """

    def __init__(
        self,
        runs: npt.NDArray[Any],
        pids: list[int],
        *,
        on_error: Callable[[int, PhysviewError], None] | None,
        source: str,
    ) -> None:
        self._runs = runs
        self._source = source
        self._firsts = runs["pfn"].copy()
        self._ends = runs["pfn"] + runs["nr"]
        self._pids = pids
        self._on_error = on_error
        self._sees_frames = self._sees_hidden = False
        self.nr_processes = self.nr_gone = self.nr_denied = 0

    def run(self, progress: Callable[[int, int], None] | None) -> list[_ProcessFrames]:
        found = []
        with ThreadPoolExecutor(_ffi.nr_threads()) as pool:
            try:
                for nr, (pid, one) in enumerate(
                    zip(self._pids, self._search_all(pool), strict=True), 1
                ):
                    if isinstance(one, _ProcessFrames):
                        self.nr_processes += 1
                        if one.owned:
                            found.append(one)
                    self._count_error(pid, one)
                    if progress:
                        progress(nr, len(self._pids))
            finally:
                pool.shutdown(cancel_futures=True)
        if self._sees_hidden and not self._sees_frames:
            raise AccessDenied(
                "cannot tell who maps a frame",
                "pagemap hides frame numbers from who lacks CAP_SYS_ADMIN",
                root_remedy("SYS_ADMIN"),
            )
        return found

    def _search_all(self, pool: ThreadPoolExecutor) -> Iterator[_ProcessFrames | Exception]:
        """Yield what was found in each process, in the order of the pids."""
        if self._source == "pagemap":
            yield from pool.map(self._try, self._pids)
            return
        self._sees_frames = True  # otherwise the program would not be loaded
        parts = [
            self._pids[at : at + PIDS_AT_ONCE] for at in range(0, len(self._pids), PIDS_AT_ONCE)
        ]
        for results in pool.map(self._search_by_bpf, parts):
            yield from results

    def _search_by_bpf(self, pids: list[int]) -> list[_ProcessFrames | Exception]:
        """Search some processes, and read those in which there is something."""
        from physview.sources import bpf

        return [
            self._try(pid, place.start, place.end)
            if place.error or place.end
            else _ProcessFrames(pid, "", [])
            for pid, place in zip(pids, bpf.find_frames(pids, self._runs), strict=True)
        ]

    def _count_error(self, pid: int, one: _ProcessFrames | Exception) -> None:
        if isinstance(one, PhysviewError) and self._on_error:
            self._on_error(pid, one)
        elif isinstance(one, ProcessGone):
            self.nr_gone += 1
        elif isinstance(one, AccessDenied):
            self.nr_denied += 1
        elif isinstance(one, Exception) and not isinstance(one, NoUserMemory):
            raise one

    def _try(self, pid: int, start: int = 0, end: int = 0) -> _ProcessFrames | Exception:
        """Read a process, or only a range of its addresses if `end` is not 0."""
        for left in reversed(range(TRIES)):
            try:
                return self._search_process(pid, start, end or None)
            except ProcessGone as error:
                if not left or not os.path.exists(f"/proc/{pid}"):
                    return error
            except OSError as error:  # NoUserMemory and AccessDenied, too
                return error
        raise AssertionError

    def _search_process(self, pid: int, start: int, end: int | None) -> _ProcessFrames:
        proc = ProcDir(pid)
        try:
            within = ALL if end is None else (start, end)
            reader = ExtentReader(proc, source=self._source, frames_only=True, within=within)
            try:
                owned = [
                    (vma, *columns)
                    for batch in reader.iter_extents(start, end)
                    for vma, columns in self._owned(reader, batch)
                ]
            finally:
                reader.close()
            comm = proc.comm() if owned else ""
        finally:
            proc.close()
        return _ProcessFrames(pid, comm, owned)

    def _owned(
        self, reader: ExtentReader, extents: npt.NDArray[Any]
    ) -> Iterator[tuple[Vma, tuple[int, int, int, int]]]:
        for pfn, nr, vaddr, nr_pages in self._cut(extents, reader.zero_pfn).tolist():
            vma = reader.memory.find(vaddr)
            if vma is None:  # it was mapped after /proc/PID/maps was read: report it nevertheless
                vma = Vma(vaddr, vaddr + nr_pages * PAGE_SIZE, "????", 0, "", 0, "[new]")
            yield vma, (pfn, nr, vaddr, nr_pages)

    def _cut(self, extents: npt.NDArray[Any], zero_pfn: int) -> npt.NDArray[Any]:
        """The parts of extents that are in the runs, as array of OWNED_DTYPE."""
        import numpy as np

        pfns = extents["entry"] & np.uint64(PM_PFRAME_MASK)
        is_present = extents["entry"] >= np.uint64(PM_PRESENT)  # the highest bit
        if not self._sees_frames:  # several threads may set it, but none clears it
            self._sees_frames = bool((is_present & (pfns != 0)).any())
            self._sees_hidden |= bool((is_present & (pfns == 0)).any())
        # An extent of zero pages has one frame, however many pages it has.
        is_zero = pfns == np.uint64(zero_pfn)
        ends = pfns + np.where(is_zero, np.uint64(1), extents["nr_pages"])
        # Most extents have no frame near those in question. Drop them early.
        is_near = is_present & (pfns < self._ends[-1]) & (ends > self._firsts[0])
        near = np.flatnonzero(is_near & (pfns != 0))
        pfns, ends, is_zero, extents = pfns[near], ends[near], is_zero[near], extents[near]
        # Each extent overlaps `nr_met` runs, from run `first` on.
        first = np.searchsorted(self._ends, pfns, side="right")
        nr_met = np.maximum(np.searchsorted(self._firsts, ends, side="left") - first, 0)
        of_extent = np.repeat(np.arange(len(near)), nr_met)
        nth = np.arange(len(of_extent)) - np.repeat(np.cumsum(nr_met) - nr_met, nr_met)
        of_run = first[of_extent] + nth
        low = np.maximum(pfns[of_extent], self._firsts[of_run])
        high = np.minimum(ends[of_extent], self._ends[of_run])
        owned = np.empty(len(low), dtype=OWNED_DTYPE)
        owned["pfn"], owned["nr"] = low, high - low
        offset = (low - pfns[of_extent]) * np.uint64(PAGE_SIZE)
        owned["vaddr"] = extents["vaddr"][of_extent] + offset
        owned["nr_pages"] = np.where(is_zero[of_extent], extents["nr_pages"][of_extent], high - low)
        return owned


def _without_sharers(
    found: list[_ProcessFrames],
) -> list[tuple[_ProcessFrames, tuple[int, ...]]]:
    """One process for each address space, with the pids of the others that share it."""
    kept: list[tuple[_ProcessFrames, list[int]]] = []
    # Compare only processes that map the same frames at the same addresses. In each of these groups
    # the processes are in the kernel's order of address spaces. So a few comparisons are enough,
    # also where hundreds of processes map a frame of a library.
    groups: dict[Any, list[tuple[_ProcessFrames, list[int]]]] = {}
    for one in found:
        group = groups.setdefault((len(one.owned), one.owned[0]), [])
        at, is_same = _find_mm(group, one.pid)
        if is_same and group[at][0].owned == one.owned:
            group[at][1].append(one.pid)
            continue
        kept.append((one, []))
        if not is_same:
            group.insert(at, kept[-1])
    return [(one, tuple(sharers)) for one, sharers in kept]


def _find_mm(group: list[tuple[_ProcessFrames, list[int]]], pid: int) -> tuple[int, bool]:
    """Find the place of a process in a sorted group, and whether its address space is there.

    If the kernel has no kcmp(), each process is reported separately.
    """
    _, lib = _ffi.load()
    low, high = 0, len(group)
    while low < high:
        middle = (low + high) // 2
        order = lib.pv_order_of_mm(pid, group[middle][0].pid)
        if order == 0:
            return middle, True
        if order == 2:
            low = middle + 1
        else:
            high = middle
    return low, False
