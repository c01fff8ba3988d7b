# SPDX-License-Identifier: GPL-2.0-or-later
"""How a machine's page tables divide an address, and what one table holds.

Source: csrc/table_entry.h; Documentation/arch/x86/x86_64/mm.rst, arch/arm64/memory.rst
"""

from __future__ import annotations

import os
from enum import IntEnum
from typing import NamedTuple

from physview.model import PAGE_SHIFT

LEVEL_NAMES = ("pgd", "p4d", "pud", "pmd", "pte")
ENTRY_BYTES = 8

# x86-64 has one root table for both halves of the address space: the highest bit of the root's
# index chooses the kernel's half. On arm64 the kernel has a root table of its own.
_KERNEL_BITS = {"x86_64": 1}


class EntryUse(IntEnum):
    """What an entry of a page table is for. Source: csrc/cdef.h"""

    EMPTY = 0
    TABLE = 1
    PAGE = 2
    SWAP = 3
    SPECIAL = 4


class TableEntries(NamedTuple):
    """The entries of one page table that are for user space.

    Args:
        values: The entries as they are in memory.
        uses: What each of them is for.
    """

    values: tuple[int, ...]
    uses: tuple[EntryUse, ...]

    @property
    def nr_used(self) -> int:
        """The number of entries that are not empty."""
        return len(self.uses) - self.uses.count(EntryUse.EMPTY)


class GeometryLevel(NamedTuple):
    """One level of page tables.

    Args:
        name: "pgd", "p4d", "pud", "pmd" or "pte".
        shift: log2 of the memory that an entry is for, in bytes; the index begins at this bit.
        index_bits: The number of bits of an address that choose an entry.
        nr_user: The number of entries that are for user space.
    """

    name: str
    shift: int
    index_bits: int
    nr_user: int

    @property
    def nr_entries(self) -> int:
        """The number of entries of a table."""
        return 1 << self.index_bits

    def index_of(self, vaddr: int) -> int:
        """Which entry of its table an address chooses."""
        return vaddr >> self.shift & (self.nr_entries - 1)

    def entry_index(self, address: int) -> int:
        """Which entry of its table has a physical address.

        A table is aligned to its size. The root of arm64 may be smaller than a page, and its size
        is that of the entries for user space at least.
        """
        return address % (self.nr_entries * ENTRY_BYTES) // ENTRY_BYTES

    def table_start(self, vaddr: int) -> int:
        """The first address that the table of an address is for."""
        shift = self.shift + self.index_bits
        return vaddr >> shift << shift


class Geometry(NamedTuple):
    """How page tables divide an address.

    Args:
        levels: The levels that the kernel uses, from the root down.
        folded: The names of the levels that it does not use.
        page_shift: log2 of the size of a page: so many bits are the offset.
        user_end: First address that is not a user address.
    """

    levels: tuple[GeometryLevel, ...]
    folded: tuple[str, ...]
    page_shift: int
    user_end: int

    @property
    def address_bits(self) -> int:
        """The number of bits that the indices and the offset have together."""
        return self.levels[0].shift + self.levels[0].index_bits


def level_names(nr_levels: int) -> tuple[str, ...]:
    """The kernel's names of the levels of a machine, from the root down.

    >>> level_names(4)
    ('pgd', 'pud', 'pmd', 'pte')
    """
    return LEVEL_NAMES[:1] + LEVEL_NAMES[1 - nr_levels :]


def nr_levels_of(user_end: int, *, page_shift: int = PAGE_SHIFT, machine: str = "") -> int:
    """How many levels of page tables user addresses take, without folded ones.

    Args:
        user_end: First address that is not a user address.
        page_shift: log2 of the size of a page; a table is as large as a page.
        machine: As in `uname -m`; by default this machine.

    >>> nr_levels_of((1 << 47) - 4096, page_shift=12, machine="x86_64")
    4
    >>> [nr_levels_of(1 << bits, page_shift=14, machine="aarch64") for bits in (36, 47, 48, 52)]
    [2, 3, 4, 4]
    """
    kernel_bits = _KERNEL_BITS.get(machine or os.uname().machine, 0)
    bits = (user_end - 1).bit_length() + kernel_bits - page_shift
    return -(-bits // _table_bits(page_shift))


def _table_bits(page_shift: int) -> int:
    """The number of bits of an address that choose an entry of a table as large as a page."""
    return page_shift - ENTRY_BYTES.bit_length() + 1


def make_geometry(
    nr_levels: int, user_end: int, *, page_shift: int = PAGE_SHIFT, machine: str = ""
) -> Geometry:
    """Find how page tables divide an address.

    Args:
        nr_levels: The number of levels, without folded ones: 2 to 5.
        user_end: First address that is not a user address.
        page_shift: log2 of the size of a page; a table is as large as a page.
        machine: As in `uname -m`; by default this machine.

    >>> x86 = make_geometry(4, (1 << 47) - 4096, page_shift=12, machine="x86_64")
    >>> [(level.name, level.shift, level.index_bits, level.nr_user) for level in x86.levels]
    [('pgd', 39, 9, 256), ('pud', 30, 9, 512), ('pmd', 21, 9, 512), ('pte', 12, 9, 512)]
    >>> x86.address_bits, x86.folded
    (48, ('p4d',))
    >>> arm64 = make_geometry(4, 1 << 48, page_shift=14, machine="aarch64")
    >>> [(level.name, level.index_bits) for level in arm64.levels]
    [('pgd', 1), ('pud', 11), ('pmd', 11), ('pte', 11)]
    """
    table_bits = _table_bits(page_shift)
    kernel_bits = _KERNEL_BITS.get(machine or os.uname().machine, 0)
    root_shift = page_shift + table_bits * (nr_levels - 1)
    last = user_end - 1
    levels = [
        GeometryLevel(
            name,
            root_shift - table_bits * depth,
            table_bits if depth else last.bit_length() - root_shift + kernel_bits,
            1 << table_bits if depth else (last >> root_shift) + 1,
        )
        for depth, name in enumerate(level_names(nr_levels))
    ]
    folded = LEVEL_NAMES[1 : len(LEVEL_NAMES) - nr_levels + 1]
    return Geometry(tuple(levels), folded, page_shift, user_end)
