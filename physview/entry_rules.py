# SPDX-License-Identifier: GPL-2.0-or-later
"""What an entry of /proc/PID/pagemap means, and which entry the next page of an extent has.

Each function takes one entry as an int, or many as a uint64 array, and returns one value or an
array of the same shape. The same rules in C are in csrc/entry.h; `tests/test_entry_rules.py`
compares the two. Imports nothing of the package.

Source: fs/proc/task_mmu.c, include/linux/swapops.h, Documentation/admin-guide/mm/pagemap.rst
"""

from __future__ import annotations

from typing import Any

PM_PFRAME_MASK = (1 << 55) - 1
PM_SOFT_DIRTY = 1 << 55
PM_MMAP_EXCLUSIVE = 1 << 56
PM_UFFD_WP = 1 << 57
PM_GUARD_REGION = 1 << 58
PM_FILE = 1 << 61
PM_SWAP = 1 << 62
PM_PRESENT = 1 << 63

# A swap entry's type and offset, within PM_PFRAME_MASK. Source: MAX_SWAPFILES_SHIFT
SWAP_TYPE_BITS = 5
SWAP_TYPE_MASK = (1 << SWAP_TYPE_BITS) - 1
# MAX_SWAPFILES is 32 less the special types, which are 10 at most (4 device, 3 migration,
# hwpoison, pte marker, and swapin error in 5.19 to 6.3): below 22 a type is a swap area.
MIN_SPECIAL_SWAP_TYPE = 22
# PTE markers have the last type since 5.19; the offset says which (include/linux/swapops.h).
PTE_MARKER_SWAP_TYPE = 31
PTE_MARKER_GUARD = 4
PTE_MARKER_MAX = 7


def swap_type(slot: Any) -> Any:
    """The type of a swap entry: a swap area, or what is special.

    Args:
        slot: A swap slot: the type in the low bits, the offset above; or an entry that has one.
    """
    return slot & SWAP_TYPE_MASK


def swap_offset(slot: Any) -> Any:
    """The offset of a swap slot, in pages."""
    return slot >> SWAP_TYPE_BITS


def swap_slot(type_: Any, offset: Any) -> Any:
    """The swap slot with this type and offset."""
    return offset << SWAP_TYPE_BITS | type_


def is_in_area(slot: Any) -> Any:
    """Whether a swap slot lies in a swap area; the other types are markers, migration and so on."""
    return swap_type(slot) < MIN_SPECIAL_SWAP_TYPE


def has_frame(entry: Any) -> Any:
    """Whether the entry names a frame. The kernel hides the number of a present page as 0."""
    return (entry & PM_PRESENT != 0) & (entry & PM_PFRAME_MASK != 0)


def has_slot(entry: Any) -> Any:
    """Whether the entry names a swap slot, of whatever type.

    Offset 0 of a swap area holds its header, so a slot of 0 is one that the kernel hides. A guard
    sets PM_SWAP, too, but is no swap entry.
    """
    return _is_swap_entry(entry) & (entry & PM_PFRAME_MASK != 0)


def is_swapped(entry: Any) -> Any:
    """Whether the page is in a swap area, also where the slot is hidden.

    Guards, markers and pages in migration are swap entries, too, but their types are not those of
    swap areas.
    """
    return _is_swap_entry(entry) & is_in_area(entry)


def step_of(entry: Any, zero_pfn: int) -> Any:
    """How the entry changes from one page of an extent to the next.

    Frames follow each other, and swap slots do. The zero page, hidden frames and slots, guards and
    markers have the same entry in all pages of an extent.

    Args:
        entry: The entry of a page that is present or has a swap entry.
        zero_pfn: The zero page's frame number where the entry was read; 0 if it is not known.
    """
    value = entry & PM_PFRAME_MASK
    next_frame = (entry & PM_PRESENT != 0) & (value != 0) & (value != zero_pfn)
    next_slot = (entry & (PM_PRESENT | PM_GUARD_REGION) == 0) & (value != 0)
    next_slot = next_slot & (swap_type(value) != PTE_MARKER_SWAP_TYPE)
    return next_frame + (next_slot << SWAP_TYPE_BITS)


def _is_swap_entry(entry: Any) -> Any:
    return entry & (PM_PRESENT | PM_SWAP | PM_GUARD_REGION) == PM_SWAP
