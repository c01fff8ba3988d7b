# SPDX-License-Identifier: GPL-2.0-or-later
"""The physical memory of each mapping of a process, and how contiguous it is.

Large folios are counted as tools/mm/thpmaps counts them.
"""

from __future__ import annotations

from physview.model import Vma

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
        swapped_bytes: Swapped memory. Shared memory that is swapped out has no swap entry in
            pagemap; it counts only where smaps was read.
        special_bytes: Guards, markers, and pages in migration.
        device_bytes: Present memory that is no RAM, such as that of a DAX file system. smaps counts
            it nowhere.
        file_bytes: The part of resident_bytes that are pages of files, or shared memory.
        exclusive_bytes: Resident memory that is certainly mapped only here.
        zero_bytes: Pages that map the zero page. Each mapped page counts. None if they were not
            looked for.
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
        smaps: The sizes in smaps, in bytes by name (SIZES in sources/mappings.py); None if smaps
            was not read. A size that the kernel does not write is None.
        flags: VmFlags in smaps; empty if smaps was not read.
    """

    # No dataclass: importing dataclasses takes longer than reading a small process.
    nr_vmas: int = 0
    size_bytes: int = 0
    resident_bytes: int = 0
    swapped_bytes: int = 0
    special_bytes: int = 0
    device_bytes: int = 0
    file_bytes: int = 0
    exclusive_bytes: int = 0
    zero_bytes: int | None = 0
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
    smaps: dict[str, int | None] | None = None
    flags: str = ""

    def __init__(self, vma: Vma | None = None) -> None:
        self.vma = vma
        if vma is not None:
            self.nr_vmas = 1
            self.size_bytes = vma.end - vma.start

    @property
    def anon_bytes(self) -> int:
        """Anonymous resident memory: Anonymous in smaps."""
        return max(0, self.resident_bytes - self.file_bytes)

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
        for name in ("nr_vmas", *SUMMED):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.zero_bytes = _plus(self.zero_bytes, other.zero_bytes)
        first = self.nr_vmas == other.nr_vmas
        self._add_smaps(other, first)
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

    def _add_smaps(self, other: Usage, first: bool) -> None:
        if other.smaps is None or (self.smaps is None and not first):
            self.smaps = None
        else:
            mine = self.smaps or dict.fromkeys(other.smaps, 0)
            self.smaps = {name: _plus(mine.get(name), size) for name, size in other.smaps.items()}


SUMMED = (
    "size_bytes",
    "resident_bytes",
    "swapped_bytes",
    "special_bytes",
    "device_bytes",
    "file_bytes",
    "exclusive_bytes",
    "hugetlb_bytes",
    "huge_bytes",
    "anon_huge_bytes",
)
"""The members of a Usage that are sums over its mappings, and are always known."""


def _add_sizes(to: Sizes, more: Sizes) -> Sizes:
    for key, value in more.items():
        to[key] = to.get(key, 0) + value
    return to


def _plus(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other
