# SPDX-License-Identifier: GPL-2.0-or-later
"""One witness against the other: pagemap and the module's walk, page by page.

First everything is read once from each, and the pages on which they agree are counted by the core.
The process runs on meanwhile, so that of the few that are left most have only moved between the two
readings. Of these pagemap is read, then the page tables, then pagemap again, several times and with
growing pauses: what moves looks different from time to time, and only a difference that stands
still is one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from physview.analysis.agreement_pass import Sieve
from physview.files.descriptor import Closable
from physview.model import PM_GUARD_REGION, PM_PFRAME_MASK, PM_PRESENT, PM_SWAP, PageKind, Vma
from physview.sources.kmod import Kmod, as_pagemap
from physview.sources.pagemap import Pagemap
from physview.sources.procfs import MemoryMap, ProcDir

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Addresses = npt.NDArray[np.uint64]
    Mask = npt.NDArray[np.bool_]

# So many pages are kept to be looked at again together.
MAX_LEFT = 1 << 15
MAX_TRIES = 8
FIRST_PAUSE_SECONDS = 0.0005
MAX_EXAMPLES = 4

# What both witnesses know of a page. The rest of a pagemap entry is its own business.
_COMMON = PM_PRESENT | PM_SWAP | PM_PFRAME_MASK


class Verdict(Enum):
    """What the witnesses say of a page together, in words, and whether that is explained."""

    SAME_FRAME = ("same_frame", "both name the same frame", True)
    ZERO_PAGE = ("zero_page", "both name the zero page, which all untouched pages share", True)
    SAME_SWAP = ("same_swap", "both name the same swap entry", True)
    SAME_MARKER = ("same_marker", "both see a marker: a guard, userfaultfd or poison", True)
    POISONED = ("poisoned", "both see a page whose frame is broken", True)
    DEVICE_MEMORY = ("device_memory", "both see a page in a device's own memory", True)
    MIGRATION = ("migration", "both see a page on its way to another frame", True)
    HIDDEN = ("hidden", "pagemap hides the frame from this user; the walk names it", True)
    SWAP_HIDDEN = ("swap_hidden", "pagemap hides the swap entry from this user", True)
    DEVICE = ("device", "a device mapping (VM_PFNMAP), which pagemap never shows", True)
    HUGETLB = ("hugetlb", "a hugetlb entry without a page, which pagemap never shows", True)
    MOVED = ("moved", "it changed from look to look, so nothing can be said", True)
    CHANGED = ("changed", "its mapping went while it was looked at", True)
    SWAP_OF_ONE = ("swap_of_one", "a swap entry that only one of them knows", False)
    UNEXPLAINED = ("unexplained", "they differ, and it is not known why", False)

    text: str
    explained: bool

    def __new__(cls, slug: str, text: str, explained: bool) -> Verdict:
        member = object.__new__(cls)
        member._value_ = slug
        member.text = text
        member.explained = explained
        return member


class Comparison:
    """What came of it: how many pages have each verdict, the first few of each, and how long."""

    def __init__(self) -> None:
        self.counts: dict[Verdict, int] = {}
        self.examples: dict[Verdict, list[int]] = {}
        self.nr_retried = 0
        self.seconds = 0.0

    @property
    def nr_pages(self) -> int:
        """Pages that at least one witness knows something of."""
        return sum(self.counts.values())

    @property
    def nr_unexplained(self) -> int:
        """Pages on which the witnesses differ for no known reason."""
        return sum(count for verdict, count in self.counts.items() if not verdict.explained)

    def add(self, verdict: Verdict, nr_pages: int, first: list[int]) -> None:
        """Count pages with a verdict; `first` are the addresses of the first few."""
        if nr_pages:
            self.counts[verdict] = self.counts.get(verdict, 0) + nr_pages
            examples = self.examples.setdefault(verdict, [])
            examples += first[: MAX_EXAMPLES - len(examples)]


class Look(NamedTuple):
    """What both witnesses said of pages, in pagemap's form: columns of one length.

    Args:
        before: pagemap, before the walk.
        walked: The walk.
        kinds: What the walk found, PageKind.
        after: pagemap, after it.
    """

    before: Addresses
    walked: Addresses
    kinds: npt.NDArray[np.uint32]
    after: Addresses

    def where(self, which: Mask) -> Look:
        """The same of some of the pages only."""
        return Look(self.before[which], self.walked[which], self.kinds[which], self.after[which])


class Comparer(Closable):
    """Compares all of a process, in constant memory.

    Args:
        proc: The process.

    Raises:
        PhysviewError: One of the witnesses is not to be had.
    """

    def __init__(self, proc: ProcDir) -> None:
        self._proc = proc
        self._kmod = Kmod(proc)
        try:
            self._pagemap = Pagemap(proc)
        except BaseException:
            self._kmod.close()
            raise

    def close(self) -> None:
        """Close both witnesses."""
        self._pagemap.close()
        self._kmod.close()

    def compare(self, progress: Callable[[int, int], None] | None = None) -> Comparison:
        """Compare every page that either witness knows something of.

        Args:
            progress: Called with how many pages are compared, and about how many there are:
                those that are resident, without those in swap.

        Raises:
            AbiMismatch: The module is the course's, which cannot walk a range.
            ProcessGone: The process ended or ran another program meanwhile.
        """
        if self._kmod.info is None:
            raise self._kmod.only_the_course("all of a process")
        memory = MemoryMap(self._proc)
        sieve = Sieve(self._proc, self._pagemap, self._kmod)
        result = Comparison()
        start_time = time.monotonic()  # with NumPy there, which the first use loads
        nr_resident = self._proc.nr_resident() if progress else 0
        nr_done, nr_left = 0, 0
        left = []
        for start, end in memory.areas(self._kmod.info.user_end):
            for vaddrs in sieve.iter_left(start, end):
                left.append(vaddrs)
                nr_left += len(vaddrs)
                if nr_left >= MAX_LEFT:
                    self._settle(memory, left, result)
                    nr_done, nr_left = nr_done + nr_left, 0
                if progress:
                    progress(sieve.nr_agreed + nr_done, nr_resident)
        self._settle(memory, left, result)
        for verdict, (nr_pages, first) in zip(_AGREED, sieve.agreed(), strict=True):
            result.add(verdict, nr_pages, first)
        result.seconds = time.monotonic() - start_time
        return result

    def _settle(self, memory: MemoryMap, left: list[Addresses], result: Comparison) -> None:
        """Give a verdict to every page that the sieve left open, and empty the list."""
        import numpy as np

        vaddrs: Addresses = np.concatenate([np.empty(0, dtype=np.uint64), *left])
        left.clear()
        if not len(vaddrs):
            return
        restless: Mask = np.zeros(len(vaddrs), dtype=bool)
        last = None
        for attempt in range(MAX_TRIES):
            if attempt > 1:
                time.sleep(FIRST_PAUSE_SECONDS * 2**attempt)
            look = self._look(vaddrs)
            restless |= _differ(look.before, look.after)
            if last is not None:
                restless |= _differ(look.after, last.after) | (look.walked != last.walked)
            is_open = _judge(memory, vaddrs, look, result)
            vaddrs, restless = vaddrs[is_open], restless[is_open]
            last = look.where(is_open)
            if not len(vaddrs):
                return
            result.nr_retried += len(vaddrs)
        assert last is not None
        self._judge_the_rest(vaddrs, restless, last, result)

    def _look(self, vaddrs: Addresses) -> Look:
        before = self._read_pagemap(vaddrs)
        pages = self._kmod.pages(vaddrs)
        after = self._read_pagemap(vaddrs)
        return Look(before, as_pagemap(vaddrs, pages)[0], pages["kind"], after)

    def _read_pagemap(self, vaddrs: Addresses) -> Addresses:
        import numpy as np

        entries, paddrs = np.empty((2, len(vaddrs)), dtype=np.uint64)
        if self._pagemap.fill(vaddrs, entries, paddrs):
            raise self._proc.gone()
        return entries

    def _judge_the_rest(
        self, vaddrs: Addresses, restless: Mask, look: Look, result: Comparison
    ) -> None:
        """Name the differences that no look has cleared up."""
        memory = MemoryMap(self._proc)
        columns = (vaddrs, restless, look.after, look.walked)
        for vaddr, moves, entry, walked in zip(*(c.tolist() for c in columns), strict=True):
            vma = memory.find(vaddr)
            if vma is None:
                verdict = Verdict.CHANGED
            elif moves:
                verdict = Verdict.MOVED
            elif not entry & (PM_PRESENT | PM_SWAP) and memory.has_flag(vma, "ht"):
                verdict = Verdict.HUGETLB
            elif (entry ^ walked) & PM_SWAP:
                verdict = Verdict.SWAP_OF_ONE
            else:
                verdict = Verdict.UNEXPLAINED
            result.add(verdict, 1, [vaddr])


def _judge(memory: MemoryMap, vaddrs: Addresses, look: Look, result: Comparison) -> Mask:
    """Give a verdict to pages whose case is clear; return which are not."""
    import numpy as np

    steady = ~_differ(look.before, look.after)  # of the others nothing can be said
    settled = np.zeros(len(vaddrs), dtype=bool)

    def settle(verdict: Verdict, which: Mask) -> None:
        which = which & steady & ~settled
        settled[which] = True
        result.add(verdict, int(which.sum()), vaddrs[which][:MAX_EXAMPLES].tolist())

    entries, walked, kinds = look.after, look.walked, look.kinds
    present, swap = (entries & np.uint64(bit) != 0 for bit in (PM_PRESENT, PM_SWAP))
    here, there = (walked & np.uint64(bit) != 0 for bit in (PM_PRESENT, PM_SWAP))
    nothing = ~present & ~swap
    hidden = entries & np.uint64(PM_PFRAME_MASK) == 0
    guard = entries & np.uint64(PM_GUARD_REGION) != 0
    same = ~_differ(entries, walked)
    settled |= steady & nothing & (kinds == PageKind.NONE)  # it is gone, and no page any more
    settle(Verdict.SAME_FRAME, same & present)
    settle(Verdict.SAME_MARKER, (same | guard) & swap & (kinds == PageKind.MARKER))
    for kind, verdict in _SAME_KINDS.items():
        settle(verdict, same & swap & (kinds == kind))
    settle(Verdict.HIDDEN, present & here & hidden)
    settle(Verdict.SWAP_HIDDEN, swap & there & hidden)
    settle(Verdict.DEVICE, _in_device(memory, vaddrs, nothing & here))
    return ~settled


# In the order of the sieve.
_AGREED = (Verdict.SAME_FRAME, Verdict.ZERO_PAGE, Verdict.SAME_SWAP)
_SAME_KINDS = {
    PageKind.SWAP: Verdict.SAME_SWAP,
    PageKind.MIGRATION: Verdict.MIGRATION,
    PageKind.HWPOISON: Verdict.POISONED,
    PageKind.DEVICE: Verdict.DEVICE_MEMORY,
}


def _differ(one: Addresses, other: Addresses) -> Mask:
    """Where entries differ in what both witnesses know."""
    import numpy as np

    differ: Mask = (one ^ other) & np.uint64(_COMMON) != 0
    return differ


def _in_device(memory: MemoryMap, vaddrs: Addresses, which: Mask) -> Mask:
    """Which of some pages lie in device mappings. Every mapping is asked about once."""
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
