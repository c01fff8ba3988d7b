# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules for pagemap entries in C and in Python are the same."""

import itertools
import os

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from physview import _ffi
from physview.analysis.flag_counts import new_account
from physview.entry_rules import (
    has_frame,
    has_slot,
    is_swapped,
    step_of,
    swap_offset,
    swap_slot,
    swap_type,
)
from physview.memory.rows import BASE_DTYPE, advance, iter_each, join, places
from physview.model import NO_ENTRY, PAGE_SHIFT, PAGE_SIZE, Cause, PagemapEntry

PRESENT, SWAP, FILE, GUARD, SOFT_DIRTY = 1 << 63, 1 << 62, 1 << 61, 1 << 58, 1 << 55
ZERO_PFN = 77

# One or more entries of every kind that a page can have.
KINDS = [
    *(PRESENT | pfn for pfn in (1, ZERO_PFN - 1, ZERO_PFN, ZERO_PFN + 1, 1 << 54)),
    PRESENT | FILE | 5,
    PRESENT,  # a hidden frame
    SWAP,  # a hidden slot
    *(SWAP | swap_slot(type_, offset) for type_ in range(32) for offset in (0, 1, 4, 1 << 20)),
    SWAP | GUARD | swap_slot(31, 4),
    SWAP | GUARD,
]
entries = st.one_of(
    st.sampled_from(KINDS),
    st.builds(lambda pfn: PRESENT | pfn, st.integers(70, 80)),
    st.builds(lambda type_, at: SWAP | swap_slot(type_, at), st.integers(0, 31), st.integers(0, 5)),
    st.builds(
        lambda bits, value: bits << 55 | value, st.integers(0x80, 0x1FF), st.integers(0, 1 << 40)
    ),
).filter(lambda entry: entry != NO_ENTRY)


def scanned(pagemap, zero_pfn=ZERO_PFN, how=0):
    """The extents that the core finds in a pagemap: (index of the first page, entry, pages)."""
    ffi, lib = _ffi.load()
    fd = os.memfd_create("pagemap")
    try:
        os.write(fd, np.array(pagemap, dtype=np.uint64).tobytes())
        at, room = ffi.new("uint64_t *"), len(pagemap)
        extents = ffi.new("struct pv_extent[]", room)
        end = room << PAGE_SHIFT
        cuts = ffi.new("uint64_t[]", 1)
        nr = lib.pv_scan_extents(fd, PAGE_SHIFT, how, at, end, cuts, 0, zero_pfn, extents, room)
    finally:
        os.close(fd)
    assert at[0] == end
    return [(int(e.vaddr) >> PAGE_SHIFT, int(e.entry), int(e.nr_pages)) for e in extents[0:nr]]


def by_rule(pagemap, zero_pfn=ZERO_PFN):
    """The same by the rule in Python, page by page."""
    extents = []
    for index, entry in enumerate(pagemap):
        if not entry & (PRESENT | SWAP):
            continue
        step = step_of(entry, zero_pfn)
        if (
            index
            and extents
            and entry == pagemap[index - 1] + step
            and step == step_of(pagemap[index - 1], zero_pfn)
        ):
            first, of_first, nr = extents[-1]
            if first + nr == index:
                extents[-1] = (first, of_first, nr + 1)
                continue
        extents.append((index, entry, 1))
    return extents


def rows_of(pagemap):
    rows = np.zeros(len(pagemap), dtype=BASE_DTYPE)
    rows["vaddr"] = np.arange(len(pagemap)) * PAGE_SIZE
    rows["nr_pages"] = 1
    rows["entry"] = pagemap
    rows["pfn"], rows["swap"] = places(rows["entry"])
    return rows[rows["entry"] & np.uint64(PRESENT | SWAP) != 0]


def test_the_zero_pages_frame_continues_no_run():
    """The zero page's frame can lie right behind a frame of the process. Found by hypothesis."""
    pagemap = [PRESENT | pfn for pfn in (74, 75, 76, ZERO_PFN, ZERO_PFN, ZERO_PFN + 1)]
    expected = [(0, PRESENT | 74, 3), (3, PRESENT | ZERO_PFN, 2), (5, PRESENT | 78, 1)]
    assert scanned(pagemap) == by_rule(pagemap) == expected
    rows = rows_of(pagemap)
    assert (np.concatenate(list(iter_each(join(rows, ZERO_PFN), ZERO_PFN))) == rows).all()


def test_any_two_kinds_of_entries_are_one_extent_in_c_if_they_are_in_python():
    pairs = list(itertools.product(KINDS, KINDS))
    pairs += [(entry, entry + step) for entry in KINDS for step in (1, 31, 32, 33, 64)]
    pagemap = [entry for pair in pairs for entry in (*pair, 0)]
    for zero_pfn in (ZERO_PFN, 0):
        found = scanned(pagemap, zero_pfn)
        assert found == by_rule(pagemap, zero_pfn)
        assert {nr for _, _, nr in found} == {1, 2}


@given(st.lists(entries, max_size=30))
def test_extents_of_frames_only_are_those_of_entries_without_the_other_bits(pagemap):
    _, lib = _ffi.load()
    common = [entry & (PRESENT | SWAP | GUARD | (1 << 55) - 1) for entry in pagemap]
    assert scanned(pagemap, how=lib.PV_COMMON_BITS) == by_rule(common)


def test_bits_that_only_pagemap_has_split_no_extent_of_frames_only():
    _, lib = _ffi.load()
    bits = (SOFT_DIRTY, 1 << 56, 1 << 57, FILE, 0)
    pagemap = [PRESENT | bit | 100 + i for i, bit in enumerate(bits)]
    assert len(scanned(pagemap)) == len(bits)
    assert scanned(pagemap, how=lib.PV_COMMON_BITS) == [(0, PRESENT | 100, len(bits))]


@given(st.lists(st.one_of(entries, st.just(0)), max_size=30), st.sampled_from([ZERO_PFN, 0]))
def test_extents_in_c_and_rows_in_python_are_the_same(starts, zero_pfn):
    pagemap = []
    for entry in starts:  # each goes on for a few pages, as its rule says
        step = step_of(entry, zero_pfn) if entry & (PRESENT | SWAP) else 0
        pagemap += [(entry + i * step) & NO_ENTRY for i in range(1 + entry % 4)]
    rows = rows_of(pagemap)
    joined = join(rows, zero_pfn)
    found = [tuple(row) for row in joined[["vaddr", "entry", "nr_pages"]].tolist()]
    assert [(vaddr // PAGE_SIZE, *rest) for vaddr, *rest in found] == by_rule(pagemap, zero_pfn)
    assert scanned(pagemap, zero_pfn) == by_rule(pagemap, zero_pfn)
    pages = list(iter_each(joined, zero_pfn))
    assert (np.concatenate(pages) == rows).all() if len(rows) else not pages


@given(st.lists(entries, min_size=1, max_size=30), st.sampled_from([ZERO_PFN, 0]))
def test_the_rules_say_the_same_of_an_entry_and_of_many(many, zero_pfn):
    column = np.array(many, dtype=np.uint64)
    for rule in (has_frame, has_slot, is_swapped, swap_type, swap_offset):
        assert rule(column).tolist() == [rule(entry) for entry in many]
    assert step_of(column, zero_pfn).tolist() == [step_of(entry, zero_pfn) for entry in many]


@given(entries)
def test_the_cause_of_an_entry_follows_the_rules(raw):
    entry = PagemapEntry(raw)
    assert has_frame(raw) == (entry.pfn is not None) == (entry.cause is None)
    in_area = entry.cause is Cause.SWAPPED or entry.cause is Cause.SWAP_HIDDEN
    assert is_swapped(raw) == in_area
    if has_slot(raw):
        assert entry.swap == (swap_type(raw), swap_offset(raw & ((1 << 55) - 1)))


@given(st.lists(entries, max_size=30))
def test_the_sums_in_c_follow_the_rules(many):
    ffi, lib = _ffi.load()
    account = new_account(flags_fd=-1, zero_pfn=ZERO_PFN)
    extents = ffi.new("struct pv_extent[]", [(2 * i * PAGE_SIZE, e, 1) for i, e in enumerate(many)])
    frames = ffi.new("struct pv_frames[]", len(many))
    nr_frames = lib.pv_frames_of(extents, len(many), ZERO_PFN, frames)
    assert lib.pv_account(account, extents, len(many), NO_ENTRY) == len(many)
    assert lib.pv_account_end(account) == 0
    sums = account.sums
    pfns = [entry & (1 << 55) - 1 for entry in many if has_frame(entry)]
    assert sorted(int(f.pfn) for f in frames[0:nr_frames]) == sorted(
        pfn for pfn in pfns if pfn != ZERO_PFN
    )
    absent = [entry for entry in many if not entry & PRESENT]
    assert sums.nr_hidden == len(many) - len(absent) - len(pfns)
    assert sums.nr_zero == pfns.count(ZERO_PFN)
    assert sums.nr_swapped == sum(has_slot(entry) and is_swapped(entry) for entry in absent)
    assert sums.nr_swap_hidden == sum(is_swapped(e) and not has_slot(e) for e in absent)
    assert sums.nr_special == len(absent) - sums.nr_swapped - sums.nr_swap_hidden


def test_pages_taken_from_the_front_follow_the_rule():
    rows = rows_of(KINDS)
    rows["nr_pages"] = 9
    before = rows.copy()
    advance(rows, np.full(len(rows), 8, dtype=np.uint64), ZERO_PFN)
    assert rows["entry"].tolist() == [
        entry + 8 * step_of(entry, ZERO_PFN) for entry in before["entry"].tolist()
    ]
    moved = places(rows["entry"])
    assert (rows["pfn"] == moved[0]).all()
    assert (rows["swap"] == moved[1]).all()
