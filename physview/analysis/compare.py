# SPDX-License-Identifier: GPL-2.0-or-later
"""One witness against the other: pagemap and the module's walk, page by page.

The process runs on meanwhile. So pagemap is read, then the page tables, then pagemap again: where
the two readings of pagemap differ the page moved between them, and that page is looked at once
more. What is left has a verdict for every page, and a name for every difference.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any

from physview.kmod import EXTENT_DTYPE, PAGE_DTYPE, Kmod, as_pagemap
from physview.model import (
    PAGE_SHIFT,
    PAGE_SIZE,
    PM_GUARD_REGION,
    PM_PFRAME_MASK,
    PM_PRESENT,
    PM_SWAP,
    PTE_MARKER_SWAP_TYPE,
    SWAP_TYPE_BITS,
    PageKind,
    Vma,
)
from physview.pagemap import Pagemap
from physview.procfs import MemoryMap, ProcDir

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CHUNK_PAGES = 1 << 15
FIRST_STEP_PAGES = 512
MAX_TRIES = 8
MAX_EXAMPLES = 4

# What both witnesses know of a page. The rest of a pagemap entry is its own business.
_COMMON = PM_PRESENT | PM_SWAP | PM_PFRAME_MASK


class Verdict(Enum):
    """What the witnesses say of a page together, in words, and whether that is explained."""

    SAME_FRAME = ("same_frame", "both name the same frame", True)
    SAME_SWAP = ("same_swap", "both name the same swap entry", True)
    SAME_MARKER = ("same_marker", "both see a marker: a guard, userfaultfd or poison", True)
    HIDDEN = ("hidden", "pagemap hides the frame from this user; the walk names it", True)
    SWAP_HIDDEN = ("swap_hidden", "pagemap hides the swap entry from this user", True)
    DEVICE = ("device", "a device mapping (VM_PFNMAP), which pagemap never shows", True)
    HUGETLB = ("hugetlb", "a hugetlb entry without a page, which pagemap never shows", True)
    MIGRATION = ("migration", "in migration in every look", True)
    MOVED = ("moved", "it changed at every look, so nothing can be said", True)
    CHANGED = ("changed", "the mapping went or changed while it was looked at", True)
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
    """What came of it: how many pages have each verdict, and the first few of each."""

    def __init__(self) -> None:
        self.counts: dict[Verdict, int] = {}
        self.examples: dict[Verdict, list[int]] = {}
        self.nr_retried = 0

    @property
    def nr_pages(self) -> int:
        """Pages that at least one witness knows something of."""
        return sum(self.counts.values())

    @property
    def nr_unexplained(self) -> int:
        """Pages on which the witnesses differ for no known reason."""
        return sum(count for verdict, count in self.counts.items() if not verdict.explained)

    def add(self, verdict: Verdict, vaddrs: npt.NDArray[np.uint64]) -> None:
        """Count pages with a verdict."""
        if len(vaddrs):
            self.counts[verdict] = self.counts.get(verdict, 0) + len(vaddrs)
            examples = self.examples.setdefault(verdict, [])
            examples += vaddrs[: MAX_EXAMPLES - len(examples)].tolist()


class Comparer:
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
            progress: Called with (mappings done, mappings in all).

        Raises:
            AbiMismatch: The module is the course's, which cannot walk a range.
            ProcessGone: The process ended or ran another program meanwhile.
        """
        result = Comparison()
        memory = MemoryMap(self._proc)
        if self._kmod.info is None:
            raise self._kmod.only_the_course("all of a process")
        user_end = self._kmod.info.user_end
        for done, vma in enumerate(memory.vmas):
            if progress:
                progress(done, len(memory.vmas))
            if vma.start < user_end:
                self._compare_vma(memory, vma, result)
        return result

    def _compare_vma(self, memory: MemoryMap, vma: Vma, result: Comparison) -> None:
        import numpy as np

        at, step = vma.start, FIRST_STEP_PAGES
        while at < vma.end:
            stop = min(at + step * PAGE_SIZE, vma.end)
            vaddrs = np.arange(at, stop, PAGE_SIZE, dtype=np.uint64)
            if self._compare_pages(memory, vma, vaddrs, result):
                at, step = stop, min(2 * step, CHUNK_PAGES)
                continue
            # Nothing in either: go on where one of them has the next page.
            at = min(
                self._pagemap.next_populated(stop, vma.end),
                self._kmod.next_populated(stop, vma.end),
            )
            step = FIRST_STEP_PAGES

    def _compare_pages(
        self, memory: MemoryMap, vma: Vma, vaddrs: npt.NDArray[np.uint64], result: Comparison
    ) -> bool:
        """Compare pages of one mapping; return whether there was anything."""
        import numpy as np

        found = False
        for attempt in range(MAX_TRIES):
            in_a_row = attempt == 0
            before = self._read_pagemap(vaddrs)
            walked, kinds = self._walk_row(vaddrs) if in_a_row else self._walk_each(vaddrs)
            after = self._read_pagemap(vaddrs)
            moved = (before ^ after) & np.uint64(_COMMON) != 0
            # A walk that fell into a migration sees what pagemap will see in a moment, too.
            unsettled = moved | (kinds == PageKind.MIGRATION)
            settled = ~unsettled
            something = (after & np.uint64(PM_PRESENT | PM_SWAP) != 0) | (kinds != PageKind.NONE)
            verdicts = settled & something
            found = found or bool(something.any())
            doubtful = self._judge(
                memory,
                vma,
                vaddrs[verdicts],
                after[verdicts],
                walked[verdicts],
                result,
                last=attempt == MAX_TRIES - 1,
            )
            vaddrs = np.concatenate([vaddrs[unsettled], doubtful])
            if not len(vaddrs):
                return found
            result.nr_retried += len(vaddrs)
        _, kinds = self._walk_each(vaddrs)
        result.add(Verdict.MIGRATION, vaddrs[kinds == PageKind.MIGRATION])
        result.add(Verdict.MOVED, vaddrs[kinds != PageKind.MIGRATION])
        return found

    def _read_pagemap(self, vaddrs: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        import numpy as np

        entries, paddrs = np.empty((2, len(vaddrs)), dtype=np.uint64)
        if self._pagemap.fill(vaddrs, entries, paddrs):
            raise self._proc.gone()
        return entries

    def _walk_row(
        self, vaddrs: npt.NDArray[np.uint64]
    ) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]:
        """What the module finds in pages in a row: entries in pagemap's form, and kinds."""
        import numpy as np

        start = int(vaddrs[0])
        entries = np.zeros(len(vaddrs), dtype=np.uint64)
        kinds = np.zeros(len(vaddrs), dtype=np.uint32)
        for extents in self._kmod.iter_extents(start, int(vaddrs[-1]) + PAGE_SIZE):
            pages = expand(extents)
            index = (pages["vaddr"] - np.uint64(start)) >> np.uint64(PAGE_SHIFT)
            entries[index] = as_pagemap(pages)[0]
            kinds[index] = pages["kind"]
        return entries, kinds

    def _walk_each(
        self, vaddrs: npt.NDArray[np.uint64]
    ) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]:
        pages = self._kmod.pages(vaddrs)
        return as_pagemap(pages)[0], pages["kind"]

    def _judge(
        self,
        memory: MemoryMap,
        vma: Vma,
        vaddrs: npt.NDArray[np.uint64],
        entries: npt.NDArray[np.uint64],
        walked: npt.NDArray[np.uint64],
        result: Comparison,
        *,
        last: bool,
    ) -> npt.NDArray[np.uint64]:
        """Give each page its verdict; return those to be looked at again before they get one."""
        import numpy as np

        common = entries & np.uint64(_COMMON)
        open_cases = np.ones(len(vaddrs), dtype=bool)

        def settle(verdict: Verdict, which: npt.NDArray[np.bool_]) -> None:
            which = which & open_cases
            result.add(verdict, vaddrs[which])
            open_cases[which] = False

        present, swap = (entries & np.uint64(bit) != 0 for bit in (PM_PRESENT, PM_SWAP))
        here, there = (walked & np.uint64(bit) != 0 for bit in (PM_PRESENT, PM_SWAP))
        same = common == walked
        value = common & np.uint64(PM_PFRAME_MASK)
        marker = walked & np.uint64((1 << SWAP_TYPE_BITS) - 1) == PTE_MARKER_SWAP_TYPE
        guard = entries & np.uint64(PM_GUARD_REGION) != 0
        settle(Verdict.SAME_FRAME, same & present)
        settle(Verdict.SAME_MARKER, (same | guard) & swap & there & marker)
        settle(Verdict.SAME_SWAP, same & swap)
        settle(Verdict.HIDDEN, present & here & (value == 0))
        settle(Verdict.SWAP_HIDDEN, swap & there & (value == 0))
        nothing = ~present & ~swap
        if memory.is_pfnmap(vma):
            settle(Verdict.DEVICE, nothing & here)
        if not open_cases.any():
            return vaddrs[:0]
        if not last:
            return vaddrs[open_cases]
        if memory.has_flag(vma, "ht"):
            settle(Verdict.HUGETLB, nothing & there)
        if MemoryMap(self._proc).find(vma.start) != vma:
            settle(Verdict.CHANGED, open_cases)
        settle(Verdict.SWAP_OF_ONE, swap ^ there)
        settle(Verdict.UNEXPLAINED, open_cases)
        return vaddrs[:0]


def expand(extents: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Make pages of extents.

    Args:
        extents: Structured array of kmod.EXTENT_DTYPE, shape (n,).

    Returns:
        Structured array of kmod.PAGE_DTYPE, a page of PAGE_SIZE each.
    """
    import numpy as np

    assert extents.dtype == EXTENT_DTYPE
    lengths = (extents["length"] >> np.uint64(PAGE_SHIFT)).astype(np.int64)
    which = np.repeat(np.arange(len(extents)), lengths)
    first = np.repeat(np.cumsum(lengths) - lengths, lengths)
    index = (np.arange(len(which)) - first).astype(np.uint64)
    pages = np.zeros(len(which), dtype=PAGE_DTYPE)
    offset = index << np.uint64(PAGE_SHIFT)
    pages["vaddr"] = extents["vaddr"][which] + offset
    pages["paddr"] = extents["paddr"][which] + offset
    # A huge swap entry counts on in its offset, as pagemap has it.
    pages["swap"] = extents["swap"][which] + (index << np.uint64(SWAP_TYPE_BITS))
    for name in ("entry", "kind", "page_shift"):
        pages[name] = extents[name][which]
    return pages
