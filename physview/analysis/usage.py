# SPDX-License-Identifier: GPL-2.0-or-later
"""The physical memory of each mapping of a process, and how contiguous it is.

Large folios are counted as tools/mm/thpmaps counts them.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from typing import Any

from physview import _ffi
from physview.analysis.flag_counts import new_account
from physview.errors import AccessDenied
from physview.files.descriptor import Closable
from physview.memory.extents import USER_END, Batch
from physview.memory.snapshot import Snapshot
from physview.model import PAGE_SIZE, Vma
from physview.sources.folio_sizes import huge_page_size, smallest_anon_order
from physview.sources.kpage import KpageFile
from physview.sources.numa import node_map
from physview.sources.pagemap import PAGE_IS, scan

KINDS = ("anon", "file")
Sizes = dict[int, int]


class Folios:
    """Memory of one kind, anon or file, in large folios. The categories are those of thpmaps.

    Args:
        pmd_bytes: In folios that a single PMD entry maps.
        aligned: Bytes by size of the folio: in folios that are mapped entirely and contiguously,
            at a virtual address that is a multiple of the folio's size.
        unaligned: Bytes by size of the folio: likewise, at other virtual addresses.
        partial_bytes: In folios that are not mapped entirely here, or not contiguously.
        contiguous: Bytes by size of a block: in aligned contiguous blocks, each within one folio,
            without memory that is mapped by PMD.
    """

    def __init__(
        self,
        pmd_bytes: int = 0,
        aligned: Sizes | None = None,
        unaligned: Sizes | None = None,
        partial_bytes: int = 0,
        contiguous: Sizes | None = None,
    ) -> None:
        self.pmd_bytes = pmd_bytes
        self.aligned = aligned or {}
        self.unaligned = unaligned or {}
        self.partial_bytes = partial_bytes
        self.contiguous = contiguous or {}

    @property
    def total_bytes(self) -> int:
        """All bytes in large folios."""
        pte = sum(self.aligned.values()) + sum(self.unaligned.values()) + self.partial_bytes
        return self.pmd_bytes + pte

    def add(self, other: Folios) -> None:
        """Add the memory of another mapping."""
        self.pmd_bytes += other.pmd_bytes
        self.partial_bytes += other.partial_bytes
        for name in ("aligned", "unaligned", "contiguous"):
            _add_sizes(getattr(self, name), getattr(other, name))


class Usage:
    """The physical memory of a mapping, or of several mappings together.

    Sizes are in bytes. A value that needs frame numbers or flags is None if these are hidden.

    Args:
        vma: The mapping; None for a total.
        nr_vmas: Number of mappings.
        size_bytes: Virtual size.
        resident_bytes: Resident memory without zero pages and hugetlb: Rss of smaps.
        swapped_bytes: Memory in swap entries. Shared memory that is swapped out has no such entry.
        special_bytes: Guards, markers, and pages in migration.
        exclusive_bytes: Resident memory that is certainly mapped only here.
        zero_bytes: Pages that map the zero page. Each mapped page counts.
        hugetlb_bytes: Pages of hugetlbfs.
        huge_bytes: Memory that is mapped by PMD, as huge pages.
        anon_huge_bytes: The anonymous part of huge_bytes: AnonHugePages of smaps.
        nr_extents: Number of extents: pages that are contiguous in both spaces, whatever their
            flags.
        largest_bytes: Size of the largest extent.
        largest_vaddr: Virtual address of the largest extent.
        alignment_bytes: Alignment of the largest extent: the largest power of two that divides the
            difference of its virtual and physical address, but at most the size of a huge page.
        contiguous: Bytes by size of a block: in blocks that are contiguous, and aligned to their
            size, in both spaces.
        folios: Memory in large folios by kind, "anon" and "file".
        nodes: Bytes by NUMA node.
    """

    # No dataclass: importing dataclasses takes longer than reading a small process.
    nr_vmas: int = 0
    size_bytes: int = 0
    resident_bytes: int = 0
    swapped_bytes: int = 0
    special_bytes: int = 0
    exclusive_bytes: int = 0
    zero_bytes: int = 0
    hugetlb_bytes: int = 0
    huge_bytes: int = 0
    anon_huge_bytes: int = 0
    nr_extents: int | None = None
    largest_bytes: int | None = None
    largest_vaddr: int | None = None
    alignment_bytes: int | None = None
    contiguous: Sizes | None = None
    folios: dict[str, Folios] | None = None
    nodes: Sizes | None = None

    def __init__(self, vma: Vma | None = None) -> None:
        self.vma = vma
        if vma is not None:
            self.nr_vmas = 1
            self.size_bytes = vma.end - vma.start

    @property
    def shared_bytes(self) -> int:
        """Resident memory that may be mapped elsewhere, too."""
        return max(0, self.resident_bytes + self.hugetlb_bytes - self.exclusive_bytes)

    @property
    def mean_bytes(self) -> int | None:
        """Mean size of an extent; None if there is no extent, or if frame numbers are hidden."""
        if not self.nr_extents:
            return None
        return (self.resident_bytes + self.hugetlb_bytes) // self.nr_extents

    @property
    def thp_bytes(self) -> int | None:
        """Memory in large folios; None if flags are hidden."""
        if self.folios is None:
            return None
        return sum(folios.total_bytes for folios in self.folios.values())

    def add(self, other: Usage) -> None:
        """Add the memory of another mapping. A value that one of the two lacks becomes None."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        first = self.nr_vmas == other.nr_vmas
        if (other.largest_bytes or 0) > (self.largest_bytes or 0):
            self.largest_bytes, self.largest_vaddr = other.largest_bytes, other.largest_vaddr
            self.alignment_bytes = other.alignment_bytes
        if other.nr_extents is None or (self.nr_extents is None and not first):
            self.nr_extents = self.largest_bytes = self.largest_vaddr = None
            self.alignment_bytes = None
        else:
            self.nr_extents = (self.nr_extents or 0) + other.nr_extents
            self.largest_bytes = self.largest_bytes or 0
        for name in ("contiguous", "nodes"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if theirs is None or (mine is None and not first):
                setattr(self, name, None)
            else:
                setattr(self, name, _add_sizes(mine or {}, theirs))
        if other.folios is None or (self.folios is None and not first):
            self.folios = None
        else:
            self.folios = self.folios or {kind: Folios() for kind in KINDS}
            for kind in KINDS:
                self.folios[kind].add(other.folios[kind])


_SUMS = (
    "nr_vmas",
    "size_bytes",
    "resident_bytes",
    "swapped_bytes",
    "special_bytes",
    "exclusive_bytes",
    "zero_bytes",
    "hugetlb_bytes",
    "huge_bytes",
    "anon_huge_bytes",
)


def _add_sizes(to: Sizes, more: Sizes) -> Sizes:
    for key, value in more.items():
        to[key] = to.get(key, 0) + value
    return to


class UsageReader(Closable):
    """Reads the memory use of mappings, of one process or several. A context manager.

    Args:
        with_flags: Whether to read /proc/kpageflags, if we may. Without it, folios are not known.
        every_flag: Whether to read the flags of every page, even if one page's flags are enough to
            know those of its neighbours.
    """

    def __init__(self, *, with_flags: bool = True, every_flag: bool = False) -> None:
        self._ffi, self._lib = _ffi.load()
        self._flags: KpageFile | None = None
        self.why_no_flags: AccessDenied | None = None
        if with_flags:
            try:
                self._flags = KpageFile("kpageflags")
            except AccessDenied as error:
                self.why_no_flags = error
        self._nodes = node_map()
        self._table = self._ffi.from_buffer("uint8_t[]", self._nodes.node_of_block)
        self._huge = huge_page_size()
        self._anon_order = 0 if every_flag or not self._flags else smallest_anon_order()

    def close(self) -> None:
        """Close the file. Closing twice is harmless."""
        if self._flags:
            self._flags.close()

    def iter_usage(self, snapshot: Snapshot, *, nr_threads: int | None = None) -> Iterator[Usage]:
        """Yield the memory use of each mapping, in address order and in constant memory.

        Args:
            snapshot: The process.
            nr_threads: Number of threads that read; None chooses it by the resident memory.

        Raises:
            ProcessGone: The process ended or ran another program meanwhile.

        Source: /proc/PID/pagemap, PAGEMAP_SCAN, /proc/kpageflags
        """
        vmas = [vma for vma in snapshot.vmas if vma.start < USER_END]
        starts = [vma.start for vma in vmas]

        def parts_of(batch: Batch) -> list[tuple[int, Any]]:
            """Make (index, account) of each mapping that has extents in the batch."""
            parts = []
            extents, done = batch.extents, 0
            while done < batch.nr:
                at = bisect.bisect_right(starts, extents[done].vaddr) - 1
                if at < 0 or extents[done].vaddr >= vmas[at].end:
                    done += 1  # mapped since the mappings were read
                    continue
                part = self._account(snapshot, is_part=True)
                got = self._lib.pv_account(part, extents + done, batch.nr - done, vmas[at].end)
                done += _ffi.check(got, "/proc/kpageflags")
                parts.append((at, part))
            return parts

        at, account = 0, self._account(snapshot)

        def finish() -> Usage:
            _ffi.check(self._lib.pv_account_end(account), "/proc/kpageflags")
            return self._usage(snapshot, vmas[at], account)

        for parts in snapshot.reader.map_batches(parts_of, nr_threads=nr_threads):
            for of, part in parts:
                while at < of:
                    yield finish()
                    at, account = at + 1, self._account(snapshot)
                _ffi.check(self._lib.pv_account_join(account, part), "/proc/kpageflags")
        while at < len(vmas):
            yield finish()
            at, account = at + 1, self._account(snapshot)

    def _account(self, snapshot: Snapshot, *, is_part: bool = False) -> Any:
        flags_fd = self._flags.fd if self._flags and snapshot.knows_frames else -1
        account = new_account(flags_fd=flags_fd, zero_pfn=snapshot.reader.zero_pfn)
        account.anon_shift = self._anon_order
        account.is_part = is_part
        if snapshot.knows_frames and len(self._nodes.nodes) > 1:
            account.node_of_block = self._table
            account.nr_blocks = len(self._nodes.node_of_block)
            account.block_shift = self._nodes.block_shift
        return account

    def _usage(self, snapshot: Snapshot, vma: Vma, account: Any) -> Usage:
        sums, largest, has_flags = account.sums, account.largest, account.flags_fd >= 0
        pages = {name: int(getattr(sums, name)) * PAGE_SIZE for name in _COUNTED}
        usage = Usage(vma)
        usage.swapped_bytes = pages["nr_swapped"] + pages["nr_swap_hidden"]
        usage.special_bytes = pages["nr_special"]
        usage.exclusive_bytes = pages["nr_exclusive"]
        usage.zero_bytes = pages["nr_zero"]
        usage.hugetlb_bytes = pages["nr_hugetlb"]
        usage.resident_bytes = pages["nr_present"]  # zero pages and hugetlb are subtracted below
        contiguous = _by_size(sums.contiguous)
        if sums.nr_hidden or (sums.nr_present and contiguous.get(self._huge)) or not has_flags:
            self._find_huge(snapshot, vma, usage, hidden=bool(sums.nr_hidden) or not has_flags)
        without = usage.zero_bytes + usage.hugetlb_bytes
        usage.resident_bytes = max(0, pages["nr_present"] - without)
        if sums.nr_hidden or not snapshot.knows_frames:
            return usage
        usage.nr_extents = int(sums.nr_extents)
        usage.largest_bytes = int(largest.nr) * PAGE_SIZE
        if largest.nr:
            usage.largest_vaddr = int(largest.vpn) * PAGE_SIZE
            apart = usage.largest_vaddr ^ int(largest.pfn) * PAGE_SIZE
            usage.alignment_bytes = min(apart & -apart or self._huge, self._huge)
        usage.contiguous = contiguous
        if len(self._nodes.nodes) > 1:
            nodes = ((node, int(sums.nodes[node]) * PAGE_SIZE) for node in self._nodes.nodes)
            usage.nodes = {node: size for node, size in nodes if size}
        elif pages["nr_present"]:
            usage.nodes = {self._nodes.nodes[0]: pages["nr_present"] - pages["nr_zero"]}
        else:
            usage.nodes = {}
        if has_flags:
            usage.folios = self._folios(sums, usage)
        return usage

    def _folios(self, sums: Any, usage: Usage) -> dict[str, Folios]:
        file_huge = 0 if usage.hugetlb_bytes else usage.huge_bytes - usage.anon_huge_bytes
        folios = {}
        by_kind = zip(KINDS, (usage.anon_huge_bytes, file_huge), strict=True)
        for at, (kind, pmd) in enumerate(by_kind):
            found = Folios(
                pmd,
                _by_size(sums.aligned[at]),
                _by_size(sums.unaligned[at]),
                int(sums.partial[at]) * PAGE_SIZE,
                _by_size(sums.in_folio[at]),
            )
            # Memory that is mapped by PMD was counted as aligned and contiguous, too: subtract it.
            _take(found.aligned, self._huge, pmd)
            for size in list(found.contiguous):
                if size <= self._huge:
                    _take(found.contiguous, size, pmd)
            folios[kind] = found
        return folios

    def _find_huge(self, snapshot: Snapshot, vma: Vma, usage: Usage, *, hidden: bool) -> None:
        """Find memory that is mapped by PMD; if flags are hidden, also zero pages and hugetlb."""
        if not snapshot.reader.use_scan:
            self._find_huge_in_smaps(snapshot, vma, usage)
            return
        at, anyof = vma.start, PAGE_IS["huge"] | (PAGE_IS["pfnzero"] if hidden else 0)
        returned = PAGE_IS["present"] | PAGE_IS["pfnzero"] | PAGE_IS["file"]
        zero = file_huge = 0
        while at < vma.end:
            at, regions = scan(snapshot.reader.fd, at, vma.end, anyof, returned=returned)
            for start, end, categories in regions:
                if not categories & PAGE_IS["present"]:
                    continue  # "huge" includes pages of hugetlbfs that were never touched
                if categories & PAGE_IS["pfnzero"]:
                    zero += end - start
                elif categories & PAGE_IS["file"]:
                    file_huge += end - start
                else:
                    usage.anon_huge_bytes += end - start
        usage.huge_bytes = usage.anon_huge_bytes + file_huge
        if hidden:
            usage.zero_bytes = zero
            # hugetlb always has a file. Check this first: has_flag() may have to read smaps.
            named = usage.huge_bytes and vma.path.startswith("/")
            if named and snapshot.reader.memory.has_flag(vma, "ht"):
                usage.hugetlb_bytes = usage.huge_bytes
        if usage.hugetlb_bytes:
            usage.anon_huge_bytes = 0

    def _find_huge_in_smaps(self, snapshot: Snapshot, vma: Vma, usage: Usage) -> None:
        fields = snapshot.reader.memory.sizes(vma)
        usage.anon_huge_bytes = fields.get("AnonHugePages", 0)
        other = fields.get("ShmemPmdMapped", 0) + fields.get("FilePmdMapped", 0)
        hugetlb = fields.get("Shared_Hugetlb", 0) + fields.get("Private_Hugetlb", 0)
        usage.hugetlb_bytes = usage.hugetlb_bytes or hugetlb
        usage.huge_bytes = usage.anon_huge_bytes + other + hugetlb
        if not snapshot.knows_frames:  # pagemap does not show zero pages then; Rss excludes them
            present = usage.resident_bytes - usage.hugetlb_bytes
            usage.zero_bytes = max(0, present - fields.get("Rss", 0))


_COUNTED = (
    "nr_present",
    "nr_exclusive",
    "nr_zero",
    "nr_hugetlb",
    "nr_swapped",
    "nr_swap_hidden",
    "nr_special",
)


def _by_size(orders: Any) -> Sizes:
    pairs = ((PAGE_SIZE << order, int(nr) * PAGE_SIZE) for order, nr in enumerate(orders))
    return {size: nr_bytes for size, nr_bytes in pairs if nr_bytes}


def _take(sizes: Sizes, size: int, nr_bytes: int) -> None:
    """Subtract bytes from a size's entry, but not below 0.

    The two numbers were read one after the other while the process ran, so they may not match.
    """
    left = max(0, sizes.pop(size, 0) - nr_bytes)
    if left:
        sizes[size] = left
