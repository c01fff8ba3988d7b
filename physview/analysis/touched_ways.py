# SPDX-License-Identifier: GPL-2.0-or-later
"""The ways to find out which pages of a process were used in an interval.

Each way says what it changes (`influence`) and what it cannot tell (`limits`), in one line each.
Ways that change nothing are `clears = False`.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

from physview.analysis.page_uses import Uses, compare
from physview.analysis.page_way import PageWay, expand
from physview.errors import AccessDenied, Unsupported
from physview.memory.extents import ExtentReader
from physview.model import PAGE_SIZE, PM_PRESENT, PM_SOFT_DIRTY
from physview.sources import soft_dirty
from physview.sources.choice import open_page_tables
from physview.sources.page_bits import blocks_of, empty_bits, join_blocks, set_bits
from physview.sources.pagemap import PAGE_IS, scan
from physview.sources.procfs import MemoryMap, ProcDir

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from physview.sources.page_tables import PageTables

CLEAR_ACCESSED = b"1"
"""Written to clear_refs, it clears the accessed bits. Source: Documentation/filesystems/proc.rst"""

_PAGES_AT_ONCE = 1 << 20
CLEARED = (
    "the accessed bits of the process were cleared (clear_refs): reclaim takes its pages for"
    " unused, and Referenced in smaps begins at 0"
)
SOFT_DIRTY_CLEARED = (
    "its soft-dirty bits were cleared (clear_refs): the first write to each page takes a fault, and"
    " other users of these bits (CRIU) lose them"
)
TWO_LOOKS = (
    "a page counts if its bit was clear and is set; if its bit was set before, its use is not"
    " known: --clear tells it"
)
BITS_ARE_SHARED = (
    "others may clear bits meanwhile (reclaim, DAMON, tools): then a used page looks unused"
)
AROUND_FAULTS = "a fault in a file maps up to 16 pages around it, which count if they are new"
NO_FLUSH = (
    "the TLB is not flushed: pages that it holds, up to some thousand, are used without their bit"
)


class Accessed(PageWay):
    """The accessed and the dirty bits of the page tables, which a walk reads.

    Args:
        proc: The process.
        clears: Whether to clear the accessed bits first, by clear_refs.
        source: Who walks: "kmod", "bpf" or "auto".
        track_writes: Whether to clear the soft-dirty bits, too.

    Raises:
        As `open_page_tables()`, and as `soft_dirty.check_supported()`.
    """

    name = "accessed"

    def __init__(
        self, proc: ProcDir, *, clears: bool, source: str = "auto", track_writes: bool = False
    ) -> None:
        super().__init__(proc, clears=clears)
        has_soft_dirty = clears and soft_dirty.is_supported()
        if track_writes:
            soft_dirty.check_supported()
        self._track_writes = track_writes
        # Without soft-dirty bits nothing is left of this request but a flush of the TLB.
        self._flushes = clears and (track_writes or not has_soft_dirty)
        self._tables = _open_tables(proc, source)
        self.source = self._tables.name
        self._last: npt.NDArray[Any] | None = None
        self._describe()

    def _describe(self) -> None:
        self.limits = (BITS_ARE_SHARED, AROUND_FAULTS)
        if not self.clears:
            self.limits = (TWO_LOOKS, *self.limits)
            return
        self.influence = CLEARED
        if self._track_writes:
            self.influence += f"; {SOFT_DIRTY_CLEARED}"
        if not self._flushes:
            self.limits = (f"{NO_FLUSH}; --track-writes flushes it", *self.limits)

    def close(self) -> None:
        """Close the page tables. Closing twice is harmless."""
        self._tables.close()

    def begin(self) -> None:
        """See `PageWay.begin()`."""
        if self.clears or self._last is None:
            self._last = self._tables.read_bits(soft_dirty=self._track_writes)
        if self.clears:
            flushed = clear_accessed(self.proc, flush=self._flushes)
            if self._flushes and not flushed:
                self._flushes, self.limits = False, (NO_FLUSH, *self.limits)

    def end(self) -> Uses:
        """See `PageWay.end()`."""
        before = self._last
        assert before is not None
        after = self._last = self._tables.read_bits(soft_dirty=self._track_writes)
        if self._track_writes:
            before = before.copy()
            before["written"] = 0
        return compare(before, after, cleared=self.clears)


class SoftDirty(PageWay):
    """The soft-dirty bits, which pagemap shows to the owner of the process, too.

    Raises:
        Unsupported: This kernel has no soft-dirty bits.
    """

    name = "soft-dirty"
    source = "pagemap"
    knows_reads = False
    influence = SOFT_DIRTY_CLEARED
    limits = (
        "only writes are seen",
        "all pages of a mapping that is new or grew count as written",
    )

    def __init__(self, proc: ProcDir) -> None:
        soft_dirty.check_supported()
        super().__init__(proc, clears=True)
        self._before = empty_bits()

    def _look(self) -> npt.NDArray[Any]:
        import numpy as np

        pieces = []
        with ExtentReader(self.proc, source="pagemap") as reader:
            for extents in reader.iter_extents():
                for vaddrs, of in expand(extents):
                    entries = extents["entry"][of]
                    blocks = blocks_of(vaddrs)
                    here = entries & np.uint64(PM_PRESENT) != 0
                    dirty = entries & np.uint64(PM_SOFT_DIRTY) != 0
                    set_bits(blocks, "present", vaddrs, here)
                    set_bits(blocks, "written", vaddrs, here & dirty)
                    pieces.append(blocks)
        return join_blocks(pieces)

    def begin(self) -> None:
        """See `PageWay.begin()`."""
        soft_dirty.clear(self.proc)
        self._before = self._look()
        self._before["written"] = 0

    def end(self) -> Uses:
        """See `PageWay.end()`."""
        return compare(self._before, self._look(), cleared=True)


class WriteProtected(PageWay):
    """Pages that the process itself protects by userfaultfd, asynchronously: PAGEMAP_SCAN.

    Raises:
        Unsupported: This kernel has no PAGEMAP_SCAN, or the process registered no memory.
    """

    name = "wp-async"
    source = "pagemap"
    knows_reads = False
    limits = (
        "only writes are seen, and only in memory that the process itself registered with"
        " userfaultfd (UFFD_FEATURE_WP_ASYNC)",
        "a page counts when it was protected and is not any more: pages that were written before"
        " are not known",
    )

    def __init__(self, proc: ProcDir) -> None:
        super().__init__(proc, clears=False)
        self._fd = proc.open_pagemap()
        self._last: npt.NDArray[Any] | None = None

    def close(self) -> None:
        """Close pagemap. Closing twice is harmless."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _look(self) -> tuple[npt.NDArray[Any], bool]:
        """The bits of registered pages, and whether any memory is registered."""
        import numpy as np

        has_pages = PAGE_IS["present"] | PAGE_IS["swapped"]
        wanted = PAGE_IS["wpallowed"]
        pieces, is_registered = [], False
        for start, end in MemoryMap(self.proc).areas(1 << 63):
            at = start
            while at < end:
                at, regions = self._scan(at, end, has_pages | PAGE_IS["written"] | wanted)
                for low, high, found in regions:
                    is_registered |= bool(found & wanted)
                    if not found & wanted or not found & has_pages:
                        continue
                    for first in range(low, high, _PAGES_AT_ONCE * PAGE_SIZE):
                        last = min(high, first + _PAGES_AT_ONCE * PAGE_SIZE)
                        vaddrs = np.arange(first, last, PAGE_SIZE, dtype=np.uint64)
                        blocks = blocks_of(vaddrs)
                        set_bits(blocks, "present", vaddrs)
                        if found & PAGE_IS["written"]:
                            set_bits(blocks, "written", vaddrs)
                        pieces.append(blocks)
        return join_blocks(pieces), is_registered

    def _scan(self, at: int, end: int, returned: int) -> tuple[int, list[tuple[int, int, int]]]:
        anyof = PAGE_IS["present"] | PAGE_IS["swapped"] | PAGE_IS["wpallowed"]
        try:
            return scan(self._fd, at, end, anyof, returned=returned)
        except OSError as error:
            if error.errno == errno.ENOTTY:
                why = "this kernel has no PAGEMAP_SCAN, which came with Linux 6.7"
                raise Unsupported("cannot see writes", why, "use --by accessed") from None
            if error.errno == errno.ESRCH:
                raise self.proc.gone() from None
            raise self.proc.error(error, "pagemap") from None

    def begin(self) -> None:
        """See `PageWay.begin()`."""
        if self._last is not None:
            return
        self._last, is_registered = self._look()
        if not is_registered:
            why = "it has registered no memory with userfaultfd for asynchronous write protection"
            remedy = "only the process itself can do so; use --by accessed"
            raise Unsupported(f"cannot see the writes of process {self.proc.pid}", why, remedy)

    def end(self) -> Uses:
        """See `PageWay.end()`."""
        before = self._last
        assert before is not None
        self._last, _ = self._look()
        uses = compare(before, self._last, cleared=False)
        # Whether a page was written is not known if it was unprotected before.
        both = uses.present & ~uses.touched & _of_same(before, uses)
        return uses._replace(unknown=uses.unknown | both)


def _of_same(before: npt.NDArray[Any], uses: Uses) -> npt.NDArray[np.uint64]:
    """The written bits of the same blocks before."""
    import numpy as np

    if not len(before) or not len(uses.blocks):
        return 0 * uses.present
    at = np.minimum(np.searchsorted(before["vaddr"], uses.blocks["vaddr"]), len(before) - 1)
    same = before["vaddr"][at] == uses.blocks["vaddr"]
    found: npt.NDArray[np.uint64] = np.where(same[:, None], before["written"][at], np.uint64(0))
    return found


def clear_accessed(proc: ProcDir, *, flush: bool) -> bool:
    """Clear the accessed bits of a process.

    Args:
        proc: The process.
        flush: Whether to flush the TLB then, by clearing the soft-dirty bits. On a kernel without
            these bits nothing else happens.

    Returns:
        Whether the TLB was flushed.

    Raises:
        PhysviewError: As `ProcDir.open()`.

    Source: clear_refs_write() in fs/proc/task_mmu.c
    """
    soft_dirty.write_clear_refs(proc, CLEAR_ACCESSED)
    if flush:
        try:
            soft_dirty.clear(proc)
        except Unsupported:
            return False
    return flush


def _open_tables(proc: ProcDir, source: str) -> PageTables:
    """Open the page tables. "auto" is the BPF program, which is faster here, or else the module."""
    if source == "auto":
        try:
            return open_page_tables(proc, "bpf")
        except (AccessDenied, Unsupported):
            pass  # the next line raises the error that is the nearest
    return open_page_tables(proc, source)
