# SPDX-License-Identifier: GPL-2.0-or-later
"""The walk of page tables by a BPF program, against pagemap, on this kernel."""

import ctypes
import errno
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from guests import compile_program
from memory import HUGE, NORESERVE, PAGE, PRIVATE, Region, libc, raw_entries, raw_entry
from paths import ROOT

from physview import NoUserMemory, ProcessGone
from physview.model import PM_PFRAME_MASK, PageKind
from physview.sources.bpf import Bpf
from physview.sources.pagemap import Pagemap
from physview.sources.procfs import ProcDir

pytestmark = pytest.mark.needs("root", "pfn")


@pytest.fixture
def walker():
    with ProcDir("self") as proc, Bpf(proc) as opened:
        yield opened


@pytest.mark.needs("clang", "machine")
def test_the_committed_program_is_made_of_its_source(tmp_path):
    made = tmp_path / "walk_program.h"
    command = [sys.executable, ROOT / "scripts/build_bpf.py", made]
    subprocess.run(command, check=True)
    assert made.read_text() == (ROOT / "csrc/bpf/walk_program.h").read_text()


def frames(region):
    return [entry & PM_PFRAME_MASK for entry in raw_entries(region).values()]


@pytest.mark.needs("bpf")
class TestPages:
    def test_in_any_order_and_one_by_one(self, walker):
        region = Region(2000).touch(*range(0, 2000, 2))
        vaddrs = np.array(list(region.pages), dtype=np.uint64)
        np.random.default_rng(7).shuffle(vaddrs)
        vaddrs = np.concatenate([vaddrs, [0, 1 << 46, (3 << 55) + PAGE]]).astype(np.uint64)
        for _ in range(20):  # until the kernel moves no page meanwhile
            entries = raw_entries(region)
            pages = walker.pages(vaddrs)
            if entries == raw_entries(region):
                break
        for vaddr, page in zip(vaddrs[:-3].tolist(), pages[:-3], strict=True):
            entry = entries[vaddr]
            assert page["paddr"] // PAGE == entry & PM_PFRAME_MASK
            present = PageKind.PRESENT if entry >> 63 else PageKind.NONE
            assert page["kind"] == present
        kinds = [PageKind.NONE, PageKind.NONE, PageKind.BEYOND]
        assert pages[-3:]["kind"].tolist() == kinds
        for i in (0, 1, -1):
            (page,) = walker.pages(vaddrs[i : i + 1 or None])
            has_moved = i >= 0 and raw_entry(vaddrs[i].item()) != entries[vaddrs[i].item()]
            assert page == pages[i] or has_moved

    def test_pages_that_fault(self, walker):
        region = Region(600).touch()
        expected = frames(region)
        region.mprotect(0)
        pages = walker.pages(np.array(list(region.pages), dtype=np.uint64))
        assert set(pages["kind"].tolist()) == {PageKind.PROT_NONE}
        assert (pages["paddr"] // PAGE).tolist() == expected

    @pytest.mark.needs("guard")
    def test_guards(self, walker):
        region = Region(10).touch()
        region.madvise(Region.MADV_GUARD_INSTALL)
        pages = walker.pages(np.array(list(region.pages), dtype=np.uint64))
        assert set(pages["kind"].tolist()) == {PageKind.MARKER}

    @pytest.mark.needs("thp")
    def test_huge_pages(self, walker):
        with Region.huge(2) as region:
            region.touch()
            assert region.is_huge()
            walk = walker.walk(region.start + 5 * PAGE + 7)
            assert (walk.kind, walk.page_size_bytes) == (PageKind.PRESENT, HUGE)
            assert walk.levels[-1].name == "pmd"
            assert walk.levels[-1].leaf
            expected = (raw_entry(region.start + 5 * PAGE) & PM_PFRAME_MASK) * PAGE + 7
            assert walk.paddr == expected
            extents = np.concatenate(
                [each.copy() for each in walker.iter_extents(region.start, region.end)]
            )
            assert extents["length"].sum() == region.size
            assert set(extents["page_shift"].tolist()) == {HUGE.bit_length() - 1}


@pytest.mark.needs("bpf")
class TestExtents:
    def test_they_are_what_single_addresses_are(self, walker):
        region = Region(3000).touch(*range(0, 3000, 3), *range(1000, 1600))
        entries = raw_entries(region)
        expected = {v: entry & PM_PFRAME_MASK for v, entry in entries.items() if entry >> 63}
        found = {}
        for extents in walker.iter_extents(region.start, region.end, nr=7):
            for extent in extents:
                for offset in range(0, int(extent["length"]), PAGE):
                    vaddr = int(extent["vaddr"]) + offset
                    assert vaddr not in found
                    found[vaddr] = (int(extent["paddr"]) + offset) // PAGE
        assert found == expected

    def test_what_is_reserved_costs_nothing(self, walker):
        """A terabyte with four pages; without skipping it would be 2**28 entries."""
        region = Region(1 << 28, flags=PRIVATE | NORESERVE)
        wanted = [0, 1, 1 << 20, (1 << 28) - 1]
        region.touch(*wanted)
        start = time.process_time()
        extents = [e.copy() for e in walker.iter_extents(region.start, region.end)]
        assert time.process_time() - start < 2
        pages = np.concatenate(extents)
        assert int(pages["length"].sum()) == 4 * PAGE
        assert walker.next_populated(region.start + 2 * PAGE, region.end) == (
            region.start + (1 << 20) * PAGE
        )


@pytest.mark.needs("bpf")
class TestProcesses:
    def test_another_process_and_its_end(self, sleeper):
        with ProcDir(sleeper.pid) as proc, Bpf(proc) as walker, Pagemap(proc) as pagemap:
            vma = next(proc.iter_vmas())
            vaddrs = np.array([vma.start], dtype=np.uint64)
            entries, paddrs = np.empty((2, 1), dtype=np.uint64)
            pagemap.fill(vaddrs, entries, paddrs)
            assert walker.pages(vaddrs)["paddr"][0] == paddrs[0]
            sleeper.kill()
            sleeper.wait()
            for ask in (walker.pages, lambda _: walker.walk(vma.start)):
                with pytest.raises(ProcessGone):
                    ask(vaddrs)

    def test_a_kernel_thread_and_a_zombie(self, python):
        child = python()
        os.kill(child.pid, 9)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(NoUserMemory), ProcDir(child.pid) as proc, Bpf(proc):
            pass

    def test_threads_walk_at_once(self):
        """Each thread uses its own program."""
        region = Region(4000).touch()
        vaddrs = np.array(list(region.pages), dtype=np.uint64)
        expected = frames(region)
        wrong = []

        def walk():
            with ProcDir("self") as proc, Bpf(proc) as walker:
                for _ in range(50):
                    found = (walker.pages(vaddrs)["paddr"] // PAGE).tolist()
                    if found != expected and found != frames(region):
                        wrong.append(found)

        threads = [threading.Thread(target=walk) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


RACE_SECONDS = int(os.environ.get("PHYSVIEW_RACE_SECONDS", "4"))


@pytest.mark.alone("it moves the pages of all processes")
@pytest.mark.needs("bpf", "cc")
@pytest.mark.timeout(900 if RACE_SECONDS < 600 else 10800)
@pytest.mark.once("a race")
def test_a_race_with_all_that_changes_page_tables(tmp_path):
    """No entry is invalid, extents are in order, and pages at rest keep their frames."""
    seconds = RACE_SECONDS
    command = [compile_program(tmp_path, "race"), str(seconds + 30), "mutate"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            start, end = (int(word, 16) for word in child.stdout.readline().split())
            nr_walked, kinds, wrong = race_against(child.pid, start, end, seconds)
        finally:
            child.kill()
    print(f"{nr_walked} walked, {len(wrong)} bad: {kinds}")
    assert not wrong
    assert not kinds & {PageKind.BAD, PageKind.BEYOND}
    assert nr_walked > 1000 * seconds


def race_against(pid, start, end, seconds):
    rng = np.random.default_rng(seconds)
    nr_walked, kinds, wrong = 0, set(), []
    with ProcDir(pid) as proc, Bpf(proc) as walker, Pagemap(proc) as pagemap:
        at_rest = next(vma.start for vma in proc.iter_vmas() if vma.path.endswith("/race"))
        still = np.array([at_rest], dtype=np.uint64)
        before, after, ignored = np.empty((3, 1), dtype=np.uint64)
        stop = time.monotonic() + seconds
        while time.monotonic() < stop:
            last = start
            for extents in walker.iter_extents(start, end):
                nr_walked += len(extents)
                kinds |= set(np.unique(extents["kind"]).tolist())
                ends = extents["vaddr"] + extents["length"]
                if extents["vaddr"][0] < last or (extents["vaddr"][1:] < ends[:-1]).any():
                    wrong.append("not in order")
                last = int(ends[-1])
            vaddrs = rng.integers(start, end, 256, dtype=np.uint64)
            pages = walker.pages(vaddrs)
            kinds |= set(np.unique(pages["kind"]).tolist())
            nr_walked += len(pages)
            pagemap.fill(still, ignored, before)
            found = walker.pages(still)[0]
            pagemap.fill(still, ignored, after)
            # A migration that the kernel gives up leaves the page where it was.
            has_moved = found["kind"] == PageKind.MIGRATION or before[0] != after[0]
            if not has_moved and found["paddr"] != after[0]:
                wrong.append(f"{found} is {after[0]:#x}")
    return nr_walked, kinds, wrong


BPF_PROG_GET_NEXT_ID = 11
SYS_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]


def loaded_programs():
    """The ids of all BPF programs that are loaded. Source: include/uapi/linux/bpf.h"""
    found, number = set(), 0
    while True:
        attributes = (ctypes.c_uint32 * 32)(number)
        size = ctypes.sizeof(attributes)
        if libc.syscall(SYS_BPF, BPF_PROG_GET_NEXT_ID, ctypes.byref(attributes), size):
            assert ctypes.get_errno() == errno.ENOENT
            return found
        number = attributes[1]
        found.add(number)


@pytest.mark.alone("other tests load programs, too")
@pytest.mark.needs("bpf")
@pytest.mark.parametrize("ending", ["", "os.kill(os.getpid(), 9)"])
def test_nothing_stays_loaded(ending):
    before = loaded_programs()
    code = (
        "import os\n"
        "from physview.sources.bpf import Bpf\n"
        "from physview.sources.procfs import ProcDir\n"
        "walker = Bpf(ProcDir('self'))\n"
        "print('loaded', flush=True)\n"
        "input()\n"
    )
    command = [sys.executable, "-c", code + ending]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "loaded\n"
        assert loaded_programs() - before
        child.stdin.write("\n")
    deadline = time.monotonic() + 10  # the kernel frees them a little later
    while loaded_programs() - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not loaded_programs() - before
