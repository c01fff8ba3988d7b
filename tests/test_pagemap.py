# SPDX-License-Identifier: GPL-2.0-or-later
"""The compiled reader of pagemap agrees with the reference, and PAGEMAP_SCAN with both."""

import errno
import os
import random
from array import array

import pytest
from memory import NORESERVE, PAGE, PRIVATE, Region, raw_entries, raw_entry

from physview import _ffi, model
from physview.sources.pagemap import PAGE_IS, Pagemap, scan
from physview.sources.procfs import ProcDir
from physview.sources.reference import ReferencePagemap


@pytest.fixture(params=[Pagemap, ReferencePagemap])
def pagemap(request):
    proc = ProcDir()
    pagemap = request.param(proc)
    yield pagemap
    pagemap.close()
    proc.close()


def fill(pagemap, vaddrs):
    column = array("Q", vaddrs)
    entries, paddrs = (array("Q", [77] * len(column)) for _ in range(2))
    return pagemap.fill(column, entries, paddrs), entries, paddrs


def test_the_constants_of_c_and_python_are_the_same():
    _, lib = _ffi.load()
    assert model.NO_ENTRY == lib.PV_NO_ENTRY
    assert model.NO_PADDR == lib.PV_NO_PADDR


def test_the_structs_of_c_and_cffi_have_one_size():
    ffi, lib = _ffi.load()
    assert ffi.sizeof("struct pv_probe") == lib.pv_sizeof_probe()


@pytest.mark.parametrize("nr_pages", [1, 2047, 2048, 2049, 5000])
def test_pages_in_a_row_and_in_any_order_give_the_same(pagemap, nr_pages):
    region = Region(nr_pages).touch()
    addresses = list(region.pages)
    without, entries, _ = fill(pagemap, addresses)
    assert without == 0
    assert list(entries) == list(raw_entries(region).values())
    shuffled = random.Random(nr_pages).sample(addresses, len(addresses))
    _, again, _ = fill(pagemap, shuffled)
    assert dict(zip(shuffled, again, strict=True)) == dict(zip(addresses, entries, strict=True))


def test_the_same_page_twice_and_backwards(pagemap):
    region = Region(3).touch()
    addresses = [region.start, region.start + 8, region.start + 2 * PAGE, region.start + PAGE]
    _, entries, paddrs = fill(pagemap, addresses)
    assert list(entries) == [raw_entry(address) for address in addresses]
    if paddrs[0] != model.NO_PADDR:
        assert paddrs[1] == paddrs[0] + 8


def test_past_the_address_space_there_is_no_entry(pagemap):
    region = Region(1).touch()
    # With bit 55, so that arm64 does not take the bits above for a tag.
    without, entries, paddrs = fill(pagemap, [3 << 55, region.start, (1 << 64) - 1])
    assert without == 2
    assert [e == model.NO_ENTRY for e in entries] == [True, False, True]
    assert paddrs[0] == paddrs[2] == model.NO_PADDR


def test_no_address_is_no_work(pagemap):
    assert fill(pagemap, [])[0] == 0


def test_a_run_that_crosses_the_end_of_the_address_space(pagemap):
    end = next(1 << bits for bits in range(36, 57) if fill(pagemap, [1 << bits])[0])
    without, entries, _ = fill(pagemap, range(end - 4 * PAGE, end + 4 * PAGE, PAGE))
    is_x86 = os.uname().machine == "x86_64"  # where the last page below is never user memory
    assert without == 4 + is_x86
    assert [e == model.NO_ENTRY for e in entries] == [False] * (4 - is_x86) + [True] * without


def test_a_closed_pagemap_says_so():
    proc = ProcDir()
    pagemap = Pagemap(proc)
    pagemap.close()
    pagemap.close()
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        fill(pagemap, [0])
    assert caught.value.errno == errno.EBADF
    proc.close()


@pytest.mark.needs("scan")
def test_scan_finds_the_pages_that_are_there():
    region = Region(64).touch(3, 4, 5, 40)
    fd = os.open("/proc/self/pagemap", os.O_RDONLY)
    walk_end, regions = scan(fd, region.start, region.end, PAGE_IS["present"])
    os.close(fd)
    found = [((s - region.start) // PAGE, (e - region.start) // PAGE) for s, e, _ in regions]
    assert found == [(3, 6), (40, 41)]
    assert walk_end == region.end


@pytest.mark.needs("scan")
def test_scan_over_more_regions_than_fit_sees_each_once():
    nr_touched = 2000
    region = Region(2 * nr_touched).touch(*range(0, 2 * nr_touched, 2))
    fd = os.open("/proc/self/pagemap", os.O_RDONLY)
    at, seen = region.start, []
    while at < region.end:
        at, regions = scan(fd, at, region.end, PAGE_IS["present"])
        seen += [page for start, end, _ in regions for page in range(start, end, PAGE)]
    os.close(fd)
    assert seen == list(region.pages[::2])


@pytest.mark.needs("scan")
def test_the_next_populated_page_is_found_across_a_terabyte():
    region = Region((1 << 40) // PAGE, flags=PRIVATE | NORESERVE)
    far = region.size // PAGE * 9 // 10 + 1
    region.touch(far)
    proc = ProcDir()
    pagemap = Pagemap(proc)
    touched = region.start + far * PAGE
    assert pagemap.next_populated(region.start, region.end) == touched
    assert pagemap.next_populated(touched + PAGE, region.end) == region.end
    pagemap.close()
    proc.close()
