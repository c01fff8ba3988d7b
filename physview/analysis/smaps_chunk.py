# SPDX-License-Identifier: GPL-2.0-or-later
"""What maps, smaps and smaps_rollup say about mappings, without a look at their pages."""

from __future__ import annotations

from operator import sub
from typing import Any

from physview.analysis.usage import Usage
from physview.sources.mappings import BY_PMD, HUGETLB, SIZES, MappingReader, Mappings
from physview.sources.procfs import ProcDir

# The members of Usage that smaps knows, as sums of its sizes.
MEMBERS = {
    "resident_bytes": ("Rss",),
    "swapped_bytes": ("Swap",),
    "anon_bytes": ("Anonymous",),
    "exclusive_bytes": ("Private_Clean", "Private_Dirty", "Private_Hugetlb"),
    "shared_bytes": ("Shared_Clean", "Shared_Dirty", "Shared_Hugetlb"),
    "hugetlb_bytes": HUGETLB,
    "anon_huge_bytes": ("AnonHugePages",),
    "huge_bytes": (*BY_PMD, *HUGETLB),
}
_SET = ("resident_bytes", "swapped_bytes", "exclusive_bytes", "hugetlb_bytes", "huge_bytes")


class SmapsChunk:
    """Some successive mappings of a process, with the interface of `UsageChunk`.

    Args:
        mappings: The mappings.
    """

    def __init__(self, mappings: Mappings) -> None:
        self.mappings = mappings
        self.nr = mappings.nr

    def column(self, name: str) -> list[Any]:
        """The values of a member of `Usage`, or of a size of smaps, for each mapping."""
        if name == "size_bytes":
            return list(map(sub, self.mappings.ends, self.mappings.starts))
        if name == "file_bytes":
            return list(map(sub, self.column("resident_bytes"), self.column("anon_bytes")))
        if name in SIZES:
            return self.mappings.sizes(name)
        parts = (self.mappings.sizes(part) for part in MEMBERS[name])
        return [sum(size or 0 for size in sizes) for sizes in zip(*parts, strict=True)]

    def usage(self, index: int) -> Usage:
        """Make the `Usage` of a mapping, without its `vma`."""
        usage = Usage()
        usage.nr_vmas = 1
        usage.size_bytes = self.mappings.ends[index] - self.mappings.starts[index]
        usage.zero_bytes = None
        if self.mappings.has_sizes:
            usage.smaps = {name: self.mappings.sizes(name)[index] for name in SIZES}
            set_from_smaps(usage)
        return usage

    def total(self) -> Usage:
        """Make the sum of all mappings of this chunk. It has no frames."""
        usage = Usage()
        usage.nr_vmas = self.nr
        usage.size_bytes = sum(self.column("size_bytes"))
        usage.zero_bytes = None
        if not self.mappings.has_sizes:
            return usage
        usage.smaps = {}
        for name in SIZES:
            values = self.mappings.sizes(name)
            usage.smaps[name] = None if None in values else sum(value or 0 for value in values)
        set_from_smaps(usage)
        return usage


def set_from_smaps(usage: Usage) -> None:
    """Set the members of a Usage that smaps knows, from its `smaps`."""
    sizes = usage.smaps or {}
    for name in _SET:
        setattr(usage, name, sum(sizes.get(part) or 0 for part in MEMBERS[name]))
    usage.anon_huge_bytes = sizes.get("AnonHugePages") or 0
    usage.file_bytes = max(0, usage.resident_bytes - (sizes.get("Anonymous") or 0))


def read_rollup(proc: ProcDir, size_bytes: int) -> Usage:
    """Read the sums over all mappings of a process, which the kernel makes in one pass.

    Args:
        proc: The process.
        size_bytes: The size of its address space.

    Raises:
        PhysviewError: As `ProcDir.open()`.

    Source: /proc/PID/smaps_rollup (Linux 4.14); smaps before
    """
    name = "smaps_rollup" if proc.has("smaps_rollup") else "smaps"
    total = Usage()
    with MappingReader(proc, name) as reader:
        for mappings in reader.iter_chunks():
            total.add(SmapsChunk(mappings).total())
    total.size_bytes = size_bytes
    return total
