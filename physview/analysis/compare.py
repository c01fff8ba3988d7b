# SPDX-License-Identifier: GPL-2.0-or-later
"""Compares pagemap with walks of the page tables, page by page.

The kernel module walks, or a BPF program, or both: then a difference says which of the three
sources stands alone.

First, all pages are read once from each source, and the core counts those on which all agree. The
process runs on during this time. So most of the few remaining pages have only moved between the
readings. These pages are read again, several times and with growing pauses: pagemap, then the
page tables, then pagemap. A page that moves looks different from one reading to the next. Only a
difference that stays the same is a real one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from physview.analysis.agreement_pass import AgreementPass
from physview.analysis.explained import Explained
from physview.files.descriptor import Closable
from physview.model import PM_GUARD_REGION, PM_PFRAME_MASK, PM_PRESENT, PM_SWAP, PageKind, Vma
from physview.sources.choice import open_walkers
from physview.sources.page_tables import PageTables, as_pagemap
from physview.sources.pagemap import Pagemap
from physview.sources.procfs import MemoryMap, ProcDir

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Addresses = npt.NDArray[np.uint64]
    Kinds = npt.NDArray[np.uint32]
    Mask = npt.NDArray[np.bool_]

# Pages that are read again are collected up to this number.
MAX_LEFT = 1 << 15
MAX_TRIES = 8
FIRST_PAUSE_SECONDS = 0.0005
MAX_EXAMPLES = 4

# The bits of a pagemap entry that all sources know. pagemap alone knows the others.
_COMMON = PM_PRESENT | PM_SWAP | PM_PFRAME_MASK


class Verdict(Explained):
    """The result of comparing a page."""

    SAME_FRAME = ("same_frame", "all sources name the same frame", True)
    ZERO_PAGE = ("zero_page", "the zero page, which pages share that were only read", True)
    SAME_SWAP = ("same_swap", "all sources name the same swap entry", True)
    SAME_MARKER = ("same_marker", "a marker: a guard, userfaultfd or poison", True)
    POISONED = ("poisoned", "a page whose frame is broken", True)
    DEVICE_MEMORY = ("device_memory", "a page in a device's own memory", True)
    MIGRATION = ("migration", "a page on its way to another frame", True)
    HIDDEN = ("hidden", "pagemap hides the frame from this user; a walk names it", True)
    SWAP_HIDDEN = ("swap_hidden", "pagemap hides the swap entry from this user", True)
    DEVICE = ("device", "a device mapping (VM_PFNMAP), which pagemap never shows", True)
    HUGETLB = ("hugetlb", "a hugetlb entry without a page, which pagemap never shows", True)
    MOVED = ("moved", "it changed from reading to reading, so it cannot be compared", True)
    CHANGED = ("changed", "its mapping went away during the comparison", True)
    SWAP_OF_ONE = ("swap_of_one", "only one source sees a swap entry", False)
    UNEXPLAINED = ("unexplained", "the sources differ, and the cause is not known", False)
    PAGEMAP_ALONE = ("pagemap_alone", "both walks agree, and pagemap differs", False)
    KMOD_ALONE = ("kmod_alone", "pagemap and bpf agree, and kmod differs", False)
    BPF_ALONE = ("bpf_alone", "pagemap and kmod agree, and bpf differs", False)
    NO_TWO_AGREE = ("no_two_agree", "all three sources differ", False)


class Comparison:
    """The result of a comparison.

    `counts` has the number of pages with each verdict, and `examples` the addresses of the first
    few. `nr_retried` is the number of pages that were read again, each time counted. `seconds` is
    the duration.
    """

    def __init__(self) -> None:
        self.counts: dict[Verdict, int] = {}
        self.examples: dict[Verdict, list[int]] = {}
        self.nr_retried = 0
        self.seconds = 0.0

    @property
    def nr_pages(self) -> int:
        """Number of pages that at least one source knows."""
        return sum(self.counts.values())

    @property
    def nr_unexplained(self) -> int:
        """Number of pages on which the sources differ for no known reason."""
        return sum(count for verdict, count in self.counts.items() if not verdict.explained)

    def include(self, other: Comparison) -> None:
        """Add the result of another process, without its addresses."""
        for verdict, nr_pages in other.counts.items():
            self.counts[verdict] = self.counts.get(verdict, 0) + nr_pages
        self.nr_retried += other.nr_retried
        self.seconds += other.seconds

    def add(self, verdict: Verdict, nr_pages: int, first: list[int]) -> None:
        """Count pages with a verdict; `first` are the addresses of the first few."""
        if nr_pages:
            self.counts[verdict] = self.counts.get(verdict, 0) + nr_pages
            examples = self.examples.setdefault(verdict, [])
            examples += first[: MAX_EXAMPLES - len(examples)]


class Reading(NamedTuple):
    """Pages read from pagemap, by each walk, and from pagemap again. All arrays have shape (n,).

    Args:
        before: Entries of pagemap before the walks.
        walks: What each walk found: in the form of pagemap entries, and as PageKind.
        after: Entries of pagemap after the walks.
    """

    before: Addresses
    walks: list[tuple[Addresses, Kinds]]
    after: Addresses

    def where(self, which: Mask) -> Reading:
        """Return the reading of the selected pages only."""
        walks = [(walked[which], kinds[which]) for walked, kinds in self.walks]
        return Reading(self.before[which], walks, self.after[which])

    def walks_agree(self) -> Mask:
        """Return a mask: where all walks found the same."""
        import numpy as np

        same: Mask = np.ones(len(self.before), dtype=bool)
        first = self.walks[0][0]
        for walked, _ in self.walks[1:]:
            same &= walked == first
        return same

    def has_moved(self, last: Reading | None) -> Mask:
        """Return a mask: which pages changed during this reading, or since the last one."""
        moved = _differ(self.before, self.after)
        for _, kinds in self.walks:
            moved |= kinds == PageKind.UNSTABLE
        if last is not None:
            moved |= _differ(self.after, last.after)
            for (walked, _), (walked_last, _) in zip(self.walks, last.walks, strict=True):
                moved |= walked != walked_last
        return moved


class Comparer(Closable):
    """Compares all pages of a process, in constant memory.

    Args:
        proc: The process.
        source: Who walks the page tables: "kmod" (the kernel module), "bpf" (a BPF program), or
            "auto": each of them that works here.

    Raises:
        PhysviewError: One of the sources is not available.
    """

    def __init__(self, proc: ProcDir, *, source: str = "auto") -> None:
        self._proc = proc
        self._pagemap = Pagemap(proc)
        try:
            self._walkers: list[PageTables] = open_walkers(proc, source)
        except BaseException:
            self._pagemap.close()
            raise

    def close(self) -> None:
        """Close all sources."""
        self._pagemap.close()
        for walker in self._walkers:
            walker.close()

    @property
    def sources(self) -> list[str]:
        """The sources that are compared: "pagemap", then "kmod", "bpf" or both."""
        return ["pagemap", *(walker.name for walker in self._walkers)]

    def compare(self, progress: Callable[[int, int], None] | None = None) -> Comparison:
        """Compare every page that at least one source knows.

        Args:
            progress: Called with the number of pages that are done, and with an estimate of the
                total: the number of resident pages, without those in swap.

        Raises:
            AbiMismatch: The module is the course's, which cannot walk a range.
            ProcessGone: The process ended or ran another program meanwhile.
        """
        memory = MemoryMap(self._proc)
        first_pass = AgreementPass(self._proc, self._pagemap, self._walkers)
        result = Comparison()
        start_time = time.monotonic()  # NumPy is loaded by now
        nr_resident = self._proc.nr_resident() if progress else 0
        nr_done, nr_left = 0, 0
        left = []
        for start, end in memory.areas(min(walker.user_end() for walker in self._walkers)):
            for vaddrs in first_pass.iter_left(start, end):
                left.append(vaddrs)
                nr_left += len(vaddrs)
                if nr_left >= MAX_LEFT:
                    self._settle(memory, left, result)
                    nr_done, nr_left = nr_done + nr_left, 0
                if progress:
                    progress(first_pass.nr_agreed + nr_done, nr_resident)
        self._settle(memory, left, result)
        for verdict, (nr_pages, first) in zip(_AGREED, first_pass.agreed(), strict=True):
            result.add(verdict, nr_pages, first)
        result.seconds = time.monotonic() - start_time
        return result

    def _settle(self, memory: MemoryMap, left: list[Addresses], result: Comparison) -> None:
        """Give a verdict to every page on which the first pass differs, and empty the list."""
        import numpy as np

        vaddrs: Addresses = np.concatenate([np.empty(0, dtype=np.uint64), *left])
        left.clear()
        if not len(vaddrs):
            return
        unstable: Mask = np.zeros(len(vaddrs), dtype=bool)
        last = None
        for attempt in range(MAX_TRIES):
            result.nr_retried += len(vaddrs)
            if attempt > 1:
                time.sleep(FIRST_PAUSE_SECONDS * 2**attempt)
            reading = self._read(vaddrs)
            unstable |= reading.has_moved(last)
            is_open = _classify(memory, vaddrs, reading, result)
            vaddrs, unstable = vaddrs[is_open], unstable[is_open]
            last = reading.where(is_open)
            if not len(vaddrs):
                return
        assert last is not None
        self._classify_rest(vaddrs, unstable, last, result)

    def _read(self, vaddrs: Addresses) -> Reading:
        before = self._read_pagemap(vaddrs)
        found = [walker.pages(vaddrs) for walker in self._walkers]
        after = self._read_pagemap(vaddrs)
        walks = [(as_pagemap(vaddrs, pages)[0], pages["kind"]) for pages in found]
        return Reading(before, walks, after)

    def _read_pagemap(self, vaddrs: Addresses) -> Addresses:
        import numpy as np

        entries, paddrs = np.empty((2, len(vaddrs)), dtype=np.uint64)
        if self._pagemap.fill(vaddrs, entries, paddrs):
            raise self._proc.gone()
        return entries

    def _classify_rest(
        self, vaddrs: Addresses, unstable: Mask, reading: Reading, result: Comparison
    ) -> None:
        """Give a verdict to the pages that still differ after all readings."""
        memory = MemoryMap(self._proc)
        columns = [reading.after, *(walked for walked, _ in reading.walks)]
        rows = zip(*(column.tolist() for column in columns), strict=True)
        for vaddr, moves, row in zip(vaddrs.tolist(), unstable.tolist(), rows, strict=True):
            vma = memory.find(vaddr)
            nothing = not row[0] & (PM_PRESENT | PM_SWAP)
            if vma is None:
                verdict = Verdict.CHANGED
            elif moves:
                verdict = Verdict.MOVED
            elif nothing and len(set(row[1:])) == 1 and memory.has_flag(vma, "ht"):
                verdict = Verdict.HUGETLB
            else:
                verdict = self._blame(*row)
            result.add(verdict, 1, [vaddr])

    def _blame(self, entry: int, *walks: int) -> Verdict:
        """Return which source stands alone, if there are three."""
        if len(walks) == 1:
            one_swap = (entry ^ walks[0]) & PM_SWAP
            return Verdict.SWAP_OF_ONE if one_swap else Verdict.UNEXPLAINED
        if len(set(walks)) == 1:
            return Verdict.PAGEMAP_ALONE
        alone = [
            w.name
            for w, walked in zip(self._walkers, walks, strict=True)
            if (walked ^ entry) & _COMMON
        ]
        return _ALONE[alone[0]] if len(alone) == 1 else Verdict.NO_TWO_AGREE


_ALONE = {"kmod": Verdict.KMOD_ALONE, "bpf": Verdict.BPF_ALONE}


def _classify(memory: MemoryMap, vaddrs: Addresses, reading: Reading, result: Comparison) -> Mask:
    """Give a verdict to pages whose readings leave no doubt, and return a mask of the others."""
    import numpy as np

    # No verdict yet for a page that changed during the reading, or on which the walks differ.
    steady = ~_differ(reading.before, reading.after) & reading.walks_agree()
    settled = np.zeros(len(vaddrs), dtype=bool)

    def settle(verdict: Verdict, which: Mask) -> None:
        which = which & steady & ~settled
        settled[which] = True
        result.add(verdict, int(which.sum()), vaddrs[which][:MAX_EXAMPLES].tolist())

    entries = reading.after
    walked, kinds = reading.walks[0]
    for _, others in reading.walks[1:]:
        steady &= kinds == others
    present, swap = (entries & np.uint64(bit) != 0 for bit in (PM_PRESENT, PM_SWAP))
    here, there = (walked & np.uint64(bit) != 0 for bit in (PM_PRESENT, PM_SWAP))
    nothing = ~present & ~swap
    hidden = entries & np.uint64(PM_PFRAME_MASK) == 0
    guard = entries & np.uint64(PM_GUARD_REGION) != 0
    same = ~_differ(entries, walked)
    settled |= steady & nothing & (kinds == PageKind.NONE)  # the page is gone: do not count it
    settle(Verdict.SAME_FRAME, same & present)
    settle(Verdict.SAME_MARKER, (same | guard) & swap & (kinds == PageKind.MARKER))
    for kind, verdict in _SAME_KINDS.items():
        settle(verdict, same & swap & (kinds == kind))
    settle(Verdict.HIDDEN, present & here & hidden)
    settle(Verdict.SWAP_HIDDEN, swap & there & hidden)
    settle(Verdict.DEVICE, _in_device(memory, vaddrs, nothing & here))
    return ~settled


# In the order of `AgreementPass.agreed()`.
_AGREED = (Verdict.SAME_FRAME, Verdict.ZERO_PAGE, Verdict.SAME_SWAP)
_SAME_KINDS = {
    PageKind.SWAP: Verdict.SAME_SWAP,
    PageKind.MIGRATION: Verdict.MIGRATION,
    PageKind.HWPOISON: Verdict.POISONED,
    PageKind.DEVICE: Verdict.DEVICE_MEMORY,
}


def _differ(one: Addresses, other: Addresses) -> Mask:
    """Return a mask: where entries differ in bits that all sources know."""
    import numpy as np

    differ: Mask = (one ^ other) & np.uint64(_COMMON) != 0
    return differ


def _in_device(memory: MemoryMap, vaddrs: Addresses, which: Mask) -> Mask:
    """Return a mask: which of the pages selected by `which` lie in device mappings.

    Each mapping is looked up once.
    """
    import numpy as np

    result = np.zeros(len(vaddrs), dtype=bool)
    answers: dict[Vma, bool] = {}
    for index in np.flatnonzero(which).tolist():
        vma = memory.find(int(vaddrs[index]))
        if vma is not None:
            if vma not in answers:
                answers[vma] = memory.is_pfnmap(vma)
            result[index] = answers[vma]
    return result
