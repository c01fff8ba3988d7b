# SPDX-License-Identifier: GPL-2.0-or-later
"""All frames of the machine: frames/machine.py, sources/ram.py and physview frames."""

import json
import mmap
import re
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from failures import notes, one_line
from memory import PAGE, Region, kpageflags, pages_within, raw_entry
from users import AS_NOBODY

from physview import AccessDenied
from physview.frames import free_blocks
from physview.frames import machine as frames
from physview.frames.free_blocks import counts_of, find_free_blocks, without_free_blocks
from physview.frames.machine import Use, by_use, use_of
from physview.model import PM_PFRAME_MASK
from physview.sources import ram
from physview.sources.kpage import KpageFile, false_flags
from physview.sources.memory_blocks import MemoryBlock, read_blocks, without_offline
from physview.sources.page_flags import FLAG_BITS, well_known
from physview.sources.ram import (
    Resource,
    Zone,
    parse_iomem,
    parse_zoneinfo,
    ram_ranges,
    read_resources,
    resource_at,
)
from physview.sources.saved_flags import SavedFlags

IOMEM = b"""\
00000000-00000fff : Reserved
00001000-0009fbff : System RAM
0009fc00-000fffff : Reserved
00100000-bfffffff : System RAM
  01000000-02209987 : Kernel code
100000000-13fffffff : PCI Bus 0000:00
  100000000-13fffffff : virtio0
    108000000-10fffffff : System RAM (virtio_mem)
"""


def test_ram_is_whole_frames_also_where_it_was_plugged_in():
    resources = parse_iomem(IOMEM)
    ram = [(low * PAGE, high * PAGE) for low, high in ram_ranges(resources)]
    assert ram == [
        (-(-0x1000 // PAGE) * PAGE, 0x9FC00 // PAGE * PAGE),
        (0x100000, 0xC0000000),
        (0x108000000, 0x110000000),
    ]
    inner = resource_at(resources, 0x108000000)
    assert inner == Resource(0x108000000, 0x110000000, "System RAM (virtio_mem)", 2)
    assert resource_at(resources, 1 << 50) is None


def test_a_machine_without_ram_is_not_taken_for_an_empty_one():
    with pytest.raises(OSError, match="has no 'System RAM'"):
        ram_ranges(parse_iomem(b"0-fff : Reserved\n"))


def test_frames_belong_to_the_zone_they_are_in_and_to_one_only():
    dma, normal = Zone(0, "DMA", 1, 99, 99, 99, 0), Zone(0, "Normal", 100, 900, 900, 900, 0)
    other = Zone(1, "Normal", 500, 1500, 1500, 1500, 0)
    parts = frames.split_by_zones([(0, 300), (400, 3000)], [dma, normal, other])
    assert parts == [
        (None, (0, 1)),
        (dma, (1, 100)),
        (normal, (100, 300)),
        (normal, (400, 500)),
        (other, (500, 2000)),
        (None, (2000, 3000)),
    ]


PMEM = b"""\
Node 0, zone      DMA
  pages free     3840
        spanned  4095
        present  3998
        managed  3840
  start_pfn:           1
Node 0, zone  Movable
  pages free     0
        spanned  0
        present  0
        managed  0
Node 0, zone   Device
  pages free     0
        boost    0
        spanned  65536
        present  0
        managed  0
        cma      0
        protection: (0, 0, 0, 0, 0)
"""


def test_a_zone_that_spans_frames_and_has_none_present():
    """With memmap=256M!1G the zone Device was a KeyError: 'start_pfn'."""
    assert parse_zoneinfo(PMEM) == [Zone(0, "DMA", 1, 4095, 3998, 3840, 3840)]


def make_memory(folder, blocks):
    """Make the folders of /sys/devices/system, for blocks of 128 MiB on node 0.

    Args:
        folder: Where to make them.
        blocks: The state and the zones of each block.
    """
    (folder / "memory").mkdir()
    (folder / "memory" / "block_size_bytes").write_text(f"{1 << 27:x}\n")
    (folder / "node" / "node0").mkdir(parents=True)
    for at, (state, zones) in enumerate(blocks):
        block = folder / "memory" / f"memory{at}"
        block.mkdir()
        (block / "state").write_text(f"{state}\n")
        (block / "valid_zones").write_text(f"{zones}\n")
        (folder / "node" / "node0" / f"memory{at}").symlink_to(block)


def test_blocks_tell_the_zones_that_interleave_and_what_is_offline(tmp_path):
    """Movable was counted with 384 MiB where it had 256."""
    states = ("online", "none"), ("online", "Movable"), ("online", "DMA32"), ("online", "Movable")
    make_memory(tmp_path, [*states, ("offline", "DMA32 Movable")])
    blocks = read_blocks(
        with_zones=True, memory=str(tmp_path / "memory"), nodes=str(tmp_path / "node")
    )
    nr = (1 << 27) // PAGE
    dma = Zone(0, "DMA", 1, nr // 8 - 1, nr // 8 - 1, 0, 0)
    dma32 = Zone(0, "DMA32", nr // 8, 3 * nr - nr // 8, 15 * nr // 8, 0, 0)
    movable = Zone(0, "Movable", nr, 3 * nr, 2 * nr, 0, 0)
    ram = without_offline([(1, 5 * nr)], blocks)
    assert ram == [(1, 4 * nr)]
    parts = frames.split_by_zones(ram, [dma, dma32, movable], blocks)
    assert parts == [
        (dma, (1, nr // 8)),
        (dma32, (nr // 8, nr)),
        (movable, (nr, 2 * nr)),
        (dma32, (2 * nr, 3 * nr)),
        (movable, (3 * nr, 4 * nr)),
    ]
    by_span = frames.split_by_zones(ram, [dma, dma32, movable])
    assert sum(high - low for zone, (low, high) in by_span if zone == movable) == 3 * nr


def test_offline_blocks_are_cut_out_of_ram():
    blocks = [MemoryBlock(at, at + 10, at not in (20, 40), None, 0) for at in range(0, 60, 10)]
    assert without_offline([(5, 25), (28, 45), (50, 55)], blocks) == [(5, 20), (30, 40), (50, 55)]


def test_without_memory_hotplug_there_are_no_blocks(tmp_path):
    assert read_blocks(with_zones=True, memory=str(tmp_path / "none")) == []


def test_a_place_that_looks_free_is_read_whole_if_it_is_unlike_the_others(tmp_path):
    """Eight places of 16 frames. A frame of the last one is used, where nobody looked."""
    nr = 16
    flags = [free_blocks.FREE] * (8 * nr)
    flags[7 * nr] = free_blocks.REPORTED
    flags[7 * nr + 3] = 1 << FLAG_BITS["anon"]
    path = tmp_path / "kpageflags"
    path.write_bytes(struct.pack(f"{len(flags)}Q", *flags))
    places = [(at, flags[at]) for at in range(0, len(flags), nr)]
    with SavedFlags(str(path)) as file:
        assert free_blocks._without_false(file, places, nr) == places[:7]


@pytest.mark.alone("others take and free frames in between")
@pytest.mark.needs("kpage")
def test_free_blocks_have_only_free_frames():
    with KpageFile("kpageflags") as file:
        zones = parse_zoneinfo(Path("/proc/zoneinfo").read_bytes())
        parts = frames.split_by_zones(ram_ranges(read_resources()), zones)
        found = find_free_blocks(file, parts)
        counts = Counter()
        for block in found:
            counts.update(file.count_range(block.first, block.nr))
    told = Counter()
    for more in counts_of(found).values():
        told.update(more)
    assert told.total() == counts.total() == sum(block.nr for block in found)
    # What others took meanwhile are few frames.
    assert sum(abs(told[flags] - counts[flags]) for flags in {*told, *counts}) <= told.total() / 50
    left = list(without_free_blocks(parts, found))
    assert frames.nr_of(part for _, part in left) + told.total() == frames.nr_of(
        part for _, part in parts
    )
    assert all(low < high for _, (low, high) in left)


@pytest.mark.parametrize(
    ("names", "use"),
    [
        ("", Use.OTHER),
        ("compound_tail", Use.OTHER),
        ("nopage", Use.NO_FRAME),
        ("buddy uptodate", Use.FREE),
        ("slab anon ksm", Use.SLAB),  # seen: the same bits mean something else in a slab
        ("reserved zero_page", Use.ZERO_PAGE),
        ("reserved mmap", Use.RESERVED),
        ("anon ksm mmap", Use.KSM),
        ("anon swapbacked swapcache", Use.ANON),
        ("swapbacked lru", Use.SHMEM),
        ("huge mmap compound_head", Use.HUGETLB),
        ("lru uptodate", Use.PAGE_CACHE),
        ("uptodate active mmap", Use.PAGE_CACHE),
        ("hwpoison anon", Use.POISONED),
        ("offline", Use.OFFLINE),
        ("pgtable", Use.PAGE_TABLES),
    ],
)
def test_the_first_rule_that_fits_tells_the_use(names, use):
    flags = sum(1 << FLAG_BITS[name] for name in names.split())
    assert use_of(flags) is use
    assert use_of((1 << 64) - 1) is Use.NO_FRAME


@pytest.fixture
def our_frames():
    """Frames of this process, some of each kind, held while a test runs."""
    anon = Region(3).touch()
    shared = Region(3, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS).touch()
    with open(__file__, "rb") as file:
        region = Region(1, flags=mmap.MAP_SHARED, fd=file.fileno(), prot=mmap.PROT_READ)
    region.read()
    return {Use.ANON: anon, Use.SHMEM: shared, Use.PAGE_CACHE: region}


@pytest.mark.needs("kpage", "pfn")
def test_real_frames_are_what_they_are_used_for(our_frames):
    for use, region in our_frames.items():
        flags = kpageflags(raw_entry(region.start) & PM_PFRAME_MASK) & ~false_flags()
        assert use_of(flags) is use
        assert flags & frames.MAPPED


@pytest.mark.alone("counts the machine's frames twice; others take and free some in between")
@pytest.mark.needs("kpage")
def test_every_frame_of_ram_is_counted_once():
    progress = []
    found = frames.read_machine(progress=lambda *numbers: progress.append(numbers))
    assert found.nr_frames == sum(found.counts.values())
    # Frames of free blocks need not be read one by one.
    assert 0 < progress[-1][0] == progress[-1][1] <= found.nr_frames
    assert [number for number, _ in progress] == sorted(number for number, _ in progress)
    uses = by_use(found.counts)
    assert sum(nr for nr, _ in uses.values()) == found.nr_frames
    assert all(0 <= mapped <= nr for nr, mapped in uses.values())
    # Against the kernel's own counters, within what a machine does in between.
    meminfo = dict(re.findall(r"^(\w+): +(\d+) kB", Path("/proc/meminfo").read_text(), re.M))
    anon = uses[Use.ANON][0] * PAGE // 1024
    assert anon == pytest.approx(int(meminfo["AnonPages"]), rel=0.2, abs=200_000)
    free = sum(zone.zone.nr_free for zone in found.zones if zone.zone)
    in_blocks = sum(
        nr << order for zone in found.zones for order, nr in enumerate(zone.free_blocks)
    )
    assert in_blocks == pytest.approx(free, rel=0.2, abs=50_000)
    assert uses[Use.FREE][0] == pytest.approx(in_blocks, rel=0.2, abs=50_000)


@pytest.mark.alone("counts the machine's frames twice; others take and free some in between")
@pytest.mark.needs("kpage")
def test_several_threads_count_the_same_as_one():
    one = frames.read_machine(nr_threads=1)
    more = frames.read_machine(nr_threads=3)
    assert one.ram == more.ram
    assert one.counts.total() == more.counts.total()
    steady = [Use.RESERVED, Use.ZERO_PAGE]
    assert [by_use(one.counts)[use] for use in steady] == [
        by_use(more.counts)[use] for use in steady
    ]


@pytest.mark.alone("counts the machine's frames twice; others take and free some in between")
@pytest.mark.needs("kpage", "pfn")
def test_memory_that_a_process_takes_is_seen():
    before = by_use(frames.read_machine().counts)[Use.ANON][0]
    nr_pages = pages_within(100_000, 400)
    region = Region(nr_pages).touch()
    after = by_use(frames.read_machine().counts)[Use.ANON][0]
    assert after - before == pytest.approx(nr_pages, abs=nr_pages * 0.6)
    del region


@pytest.mark.alone("counts the machine's frames twice; others take and free some in between")
@pytest.mark.needs("kpage", "page-types")
def test_page_types_counts_the_same(physview):
    # One of theirs between two of ours: what did not change between these must be the same.
    command = ["frames", "--json"]
    first = json.loads(physview(*command).stdout)
    theirs = subprocess.run(["page-types"], capture_output=True, text=True, check=True).stdout
    second = json.loads(physview(*command).stdout)

    def folded(document):
        counts = {}
        for entry in document["flags"]:
            value = well_known(int(entry["value"], 16))
            counts[value] = counts.get(value, 0) + entry["nr_frames"]
        return counts

    one, other = folded(first), folded(second)
    counted = Counter()
    for line in theirs.splitlines():
        if line.startswith("0x"):
            value, nr = line.split()[:2]
            counted[int(value, 16) & ~false_flags()] += int(nr)
    steady = [value for value in one if value and one[value] == other.get(value)]
    assert len(steady) > 5
    wrong = {
        value: (one[value], counted[value]) for value in steady if one[value] != counted[value]
    }
    # What changed to and fro: many frames of few kinds, or few frames of some kinds.
    assert len(wrong) <= len(steady) // 2, wrong
    many = [value for value, (ours, of_theirs) in wrong.items() if abs(ours - of_theirs) > 16]
    assert len(many) <= len(steady) // 5, wrong


@pytest.mark.needs("kpage")
def test_the_report_and_its_document(physview):
    result = physview("frames")
    assert (result.returncode, notes(result)) == (0, "")
    for word in ("used for", "page_cache", "zone", "free blocks"):
        assert word in result.stdout
    assert "more combinations: --all-flags shows all" in result.stdout
    everything = physview("frames", "--all-flags").stdout
    raw = physview("frames", "--all-flags", "--raw").stdout
    assert len(result.stdout.splitlines()) < len(everything.splitlines()) < len(raw.splitlines())
    document = json.loads(physview("frames", "--json").stdout)
    assert sum(entry["nr_frames"] for entry in document["flags"]) == document["nr_frames"]
    assert sum(zone["nr_frames"] for zone in document["zones"]) == document["nr_frames"]
    assert {use["use"] for use in document["uses"]} <= {use.value for use in Use}


@pytest.mark.needs("nobody")
def test_an_unprivileged_user_gets_the_reason_and_the_remedy(physview):
    line = one_line(physview("frames", prefix=AS_NOBODY), 1)
    assert "cannot read /proc/kpageflags" in line
    assert "run as root" in line


@pytest.mark.needs("nobody")
def test_addresses_that_the_kernel_hides_are_not_taken_for_none():
    program = "from physview.sources import ram; ram.read_resources()"
    result = subprocess.run(
        [*AS_NOBODY, sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert AccessDenied.__name__ in result.stderr


@pytest.mark.needs("mountns")
def test_a_kernel_without_kpageflags(physview):
    # With what tells that a /proc is there, and whole.
    hide = 'mount -t tmpfs t /proc && mkdir /proc/self && touch /proc/version && exec "$@"'
    line = one_line(physview("frames", prefix=["unshare", "-m", "sh", "-c", hide, "sh"]), 1)
    assert "built without it" in line


@pytest.mark.needs("mountns", "kpage")
def test_a_kpageflags_that_is_too_short(physview, tmp_path):
    first = ram.ram_ranges(ram.read_resources())[0][0]
    (tmp_path / "short").write_bytes((1 << 10).to_bytes(8, "little") * (first + 2000))
    cut = f'mount --bind {tmp_path}/short /proc/kpageflags && exec "$@"'
    prefix = ["unshare", "-m", "sh", "-c", cut, "sh"]
    document = json.loads(physview("frames", "--json", prefix=prefix).stdout)
    uses = {use["use"]: use["nr_frames"] for use in document["uses"]}
    assert set(uses) == {"free", "no_frame"}
    assert 0 < uses["free"] <= 2000
    assert sum(uses.values()) == document["nr_frames"]
    result = physview("frames", prefix=prefix)
    assert (result.returncode, notes(result)) == (0, "")
    assert "no_frame" in result.stdout
