# SPDX-License-Identifier: GPL-2.0-or-later
"""Which processes map a frame: frames/owners.py and physview owners."""

import errno
import json
import mmap
import os
import re
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from failures import one_line
from memory import PAGE, Region, raw_entry
from users import AS_NOBODY

from physview import NoUserMemory, ProcessGone, _ffi
from physview.frames import machine as frames
from physview.frames.machine import Use
from physview.frames.owners import find_owners
from physview.sources import ram
from physview.sources.kpage import FRAMES_DTYPE, KpageFile

PFN = (1 << 55) - 1
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def pfn_of(vaddr, pid="self"):
    pfn = raw_entry(vaddr, pid) & PFN
    assert pfn
    return pfn


@pytest.mark.needs("pfn", "kpage")
def test_an_address_and_back_again(physview, python):
    child = python(
        "import memory; r = memory.Region(8).touch(); print(r.start, flush=True)",
        wait="import signal; signal.pause()",
    )
    maps = Path(f"/proc/{child.pid}/maps").read_text()
    start = int(re.search(r"^([0-9a-f]+)-[0-9a-f]+ rw-p .*\[stack\]$", maps, re.M).group(1), 16)
    end = int(re.search(r"-([0-9a-f]+) rw-p .*\[stack\]$", maps, re.M).group(1), 16)
    vaddr = end - 0x108
    assert start < vaddr
    paddr = physview("translate", str(child.pid), hex(vaddr)).stdout.split()[2]
    result = physview("owners", paddr)
    assert (result.returncode, result.stderr.count("Traceback")) == (0, 0)
    first, second = result.stdout.splitlines()
    assert first.startswith(f"{paddr}  pfn:{int(paddr, 16) // PAGE:#x}  anon  ")
    assert second.split()[:4] == [
        str(child.pid),
        Path(f"/proc/{child.pid}/comm").read_text().strip(),
        f"{vaddr:#018x}",
        "rw-p",
    ]
    # The same by its frame number: where the page begins.
    by_pfn = physview("owners", f"pfn:{int(paddr, 16) // PAGE:#x}", "--pid", str(child.pid))
    assert f"{vaddr & -PAGE:#018x}" in by_pfn.stdout


@pytest.mark.needs("pfn", "kpage")
def test_a_shared_page_has_all_its_owners_also_twice_in_one():
    shared = Region(4, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS).touch()
    fd = os.open(__file__, os.O_RDONLY)
    twice = [Region(1, flags=mmap.MAP_SHARED, fd=fd, prot=mmap.PROT_READ) for _ in range(2)]
    for region in twice:
        region.read()
    pid = os.fork()
    if pid == 0:
        shared.touch()
        signal.pause()
    try:
        while not raw_entry(shared.start, pid) >> 63:
            pass
        pfn, cached = pfn_of(shared.start), pfn_of(twice[0].start)
        found = find_owners([(pfn, pfn + 1), (cached, cached + 1)])
        (group,) = found.groups(pfn, pfn + 1)
        assert {(owner.pid, owner.vaddr) for owner in group.owners} == {
            (os.getpid(), shared.start),
            (pid, shared.start),
        }
        assert group.use is Use.SHMEM
        assert all(owner.vma.perms == "rw-s" for owner in group.owners)
        (group,) = found.groups(cached, cached + 1)
        mine = {owner.vaddr for owner in group.owners if owner.pid == os.getpid()}
        assert mine == {region.start for region in twice}
        assert group.owners[0].vma.path == __file__
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(fd)


@pytest.mark.needs("pfn", "kpage")
def test_every_page_of_a_range_is_found_where_a_plain_reader_finds_it():
    region = Region(3000).touch(*range(0, 3000, 2), *range(600, 900))
    expected = {pfn: vaddr for vaddr in region.pages if (pfn := raw_entry(vaddr) & PFN) and vaddr}
    ranges = [(pfn, pfn + 1) for pfn in expected]
    found = find_owners(ranges, [os.getpid()])
    got = {
        owner.pfn + i: owner.vaddr + i * PAGE
        for owner in found.owners
        for i in range(owner.nr_frames)
    }
    assert got == expected
    assert found.nr_processes == 1


@pytest.mark.needs("pfn", "kpage", "thp")
def test_a_frame_in_the_middle_of_a_huge_page():
    with Region.huge(1) as region:
        region.touch()
        head = pfn_of(region.start)
        found = find_owners([(head + 77, head + 79)])
        (group,) = found.groups(head + 77, head + 79)
        (owner,) = group.owners
        assert (owner.pid, owner.vaddr) == (os.getpid(), region.start + 77 * PAGE)
        assert (owner.nr_frames, group.nr_owned) == (2, 2)


@pytest.mark.needs("pfn", "kpage")
def test_the_zero_page_is_one_frame_of_many_pages():
    region = Region(50)
    for index in range(50):
        region.read(index)
    zero = pfn_of(region.start)
    found = find_owners([(zero, zero + 2)], [os.getpid()])
    (owner,) = [owner for owner in found.owners if owner.vaddr == region.start]
    assert (owner.pfn, owner.nr_frames, owner.nr_pages) == (zero, 1, 50)
    # The frame behind it is not taken for the zero page's second.
    assert not [one for one in found.owners if one.pfn == zero + 1 and one.vaddr in region.pages]


@pytest.mark.needs("pfn", "kpage", "cc")
def test_processes_that_share_an_address_space_are_one(compiled):
    child = subprocess.Popen([compiled("sharers")], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        words = child.stdout.readline().split()
        vaddr, other = int(words[0], 16), int(words[1])
        pfn = pfn_of(vaddr, child.pid)
        found = find_owners([(pfn, pfn + 1)])
        if _ffi.load()[1].pv_order_of_mm(child.pid, child.pid) == -errno.ENOSYS:
            pytest.skip("this kernel has no kcmp()")
        (owner,) = found.owners
        assert {owner.pid, *owner.sharers} == {child.pid, other}
        assert owner.vaddr == vaddr & -PAGE
    finally:
        child.communicate()


@pytest.mark.needs("pfn", "kpage")
def test_many_processes_that_map_one_frame_are_many_owners():
    """Forks map the same frames at the same addresses, but share no address space."""
    region = Region(1).touch()
    pids = [os.getpid()]
    try:
        for _ in range(40):
            pids.append(os.fork())
            if pids[-1] == 0:
                signal.pause()
        pfn = pfn_of(region.start)
        found = find_owners([(pfn, pfn + 1)])
        assert [owner.pid for owner in found.owners] == sorted(pids)
        assert not any(owner.sharers for owner in found.owners)
    finally:
        for pid in pids[1:]:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@pytest.mark.needs("pfn", "kpage")
def test_frames_that_no_process_maps(physview):
    beyond = max(high for _, high in _ram()) + (1 << 30)
    result = physview("owners", "0", f"pfn:{beyond:#x}")
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    assert lines[2].startswith(f"{beyond * PAGE:#018x}  pfn:{beyond:#x}  no frame")
    assert lines[3].startswith("  no RAM: ")
    document = json.loads(physview("owners", f"pfn:{beyond:#x}", "--json").stdout)
    (frame,) = document["frames"]
    assert (frame["use"], frame["flags"], frame["owners"]) == ("no_frame", None, [])


@pytest.mark.alone("others may take the frames that were found")
@pytest.mark.needs("pfn", "kpage")
def test_a_free_frame_and_page_tables():
    low, high = max(_ram(), key=lambda span: span[1] - span[0])
    runs = np.array([(low, high - low)], dtype=FRAMES_DTYPE)
    wanted, found = {Use.FREE, Use.PAGE_TABLES, Use.SLAB}, {}
    file = KpageFile("kpageflags")
    for pieces in file.iter_pieces(runs):
        for _, pfn, nr, value in pieces.tolist():
            found.setdefault(frames.use_of(value), (pfn, pfn + nr))
        if wanted <= found.keys():
            break
    file.close()
    ownership = find_owners([found[use] for use in wanted])
    told = {use for span in found.values() for use in [g.use for g in ownership.groups(*span)]}
    assert told & wanted  # those that were not put to another use meanwhile
    for group in (g for use in wanted for g in ownership.groups(*found[use]) if g.use in wanted):
        assert not group.owners or group.use is Use.FREE


def _ram():
    return ram.ram_ranges(ram.read_resources())


@pytest.mark.needs("pfn", "kpage")
def test_processes_that_come_and_go_meanwhile_do_no_harm():
    region = Region(1).touch()
    pfn = pfn_of(region.start)
    storm = subprocess.Popen(["sh", "-c", "while :; do /bin/true; done"], start_new_session=True)
    try:
        for _ in range(10):
            found = find_owners([(pfn, pfn + 1)])
            assert [(owner.pid, owner.vaddr) for owner in found.owners] == [
                (os.getpid(), region.start)
            ]
    finally:
        os.killpg(storm.pid, signal.SIGKILL)
        storm.wait()


def test_without_frames_nothing_is_found():
    if os.access("/proc/kpageflags", os.R_OK):
        assert find_owners([]) == ([], [], 0, 0, 0, "pagemap")


@pytest.mark.needs("pfn", "kpage")
def test_only_the_processes_that_are_asked_for(physview, sleeper):
    region = Region(1).touch()
    pfn = pfn_of(region.start)
    result = physview("owners", f"pfn:{pfn:#x}", "--pid", str(sleeper.pid))
    assert result.returncode == 1
    assert "mapped by other processes, but not by these" in result.stdout
    both = ["--pid", str(sleeper.pid), "--pid", str(os.getpid())]
    document = json.loads(physview("owners", f"pfn:{pfn:#x}", *both, "--json").stdout)
    assert document["nr_processes"] == 2
    (owner,) = document["frames"][0]["owners"]
    assert (owner["pid"], owner["vaddr"]) == (os.getpid(), hex(region.start))
    assert owner["mapping"]["perms"] == "rw-p"


@pytest.mark.needs("pfn", "kpage", "kthread")
def test_a_process_without_memory_that_is_asked_for_is_an_error(physview):
    with pytest.raises(NoUserMemory):
        find_owners([(0, 1)], [2])
    assert "kernel thread" in one_line(physview("owners", "0", "--pid", "2"), 1)


@pytest.mark.needs("pfn", "kpage")
def test_a_pid_that_is_gone(physview):
    with pytest.raises(ProcessGone):
        find_owners([(0, 1)], [4194303])
    assert "no process 4194303" in one_line(physview("owners", "0", "--pid", "4194303"), 1)


@pytest.mark.needs("pfn", "kpage")
def test_a_range_in_few_lines_with_frames_that_do_not_follow_each_other(physview):
    result = physview("owners", f"paddr:{0x100000:#x}-{0x100000 + 64 * PAGE:#x}", "--json")
    frames = json.loads(result.stdout)["frames"]
    assert sum(frame["nr_frames"] for frame in frames) == 64
    at = 0x100000 // PAGE
    for frame in frames:
        assert frame["pfn"] == at
        at += frame["nr_frames"]


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("hello", "'hello' is no frame"),
        ("-5", "is no frame"),
        ("", "is no frame"),
        ("0x", "is no frame"),
        ("5-", "is no frame"),
        ("7-7", "ends before it starts, or is empty"),
        ("0x1fff-0x1000", "ends before it starts"),
        ("pfn:0x1-paddr:0x2000", "one end is a frame number, the other may be an address"),
        ("pfn:0x10000000000000", "more than 64 bits"),
        ("0x10000000000000000", "more than 64 bits"),
        ("pfn:0x0-0x200000", "too many frames"),
    ],
)
def test_invalid_frames_are_refused(physview, word, why):
    assert why in one_line(physview("owners", word), 2)


@pytest.mark.needs("nobody")
def test_an_unprivileged_user_gets_the_reason_and_the_remedy(physview):
    assert "run as root" in one_line(physview("owners", "pfn:0x1", prefix=AS_NOBODY), 1)


@pytest.mark.needs("root", "kpage")
def test_root_without_capabilities_is_not_told_that_nobody_maps_it(physview):
    prefix = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    result = physview("owners", "pfn:0x1", prefix=prefix)
    assert result.returncode == 1
    assert "hide" in one_line(result, 1)
    assert result.stdout == ""
