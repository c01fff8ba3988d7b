# SPDX-License-Identifier: GPL-2.0-or-later
"""Entries of pagemap are decoded to frames and causes."""

from array import array

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from physview import _ffi
from physview.model import (
    NO_ENTRY,
    NO_PADDR,
    PAGE_SHIFT,
    PAGE_SIZE,
    PM_PFRAME_MASK,
    Cause,
    Gap,
    PagemapEntry,
    Translation,
    Vma,
)

PRESENT, SWAP, GUARD, FILE = 1 << 63, 1 << 62, 1 << 58, 1 << 61
uint64 = st.integers(0, (1 << 64) - 1)


def swap_entry(swap_type: int, offset: int) -> int:
    return SWAP | offset << 5 | swap_type


@pytest.mark.parametrize(
    ("raw", "cause", "flags"),
    [
        (PRESENT | FILE | 0x1234, None, ("file", "present")),
        (PRESENT | 1 << 56 | 1 << 55 | 7, None, ("soft_dirty", "mmap_exclusive", "present")),
        (PRESENT, Cause.HIDDEN, ("present",)),
        (0, Cause.ABSENT, ()),
        (1 << 55, Cause.ABSENT, ("soft_dirty",)),
        (swap_entry(0, 0x4000), Cause.SWAPPED, ("swap",)),
        (swap_entry(21, 1), Cause.SWAPPED, ("swap",)),
        (SWAP, Cause.SWAP_HIDDEN, ("swap",)),
        (swap_entry(29, 0x1234), Cause.SPECIAL, ("swap",)),
        (swap_entry(31, 0x1234), Cause.SPECIAL, ("swap",)),
        (SWAP | GUARD | 31 | 4 << 5, Cause.GUARD, ("guard_region", "swap")),
        (swap_entry(31, 4), Cause.GUARD, ("swap",)),  # 6.13 and 6.14
        (SWAP | GUARD, Cause.GUARD, ("guard_region", "swap")),  # seen without privilege
        (swap_entry(31, 1), Cause.MARKER, ("swap",)),
        (
            PRESENT | 1 << 57 | 1 << 59 | 1 << 60 | 3,
            None,
            ("uffd_wp", "bit_59", "bit_60", "present"),
        ),
    ],
)
def test_each_kind_of_entry_decodes_to_its_cause(raw, cause, flags):
    entry = PagemapEntry(raw)
    assert entry.cause is cause
    assert entry.flags == flags


def test_a_swapped_entry_tells_its_type_and_offset():
    assert PagemapEntry(swap_entry(3, 0x1_0000_0001)).swap == (3, 0x1_0000_0001)
    assert (
        "type 3, offset 0x10"
        in Translation(0, None, Cause.SWAPPED, PagemapEntry(swap_entry(3, 16))).explanation
    )


def test_a_guard_does_not_pass_for_swap():
    translation = Translation(0, None, Cause.GUARD, PagemapEntry(0x440000000000009F))
    assert "offset" not in translation.explanation


@given(uint64)
def test_every_entry_has_a_frame_or_a_cause_and_never_both(raw):
    entry = PagemapEntry(raw)
    assert (entry.pfn is None) == (entry.cause is not None)
    assert entry.pfn != 0


@given(st.lists(st.tuples(uint64, uint64)))
@example([(0x1000, PRESENT | 1 << 55), (0x1000, PRESENT), (0x1000, 0), (0x1000, 1)])
def test_the_core_decodes_as_the_model_does(pairs):
    ffi, lib = _ffi.load()
    pairs = [(vaddr, raw) for vaddr, raw in pairs if raw != NO_ENTRY]
    vaddrs, entries = (
        (array("Q", column) for column in zip(*pairs, strict=True))
        if pairs
        else (array("Q"), array("Q"))
    )
    paddrs = array("Q", bytes(8 * len(pairs)))
    buffers = [ffi.from_buffer("uint64_t[]", column) for column in (vaddrs, entries, paddrs)]
    lib.pv_decode(PAGE_SHIFT, buffers[0], len(pairs), buffers[1], buffers[2])
    for vaddr, raw, paddr in zip(vaddrs, entries, paddrs, strict=True):
        pfn = PagemapEntry(raw).pfn
        expected = NO_PADDR if pfn is None else (pfn << PAGE_SHIFT) % (1 << 64) | vaddr % PAGE_SIZE
        assert paddr == expected


def test_every_cause_has_words_and_a_remedy():
    for cause in Cause:
        assert cause.text
        assert cause.remedy
        assert Cause(cause.value) is cause


def test_the_frame_number_mask_is_bits_0_to_54():
    assert PM_PFRAME_MASK == 0x7FFFFFFFFFFFFF


def test_a_mapping_contains_its_start_but_not_its_end():
    vma = Vma(0x1000, 0x3000, "rw-p", 0, "00:00", 0, "")
    assert 0x1000 in vma
    assert 0x3000 not in vma
    assert str(vma) == "rw-p [anonymous]"


def test_a_gap_counts_its_pages():
    assert Gap(0, 3 * PAGE_SIZE, Cause.UNMAPPED, None).nr_pages == 3
