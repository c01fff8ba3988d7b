# SPDX-License-Identifier: GPL-2.0-or-later
"""Physical addresses are right: shared memory has equal ones, and other memory has not.

Every test uses both sources, the compiled core and the reference.
"""

import ctypes
import mmap
import os
import signal
import subprocess

import pytest
from memory import HUGE, PAGE, SHARED, Region, kpageflags, pfnmap_ranges, raw_entry

from physview import Cause, Process
from physview.model import PM_MMAP_EXCLUSIVE

pytestmark = pytest.mark.needs("pfn")

KPF_MMAP, KPF_ANON, KPF_THP, KPF_ZERO_PAGE = 1 << 11, 1 << 12, 1 << 22, 1 << 24


@pytest.fixture(params=["pagemap", "reference"])
def process(request):
    with Process("self", source=request.param) as process:
        yield process


def paddr(process, vaddr):
    translation = process.translate(vaddr)
    assert translation.paddr is not None, translation
    return translation.paddr


def ask_child(question):
    """Run `question` in a forked child and return the number that it returns."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, str(question()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        result = int(answer.read())
    os.waitpid(pid, 0)
    return result


def own_paddr(source, vaddr):
    with Process("self", source=source) as process:
        return paddr(process, vaddr)


def test_the_offset_in_the_page_is_kept(process):
    region = Region(1).touch()
    assert paddr(process, region.start + 0x123) == paddr(process, region.start) + 0x123


def test_a_shared_page_mapped_twice_is_one_frame(process):
    fd = os.memfd_create("shared")
    os.ftruncate(fd, PAGE)
    one, two = (Region(1, flags=mmap.MAP_SHARED, fd=fd) for _ in range(2))
    os.close(fd)
    one.touch()
    two.read()
    assert one.start != two.start
    assert paddr(process, one.start) == paddr(process, two.start)


def test_two_private_pages_are_two_frames(process):
    region = Region(2).touch()
    assert paddr(process, region.start) != paddr(process, region.start + PAGE)


def test_fork_shares_a_frame_until_one_side_writes(process):
    region = Region(1).touch()
    before = paddr(process, region.start)

    def read_then_write():
        region.read()
        shared = own_paddr(process.source, region.start)
        region.touch(value=2)
        return int(shared == before and own_paddr(process.source, region.start) != before)

    assert ask_child(read_then_write) == 1
    assert paddr(process, region.start) == before


def test_shared_memory_stays_shared_over_fork_and_writing(process):
    region = Region(1, flags=SHARED).touch()

    def write():
        region.touch(value=2)
        return own_paddr(process.source, region.start)

    assert ask_child(write) == paddr(process, region.start)


def test_a_pagemap_inherited_over_fork_shows_the_parent(process):
    region = Region(1).touch()
    before = paddr(process, region.start)

    def write_and_look_through_the_parents():
        region.touch(value=2)
        return paddr(process, region.start)

    assert ask_child(write_and_look_through_the_parents) == before


def test_mremap_moves_the_address_and_keeps_the_frame(process):
    region = Region(2).touch()
    start, frames = region.start, [paddr(process, page) for page in region.pages]
    region.move()
    assert region.start != start
    assert [paddr(process, page) for page in region.pages[:2]] == frames
    assert process.translate(start).paddr is None


def test_a_fresh_private_file_page_is_the_page_caches_frame(process, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * PAGE)
    fd = os.open(path, os.O_RDWR)
    private = Region(1, flags=mmap.MAP_PRIVATE, fd=fd)
    cached = Region(1, flags=mmap.MAP_SHARED, fd=fd)
    os.close(fd)
    private.read(), cached.read()
    assert paddr(process, private.start) == paddr(process, cached.start)
    private.touch()
    assert paddr(process, private.start) != paddr(process, cached.start)


@pytest.mark.needs("kpage")
def test_untouched_pages_that_are_read_are_all_the_zero_page(process):
    region = Region(2)
    region.read(0), region.read(1)
    frames = {paddr(process, page) for page in region.pages}
    assert len(frames) == 1
    assert kpageflags(frames.pop() // PAGE) & KPF_ZERO_PAGE


def test_a_prot_none_page_keeps_its_frame(process):
    region = Region(1).touch()
    before = paddr(process, region.start)
    region.mprotect(0)
    assert paddr(process, region.start) == before


@pytest.mark.needs("guard")
def test_a_guard_region_is_called_one(process):
    region = Region(2).touch()
    region.madvise(Region.MADV_GUARD_INSTALL)
    assert process.translate(region.start).cause is Cause.GUARD


def test_what_was_never_touched_or_given_back_is_absent(process):
    region = Region(2).touch(0)
    assert process.translate(region.start + PAGE).cause is Cause.ABSENT
    region.madvise(Region.MADV_DONTNEED)
    assert process.translate(region.start).cause is Cause.ABSENT


def test_what_was_unmapped_is_unmapped(process):
    region = Region(3).touch()
    start = region.start
    del region
    translation = process.translate(start)
    assert translation.cause is Cause.UNMAPPED
    assert translation.vma is None


@pytest.mark.needs("pfnmap")
def test_vvar_is_a_device_mapping(process):
    vvar = pfnmap_ranges()[0].start
    translation = process.translate(vvar)
    assert translation.cause is Cause.DEVICE
    assert translation.vma.start == vvar


# arm64 ignores the top byte of a pointer, so that bit 55 tells the kernel's addresses.
HALVES = [1 << 63, 1 << 57] if os.uname().machine == "x86_64" else [1 << 55, 0xFFFF << 48]


@pytest.mark.parametrize("vaddr", [(1 << 64) - 1, 0xFFFFFFFFFF600000, *HALVES])
def test_kernel_addresses_are_beyond(process, vaddr):
    assert process.translate(vaddr).cause is Cause.BEYOND


@pytest.mark.needs("thp")
def test_a_huge_page_is_512_frames_in_a_row(process):
    with Region.huge(1) as region:
        region.touch(0)
        assert region.is_huge()
        frames = [paddr(process, page) for page in region.pages]
    assert frames[0] % HUGE == 0
    assert frames == list(range(frames[0], frames[0] + HUGE, PAGE))


@pytest.mark.needs("kpage")
def test_the_frames_own_flags_say_what_it_is(process, tmp_path):
    anonymous = Region(1).touch()
    path = tmp_path / "file"
    path.write_bytes(b"x" * PAGE)
    with open(path, "rb") as file:
        from_file = Region(1, flags=mmap.MAP_PRIVATE, fd=file.fileno())
    from_file.read()
    flags = kpageflags(paddr(process, anonymous.start) // PAGE)
    assert flags & KPF_ANON
    assert flags & KPF_MMAP
    flags = kpageflags(paddr(process, from_file.start) // PAGE)
    assert not flags & KPF_ANON
    assert flags & KPF_MMAP
    assert "file" in process.translate(from_file.start).entry.flags
    assert "file" not in process.translate(anonymous.start).entry.flags


def test_dd_of_the_raw_file_agrees(process):
    region = Region(1).touch()
    dd = [
        "dd",
        f"if=/proc/{os.getpid()}/pagemap",
        "bs=8",
        "count=1",
        f"skip={region.start // PAGE}",
    ]
    raw = subprocess.run(dd, check=True, capture_output=True).stdout
    translation = process.translate(region.start)
    assert int.from_bytes(raw, "little") == translation.entry.raw == raw_entry(region.start)
    assert translation.pfn == translation.entry.raw & ((1 << 55) - 1)


def test_what_is_written_through_one_address_is_read_at_its_frame_through_another(process):
    """Two addresses of one frame have the same content."""
    fd = os.memfd_create("shared")
    os.ftruncate(fd, 2 * PAGE)
    window = Region(2, flags=mmap.MAP_SHARED, fd=fd)
    other = Region(1, flags=mmap.MAP_SHARED, fd=fd, offset=PAGE)
    os.close(fd)
    window.touch(0, value=65), window.touch(1, value=66)
    same = [
        p
        for p in window.pages
        if paddr(process, p) == (other.read() and paddr(process, other.start))
    ]
    assert [ctypes.string_at(page, 1) for page in same] == [b"B"]


def without_sharers(answer):
    """A translation without the bit that changes when another process maps the page."""
    raw = answer.entry and answer.entry.raw & ~PM_MMAP_EXCLUSIVE
    return answer.vaddr, answer.paddr, answer.cause, raw


def test_core_and_reference_agree_on_a_stopped_process(sleeper):
    os.kill(sleeper.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, sleeper.pid, os.WSTOPPED | os.WNOWAIT)
    with Process(sleeper.pid) as core, Process(sleeper.pid, source="reference") as reference:
        assert (core.source, reference.source) == ("pagemap", "reference")
        pages = [p for vma in core.iter_vmas() for p in range(vma.start, vma.end, PAGE)]
        answers = core.translate_many(pages)
        expected = reference.translate_many(pages)
    assert list(map(without_sharers, answers)) == list(map(without_sharers, expected))
    assert sum(answer.paddr is not None for answer in answers) > 50
    assert {answer.cause for answer in answers} >= {None, Cause.ABSENT}
