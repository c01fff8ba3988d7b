# SPDX-License-Identifier: GPL-2.0-or-later
"""Walks with the tables on the way: read by each source, against what processes do."""

import os
import signal

import pytest
from memory import HUGE, PAGE, Region, raw_entry

from physview import PhysviewError, ProcessGone
from physview.analysis.walked_addresses import check_address, first_addresses, read_walks
from physview.model import PM_PFRAME_MASK, Cause, PageKind, Probe
from physview.sources.choice import open_page_tables
from physview.sources.page_tables import PageTables
from physview.sources.procfs import ProcDir
from physview.sources.table_geometry import EntryUse, make_geometry

X86 = make_geometry(4, (1 << 47) - 4096, page_shift=12, machine="x86_64")
# A block of 2 MiB for which nothing else has a page table, in the middle of a mapping.
BLOCK = """
import ctypes
from memory import *
outer = Region(3 * HUGE // PAGE, flags=PRIVATE | NORESERVE)
block = outer.start + -outer.start % HUGE
for i in (0, 3, 4, 511):
    ctypes.memset(block + i * PAGE, 1, 1)
with open("/proc/self/comm", "w") as comm:
    comm.write(f"{block:x}")
"""


@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.needs(name)) for name in ("kmod", "bpf")]
)
def source(request):
    """Who walks the page tables."""
    return request.param


def walks_of(pid, source, *vaddrs):
    with ProcDir(pid) as proc, open_page_tables(proc, source) as tables:
        return read_walks(proc, tables, [Probe("", vaddr) for vaddr in vaddrs]).addresses


@pytest.mark.needs("root", "pfn")
def test_a_table_has_the_entries_of_the_pages_that_were_touched(obedient_python, source):
    child = obedient_python(BLOCK)
    with open(f"/proc/{child.pid}/comm") as comm:
        block = int(comm.read(), 16)
    (found,) = walks_of(child.pid, source, block + 3 * PAGE + 5)
    lowest = found.levels[-1]
    assert (lowest.level.name, lowest.taken) == ("pte", 3)
    assert lowest.table.nr_used == 4
    used = [i for i, use in enumerate(lowest.table.uses) if use is EntryUse.PAGE]
    assert used == [0, 3, 4, 511]
    frame = raw_entry(block + 3 * PAGE, child.pid) & PM_PFRAME_MASK
    assert found.walk.paddr == frame * PAGE + 5
    for level, below in zip(found.levels, found.levels[1:], strict=False):
        assert level.table.uses[level.taken] is EntryUse.TABLE
        assert level.read.entry & 0xFFFFFFFFFF000 == below.table_paddr
    assert found.vma.start <= block < found.vma.end
    assert found.cause is None


def agreed_table(tables, vaddr, depth):
    """A table as both methods read it. The kernel ages and moves pages even while a process is
    stopped."""
    for _ in range(20):
        table = tables.read_table(vaddr, depth)
        walked = PageTables.read_table(tables, vaddr, depth)
        if tables.read_table(vaddr, depth) == table:
            break
    assert walked == table
    return table


@pytest.mark.needs("root", "pfn", "bpf")
def test_a_copied_table_is_what_single_walks_find(stopped):
    """The program copies a table whole. The method that `kmod` uses walks to each entry of it."""
    with ProcDir(stopped.pid) as proc, open_page_tables(proc, "bpf") as tables:
        geometry = tables.geometry()
        nr, uses = 0, set()
        for probe in first_addresses(proc, tables):
            for depth in range(len(geometry.levels)):
                table = agreed_table(tables, probe.vaddr, depth)
                nr += table is not None
                uses |= set(table.uses if table else ())
        assert nr > 20
        assert {EntryUse.EMPTY, EntryUse.TABLE, EntryUse.PAGE} <= uses


@pytest.mark.needs("root", "pfn")
def test_the_addresses_of_mapped_files_have_pages(stopped, source):
    with ProcDir(stopped.pid) as proc, open_page_tables(proc, source) as tables:
        probes = first_addresses(proc, tables)
        found = read_walks(proc, tables, probes).addresses
    labels = [probe.label for probe in probes]
    assert len(set(labels)) == len(labels)
    assert {"[heap]", "[stack]", "libc.so.6", "[anonymous]"} <= set(labels)
    for each in found:
        name = each.vma.path.rpartition("/")[2] or "[anonymous]"
        assert each.label == name
        if name in ("[heap]", "[stack]", "libc.so.6"):
            assert each.walk.paddr is not None, each


@pytest.mark.needs("root", "pfn")
def test_where_a_walk_ends_early_and_why(source):
    with Region.huge(1) as huge:
        huge.touch()
        kept = Region(4).touch(0, 1, 2)
        kept.madvise(Region.MADV_DONTNEED)
        faulting = Region(1).touch()
        faulting.mprotect(0)
        absent, unmapped, inside, locked = walks_of(
            "self", source, kept.start, PAGE, huge.start + 0x12345, faulting.start
        )
        assert (absent.cause, absent.walk.kind) == (Cause.ABSENT, PageKind.NONE)
        assert absent.vma.start <= kept.start < absent.vma.end
        assert (unmapped.cause, unmapped.vma) == (Cause.UNMAPPED, None)
        assert (locked.walk.kind, locked.cause) == (PageKind.PROT_NONE, None)
        assert locked.levels[-1].table.uses[locked.levels[-1].taken] is EntryUse.PAGE
        if huge.is_huge():
            assert (inside.levels[-1].level.name, inside.walk.page_size_bytes) == ("pmd", HUGE)
            assert inside.levels[-1].table.uses[inside.levels[-1].taken] is EntryUse.PAGE


@pytest.mark.needs("root", "pfn", "swap")
def test_a_page_in_swap(source):
    region = Region(64).touch()
    region.madvise(Region.MADV_PAGEOUT)
    swapped = [each for each in walks_of("self", source, *region.pages) if each.walk.swap]
    if not swapped:
        pytest.skip("the kernel swapped nothing out")
    assert swapped[0].cause is Cause.SWAPPED
    lowest = swapped[0].levels[-1]
    assert lowest.table.uses[lowest.taken] is EntryUse.SWAP


@pytest.mark.needs("root", "pfn", "guard")
def test_a_guard(source):
    region = Region(4).touch()
    region.madvise(Region.MADV_GUARD_INSTALL)
    (found,) = walks_of("self", source, region.start)
    assert (found.cause, found.walk.kind) == (Cause.GUARD, PageKind.MARKER)
    assert found.levels[-1].table.uses[found.levels[-1].taken] is EntryUse.SPECIAL


@pytest.mark.needs("root", "pfn")
def test_a_process_that_ends_meanwhile(python, source):
    child = python()
    with ProcDir(child.pid) as proc, open_page_tables(proc, source) as tables:
        (probe, *_) = first_addresses(proc, tables)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        with pytest.raises(ProcessGone):
            read_walks(proc, tables, [probe])


@pytest.mark.parametrize(
    ("vaddr", "message"),
    [
        (0xFFFF800000000000, "kernel's half.*below 0x7ffffffff000"),
        (0xFFFFFFFFFF600000, "kernel's half"),
        (0x4200_7F00_1234_5678, "pointer with a tag, or no address; without these bits it is 0x7f"),
        (1 << 47, "pointer with a tag, or no address"),
        ((1 << 47) - 1, "no user address; give an address below 0x7ffffffff000"),
    ],
)
def test_addresses_that_no_table_of_user_space_is_for(vaddr, message):
    with pytest.raises(PhysviewError, match=message):
        check_address(X86, vaddr)
    check_address(X86, X86.user_end - 1)


@pytest.mark.parametrize(
    ("page_shift", "nr_levels", "bits", "indices", "folded"),
    [
        (12, 4, 48, [9, 9, 9, 9], ("p4d",)),
        (12, 3, 39, [9, 9, 9], ("p4d", "pud")),
        (12, 5, 52, [4, 9, 9, 9, 9], ()),
        (14, 4, 48, [1, 11, 11, 11], ("p4d",)),
        (14, 3, 47, [11, 11, 11], ("p4d", "pud")),
        (16, 3, 52, [10, 13, 13], ("p4d", "pud")),
        (16, 2, 42, [13, 13], ("p4d", "pud", "pmd")),
    ],
)
def test_layouts_of_arm64(page_shift, nr_levels, bits, indices, folded):
    """As in Documentation/arch/arm64/memory.rst."""
    geometry = make_geometry(nr_levels, 1 << bits, page_shift=page_shift, machine="aarch64")
    assert [level.index_bits for level in geometry.levels] == indices
    assert geometry.folded == folded
    assert geometry.address_bits == bits == page_shift + sum(indices)
    assert all(level.nr_user == level.nr_entries for level in geometry.levels)
    vaddr = (1 << bits) - 1
    assert all(level.index_of(vaddr) == level.nr_entries - 1 for level in geometry.levels)
