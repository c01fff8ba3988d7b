# SPDX-License-Identifier: GPL-2.0-or-later
"""What the sources that walk page tables have in common: the kernel module and the BPF program.

Source: csrc/kmod/uapi/physicalview.h
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from physview.entry_rules import swap_offset, swap_type
from physview.errors import PhysviewError
from physview.files.descriptor import Descriptor
from physview.model import (
    NO_ENTRY,
    NO_PADDR,
    PAGE_SHIFT,
    PM_PRESENT,
    PM_SWAP,
    Level,
    PageKind,
    Walk,
)
from physview.runtime import invocation
from physview.sources.table_geometry import (
    ENTRY_BYTES,
    LEVEL_NAMES,
    EntryUse,
    Geometry,
    TableEntries,
    make_geometry,
)
from physview.sources.tagged_pointers import untagged, untagged_column

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# The structures have no padding. Byte order is native: both sides are one machine.
PAGE = struct.Struct("=QQQII")
LEVEL = struct.Struct("=QQII")
WALK = struct.Struct("=iIQ" + PAGE.format[1:] + LEVEL.format[1:] * 5 + "Q")
EXTENT = struct.Struct("=QQQQQII")

PAGE_DTYPE = [(n, "u8") for n in ("paddr", "entry", "swap")] + [
    ("kind", "u4"),
    ("page_shift", "u4"),
]
WALK_EXTENT_DTYPE = [(n, "u8") for n in ("vaddr", "paddr", "length", "entry", "swap")] + [
    ("kind", "u4"),
    ("page_shift", "u4"),
]

_FOLDED, _LEAF, _HIDDEN = 1, 2, 4
_NR_EXTENTS = 4096


class PageTables(Descriptor):
    """The page tables of a process. A subclass walks them: by the methods that raise here."""

    name: str
    sees_pfnmaps = True
    names_every_page = True

    @property
    def _pid(self) -> int:
        """The process, where a walk asks by pid; 0 for this process."""
        return 0

    def _walk_pages(self, vaddrs: npt.NDArray[np.uint64], pages: npt.NDArray[Any]) -> None:
        """Write what is at each address into `pages`, of PAGE_DTYPE."""
        raise NotImplementedError

    def _walk_range(self, start: int, end: int, extents: npt.NDArray[Any]) -> tuple[int, int]:
        """Write the extents of a range below `user_end()`; see `read_extents()`."""
        raise NotImplementedError

    def _walk_levels(self, buffer: bytearray) -> None:
        """Fill in a `struct physicalview_walk`."""
        raise NotImplementedError

    def user_end(self) -> int:
        """The end of user space: no address from there on is walked.

        Raises:
            AbiMismatch: The loaded module is the course's, which cannot walk a range.
        """
        raise NotImplementedError

    def nr_levels(self) -> int:
        """The number of levels of page tables, without folded ones: 4 or 5.

        Raises:
            AbiMismatch: The loaded module is the course's, which does not know it.
        """
        raise NotImplementedError

    def check_alive(self) -> None:
        """Raise ProcessGone if an answer may be about another process."""

    def pages(self, vaddrs: Any) -> npt.NDArray[Any]:
        """Look up virtual addresses in any order.

        Args:
            vaddrs: Buffer of uint64, shape (n,).

        Returns:
            Structured array of PAGE_DTYPE, shape (n,).

        Raises:
            PhysviewError: The process is gone, or this user may not examine it.
        """
        import numpy as np

        column = untagged_column(np.ascontiguousarray(vaddrs, dtype=np.uint64))
        pages = np.empty(len(column), dtype=PAGE_DTYPE)
        self._walk_pages(column, pages)
        return pages

    def read_extents(self, start: int, end: int, extents: npt.NDArray[Any]) -> tuple[int, int]:
        """Walk a range by one call, until `extents` is full.

        With the module, another process may get the pid of one that ends. So the caller must check
        afterwards that the process is still alive, as `iter_extents()` does.

        Args:
            start: First address, page-aligned.
            end: First address after the range, page-aligned.
            extents: Structured array of WALK_EXTENT_DTYPE, written.

        Returns:
            The number of extents, and the address at which to continue.

        Raises:
            AbiMismatch: The loaded module is the course's.
            PhysviewError: The process is gone, or this user may not examine it.
        """
        stop = min(end, self.user_end())
        if start >= stop:
            return 0, end
        found, start = self._walk_range(start, stop, extents)
        return found, end if start == stop else start

    def walk(self, vaddr: int) -> Walk:
        """Walk the page tables for one address, and return the entry of every level.

        Args:
            vaddr: Virtual address. The walk is for the address without a tag.

        Raises:
            AbiMismatch: The loaded module is the course's.
            PhysviewError: The process is gone, or this user may not examine it.
        """
        buffer = bytearray(WALK.pack(self._pid, 0, untagged(vaddr), *[0] * 25, 0))
        self._walk_levels(buffer)
        return decode_walk(buffer)

    def geometry(self) -> Geometry:
        """How these page tables divide an address.

        Raises:
            AbiMismatch: The loaded module is the course's, which does not know it.
        """
        return make_geometry(self.nr_levels(), self.user_end())

    def read_table(self, vaddr: int, depth: int) -> TableEntries | None:
        """Read the table of a level on the way to an address, with all entries for user space.

        A walk to each entry's first address reads this entry. A subclass may read faster.

        Args:
            vaddr: Virtual address below `user_end()`.
            depth: The level: its index in `geometry().levels`.

        Returns:
            The entries. None if there is no such table, if the kernel replaced it meanwhile, or if
            the module hides entries from this user.

        Raises:
            AbiMismatch: The loaded module is the course's.
            PhysviewError: The process is gone, or this user may not examine it.
        """
        level = self.geometry().levels[depth]
        start = level.table_start(vaddr)
        values, uses, table = [], [], None
        for i in range(level.nr_user):
            found = self.walk(start + (i << level.shift))
            levels = [each for each in found.levels if not each.folded]
            if len(levels) <= depth or found.kind is PageKind.UNSTABLE:
                return None
            address, value = levels[depth].address, levels[depth].entry
            if address is None or value is None:
                return None
            if table not in (None, address - ENTRY_BYTES * i):
                return None
            table = address - ENTRY_BYTES * i
            values.append(value)
            uses.append(_use_of(found.kind, leads_on=len(levels) > depth + 1))
        self.check_alive()
        return TableEntries(tuple(values), tuple(uses))

    def read_bits(self, *, soft_dirty: bool = False) -> npt.NDArray[Any]:
        """Read the accessed and the dirty bits of all pages. A subclass may read faster.

        Args:
            soft_dirty: Read Linux's soft-dirty bits (x86-64) in place of the dirty bits.

        Returns:
            Structured array of `page_bits.BITS_DTYPE`, in address order.

        Raises:
            AbiMismatch: The loaded module is the course's.
            PhysviewError: The process is gone, or this user may not examine it.
        """
        from physview.sources.page_bits import read_each_page

        return read_each_page(self, soft_dirty=soft_dirty)

    def fill(self, vaddrs: Any, entries: Any, paddrs: Any) -> int:
        """Look up virtual addresses. Arguments and result are those of `pagemap.Pagemap.fill()`.

        The entries have the format of pagemap, but only the bits that a walk finds: present and
        frame number, or swap type and offset.
        """
        import numpy as np

        pages = self.pages(vaddrs)
        np.asarray(entries)[:], np.asarray(paddrs)[:] = as_pagemap(vaddrs, pages)
        return int((pages["kind"] == PageKind.BEYOND).sum())

    def next_populated(self, start: int, end: int) -> int:
        """The first address at or after `start` whose entry is not empty; `end` if there is none.

        Args:
            start: First address, page-aligned.
            end: First address after the range, page-aligned.
        """
        for extents in self.iter_extents(start, end, nr=1):
            return int(extents["vaddr"][0])
        return end

    def iter_extents(
        self, start: int, end: int, *, nr: int = _NR_EXTENTS
    ) -> Iterator[npt.NDArray[Any]]:
        """Yield the extents of a range: pages that are contiguous in both address spaces.

        Args:
            start: First address, page-aligned.
            end: First address after the range, page-aligned.
            nr: The maximum number of extents in one call.

        Yields:
            Structured arrays of WALK_EXTENT_DTYPE. The next array overwrites the previous one.

        Raises:
            AbiMismatch: The loaded module is the course's.
            PhysviewError: The process is gone, or this user may not examine it.
        """
        import numpy as np

        extents = np.empty(nr, dtype=WALK_EXTENT_DTYPE)
        while start < end:
            found, start = self.read_extents(start, end, extents)
            if found:
                yield extents[:found]
        self.check_alive()


def decode_walk(buffer: bytearray) -> Walk:
    """What a `struct physicalview_walk` says.

    Args:
        buffer: The structure, filled in.
    """
    fields = WALK.unpack(buffer)
    nr_levels = fields[1]
    _, paddr, _, swap, kind, page_shift = fields[2:8]
    levels = [_level(LEVEL_NAMES[i], *fields[8 + 4 * i : 12 + 4 * i]) for i in range(nr_levels)]
    kind = PageKind(kind)
    in_swap = kind not in (PageKind.NONE, PageKind.BEYOND, PageKind.BAD) and not kind.has_page
    return Walk(
        fields[2],
        paddr if kind.has_page else None,
        kind,
        1 << page_shift,
        (swap_type(swap), swap_offset(swap)) if in_swap else None,
        levels,
    )


def as_pagemap(
    vaddrs: Any, pages: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Convert pages of the module to the format of pagemap.

    Args:
        vaddrs: Buffer of uint64, shape (n,): the virtual addresses, for messages.
        pages: Structured array of PAGE_DTYPE, shape (n,).

    Returns:
        Two uint64 arrays, shape (n,): entries, NO_ENTRY past the end of user space; and physical
        addresses in bytes, NO_PADDR for an address without a page.

    Raises:
        PhysviewError: The page tables have an invalid entry.
    """
    import numpy as np

    kind = pages["kind"]
    if (kind == PageKind.BAD).any():
        first = int(np.argmax(kind == PageKind.BAD))
        raise PhysviewError(
            f"the page tables are broken at {vaddrs[first]:#x}",
            f"the entry {pages['entry'][first]:#x} is not valid",
            f"see the kernel's log: {invocation.as_root('dmesg')}",
        )
    has_page = (kind == PageKind.PRESENT) | (kind == PageKind.PROT_NONE)
    in_swap = (kind >= PageKind.SWAP) & (kind <= PageKind.MARKER)
    frames = (pages["paddr"] >> np.uint64(PAGE_SHIFT)) | np.uint64(PM_PRESENT)
    entries = np.where(has_page, frames, np.where(in_swap, pages["swap"] | np.uint64(PM_SWAP), 0))
    entries[kind == PageKind.BEYOND] = NO_ENTRY
    return entries.astype(np.uint64), np.where(has_page, pages["paddr"], np.uint64(NO_PADDR))


def _use_of(kind: PageKind, *, leads_on: bool) -> EntryUse:
    """What an entry is for, by the walk to it: its kind, and whether it reached the next level."""
    if leads_on:
        return EntryUse.TABLE
    if kind.has_page:
        return EntryUse.PAGE
    return {PageKind.NONE: EntryUse.EMPTY, PageKind.SWAP: EntryUse.SWAP}.get(kind, EntryUse.SPECIAL)


def _level(name: str, address: int, entry: int, shift: int, flags: int) -> Level:
    folded, hidden = bool(flags & _FOLDED), bool(flags & _HIDDEN)
    return Level(
        name,
        None if folded or hidden else address,
        None if hidden else entry,
        1 << shift,
        folded,
        bool(flags & _LEAF),
    )
