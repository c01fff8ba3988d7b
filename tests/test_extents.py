# SPDX-License-Identifier: GPL-2.0-or-later
"""Extents agree with plain reads of the same pagemap, page by page."""

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory import HUGE, KINDS, PAGE, WAIT, Region
from plain_reads import agreed, plain_entries, while_frames_stay
from readings import extents_of

from physview.entry_rules import step_of
from physview.errors import ProcessGone
from physview.memory.extents import ExtentReader, find_zero_pfn
from physview.model import PM_PFRAME_MASK, PM_PRESENT, PM_SWAP, PagemapEntry
from physview.sources.procfs import ProcDir


def plain_extents(entries, starts):
    """Extents made from plain entries by the definition of an extent."""
    zero_pfn, extents = find_zero_pfn(), []
    before = None  # the last page's address and entry
    for vaddr, entry in sorted(entries.items()):
        kind = PagemapEntry(before[1]) if before else None
        if kind is None:
            step = None
        elif kind.present:
            step = 1 if kind.pfn not in (None, zero_pfn) else 0
        else:
            step = 32 if kind.swap and kind.cause.value not in ("guard", "marker") else 0
        goes_on = step is not None and before == (vaddr - PAGE, entry - step)
        if goes_on and vaddr not in starts:
            extents[-1][2] += 1
        else:
            extents.append([vaddr, entry, 1])
        before = (vaddr, entry)
    return [tuple(extent) for extent in extents]


@pytest.mark.alone("others start and end, and the libraries' pages are no longer ours alone")
@pytest.mark.needs("pfn")
def test_every_way_gives_what_plain_reads_give(stopped):
    for use_scan in (None, False):
        for nr_threads in (1, 2):
            for batch in (1 << 14, 5):
                options = {"use_scan": use_scan, "nr_threads": nr_threads, "batch": batch}
                expected = agreed(
                    lambda: plain_extents(*plain_entries(stopped.pid)),
                    lambda options=options: extents_of(stopped.pid, **options),
                )
                assert len(expected) > 2500
                assert max(nr for _, _, nr in expected) >= 512  # a huge page, or zero pages


@pytest.mark.alone("others start and end, and the libraries' pages are no longer ours alone")
def test_extents_of_an_unprivileged_user_are_right(stopped):
    """The entries are the kernel's and no page is missing, with frames hidden or not."""

    def pages():
        return {
            vaddr + i * PAGE: entry + i * step_of(entry, find_zero_pfn())
            for vaddr, entry, nr in extents_of(stopped.pid)
            for i in range(nr)
        }

    assert len(agreed(lambda: plain_entries(stopped.pid)[0], pages)) > 2500


@pytest.mark.needs("pfn", "thp")
def test_no_extent_crosses_the_border_of_a_mapping():
    with Region.huge(1) as region:
        region.touch()
        region.madvise(Region.MADV_NOHUGEPAGE)
        middle = Region.__new__(Region)
        middle.start, middle.size = region.start + 64 * PAGE, 64 * PAGE
        middle.mprotect(1)
        found = extents_of("self", region.start, region.end)
        assert [(vaddr - region.start) // PAGE for vaddr, _, _ in found] == [0, 64, 128]
        assert [nr for _, _, nr in found] == [64, 64, HUGE // PAGE - 128]
        pfns = [entry & PM_PFRAME_MASK for _, entry, _ in found]
        assert pfns == [pfns[0], pfns[0] + 64, pfns[0] + 128]
        middle.size = 0


def test_a_part_of_a_range(stopped):
    entries, _ = plain_entries(stopped.pid)
    vaddrs = sorted(entries)
    start, end = vaddrs[100], vaddrs[-100]
    for use_scan in (None, False):
        found = extents_of(stopped.pid, start, end, use_scan=use_scan)
        assert found[0][0] == start
        assert sum(nr for _, _, nr in found) == sum(start <= vaddr < end for vaddr in vaddrs)


@pytest.mark.needs("pfn")
def test_the_zero_page_is_one_extent_however_often_it_is_mapped():
    region = Region(1000)
    for index in range(1000):
        region.read(index)
    ((vaddr, entry, nr),) = extents_of("self", region.start, region.end)
    assert (vaddr, nr) == (region.start, 1000)
    assert entry & (PM_PRESENT | PM_PFRAME_MASK) == PM_PRESENT | find_zero_pfn()


@pytest.mark.needs("scan")
def test_a_terabyte_with_a_thousand_pages(python):
    child = python(
        "import random; from memory import NORESERVE, PRIVATE, Region\n"
        "region = Region(1 << 28, flags=PRIVATE | NORESERVE)\n"
        "region.touch(*random.Random(6).sample(range(1 << 28), 1000))",
        wait=WAIT,
    )
    lines = Path(f"/proc/{child.pid}/maps").read_text().splitlines()
    vmas = [line.split()[0].split("-") for line in lines]
    start = next(int(a, 16) for a, b in vmas if int(b, 16) - int(a, 16) >= 1 << 40)
    touched = random.Random(6).sample(range(1 << 28), 1000)
    expected = sorted(start + index * PAGE for index in touched)
    for nr_threads in (1, 2):
        found = extents_of(child.pid, start, start + (PAGE << 28), nr_threads=nr_threads)
        pages = [vaddr + i * PAGE for vaddr, _, nr in found for i in range(nr)]
        # In an area that touched pages make dense the kernel may put large folios: none is lost.
        assert set(expected) <= set(pages)
        assert len(pages) < 1100


@pytest.mark.parametrize("use_scan", [None, False])
@pytest.mark.parametrize("how", ["ends", "execs"])
def test_a_process_that_ends_during_the_read(python, use_scan, how):
    wait = "input(); import os; os.execlp('sleep', 'sleep', '60')"
    child = python(KINDS, wait=wait)
    proc = ProcDir(child.pid)
    reader = ExtentReader(proc, use_scan=use_scan, batch=10)
    extents = reader.iter_extents(nr_threads=1)
    next(extents)
    if how == "ends":
        child.kill()
        child.wait()
    else:
        child.stdin.write("\n")
        child.stdin.flush()
        while proc.read("comm") != b"sleep\n":
            pass
    with pytest.raises(ProcessGone, match="it ended" if how == "ends" else "exec"):
        list(extents)
    reader.close()
    proc.close()


@pytest.mark.parametrize("use_scan", [None, False])
def test_a_process_that_is_gone_before_anything_is_read(python, use_scan):
    """PAGEMAP_SCAN reports an ended address space as empty."""
    child = python(wait=WAIT)
    proc = ProcDir(child.pid)
    reader = ExtentReader(proc, use_scan=use_scan)
    child.kill()
    child.wait()
    with pytest.raises(ProcessGone):
        list(reader.iter_extents(nr_threads=1))
    with pytest.raises(ProcessGone):
        list(reader.iter_extents(nr_threads=2))
    reader.close()
    proc.close()


@pytest.mark.parametrize("use_scan", [None, False])
def test_a_process_that_maps_and_unmaps_meanwhile(python, use_scan):
    child = python(
        "from memory import Region; stay = Region(2000).touch()",
        wait="while True:\n r = [Region(100).touch() for _ in range(50)]\n del r[::2]",
    )
    for _ in range(30):
        found = extents_of(child.pid, use_scan=use_scan, batch=64)
        ends = [vaddr + nr * PAGE for vaddr, _, nr in found]
        assert all(end <= after[0] for end, after in zip(ends, found[1:], strict=False))
        assert all(entry & (PM_PRESENT | PM_SWAP) for _, entry, _ in found)
        assert sum(nr for _, _, nr in found) > 2000
    assert child.poll() is None


def test_as_many_mappings_as_the_kernel_allows(python):
    with open("/proc/sys/vm/max_map_count") as file:
        nr = min(70_000, int(file.read()) - 500)
    child = python(
        "from memory import PAGE, Region, libc\n"
        f"region = Region({nr}).touch()\n"
        f"for at in range(1, {nr}, 2): libc.mprotect(region.start + at * PAGE, PAGE, 1)",
        wait=WAIT,
    )
    proc = ProcDir(child.pid)
    starts = {vma.start for vma in proc.iter_vmas()}
    proc.close()
    assert len(starts) >= nr
    for nr_threads in (1, 2):
        found = extents_of(child.pid, nr_threads=nr_threads)
        in_region = [nr for vaddr, _, nr in found if vaddr in starts]
        assert len(in_region) >= nr
        assert len(found) < nr + 20_000


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.integers(1, 70), st.sampled_from("wr-")), min_size=1, max_size=30),
    st.integers(1, 9),
)
def test_any_pattern_of_pages(runs, batch):
    """Pages that are written, read or untouched, in runs of any length and batches of any size."""
    nr_pages = sum(nr for nr, _ in runs)
    region = Region(nr_pages)
    at = 0
    for nr, kind in runs:
        for index in range(at, at + nr):
            if kind == "w":
                region.touch(index)
            elif kind == "r":
                region.read(index)
        at += nr

    def plain():
        entries, _ = plain_entries("self")
        return {vaddr: entry for vaddr, entry in entries.items() if vaddr in region.pages}

    def check(mine):
        expected = plain_extents(mine, {region.start})
        for use_scan in (None, False):
            found = extents_of("self", region.start, region.end, use_scan=use_scan, batch=batch)
            assert found == expected

    while_frames_stay(plain, check)


@pytest.mark.needs("scan")
def test_a_process_that_ends_before_the_first_scan(python, monkeypatch):
    child = python()
    open_pagemap = ProcDir.open_pagemap

    def open_and_end(proc):
        fd = open_pagemap(proc)
        if proc.pid == child.pid:
            child.kill()
            child.wait()
        return fd

    monkeypatch.setattr(ProcDir, "open_pagemap", open_and_end)
    with pytest.raises(ProcessGone, match="it ended"):
        ExtentReader(ProcDir(child.pid))
