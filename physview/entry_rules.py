# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules for entries of /proc/PID/pagemap: what an entry means, and which entry comes next.

Each function takes one entry as an int, or many entries as a uint64 array. It returns one value,
or an array of the same shape. csrc/entry.h has the same rules in C, and
`tests/test_entry_rules.py` compares the two. This module imports nothing of the package.

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
# There are 32 swap types. At most 10 of them are special (4 device, 3 migration, hwpoison, pte
# marker, and swapin error in 5.19 to 6.3). So a type below 22 is a swap area (MAX_SWAPFILES).
MIN_SPECIAL_SWAP_TYPE = 22
# Since 5.19, PTE markers have the last type. The offset has their bits (include/linux/swapops.h).
PTE_MARKER_SWAP_TYPE = 31
PTE_MARKER_GUARD = 4
PTE_MARKER_MAX = 7


def swap_type(slot: Any) -> Any:
    """Return the type of a swap slot: the number of a swap area, or a special type.

    Args:
        slot: A swap slot, with the type in the low bits and the offset above; or a pagemap entry
            that contains a swap slot.
    """
    return slot & SWAP_TYPE_MASK


def swap_offset(slot: Any) -> Any:
    """Return the offset of a swap slot, in pages."""
    return slot >> SWAP_TYPE_BITS


def swap_slot(type_: Any, offset: Any) -> Any:
    """Make the swap slot with this type and offset."""
    return offset << SWAP_TYPE_BITS | type_


def is_in_area(slot: Any) -> Any:
    """Whether a swap slot lies in a swap area. Other types are special: markers, migration, …"""
    return swap_type(slot) < MIN_SPECIAL_SWAP_TYPE


def has_frame(entry: Any) -> Any:
    """Whether the entry has a frame number. The kernel shows 0 in place of a hidden number."""
    return (entry & PM_PRESENT != 0) & (entry & PM_PFRAME_MASK != 0)


def has_slot(entry: Any) -> Any:
    """Whether the entry has a swap slot of any type.

    A slot of 0 is a hidden one: offset 0 of a swap area holds the area's header, and never a page.
    A guard has PM_SWAP set, but is no swap entry.
    """
    return _is_swap_entry(entry) & (entry & PM_PFRAME_MASK != 0)


def is_swapped(entry: Any) -> Any:
    """Whether the page is in a swap area, or in a hidden slot.

    Markers and pages in migration are swap entries with a special type. They are not swapped.
    """
    return _is_swap_entry(entry) & is_in_area(entry)


def step_of(entry: Any, zero_pfn: int) -> Any:
    """Return the difference between the entries of neighbouring pages of an extent.

    Frames and swap slots are contiguous, so their entries increase from page to page. The zero
    page, hidden frames and slots, guards and markers have the same entry in all pages. So pages
    whose steps differ are never in one extent.

    Args:
        entry: The entry of a page that is present or has a swap entry.
        zero_pfn: The zero page's frame number on the machine of the entry; 0 if it is not known.
    """
    value = entry & PM_PFRAME_MASK
    next_frame = (entry & PM_PRESENT != 0) & (value != 0) & (value != zero_pfn)
    next_slot = (entry & (PM_PRESENT | PM_GUARD_REGION) == 0) & (value != 0)
    next_slot = next_slot & (swap_type(value) != PTE_MARKER_SWAP_TYPE)
    return next_frame + (next_slot << SWAP_TYPE_BITS)


def _is_swap_entry(entry: Any) -> Any:
    return entry & (PM_PRESENT | PM_SWAP | PM_GUARD_REGION) == PM_SWAP
