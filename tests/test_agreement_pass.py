# SPDX-License-Identifier: GPL-2.0-or-later
"""The first pass of a comparison: the C core counts the pages on which both sources agree."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from memory import PAGE

from physview import _ffi
from physview.model import PAGE_SHIFT, PM_PRESENT, PM_SWAP, PageKind
from physview.sources.page_tables import WALK_EXTENT_DTYPE

ZERO_PFN = 77
START = 1 << 30
KINDS = [kind for kind in PageKind if kind not in (PageKind.NONE, PageKind.BEYOND)]
# What pagemap may say of a page: nothing, some frame, some swap entry, with bits of its own.
ENTRIES = st.one_of(
    st.just(0),
    st.builds(lambda pfn: PM_PRESENT | 1 << 55 | pfn, st.integers(75, 82)),
    st.builds(lambda swap: PM_SWAP | swap, st.integers(0, 3).map(lambda offset: offset << 5 | 2)),
)


@st.composite
def answers(draw):
    """Random pagemap entries of contiguous pages, and random extents of the walk for them."""
    entries = draw(st.lists(ENTRIES, min_size=1, max_size=40))
    extents, at = [], 0
    while at < len(entries):
        at += draw(st.integers(0, 4))
        length = draw(st.integers(1, 6))
        if at + length <= len(entries):
            kind = draw(st.sampled_from(KINDS))
            pfn, offset = draw(st.integers(75, 80)), draw(st.integers(0, 3))
            swap = 0 if kind in (PageKind.PRESENT, PageKind.PROT_NONE) else offset << 5 | 2
            fields = START + at * PAGE, pfn * PAGE, length * PAGE, 0, swap, kind, PAGE_SHIFT
            extents.append(fields)
        at += length
    return entries, extents


def said_of_each(nr_pages, extents):
    """The walk's answer for each page, by a simple loop: (kind, entry in pagemap's form)."""
    said = [(PageKind.NONE, 0)] * nr_pages
    for vaddr, paddr, length, _, swap, kind, _ in extents:
        for i in range(length // PAGE):
            present = PM_PRESENT | (paddr // PAGE + i)
            is_frame = kind in (PageKind.PRESENT, PageKind.PROT_NONE)
            entry = present if is_frame else PM_SWAP | (swap + (i << 5))
            said[(vaddr - START) // PAGE + i] = kind, entry
    return said


@given(answers())
def test_the_core_counts_what_agrees_and_hands_back_the_rest(answer):
    entries, extents = answer
    expected = {"frames": [], "zero": [], "swap": [], "left": []}
    for i, (kind, walked) in enumerate(said_of_each(len(entries), extents)):
        known = entries[i] & ~(1 << 55)
        if kind is PageKind.NONE and not known:
            continue
        agrees = kind in (PageKind.PRESENT, PageKind.PROT_NONE, PageKind.SWAP) and known == walked
        which = "swap" if kind is PageKind.SWAP else "frames"
        if walked == PM_PRESENT | ZERO_PFN:
            which = "zero"
        expected[which if agrees else "left"].append(START + i * PAGE)

    ffi, lib = _ffi.load()
    column, left = np.array(entries, dtype=np.uint64), np.zeros(len(entries), dtype=np.uint64)
    rows = np.array(extents, dtype=WALK_EXTENT_DTYPE)
    agreed = ffi.new("struct pv_agreed[]", lib.PV_NR_AGREED)
    nr_left = lib.pv_agree(
        PAGE_SHIFT,
        START,
        len(entries),
        ffi.from_buffer("uint64_t[]", column),
        ffi.cast("struct physicalview_extent *", rows.ctypes.data),
        len(rows),
        ZERO_PFN,
        agreed,
        ffi.from_buffer("uint64_t[]", left, require_writable=True),
    )
    assert left[:nr_left].tolist() == expected["left"]
    for index, name in (
        (lib.PV_AGREED_FRAME, "frames"),
        (lib.PV_AGREED_ZERO, "zero"),
        (lib.PV_AGREED_SWAP, "swap"),
    ):
        vaddrs = expected[name]
        assert agreed[index].nr == len(vaddrs)
        assert list(agreed[index].first)[: len(vaddrs)] == vaddrs[: lib.PV_NR_FIRST]
