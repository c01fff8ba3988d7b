# SPDX-License-Identifier: GPL-2.0-or-later
"""Which processes map a frame, and what the frame is.

The kernel has no way from a frame to who maps it, so the pagemaps of all processes are read, once
for all frames that are asked about. Processes run on meanwhile: what is told of one was true at one
moment, of two at two, and one that was started meanwhile is not among them.

Source: /proc/PID/pagemap, /proc/kpageflags
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from physview import _ffi
from physview.errors import AccessDenied, NoUserMemory, ProcessGone
from physview.frames.machine import Use, use_of
from physview.memory.extents import ExtentReader
from physview.model import NO_ENTRY, PAGE_SIZE, PM_PFRAME_MASK, PM_PRESENT, Vma
from physview.sources.kpage import FRAMES_DTYPE, KpageFile
from physview.sources.procfs import ProcDir
from physview.sources.ram import ram_ranges, read_resources

if TYPE_CHECKING:
    import numpy.typing as npt

OWNED_DTYPE = [("pfn", "u8"), ("nr", "u8"), ("vaddr", "u8"), ("nr_pages", "u8")]
"""Frames in a row that pages in a row show: first frame number, how many, first address, pages."""

# One that runs another program while it is read is read again, as what it then is.
TRIES = 3


class Owner(NamedTuple):
    """Frames in a row that one mapping of a process shows.

    Args:
        pid: The process.
        comm: Its name, as the kernel has it.
        sharers: Pids of other processes with the same address space (vfork, CLONE_VM).
        vma: The mapping.
        vaddr: Virtual address of the first frame.
        pfn: The first frame.
        nr_frames: How many.
        nr_pages: How many pages show them: as many, or any number for the zero page.
    """

    pid: int
    comm: str
    sharers: tuple[int, ...]
    vma: Vma
    vaddr: int
    pfn: int
    nr_frames: int
    nr_pages: int

    def clipped(self, first: int, end: int) -> Owner:
        """The part of it that shows frames from `first` to before `end`."""
        low, high = max(first, self.pfn), min(end, self.pfn + self.nr_frames)
        if (low, high) == (self.pfn, self.pfn + self.nr_frames):
            return self
        vaddr = self.vaddr + (low - self.pfn) * PAGE_SIZE
        return self._replace(vaddr=vaddr, pfn=low, nr_frames=high - low, nr_pages=high - low)


class FramesKind(NamedTuple):
    """Frames in a row with the same flags.

    Args:
        pfn: The first frame.
        nr_frames: How many.
        flags: Their value in kpageflags; NO_ENTRY where there is no frame.
    """

    pfn: int
    nr_frames: int
    flags: int


class FrameGroup(NamedTuple):
    """Frames in a row that are used for the same.

    Args:
        pfn: The first frame.
        nr_frames: How many.
        use: What they are used for.
        flags: Bits of kpageflags that all of them have; NO_ENTRY where there is no frame.
        owners: Who maps them, clipped to these frames.
    """

    pfn: int
    nr_frames: int
    use: Use
    flags: int
    owners: list[Owner]

    @property
    def nr_owned(self) -> int:
        """How many of them somebody maps."""
        nr, at = 0, self.pfn
        for owner in self.owners:  # by frame number
            end = owner.pfn + owner.nr_frames
            nr += max(0, end - max(at, owner.pfn))
            at = max(at, end)
        return nr


class Ownership(NamedTuple):
    """Who maps the frames that were asked about.

    Args:
        kinds: What they are, by frame number.
        owners: Who maps them, by frame number, pid and address.
        nr_processes: How many processes were looked at.
        nr_gone: How many ended, or ran one program after the other, while they were.
        nr_denied: How many were not this user's to look into.
    """

    kinds: list[FramesKind]
    owners: list[Owner]
    nr_processes: int
    nr_gone: int
    nr_denied: int

    def groups(self, first: int, end: int) -> list[FrameGroup]:
        """What was asked about as few groups.

        Args:
            first: First frame number, of those that were asked about.
            end: First frame number after them.
        """
        groups: list[tuple[int, int, Use, int]] = []
        at = max(0, bisect.bisect(self.kinds, (first, end, NO_ENTRY)) - 1)
        for kind in self.kinds[at:]:
            low, high = max(first, kind.pfn), min(end, kind.pfn + kind.nr_frames)
            if kind.pfn >= end:
                break
            if low >= high:
                continue
            use = use_of(kind.flags)
            if groups and groups[-1][1:3] == (low, use):
                groups[-1] = (groups[-1][0], high, use, groups[-1][3] & kind.flags)
            else:
                groups.append((low, high, use, kind.flags))
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


class _Found(NamedTuple):
    pid: int
    comm: str
    owned: list[tuple[Vma, int, int, int, int]]  # mapping, pfn, nr, vaddr, nr_pages


def find_owners(
    ranges: Iterable[tuple[int, int]],
    pids: Sequence[int] | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Ownership:
    """Tell who maps frames, and what they are.

    Args:
        ranges: Frames as (first, first after them); each is looked up once.
        pids: Processes to look at; None looks at all that can be seen.
        progress: Called with how many processes were looked at, and how many there are.

    Raises:
        AccessDenied: Frames are root's to see.
        ProcessGone: One of `pids` is gone.
        NoUserMemory: One of `pids` has no memory: a kernel thread, a zombie.
        CoreUnavailable: The core is not built.
    """
    ram = ram_ranges(read_resources())
    runs, is_ram = _runs(ranges, ram)
    if not len(runs):
        return Ownership([], [], 0, 0, 0)
    flags = KpageFile("kpageflags")  # first, for who may not read it is told so
    try:
        index = _Index(runs, _pids() if pids is None else list(pids), strict=pids is not None)
        found = index.search(progress)
        # Afterwards, so that a frame is not called free that was mapped a moment ago only.
        kinds = [
            # Holes have a value, too, where the kernel keeps books of the whole range.
            FramesKind(pfn, nr, value if value or is_ram[run] else NO_ENTRY)
            for pieces in flags.iter_pieces(runs)
            for run, pfn, nr, value in pieces.tolist()
        ]
    finally:
        flags.close()
    owners = [
        Owner(one.pid, one.comm, sharers, vma, vaddr, pfn, nr, nr_pages)
        for one, sharers in _without_sharers(found)
        for vma, pfn, nr, vaddr, nr_pages in one.owned
    ]
    owners.sort(key=lambda owner: (owner.pfn, owner.pid, owner.vaddr))
    return Ownership(kinds, owners, index.nr_processes, index.nr_gone, index.nr_denied)


def _runs(
    ranges: Iterable[tuple[int, int]], ram: list[tuple[int, int]]
) -> tuple[npt.NDArray[Any], list[bool]]:
    """Ranges in order, joined where they overlap, cut where RAM ends; and which of them are RAM."""
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


def _pids() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


class _Index:
    """Looks for runs of frames in processes, some at once: the core lets go of the GIL."""

    def __init__(self, runs: npt.NDArray[Any], pids: list[int], *, strict: bool) -> None:
        self._firsts = runs["pfn"].copy()
        self._ends = runs["pfn"] + runs["nr"]
        self._pids = pids
        self._strict = strict
        self._sees_frames = self._sees_hidden = False
        self.nr_processes = self.nr_gone = self.nr_denied = 0

    def search(self, progress: Callable[[int, int], None] | None) -> list[_Found]:
        found = []
        with ThreadPoolExecutor(_ffi.nr_threads()) as pool:
            try:
                for nr, one in enumerate(pool.map(self._try, self._pids), 1):
                    if isinstance(one, _Found):
                        self.nr_processes += 1
                        if one.owned:
                            found.append(one)
                    self._count_error(one)
                    if progress:
                        progress(nr, len(self._pids))
            finally:
                pool.shutdown(cancel_futures=True)
        if self._sees_hidden and not self._sees_frames:
            raise AccessDenied(
                "cannot tell who maps a frame",
                "pagemap hides frame numbers from who lacks CAP_SYS_ADMIN",
                "run as root, in a container with CAP_SYS_ADMIN",
            )
        return found

    def _count_error(self, one: _Found | Exception) -> None:
        if isinstance(one, Exception) and self._strict:
            raise one
        if isinstance(one, ProcessGone):
            self.nr_gone += 1
        elif isinstance(one, AccessDenied):
            self.nr_denied += 1
        elif isinstance(one, Exception) and not isinstance(one, NoUserMemory):
            raise one

    def _try(self, pid: int) -> _Found | Exception:
        for left in reversed(range(TRIES)):
            try:
                return self._search_process(pid)
            except ProcessGone as error:
                if not left or not os.path.exists(f"/proc/{pid}"):
                    return error
            except OSError as error:  # NoUserMemory and AccessDenied, too
                return error
        raise AssertionError

    def _search_process(self, pid: int) -> _Found:
        proc = ProcDir(pid)
        try:
            reader = ExtentReader(proc)
            try:
                owned = [
                    (vma, *columns)
                    for batch in reader.iter_extents()
                    for vma, columns in self._owned(reader, batch)
                ]
            finally:
                reader.close()
            comm = proc.comm() if owned else ""
        finally:
            proc.close()
        return _Found(pid, comm, owned)

    def _owned(
        self, reader: ExtentReader, extents: npt.NDArray[Any]
    ) -> Iterator[tuple[Vma, tuple[int, int, int, int]]]:
        for pfn, nr, vaddr, nr_pages in self._cut(extents, reader.zero_pfn).tolist():
            vma = reader.memory.find(vaddr)
            if vma is None:  # mapped after /proc/PID/maps was read: told nevertheless
                vma = Vma(vaddr, vaddr + nr_pages * PAGE_SIZE, "????", 0, "", 0, "[new]")
            yield vma, (pfn, nr, vaddr, nr_pages)

    def _cut(self, extents: npt.NDArray[Any], zero_pfn: int) -> npt.NDArray[Any]:
        """The parts of extents that are in the runs."""
        import numpy as np

        pfns = extents["entry"] & np.uint64(PM_PFRAME_MASK)
        is_present = extents["entry"] >= np.uint64(PM_PRESENT)  # the highest bit
        if not self._sees_frames:  # only ever set, as several threads do
            self._sees_frames = bool((is_present & (pfns != 0)).any())
            self._sees_hidden |= bool((is_present & (pfns == 0)).any())
        # An extent of the zero page is one frame, however many pages it has.
        is_zero = pfns == np.uint64(zero_pfn)
        ends = pfns + np.where(is_zero, np.uint64(1), extents["nr_pages"])
        # Most extents are far from what is asked about, and looked at no further.
        is_near = is_present & (pfns < self._ends[-1]) & (ends > self._firsts[0])
        near = np.flatnonzero(is_near & (pfns != 0))
        pfns, ends, is_zero, extents = pfns[near], ends[near], is_zero[near], extents[near]
        # The runs that each extent meets: from `first` on, `nr_met` of them.
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


def _without_sharers(found: list[_Found]) -> Iterator[tuple[_Found, tuple[int, ...]]]:
    """One of the processes that share an address space, with the pids of the others."""
    _, lib = _ffi.load()
    left = list(found)
    while left:
        one = left.pop(0)
        # Only those that show the same frames at the same addresses: cheap to tell, and few. Where
        # the kernel has no kcmp() they are told one by one.
        sharers = [
            other
            for other in left
            if other.owned == one.owned and lib.pv_same_mm(one.pid, other.pid) == 1
        ]
        left = [other for other in left if other not in sharers]
        yield one, tuple(other.pid for other in sharers)
