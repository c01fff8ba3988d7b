# SPDX-License-Identifier: GPL-2.0-or-later
"""Rows of `Snapshot.iter_extents()` as records, for all formats alike."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from physview.kpage import flag_names
from physview.model import NO_ENTRY, PAGE_SIZE, PagemapEntry, Vma


class PageRecord(NamedTuple):
    """An extent, or a page. A member that does not apply, or was not asked for, is None.

    Args:
        vaddr: Of the first page.
        nr_pages: Base pages.
        pfn: The first page's frame.
        cause: Why it has none.
        swap: A swap entry's type and offset.
        flags: Names of the frames' flags.
        mapcount: How often each frame is mapped.
        cgroup: Path, or "@inode" of a cgroup that is gone.
        node: NUMA node.
        vma: The mapping.
    """

    vaddr: int
    nr_pages: int
    pfn: int | None
    cause: str | None
    swap: tuple[int, int] | None
    flags: tuple[str, ...] | None
    mapcount: int | None
    cgroup: str | None
    node: int | None
    vma: Vma

    @property
    def paddr(self) -> int | None:
        """Physical address of the first page."""
        return None if self.pfn is None else self.pfn * PAGE_SIZE


class PageRecords:
    """Makes records.

    Args:
        vmas: The mappings that the rows name by index.
        columns: Names of the columns that were asked for.
        cgroups: Paths by inode.
        each: The rows are pages.
    """

    def __init__(
        self,
        vmas: Sequence[Vma],
        columns: Sequence[str],
        cgroups: Mapping[int, str],
        *,
        each: bool,
    ) -> None:
        self.vmas = vmas
        self.columns = columns
        self.each = each
        self._cgroups = cgroups

    def iter_records(self, batches: Iterable[Any]) -> Iterator[PageRecord]:
        """Yield the records of batches, in their order."""
        for batch in batches:
            names = ("vaddr", "nr_pages", "entry", "pfn", "vma")
            columns = [batch[name].tolist() for name in names]
            more = {name: batch[name].tolist() for name in self.columns}
            for at, (vaddr, nr_pages, entry, pfn, vma) in enumerate(zip(*columns, strict=True)):
                known = pfn != NO_ENTRY
                cause, swap = (None, None) if known else _why(entry)
                yield PageRecord(
                    vaddr,
                    nr_pages,
                    pfn if known else None,
                    cause,
                    swap,
                    _flags(more["flags"][at]) if known and "flags" in more else None,
                    _number(more["mapcount"][at]) if "mapcount" in more else None,
                    self._cgroup(more["cgroup"][at]) if "cgroup" in more else None,
                    more["node"][at] if "node" in more and more["node"][at] >= 0 else None,
                    self.vmas[vma],
                )

    def _cgroup(self, inode: int) -> str | None:
        if inode in (NO_ENTRY, 0):  # 0: charged to none
            return None
        return self._cgroups.get(inode, f"@{inode}")


@functools.cache
def _flags(value: int) -> tuple[str, ...]:
    return tuple(flag_names(value))


def _number(value: int) -> int | None:
    return None if value == NO_ENTRY else value


def _why(raw: int) -> tuple[str | None, tuple[int, int] | None]:
    entry = PagemapEntry(raw)
    return entry.cause.value if entry.cause else None, entry.swap
