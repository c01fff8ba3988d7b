# SPDX-License-Identifier: GPL-2.0-or-later
"""The module's page table walk agrees with pagemap on every kind of page. Needs the module."""

import ctypes
import itertools
import mmap
import os
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from kmod_calls import agree, agree_on_all, open_kmod, wait_for
from memory import HUGE, PAGE, PRIVATE, SHARED, Region, kpageflags, libc, pfnmap_ranges, raw_entry
from processor import PROCESSOR, is_writable

from physview import Cause, Process
from physview.model import PM_PFRAME_MASK, PM_PRESENT, PM_SWAP, PageKind
from physview.sources.page_tables import as_pagemap

pytestmark = pytest.mark.needs("root", "pfn", "kmod")

MADV_MERGEABLE, MADV_PAGEOUT, MADV_HWPOISON = 12, 21, 100
MAP_HUGETLB, MAP_HUGE_1GB = 0x40000, 30 << 26
GIGA = 1 << 30
KPF_KSM = 21  # include/uapi/linux/kernel-page-flags.h
KSM = Path("/sys/kernel/mm/ksm")
ZRAM_CONTROL = Path("/sys/class/zram-control")


def test_info_is_what_the_machine_is(kmod):
    with Process() as process:
        assert kmod.info.user_end == process.user_end()
    if os.uname().machine == "x86_64":
        assert kmod.info.nr_levels == (5 if kmod.info.user_end > 1 << 47 else 4)
    assert 1 << kmod.info.page_shift == PAGE


def test_a_page_and_its_levels(kmod):
    region = Region(1).touch()
    walk = agree(kmod, region.start + 0x10)
    assert walk.kind is PageKind.PRESENT
    assert walk.page_size_bytes == PAGE
    assert [level.name for level in walk.levels] == ["pgd", "p4d", "pud", "pmd", "pte"]
    assert [level.leaf for level in walk.levels] == [False] * 4 + [True]
    assert walk.levels[1].folded == (kmod.info.nr_levels < 5)
    assert walk.levels[-1].entry & 1
    # Each entry names the table in which the next one lies.
    table_mask = (1 << PROCESSOR.address_bits) - PAGE
    real = [level for level in walk.levels if not level.folded]
    for above, below in itertools.pairwise(real):
        assert above.entry & table_mask == below.address & ~(PAGE - 1)
    assert real[-1].entry & table_mask == walk.paddr & ~(PAGE - 1)


def test_text_rodata_stack_heap_and_vdso(kmod):
    with Process() as process:
        vmas = list(process.iter_vmas())
    nr_present = dict.fromkeys(("r-xp", "r--p", "rw-p", "[heap]", "[stack]", "[vdso]"), 0)
    for vma in vmas:
        name = vma.path if vma.path.startswith("[") else vma.perms
        if name in nr_present and vma.path:
            pages = agree_on_all(kmod, range(vma.start, min(vma.end, vma.start + 50 * PAGE), PAGE))
            nr_present[name] += int((pages["kind"] == PageKind.PRESENT).sum())
    assert all(nr_present.values()), nr_present


@pytest.mark.needs("pfnmap")
def test_vvar_is_seen_by_the_walk_only(kmod):
    vvar = pfnmap_ranges()[0].start
    with Process() as process:
        assert process.translate(vvar).cause is Cause.DEVICE
    ctypes.string_at(vvar, 1)
    assert kmod.walk(vvar).kind is PageKind.PRESENT


def test_the_zero_page_and_prot_none_and_a_hole(kmod):
    region = Region(3)
    region.read(0)
    region.touch(1)
    assert agree(kmod, region.start).kind is PageKind.PRESENT
    assert agree(kmod, region.start + 2 * PAGE).kind is PageKind.NONE
    region.mprotect(0)
    walk = agree(kmod, region.start + PAGE)
    assert walk.kind is PageKind.PROT_NONE
    assert walk.paddr
    assert not walk.levels[-1].entry & 1


@pytest.mark.parametrize("flags", [mmap.MAP_SHARED, mmap.MAP_PRIVATE])
def test_files_and_shared_memory(kmod, tmp_path, flags):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 3 * PAGE)
    with open(path, "r+b") as file:
        from_file = Region(3, flags=flags, fd=file.fileno())
    fd = os.memfd_create("memory")
    os.ftruncate(fd, 3 * PAGE)
    from_memory = Region(3, flags=flags, fd=fd)
    os.close(fd)
    anonymous = Region(3, flags=SHARED)
    for region in (from_file, from_memory, anonymous):
        region.touch(0)
        region.read(1)
        for page in region.pages:
            agree(kmod, page)


@pytest.mark.needs("guard")
def test_a_guard_region(kmod):
    region = Region(2).touch()
    region.madvise(Region.MADV_GUARD_INSTALL)
    assert agree(kmod, region.start).kind is PageKind.MARKER
    with Process(source="kmod") as process:
        assert process.translate(region.start).cause is Cause.GUARD


@pytest.mark.needs("swap")
def test_swapped_pages_are_swapped_to_the_same_place(kmod):
    region = Region(64).touch()
    region.madvise(MADV_PAGEOUT)
    nr_swapped = 0
    for page in region.pages:
        with Process() as process:
            said = process.translate(page)
        walk = kmod.walk(page)
        if said.entry.raw == raw_entry(page) and said.cause is Cause.SWAPPED:
            assert walk.kind is PageKind.SWAP
            assert walk.swap == said.entry.swap
            nr_swapped += 1
    assert nr_swapped > 32, "MADV_PAGEOUT swapped nothing out"


@pytest.fixture
def small_swap():
    """A swap area of 1 MiB with the highest priority, so that its first and last slots are used."""
    number = (ZRAM_CONTROL / "hot_add").read_text().strip()
    Path(f"/sys/block/zram{number}/disksize").write_text("1M")
    device = f"/dev/zram{number}"
    subprocess.run(["mkswap", device], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["swapon", "--priority", "100", device], check=True)
    yield
    subprocess.run(["swapoff", device], check=True)
    (ZRAM_CONTROL / "hot_remove").write_text(number)


@pytest.mark.needs("swap", "zram")
def test_low_offsets_of_a_second_swap_area(kmod, small_swap):
    """Entries store the offset inverted (L1TF): a low one sets the high bits of a frame number."""
    region = Region(1000).touch()
    nr_places = (1 << 20) // PAGE

    def places():
        """The slot of each page in the small swap area."""
        region.madvise(MADV_PAGEOUT)
        pages = agree_on_all(kmod, region.pages)
        swapped = (pages["kind"] == PageKind.SWAP) & (pages["swap"] & 31 == 1)
        found = zip(region.pages, pages["swap"].tolist(), swapped, strict=True)
        return {vaddr: swap >> 5 for vaddr, swap, is_there in found if is_there}

    # The area's header takes place 0.
    wait_for(lambda: {1, nr_places - 1} <= set(places().values()), "the small area is full")
    for vaddr, offset in places().items():
        assert raw_entry(vaddr) & PM_PFRAME_MASK == 1 | offset << 5
        assert kmod.walk(vaddr).swap == (1, offset)


@pytest.mark.needs("thp")
def test_huge_pages_split_ones_and_huge_prot_none(kmod):
    with Region.huge(2) as region:
        region.touch()
        walk = agree(kmod, region.start + 5 * PAGE)
        assert walk.page_size_bytes == HUGE
        assert [level.name for level in walk.levels][-1] == "pmd"
        part = Region.__new__(Region)
        part.start, part.size = region.start, HUGE
        part.mprotect(0)
        walk = agree(kmod, region.start + 7 * PAGE)
        assert walk.kind is PageKind.PROT_NONE
        assert walk.page_size_bytes == HUGE
        part.size = PAGE
        part.mprotect(mmap.PROT_READ)  # splits the mapping
        assert agree(kmod, region.start).page_size_bytes == PAGE
        assert agree(kmod, region.start + PAGE).kind is PageKind.PROT_NONE
        part.size = 0


@pytest.mark.needs("hugetlb")
def test_hugetlb_pages(kmod):
    region = Region(HUGE // PAGE, flags=MAP_HUGETLB | PRIVATE)
    region.touch(0)
    walk = agree(kmod, region.start + 3 * PAGE)
    assert walk.page_size_bytes == HUGE
    region.mprotect(0)
    walk = agree(kmod, region.start + 3 * PAGE)
    assert (walk.kind, walk.page_size_bytes) == (PageKind.PROT_NONE, HUGE)


@pytest.mark.needs("gigantic")
def test_hugetlb_pages_of_1_gib(kmod):
    region = Region(GIGA // PAGE, flags=MAP_HUGETLB | MAP_HUGE_1GB | PRIVATE)
    region.touch(0)
    first = agree(kmod, region.start)
    assert first.paddr % GIGA == 0
    for offset in (3 * PAGE, HUGE, GIGA - 1):
        walk = agree(kmod, region.start + offset)
        assert walk.paddr == first.paddr + offset
        assert (walk.kind, walk.page_size_bytes) == (PageKind.PRESENT, GIGA)
        assert [(level.name, level.leaf) for level in walk.levels][2:] == [("pud", True)]
    (extents,) = (extents.copy() for extents in kmod.iter_extents(region.start, region.end))
    assert extents[["vaddr", "paddr", "length"]].tolist() == [(region.start, first.paddr, GIGA)]
    # A range that starts and ends inside of it, too.
    (extents,) = (e.copy() for e in kmod.iter_extents(region.start + PAGE, region.end - PAGE))
    assert extents[["paddr", "length"]].tolist() == [(first.paddr + PAGE, GIGA - 2 * PAGE)]


@pytest.mark.needs("gigantic")
def test_a_hugetlb_page_of_1_gib_that_is_prot_none(kmod):
    region = Region(GIGA // PAGE, flags=MAP_HUGETLB | MAP_HUGE_1GB | PRIVATE)
    region.touch(0)
    region.mprotect(0)
    walk = agree(kmod, region.start + 7 * PAGE)
    assert (walk.kind, walk.page_size_bytes) == (PageKind.PROT_NONE, GIGA)


@pytest.fixture
def ksm():
    """Starts KSM, which merges equal pages. Its settings are restored afterwards."""
    wanted = {"sleep_millisecs": "1", "pages_to_scan": "1000", "run": "1"}
    before = {name: (KSM / name).read_text() for name in wanted}
    for name, value in wanted.items():
        (KSM / name).write_text(value)
    yield
    for name, value in before.items():
        (KSM / name).write_text(value)


@pytest.mark.needs("ksm", "kpage")
def test_pages_that_ksm_has_merged_are_one_frame_until_one_is_written_to(kmod, ksm):
    region = Region(3).touch()
    first, second, other = region.pages
    # Nobody else's, and touch() writes another first byte.
    content = b"\0" + os.urandom(PAGE - 1)
    for page in (first, second):
        ctypes.memmove(page, content, PAGE)

    def frames():
        return [raw_entry(page) & PM_PFRAME_MASK for page in region.pages]

    assert len(set(frames())) == 3
    region.madvise(MADV_MERGEABLE)
    wait_for(lambda: frames()[0] == frames()[1], "KSM merges two pages")
    assert agree(kmod, first).paddr == agree(kmod, second).paddr != agree(kmod, other).paddr
    assert kpageflags(frames()[0]) >> KPF_KSM & 1
    assert not is_writable(kmod.walk(second).levels[-1].entry)
    region.touch(1)
    assert agree(kmod, first).paddr != agree(kmod, second).paddr


@pytest.mark.needs("compaction")
def test_pages_that_compaction_moves_meanwhile(kmod):
    stop = threading.Event()

    def compact():
        while not stop.is_set():
            Path("/proc/sys/vm/compact_memory").write_text("1")

    thread = threading.Thread(target=compact)
    thread.start()
    common = np.uint64(PM_PRESENT | PM_SWAP | PM_PFRAME_MASK)
    nr_moved = nr_checked = 0

    def look():
        """Walk fragmented memory between two other reads, while compaction moves its pages."""
        nonlocal nr_moved, nr_checked
        region = Region(16_000).touch()
        for start in range(region.start, region.end, 16 * PAGE):
            libc.madvise(start, 12 * PAGE, Region.MADV_DONTNEED)
        vaddrs = np.arange(region.start, region.end, PAGE, dtype=np.uint64)
        with Process() as process:
            for _ in range(5):
                before = process.translate_array(vaddrs).entries
                walked = as_pagemap(vaddrs, kmod.pages(vaddrs))[0]
                after = process.translate_array(vaddrs).entries
                still = (before ^ after) & common == 0
                # What was in migration at the walk had arrived before the second look, or the first
                # look fell into the same migration.
                still &= walked & np.uint64(PM_SWAP) == 0
                assert (walked[still] == after[still] & common).all()
                nr_moved += len(still) - int(still.sum())
                nr_checked += int(still.sum())
        return nr_moved > 0 and nr_checked > 20_000

    try:
        wait_for(look, "compaction moves pages")
    finally:
        stop.set()
        thread.join()


@pytest.mark.needs("hwpoison")
def test_a_page_whose_frame_is_broken(python):
    """The process handles SIGBUS and continues."""
    child = python(
        "import memory, signal\n"
        "signal.signal(signal.SIGBUS, lambda *_: None)\n"
        "region = memory.Region(2).touch()\n"
        f"assert region.madvise({MADV_HWPOISON})\n",
        wait="print(region.start, flush=True)\ninput()",
    )
    start = int(child.stdout.readline())
    with open_kmod(child.pid) as kmod:
        for vaddr in (start, start + PAGE):
            walk = agree(kmod, vaddr, child.pid)
            assert (walk.kind, walk.paddr) == (PageKind.HWPOISON, None)
            kind, frame = walk.swap
            assert raw_entry(vaddr, child.pid) & PM_PFRAME_MASK == kind | frame << 5


def test_above_47_bits(kmod):
    if kmod.info.nr_levels < 5:
        pytest.skip("there is nothing without a fifth level of page tables")
    libc.mmap.restype = ctypes.c_void_p
    high = 1 << (52 if os.uname().machine == "x86_64" else 51)  # arm64 has 52 bits
    address = libc.mmap(high, PAGE, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    assert address == high
    ctypes.memset(address, 1, 1)
    walk = agree(kmod, address)
    assert not walk.levels[1].folded
    assert walk.paddr
    libc.munmap(address, PAGE)
