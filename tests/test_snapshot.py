# SPDX-License-Identifier: GPL-2.0-or-later
"""The columns of a snapshot agree with plain reads of the kernel's files."""

import re
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from memory import NORESERVE, PAGE, PRIVATE, Region, pages_within
from plain_reads import agreed, plain_entries, plain_values
from users import AS_NOBODY

from physview.errors import UsageError
from physview.memory import rows as module
from physview.memory.rows import COLUMNS, iter_each
from physview.memory.snapshot import Snapshot
from physview.model import NO_ENTRY, PM_PFRAME_MASK, PM_PRESENT
from physview.sources.cgroups import cgroup_paths
from physview.sources.kpage import false_flags
from physview.sources.numa import NO_NODE, node_map, nodes_of_blocks
from physview.sources.page_flags import FlagFilter, well_known

IDLE = 1 << 25


def pages_of(snapshot, **options):
    """The columns of each page, by address."""
    return {
        int(page["vaddr"]): page
        for rows in snapshot.iter_extents(**options)
        for pages in iter_each(rows)
        for page in pages
    }


@pytest.mark.alone("others start and end, and the libraries' pages are no longer ours alone")
@pytest.mark.needs("pfn", "kpage")
@pytest.mark.parametrize("chunk_pages", [1 << 16, 100])
def test_every_page_has_what_plain_reads_give(stopped, monkeypatch, chunk_pages):
    monkeypatch.setattr(module, "CHUNK_PAGES", chunk_pages)
    pages = {}

    def entries_of_pages():
        pages.clear()
        pages.update(pages_of(snapshot, columns=COLUMNS, raw=True))
        return {vaddr: int(page["entry"]) for vaddr, page in pages.items()}

    with Snapshot(stopped.pid) as snapshot:
        entries = agreed(lambda: plain_entries(stopped.pid)[0], entries_of_pages)
        vmas = snapshot.vmas
    nodes = node_map()
    nr_wrong_flags = 0
    for vaddr, entry in entries.items():
        page = pages[vaddr]
        assert vaddr in vmas[page["vma"]]
        pfn = entry & PM_PFRAME_MASK
        if entry & PM_PRESENT and pfn:
            assert int(page["pfn"]) == pfn
            assert int(page["swap"]) == NO_ENTRY
            assert int(page["cgroup"]) == plain_values("kpagecgroup", pfn, 1)[0]
            if vmas[page["vma"]].path == "":
                assert int(page["mapcount"]) == plain_values("kpagecount", pfn, 1)[0]
            assert page["node"] == nodes.node_of_block[pfn >> nodes.block_shift] != NO_NODE
            known = plain_values("kpageflags", pfn, 1)[0] & ~false_flags()
            nr_wrong_flags += int(page["flags"]) & ~IDLE != known & ~IDLE
        else:
            assert int(page["pfn"]) == int(page["flags"]) == NO_ENTRY
            assert page["node"] == -1
    assert nr_wrong_flags < len(entries) / 50  # referenced and active change by themselves


@pytest.mark.needs("pfn", "kpage")
def test_extents_are_alike_within_and_different_from_the_next(stopped):
    with Snapshot(stopped.pid) as snapshot:
        rows = np.concatenate(list(snapshot.iter_extents(columns=("flags", "mapcount"))))
    for one, other in pairwise(rows):
        end = int(one["vaddr"]) + int(one["nr_pages"]) * PAGE
        assert end <= int(other["vaddr"])
        if end == int(other["vaddr"]) and one["vma"] == other["vma"]:
            alike = all(one[name] == other[name] for name in ("flags", "mapcount"))
            in_a_row = int(one["entry"]) + int(one["nr_pages"]) == int(other["entry"])
            assert not (alike and in_a_row and int(one["pfn"]) != NO_ENTRY)


@pytest.mark.needs("pfn", "kpage")
def test_chosen_by_flags(stopped):
    where = FlagFilter.parse("anon,!thp")
    with Snapshot(stopped.pid) as snapshot:
        every = pages_of(snapshot, columns=["flags"])
        chosen = pages_of(snapshot, where=where)
    expected = {
        vaddr
        for vaddr, page in every.items()
        if int(page["flags"]) != NO_ENTRY and where.matches(well_known(int(page["flags"])))
    }
    assert len(expected ^ set(chosen)) < len(expected) / 50
    assert 1000 < len(chosen) < len(every)


@pytest.mark.needs("pfn")
def test_a_batch_has_a_constant_size():
    nr_pages = pages_within(300_000, 3000)  # all are the zero page
    region = Region(nr_pages, flags=PRIVATE | NORESERVE)
    for index in range(nr_pages):
        region.read(index)
    with Snapshot() as snapshot:
        (rows,) = snapshot.iter_extents(region.start, region.end)
        assert rows["nr_pages"].tolist() == [nr_pages]
        sizes = [len(pages) for pages in iter_each(rows)]
    assert sum(sizes) == nr_pages
    assert max(sizes) <= module.CHUNK_PAGES


def test_an_unknown_column():
    with Snapshot() as snapshot, pytest.raises(UsageError, match="choose one of flags, mapcount"):
        list(snapshot.iter_extents(columns=["colour"]))
    with pytest.raises(UsageError, match="is no process"):
        Snapshot("selfie")


@pytest.mark.needs("nobody")
def test_nobody_gets_extents_but_no_flags():
    code = """
import mmap
import physview
from physview.memory.snapshot import Snapshot
with Snapshot() as snapshot:
    assert not snapshot.knows_frames
    nr_pages = sum(int(rows["nr_pages"].sum()) for rows in snapshot.iter_extents())
    assert nr_pages * mmap.PAGESIZE > 2 << 20
    try:
        list(snapshot.iter_extents(columns=["flags"]))
    except physview.AccessDenied as error:
        print(error)
"""
    command = [*AS_NOBODY, sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "/proc/kpageflags" in result.stdout


def test_nodes_cover_all_memory():
    nodes = node_map()
    with open("/proc/meminfo") as file:
        total = int(re.search(r"MemTotal: +(\d+)", file.read()).group(1)) * 1024
    covered = sum(node != NO_NODE for node in nodes.node_of_block) << nodes.block_shift
    assert covered * PAGE >= total
    assert set(nodes.nodes) == set(nodes.node_of_block) - {NO_NODE}


@pytest.mark.needs("kpage")
def test_a_block_of_two_nodes_tells_of_neither(tmp_path):
    for name in ("node0/memory0", "node0/memory1", "node1/memory2", "node1/power"):
        (tmp_path / name).mkdir(parents=True)
    assert nodes_of_blocks(str(tmp_path)) == {0: 0, 1: 0, 2: 1}
    (tmp_path / "node1/memory1").mkdir()
    assert nodes_of_blocks(str(tmp_path)) == {}


@pytest.mark.needs("kpage")
def test_our_own_cgroup_is_found_by_its_inode():
    with open("/proc/self/cgroup") as file:
        mine = dict(line.rstrip("\n").split(":", 2)[1:] for line in file)
    region = Region(1).touch()
    with Snapshot() as snapshot:
        (rows,) = snapshot.iter_extents(region.start, region.end, columns=["cgroup"])
    inode = int(rows["cgroup"][0])
    if inode not in (0, NO_ENTRY):
        assert cgroup_paths()[inode] in (mine.get("memory"), mine.get(""))
