# SPDX-License-Identifier: GPL-2.0-or-later
"""Swap, hugetlb and NUMA nodes, which few machines have, in maps, pages, owners, frames and file.

The commands run in the process of the tests: in an emulated VM, a new process takes seconds. Their
output is compared with smaps, numa_maps, move_pages() and the nodes' meminfo.
"""

import json
import mmap
import os
import re
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from memory import HUGE, HUGETLB, PAGE, PRIVATE, SHARED, Region, kpageflags, raw_entries, raw_entry
from plain_reads import smaps

from physview import commands
from physview.model import PM_PFRAME_MASK
from physview.sources.numa import has_hinted_huge_pages, node_map

KIB = 1024
NODES = Path("/sys/devices/system/node")

pytestmark = pytest.mark.needs("pfn", "kpage")


@pytest.fixture
def document(capsys):
    """A function that runs a command in this process and returns its JSON document."""

    def run(*words, code=0):
        capsys.readouterr()
        assert commands.main([*map(str, words), "--json"]) == code
        return json.loads(capsys.readouterr().out)

    return run


def start_of(item):
    return int(item["mapping"]["start"], 16)


def mapping_of(region, document):
    """The mapping in maps' document that starts at a region."""
    (process,) = document["processes"]
    (found,) = [item for item in process["mappings"] if start_of(item) == region.start]
    return found


def apart(nr_pages, **options):
    """A region that the kernel does not merge with its neighbours, so that smaps lists it."""
    outer = Region(nr_pages + 2, prot=0, flags=options.pop("flags", PRIVATE))
    region = Region.__new__(Region)
    region.start, region.size = outer.start + PAGE, nr_pages * PAGE
    region.mprotect(mmap.PROT_READ | mmap.PROT_WRITE)
    region.outer = outer
    return region


@pytest.mark.needs("swap")
def test_swapped_pages(document):
    region = apart(2000).touch()
    region.madvise(Region.MADV_PAGEOUT)
    region.read(1000)  # comes back, and perhaps some beside it
    fields = smaps("self")[region.start]
    found = mapping_of(region, document("maps", "self"))
    assert found["swapped_bytes"] == fields["Swap"] > 1000 * PAGE
    assert found["resident_bytes"] == fields["Rss"] >= PAGE
    assert found["special_bytes"] == 0
    area = f"{region.start:#x}-{region.end:#x}"
    extents = document("pages", "self", area)["extents"]
    places = {}
    for item in extents:
        if item["swap"]:
            assert (item["cause"], item["pfn"]) == ("swapped", None)
            for i in range(item["nr_pages"]):
                place = item["swap"]["type"] | item["swap"]["offset"] + i << 5
                places[int(item["vaddr"], 16) + i * PAGE] = place
    entries = raw_entries(region)
    expected = {v: entry & PM_PFRAME_MASK for v, entry in entries.items() if entry >> 62 & 1}
    assert places == expected
    assert len(places) * PAGE == fields["Swap"]
    summary = document("pages", "self", area, "--summary")
    assert (summary["nr_swapped"], summary["nr_special"]) == (len(places), 0)


def hugetlb(kind, nr_huge=2):
    return Region(nr_huge * HUGE // PAGE, flags=kind | HUGETLB)


@pytest.mark.needs("swap")
def test_shared_memory_that_is_swapped_out_counts(document):
    region = Region(2000, flags=SHARED).touch()
    region.madvise(Region.MADV_PAGEOUT)
    expected = smaps("self")[region.start]["Swap"]
    assert mapping_of(region, document("maps", "self"))["swapped_bytes"] == expected > 1000 * PAGE
    (process,) = document("maps", "self", "-o", "start,swap")["processes"]
    (found,) = [item for item in process["mappings"] if item["start"] == hex(region.start)]
    assert found["swap"] == expected


@pytest.mark.needs("hugetlb")
@pytest.mark.parametrize("kind", [PRIVATE, SHARED], ids=["private", "shared"])
def test_huge_pages_that_were_set_aside(document, kind):
    region = hugetlb(kind).touch(5)
    pfn = raw_entry(region.start) & PM_PFRAME_MASK
    fields = smaps("self")[region.start]
    found = mapping_of(region, document("maps", "self"))
    total = fields["Private_Hugetlb"] + fields["Shared_Hugetlb"]
    assert found["hugetlb_bytes"] == found["huge_bytes"] == total == HUGE
    assert found["resident_bytes"] == fields["Rss"] == 0
    assert (found["anon_huge_bytes"], found["nr_extents"]) == (0, 1)
    assert found["contiguous"][str(HUGE)] == found["alignment_bytes"] == HUGE
    assert all(not folios["pmd_bytes"] for folios in found["folios"].values())
    assert sum(found["nodes"].values()) == HUGE

    (item,) = document("pages", "self", f"{region.start:#x}-{region.end:#x}", "--raw")["extents"][
        :1
    ]
    assert (item["pfn"], int(item["vaddr"], 16)) == (pfn, region.start)
    assert {"huge", "compound_head"} <= set(item["flags"])
    area = f"{region.start:#x}-{region.end:#x}"
    extents = document("pages", "self", area, "--columns", "flags,mapcount")["extents"]
    assert sum(item["nr_pages"] for item in extents) == HUGE // PAGE
    assert all("huge" in item["flags"] for item in extents)
    assert {item["mapcount"] for item in extents} == {1}

    frame = document("owners", f"pfn:{pfn + 77:#x}", "--pid", os.getpid())["frames"][0]
    assert (frame["pfn"], frame["use"]) == (pfn + 77, "hugetlb")
    assert [(owner["pid"], owner["vaddr"]) for owner in frame["owners"]] == [
        (os.getpid(), hex(region.start + 77 * PAGE))
    ]


@pytest.mark.needs("hugetlb")
def test_the_pools_are_counted_whole(document):
    region = hugetlb(PRIVATE).touch(5)
    pools = 0
    for pool in Path("/sys/kernel/mm/hugepages").iterdir():
        size = int(re.findall(r"\d+", pool.name)[0]) * KIB
        pools += int((pool / "nr_hugepages").read_text()) * size
    found = document("frames")
    uses = {use["use"]: use for use in found["uses"]}
    assert uses["hugetlb"]["nr_frames"] * PAGE == pools
    assert uses["hugetlb"]["nr_mapped"] * PAGE >= HUGE
    assert region.size


@pytest.mark.needs("gigantic")
def test_a_page_of_a_gib(document):
    size = 1 << 30
    region = Region(size // PAGE, flags=PRIVATE | HUGETLB | 30 << 26).touch(0)
    found = mapping_of(region, document("maps", "self"))
    assert found["hugetlb_bytes"] == found["largest_bytes"] == size
    assert (found["nr_extents"], found["contiguous"][str(size)]) == (1, size)
    pfn = (raw_entry(region.start) & PM_PFRAME_MASK) + 200_000
    frame = document("owners", f"pfn:{pfn:#x}", "--pid", os.getpid())["frames"][0]
    assert frame["owners"][0]["vaddr"] == hex(region.start + 200_000 * PAGE)


@pytest.mark.needs("hugetlb")
def test_a_file_of_huge_pages_is_refused(capsys):
    """mincore() reports only pages that this process maps, so the result would always be zero."""
    fd = os.memfd_create("huge", os.MFD_HUGETLB)
    os.ftruncate(fd, 2 * HUGE)
    region = Region(2 * HUGE // PAGE, flags=mmap.MAP_SHARED, fd=fd).touch(3)
    assert commands.main(["file", f"/proc/self/fd/{fd}"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "it is in hugetlbfs" in said
    os.close(fd)
    assert region.size


def numa_maps(pid):
    """The bytes of each mapping on each node, by the mapping's start."""
    found = {}
    for line in Path(f"/proc/{pid}/numa_maps").read_text().splitlines():
        size = re.search(r" kernelpagesize_kB=(\d+)", line)
        if size:
            nodes = re.findall(r" N(\d+)=(\d+)", line)
            found[int(line.split()[0], 16)] = {
                node: int(nr) * int(size[1]) * KIB for node, nr in nodes
            }
    return found


@pytest.mark.needs("nodes")
def test_the_nodes_of_each_mapping_are_those_of_numa_maps(document, stopped):
    expected = numa_maps(stopped.pid)
    found = document("maps", stopped.pid)
    (process,) = found["processes"]
    # Of the kernel's own pages, [vvar] and [vdso], numa_maps counts some and leaves out others.
    mappings = [
        item for item in process["mappings"] if not item["mapping"]["path"].startswith("[v")
    ]
    ours = {start_of(item): item["nodes"] for item in mappings}
    assert ours == {start: expected.get(start, {}) for start in ours}
    assert {"0": 200 * PAGE, "1": 200 * PAGE} in ours.values()


@pytest.mark.needs("nodes")
def test_the_node_of_each_page_is_what_the_kernel_says_of_it(document):
    region = apart(300)
    region.bind(0, 1)
    region.touch(*range(0, 300, 3))
    expected = dict(zip(region.pages, region.nodes(), strict=True))
    area = f"{region.start:#x}-{region.end:#x}"
    for options in ((), ("--each",)):
        extents = document("pages", "self", area, "--columns", "node", *options)["extents"]
        found = {
            int(item["vaddr"], 16) + i * PAGE: item["node"]
            for item in extents
            for i in range(item["nr_pages"])
        }
        assert found == {vaddr: node for vaddr, node in expected.items() if node >= 0}
    assert Counter(found.values()) == {0: 50, 1: 50}


def meminfo(node):
    text = (NODES / f"node{node}/meminfo").read_text()
    return {name: int(nr) * KIB for name, nr in re.findall(r"(\S+): +(\d+) kB", text)}


@pytest.mark.needs("nodes")
def test_frames_by_node_are_those_of_the_nodes_own_account(document):
    def anon_by_node(found):
        total = Counter()
        for zone in found["zones"]:
            uses = {use["use"]: use["nr_frames"] for use in zone["uses"]}
            total[zone["node"]] += uses.get("anon", 0)
        return total

    before = document("frames")
    region = Region(20_000)
    region.bind(1)
    region.touch()
    after = document("frames")
    for node in node_map().nodes:
        zones = [zone for zone in after["zones"] if zone["node"] == node]
        managed = sum(zone["nr_managed"] for zone in zones) * PAGE
        assert managed == meminfo(node)["MemTotal"]
        free = sum(zone["nr_free"] for zone in zones) * PAGE
        assert free == pytest.approx(meminfo(node)["MemFree"], abs=32 << 20)
        anon = anon_by_node(after)[node] * PAGE
        assert anon == pytest.approx(meminfo(node)["AnonPages"], abs=32 << 20)
    grown = anon_by_node(after)
    grown.subtract(anon_by_node(before))
    assert grown[1] == pytest.approx(20_000, abs=4000)
    assert abs(grown[0]) < 4000
    assert kpageflags(raw_entry(region.start) & PM_PFRAME_MASK)


@pytest.mark.needs("nodes", "thp")
def test_huge_pages_that_wait_for_a_numa_hint_are_counted(capsys, document, python):
    """smaps of Linux 6.1 leaves them out: 96 MiB were missing without a word."""
    balancing = Path("/proc/sys/kernel/numa_balancing")
    before = balancing.read_text()
    # It does not touch the memory while it spins, so the hints stay.
    child = python(
        "import mmap\n"
        "m = mmap.mmap(-1, 96 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "m.madvise(mmap.MADV_HUGEPAGE)\n"
        "m[::4096] = bytes(len(m) // 4096)",
        wait="while True: pass",
    )
    try:
        balancing.write_text("1")
        for name, value in (("scan_delay_ms", 1), ("scan_period_min_ms", 100)):
            Path("/sys/kernel/debug/sched/numa_balancing", name).write_text(str(value))
        # Later kernels do not look at memory that the process does not use, and leave nothing out.
        leaves_out = (6, 1) <= tuple(map(int, os.uname().release.split(".")[:2])) < (6, 6)
        end = time.monotonic() + 120
        while leaves_out and not has_hinted_huge_pages():
            assert time.monotonic() < end
            time.sleep(0.5)
        time.sleep(5)  # for all of them
        child.send_signal(signal.SIGSTOP)
        (found,) = document("maps", child.pid)["processes"]
        assert found["total"]["huge_bytes"] >= 90 << 20
        assert found["total"]["resident_bytes"] >= 96 << 20
        told = sum(sizes["Rss"] for sizes in smaps(child.pid).values())
        capsys.readouterr()
        assert commands.main(["maps", str(child.pid), "-o", "rss,huge,name"]) == 0
        is_short = told < 90 << 20
        assert is_short == leaves_out
        assert ("wait for a NUMA hint" in capsys.readouterr().err) == is_short
    finally:
        balancing.write_text(before)
