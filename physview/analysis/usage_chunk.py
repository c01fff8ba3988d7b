# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory use of some successive mappings, as columns and as `Usage` objects.

A command that prints a table asks for the columns that it prints. That takes a tenth of the time of
making an object for each mapping.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from operator import add, sub
from typing import Any

from physview import _ffi
from physview.analysis.usage import KINDS, SUMMED, Folios, Sizes, Usage
from physview.memory.snapshot import Snapshot
from physview.model import PAGE_SIZE
from physview.sources import mappings as smaps
from physview.sources.mappings import BY_PMD, HUGETLB, Mappings
from physview.sources.numa import NodeMap, has_hinted_huge_pages
from physview.sources.pagemap import PAGE_IS, scan


class UsageChunk:
    """The memory use of some successive mappings of a process.

    Args:
        snapshot: The process.
        mappings: The mappings.
        accounts: `struct pv_account[]`, one for each mapping, complete but for their end.
        nodes: The machine's NUMA nodes.
        huge: Bytes in a huge page.
        has_flags: Whether the frames' flags were read.
        unsearched: Indexes of the mappings in which pages were not looked for.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        mappings: Mappings,
        accounts: Any,
        nodes: NodeMap,
        huge: int,
        *,
        has_flags: bool,
        unsearched: set[int],
    ) -> None:
        ffi, lib = _ffi.load()
        self.mappings = mappings
        self.nr = mappings.nr
        self._snapshot = snapshot
        self._accounts = accounts
        self._nodes = nodes
        self._huge = huge
        self._has_flags = has_flags
        self._unsearched = unsearched
        self._sums = ffi.new("struct pv_sums *")
        columns = ffi.new("uint64_t[]", lib.PV_NR_OF * self.nr)
        order = (huge // PAGE_SIZE).bit_length() - 1
        got = lib.pv_end_accounts(accounts, self.nr, order, columns, self._sums)
        _ffi.check(got, "/proc/kpageflags")
        self._columns = columns
        self._ffi = ffi
        self._lib = lib
        self._known: dict[str, list[Any]] = {}
        self.knows_frames = snapshot.knows_frames
        self._find_huge()

    def pages(self, number: int) -> list[int]:
        """A column of pv_end_accounts() (PV_OF_* in csrc/cdef.h)."""
        values: list[int] = self._ffi.unpack(self._columns + number * self.nr, self.nr)
        return values

    def size(self, number: int) -> list[int]:
        """A column of pv_end_accounts() in bytes."""
        return [nr * PAGE_SIZE for nr in self.pages(number)]

    def column(self, name: str) -> list[Any]:
        """The values of a member of `Usage`, such as "resident_bytes", for each mapping.

        Further names are those of smaps, such as "Pss", and "coverage_64k", the share of resident
        memory in contiguous blocks of 64 KiB.
        """
        if name in smaps.SIZES:
            return self.mappings.sizes(name)
        if name not in self._known:
            self._known[name] = getattr(self, f"_{name}")()
        return self._known[name]

    def _size_bytes(self) -> list[int]:
        return list(map(sub, self.mappings.ends, self.mappings.starts))

    def _swapped_bytes(self) -> list[int]:
        swapped = self.size(self._lib.PV_OF_SWAPPED)
        if not self.mappings.has_sizes:
            return swapped
        # Shared memory that is swapped out has no entry in pagemap; smaps asks the file system.
        inodes = self.mappings.column(self._lib.PV_MAP_INODE)
        told = self.mappings.sizes("Swap")
        return [
            mine if not inode or theirs is None else theirs
            for mine, theirs, inode in zip(swapped, told, inodes, strict=True)
        ]

    def _special_bytes(self) -> list[int]:
        return self.size(self._lib.PV_OF_SPECIAL)

    def _device_bytes(self) -> list[int]:
        return self.size(self._lib.PV_OF_DEVICE)

    def _file_bytes(self) -> list[int]:
        files = self.size(self._lib.PV_OF_FILE)
        without = zip(
            files, self.column("hugetlb_bytes"), self.column("resident_bytes"), strict=True
        )
        return [min(resident, max(0, size - hugetlb)) for size, hugetlb, resident in without]

    def _anon_bytes(self) -> list[int]:
        return list(map(sub, self.column("resident_bytes"), self.column("file_bytes")))

    def _exclusive_bytes(self) -> list[int]:
        return self.size(self._lib.PV_OF_EXCLUSIVE)

    def _present_bytes(self) -> list[int]:
        return list(map(add, self.column("resident_bytes"), self.column("hugetlb_bytes")))

    def _shared_bytes(self) -> list[int]:
        present, exclusive = self._present_bytes(), self.column("exclusive_bytes")
        return [max(0, size) for size in map(sub, present, exclusive)]

    def _resident_bytes(self) -> list[int]:
        present = self.size(self._lib.PV_OF_PRESENT)
        without = zip(
            present,
            self.size(self._lib.PV_OF_DEVICE),
            self._zero,
            self.column("hugetlb_bytes"),
            strict=True,
        )
        return [max(0, size - device - zero - huge) for size, device, zero, huge in without]

    def _zero_bytes(self) -> list[int | None]:
        if not self._unsearched:
            return list(self._zero)
        return [None if i in self._unsearched else size for i, size in enumerate(self._zero)]

    def _unless_hidden(self, values: list[Any]) -> list[Any]:
        if not self.knows_frames:
            return [None] * self.nr
        hidden = self.pages(self._lib.PV_OF_HIDDEN)
        if not any(hidden):
            return values
        return [None if here else value for value, here in zip(values, hidden, strict=True)]

    def _nr_extents(self) -> list[int | None]:
        return self._unless_hidden(self.pages(self._lib.PV_OF_EXTENTS))

    def _largest_bytes(self) -> list[int | None]:
        return self._unless_hidden(self.size(self._lib.PV_OF_LARGEST))

    def _mean_bytes(self) -> list[int | None]:
        both = zip(self._present_bytes(), self.column("nr_extents"), strict=True)
        return [size // nr if nr else None for size, nr in both]

    def _largest_vaddr(self) -> list[int | None]:
        largest = self.column("largest_bytes")
        starts = self.size(self._lib.PV_OF_LARGEST_VPN)
        return [start if size else None for start, size in zip(starts, largest, strict=True)]

    def _alignment_bytes(self) -> list[int | None]:
        frames = self.size(self._lib.PV_OF_LARGEST_PFN)
        huge = self._huge
        return [
            None if vaddr is None else min((vaddr ^ paddr) & -(vaddr ^ paddr) or huge, huge)
            for vaddr, paddr in zip(self.column("largest_vaddr"), frames, strict=True)
        ]

    def _thp_bytes(self) -> list[int | None]:
        if not self._has_flags:
            return [None] * self.nr
        folios = self.size(self._lib.PV_OF_FOLIOS)
        for index in self._huge_found:
            folios[index] = self.usage(index).thp_bytes or 0
        return self._unless_hidden(folios)

    def _coverage_64k(self) -> list[float | None]:
        """The share of resident memory in blocks of 64 KiB; None where nothing is resident."""
        blocks = self._unless_hidden(self.size(self._lib.PV_OF_BLOCKS))
        both = zip(blocks, self._present_bytes(), strict=True)
        return [size / whole if whole and size is not None else None for size, whole in both]

    def nodes(self) -> list[Sizes | None]:
        """The memory of each mapping by NUMA node, in bytes; None where frames are hidden."""
        frames = zip(
            self.size(self._lib.PV_OF_PRESENT), self.size(self._lib.PV_OF_DEVICE), self._zero,
            strict=True,
        )  # fmt: skip
        present = [size - device - zero for size, device, zero in frames]
        known = self._unless_hidden(present)
        if len(self._nodes.nodes) == 1:
            node = self._nodes.nodes[0]
            return [size if size is None else {node: size} if size else {} for size in known]
        return [
            None if size is None else self._by_node(self._accounts[index].sums) if size else {}
            for index, size in enumerate(known)
        ]

    def _by_node(self, sums: Any) -> Sizes:
        nodes = ((node, int(sums.nodes[node]) * PAGE_SIZE) for node in self._nodes.nodes)
        return {node: size for node, size in nodes if size}

    def _find_huge(self) -> None:
        """Find memory that is mapped by PMD; if flags are hidden, also zero pages and hugetlb."""
        lib, nr = self._lib, self.nr
        self._zero = self.size(lib.PV_OF_ZERO)
        self._known["hugetlb_bytes"] = self.size(lib.PV_OF_HUGETLB)
        self._known["anon_huge_bytes"] = [0] * nr
        self._known["huge_bytes"] = [0] * nr
        self._huge_found: list[int] = []
        rows = zip(self.pages(lib.PV_OF_PRESENT), self.pages(lib.PV_OF_HIDDEN), strict=True)
        self._hides = [
            bool(present and (hidden or not self._has_flags)) for present, hidden in rows
        ]
        blocks = self.pages(lib.PV_OF_HUGE_BLOCKS)
        asked = [i for i in range(nr) if self._hides[i] or blocks[i]]
        if not asked:
            return
        if self._snapshot.reader.use_scan:
            self._scan_huge(asked)
        else:
            self._take_from_smaps(asked)
        self._huge_found = [i for i in asked if self._known["huge_bytes"][i]]

    def _scan_huge(self, asked: list[int]) -> None:
        starts, ends, fd = self.mappings.starts, self.mappings.ends, self._snapshot.reader.fd
        hidden = any(map(self._hides.__getitem__, asked))
        anyof = PAGE_IS["huge"] | (PAGE_IS["pfnzero"] if hidden else 0)
        returned = PAGE_IS["present"] | PAGE_IS["pfnzero"] | PAGE_IS["file"]
        # One scan for all of them is quicker than many; mappings with holes are worth their own.
        ranges = [(starts[asked[0]], ends[asked[-1]])] if len(asked) > 8 else None
        zero, anon, files = [0] * self.nr, [0] * self.nr, [0] * self.nr
        for low, high in ranges or [(starts[i], ends[i]) for i in asked]:
            at = low
            while at < high:
                at, regions = scan(fd, at, high, anyof, returned=returned)
                for start, end, categories in regions:
                    if not categories & PAGE_IS["present"]:
                        continue  # "huge" includes pages of hugetlbfs that were never touched
                    kind = anon
                    if categories & PAGE_IS["pfnzero"]:
                        kind = zero
                    elif categories & PAGE_IS["file"]:
                        kind = files
                    self._add_range(kind, start, end)
        for index in asked:
            huge = anon[index] + files[index]
            self._known["huge_bytes"][index] = huge
            if self._hides[index]:
                self._zero[index] = zero[index]
                if huge and self._is_hugetlb(index):
                    self._known["hugetlb_bytes"][index] = huge
            if not self._known["hugetlb_bytes"][index]:
                self._known["anon_huge_bytes"][index] = anon[index]

    def _add_range(self, sizes: list[int], start: int, end: int) -> None:
        """Add the bytes of a range to the mappings that have it."""
        starts, ends = self.mappings.starts, self.mappings.ends
        at = bisect.bisect_right(ends, start)
        while at < self.nr and starts[at] < end:
            sizes[at] += min(end, ends[at]) - max(start, starts[at])
            at += 1

    def _is_hugetlb(self, index: int) -> bool:
        # hugetlb always has a file. Check this first: has_flag() may have to read smaps.
        if not self.mappings.column(self._lib.PV_MAP_INODE)[index]:
            return False
        if self.mappings.has_sizes:
            return any(self.mappings.sizes(name)[index] for name in HUGETLB)
        memory = self._snapshot.reader.memory
        vma = memory.find(self.mappings.starts[index])
        return vma is not None and memory.has_flag(vma, "ht")

    def _take_from_smaps(self, asked: list[int]) -> None:
        columns = {name: self.mappings.sizes(name) for name in (*BY_PMD, *HUGETLB, "Rss")}
        may_be_hinted = has_hinted_huge_pages()
        for index in asked:
            fields = {name: values[index] or 0 for name, values in columns.items()}
            by_pmd = sum(fields[name] for name in BY_PMD)
            hugetlb = sum(fields[name] for name in HUGETLB)
            known = self._known["hugetlb_bytes"][index] or hugetlb
            self._known["hugetlb_bytes"][index] = known
            self._known["anon_huge_bytes"][index] = fields["AnonHugePages"]
            self._known["huge_bytes"][index] = by_pmd + hugetlb
            present = self.pages(self._lib.PV_OF_PRESENT)[index] * PAGE_SIZE - known
            device = self.pages(self._lib.PV_OF_DEVICE)[index] * PAGE_SIZE
            if not self.knows_frames:  # pagemap does not show zero pages then; Rss excludes them
                self._zero[index] = max(0, present - device - fields["Rss"])
            elif may_be_hinted:
                missing = max(0, present - device - self._zero[index] - fields["Rss"])
                self._add_hinted(index, missing // self._huge * self._huge)

    def _add_hinted(self, index: int, size: int) -> None:
        """Add huge pages that smaps leaves out: see `has_hinted_huge_pages()`."""
        self._known["huge_bytes"][index] += size
        if not self.mappings.column(self._lib.PV_MAP_INODE)[index]:
            self._known["anon_huge_bytes"][index] += size

    def usages(self) -> Iterator[Usage]:
        """Yield a `Usage` for each mapping."""
        for index, vma in enumerate(self.mappings.vmas()):
            usage = self.usage(index)
            usage.vma = vma
            yield usage

    def usage(self, index: int) -> Usage:
        """Make the `Usage` of a mapping, without its `vma`."""
        usage = Usage()
        usage.nr_vmas = 1
        for name in _MEMBERS:
            setattr(usage, name, self.column(name)[index])
        if self.mappings.has_sizes:
            usage.smaps = {name: self.column(name)[index] for name in smaps.SIZES}
            usage.flags = self._flags_of(index)
        self._complete(usage, self._accounts[index].sums)
        return usage

    def _flags_of(self, index: int) -> str:
        if "flags" not in self._known:
            self._known["flags"] = self.mappings.flags()
        return str(self._known["flags"][index])

    def total(self) -> Usage:
        """Make the sum of all mappings of this chunk."""
        usage = Usage()
        usage.nr_vmas = self.nr
        for name in SUMMED:
            setattr(usage, name, sum(self.column(name)))
        usage.zero_bytes = None if self._unsearched else sum(self._zero)
        if self.mappings.has_sizes:
            usage.smaps = {}
            for name in smaps.SIZES:
                values = self.column(name)
                usage.smaps[name] = None if None in values else sum(values)
        extents = self.column("nr_extents")
        usage.nr_extents = None if None in extents else sum(extents)
        if usage.nr_extents is not None:
            largest = self.column("largest_bytes")
            usage.largest_bytes = max(largest)
            at = largest.index(usage.largest_bytes)
            usage.largest_vaddr = self.column("largest_vaddr")[at]
            usage.alignment_bytes = self.column("alignment_bytes")[at]
        self._complete(usage, self._sums)
        return usage

    def _complete(self, usage: Usage, sums: Any) -> None:
        """Add what needs frame numbers and flags."""
        if usage.nr_extents is None or sums.nr_hidden:
            return
        usage.contiguous = _by_size(sums.contiguous)
        if len(self._nodes.nodes) > 1:
            usage.nodes = self._by_node(sums)
        else:
            present = usage.resident_bytes + usage.hugetlb_bytes
            usage.nodes = {self._nodes.nodes[0]: present} if present else {}
        if self._has_flags:
            usage.folios = self._folios(sums, usage)

    def _folios(self, sums: Any, usage: Usage) -> dict[str, Folios]:
        file_huge = usage.huge_bytes - usage.anon_huge_bytes - usage.hugetlb_bytes
        folios = {}
        by_kind = zip(KINDS, (usage.anon_huge_bytes, max(0, file_huge)), strict=True)
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


_MEMBERS = (
    *SUMMED,
    "zero_bytes",
    "nr_extents",
    "largest_bytes",
    "largest_vaddr",
    "alignment_bytes",
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
