# SPDX-License-Identifier: GPL-2.0-or-later
"""The count of page tables, against what processes do and what the kernel counts itself."""

import itertools
import json
import os
import re
import subprocess
import sys

import pytest
from actors import OBEY
from failures import one_line
from guests import compile_program
from memory import HUGE, PAGE, kpageflags
from plain_reads import agreed, plain_entries
from screens import PtyRun
from users import AS_NOBODY

import physview
from physview import AccessDenied, NoUserMemory, ProcessGone
from physview.analysis import tables
from physview.analysis.shared_tables import read_tables
from physview.analysis.tables import FILLED, PteCause
from physview.model import PM_PRESENT

pytestmark = pytest.mark.needs("root", "pfn")

PGTABLE = 1 << 26
FULL = PAGE // 8  # the entries of a table
NR = 8 if PAGE < 1 << 16 else 1  # a full block of the largest pages takes 512 MiB
SPAN = HUGE * FULL  # what a pmd table is for: 1 GiB, 64 GiB or 4 TiB
NR_SPANS = 200 if PAGE < 1 << 16 else 20
# Blocks of HUGE for which nothing else has a page table: each is in the middle of a mapping.
BLOCKS = f"""
import ctypes, mmap, os
from memory import *
NR = {NR}
def blocks(flags=PRIVATE | NORESERVE, fd=-1):
    outer = Region((NR + 2) * HUGE // PAGE, flags=flags, fd=fd)
    start = outer.start + -outer.start % HUGE
    return outer, [start + i * HUGE for i in range(NR)]
def touch(block, nr=1, step=1):
    for i in range(0, nr, step):
        ctypes.memset(block + i * PAGE, 1, 1)
def advise(block, nr, advice):
    assert libc.madvise(block, nr * PAGE, advice) == 0, ctypes.get_errno()
"""


class Child:
    """A process that changes its memory on command, and its page tables."""

    def __init__(self, child):
        self.pid, self._child = child.pid, child

    def do(self, line):
        self._child.stdin.write(line + "\n")
        self._child.stdin.flush()
        assert self._child.stdout.readline() == "done\n"

    def measure(self, *lines):
        """Do this, and return what was read before and after.

        It is done twice on other blocks before. So the interpreter takes no more memory for it.
        """
        for _ in range(2):
            for line in lines:
                self.do(line)
            self.do("del outer, found")
            self.do("outer, found = blocks()")
        before = self.read()
        for line in lines:
            self.do(line)
        return before, self.read()

    def read(self):
        (process,) = read_tables([self.pid]).processes
        assert set(process.differences) <= {PteCause.PGD, PteCause.P4D}, process
        found = process.tables.size_bytes + sum(process.differences.values())
        assert found == process.vm_pte_bytes == vm_pte(self.pid)
        return process


@pytest.fixture
def child(python):
    child = Child(python(BLOCKS, wait=OBEY))
    child.do("outer, found = blocks(); touch(found[0]); advise(found[0], 1, 4); del outer")
    child.do("outer, found = blocks()")
    return child


def vm_pte(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmPTE:"))


def level(process, name):
    return next(each for each in process.tables.levels if each.name == name)


def grown(before, after, name="pte"):
    """How many tables a level has more, and of which class each is: the smallest number of filled
    entries."""
    old, new = level(before, name), level(after, name)
    by_class = {
        low: b - a for (low, _), a, b in zip(FILLED, old.filled, new.filled, strict=True) if a != b
    }
    assert sum(by_class.values()) == new.nr_tables - old.nr_tables
    return new.nr_tables - old.nr_tables, by_class


@pytest.mark.needs("bpf")
class TestCounts:
    @pytest.mark.parametrize("nr", [1, 2, 7, 8, 63, 64, FULL // 2 - 1, FULL // 2, FULL - 1, FULL])
    def test_as_many_tables_and_entries_as_were_touched(self, child, nr):
        before, after = child.measure(f"for block in found: touch(block, {nr})")
        smallest = max(low for low, _ in FILLED if low <= nr)
        assert grown(before, after) == (NR, {smallest: NR})
        pages = level(after, "pte").nr_pages - level(before, "pte").nr_pages
        assert pages == NR * nr
        entries = level(after, "pmd").nr_to_table - level(before, "pmd").nr_to_table
        assert entries == NR
        # The blocks may be where there was no pmd table.
        nr_pmd, _ = grown(before, after, "pmd")
        assert after.vm_pte_bytes - before.vm_pte_bytes == (NR + nr_pmd) * PAGE

    def test_one_page_for_each_pmd_table(self, child):
        """The core needs several calls for so many pmd tables: none may be counted twice."""
        each = SPAN // PAGE
        child.do(f"far = Region({NR_SPANS * each}, flags=PRIVATE | NORESERVE)")
        before = child.read()
        child.do(f"for i in range({NR_SPANS}): far.touch(i * {each})")
        after = child.read()
        assert grown(before, after) == (NR_SPANS, {1: NR_SPANS})
        # The first span may have had a pmd table, which then has one entry more.
        nr = level(after, "pmd").nr_tables - level(before, "pmd").nr_tables
        assert nr in (NR_SPANS - 1, NR_SPANS)
        above = [found.levels[-3].nr_to_table for found in (before.tables, after.tables)]
        assert above[1] - above[0] == nr
        for upper, below in itertools.pairwise(after.tables.levels):
            assert below.nr_tables == upper.nr_to_table
        assert level(after, "pgd").nr_tables == 1

    @pytest.mark.needs("kmod")
    def test_the_module_finds_the_same_tables(self, stopped):
        """It walks to each entry of each table, from the root down."""
        (process,) = read_tables([stopped.pid]).processes
        assert [counted(each) for each in process.tables.levels] == walked_tables(stopped.pid)

    def test_pages_that_were_given_back_leave_an_empty_table(self, child, physview):
        """The kernel keeps a table of which pages are discarded one by one."""
        child.do("for block in found: touch(block, 8)")
        before = child.read()
        child.do("[advise(block + i * PAGE, 1, 4) for block in found for i in range(8)]")
        after = child.read()
        assert level(after, "pte").nr_tables == level(before, "pte").nr_tables
        assert level(after, "pte").nr_empty - level(before, "pte").nr_empty == NR
        nr_empty = after.tables.nr_empty
        assert nr_empty >= NR
        text = physview("tables", str(child.pid)).stdout
        assert f"\n{nr_empty} of them are empty, {nr_empty * PAGE // 1024}" in text

    def test_whole_blocks_that_were_given_back(self, child):
        """From Linux 6.14 on (CONFIG_PT_RECLAIM) the kernel frees their tables, before it keeps
        them: its own count says which."""
        child.do(f"for block in found: touch(block, {FULL})")
        before = child.read()
        child.do("advise(found[0], NR * HUGE // PAGE, 4)")
        after = child.read()
        nr_freed = (before.vm_pte_bytes - after.vm_pte_bytes) // PAGE
        assert nr_freed in (0, NR)
        print(f"MADV_DONTNEED of {NR} blocks frees {nr_freed} tables")
        assert level(before, "pte").nr_tables - level(after, "pte").nr_tables == nr_freed
        nr_empty = level(after, "pte").nr_empty - level(before, "pte").nr_empty
        assert nr_empty == NR - nr_freed

    @pytest.mark.needs("swap")
    def test_swapped_pages_keep_their_tables(self, child):
        child.do("for block in found: touch(block, 4)")
        child.do("for block in found: advise(block, 4, Region.MADV_PAGEOUT)")
        (process,) = read_tables([child.pid]).processes
        assert level(process, "pte").nr_swapped >= 2 * NR

    @pytest.mark.needs("guard")
    def test_guards_are_special_entries(self, child):
        line = "for block in found: advise(block, 3, Region.MADV_GUARD_INSTALL)"
        before, after = child.measure(line)
        assert level(after, "pte").nr_special - level(before, "pte").nr_special == 3 * NR
        assert level(after, "pte").nr_pages == level(before, "pte").nr_pages
        assert grown(before, after) == (NR, {2: NR})

    @pytest.mark.needs("kpage")
    def test_they_map_what_pagemap_shows(self, stopped):
        """Both count the pages of a stopped process. pagemap does not show device mappings."""
        devices = device_pages(stopped.pid)

        def plain():
            entries, _ = plain_entries(stopped.pid)
            return sum(entry & PM_PRESENT != 0 for entry in entries.values())

        def ours():
            (process,) = read_tables([stopped.pid]).processes
            return process.tables.mapped_bytes // PAGE - devices

        assert agreed(plain, ours) > 5000

    @pytest.mark.needs("kpage", "thp")
    def test_the_kernel_calls_their_frames_page_tables(self, child):
        """Of pmd tables that lead to no pte table the addresses are known."""
        nr, nr_huge = 4 * SPAN // PAGE, 3 if PAGE < 1 << 16 else 1
        child.do(f"far = Region({nr}, flags=PRIVATE | NORESERVE)")
        child.do(f"advise(far.start, {nr}, Region.MADV_HUGEPAGE)")
        child.do(f"for i in range(1, {nr_huge} + 1): touch((far.start // {SPAN} + i) * {SPAN})")
        process = child.read()
        huge = [table for table in process.leaf_tables if table.nr_filled == 1]
        assert len(huge) >= nr_huge
        for table in huge:
            assert kpageflags(table.paddr // PAGE) & PGTABLE
            assert table.vaddr % SPAN == 0


def counted(found):
    entries = (found.nr_to_table, found.nr_pages, found.nr_swapped, found.nr_special)
    return (found.name, found.nr_tables, *entries, found.filled)


def walked_tables(pid):
    """What `counted()` returns of each level, by walks of the module to each entry."""
    import numpy as np

    from physview.model import PageKind
    from physview.sources.kmod import Kmod
    from physview.sources.procfs import ProcDir

    found = []
    with ProcDir(pid) as proc, Kmod(proc) as walker:
        starts = [0]  # the first address of each table of a level
        for level in walker.geometry().levels:
            numbers, filled, below = np.zeros(4, int), [0] * len(FILLED), []
            for start in starts:
                addresses = start + (np.arange(level.nr_user, dtype=np.uint64) << level.shift)
                pages = walker.pages(addresses)
                kind = pages["kind"]
                leads_on = pages["page_shift"] < level.shift
                is_page = (kind == PageKind.PRESENT) | (kind == PageKind.PROT_NONE)
                used = leads_on | (kind != PageKind.NONE)
                uses = (leads_on, is_page, kind == PageKind.SWAP)
                numbers[0] += np.count_nonzero(leads_on)
                for i, use in enumerate(uses[1:], start=1):
                    numbers[i] += np.count_nonzero(use & ~leads_on)
                numbers[3] += np.count_nonzero(used & ~(uses[0] | uses[1] | uses[2]))
                nr_used = np.count_nonzero(used)
                filled[next(i for i, (_, most) in enumerate(FILLED) if nr_used <= most)] += 1
                below += addresses[leads_on].tolist()
            found.append((level.name, len(starts), *numbers.tolist(), tuple(filled)))
            starts = below
    return found


def device_pages(pid):
    """The number of pages of a process in device mappings: each walked by another source."""
    from physview.sources.bpf import Bpf
    from physview.sources.procfs import MemoryMap, ProcDir

    with ProcDir(pid) as proc, Bpf(proc) as walker:
        memory = MemoryMap(proc)
        return sum(
            int(extents["length"].sum()) // PAGE
            for vma in memory.vmas
            if memory.has_flag(vma, "pf")
            for extents in walker.iter_extents(vma.start, vma.end)
        )


@pytest.mark.needs("bpf")
class TestVmPte:
    def test_it_is_explained_for_memory_of_every_kind(self, stopped):
        (process,) = read_tables([stopped.pid]).processes
        known = {PteCause.PGD, PteCause.P4D}
        assert set(process.differences) <= known
        assert process.vm_pte_bytes == process.tables.size_bytes + sum(process.differences.values())
        assert process.vm_pte_bytes == vm_pte(stopped.pid)

    @pytest.mark.needs("thp")
    def test_a_table_is_deposited_for_each_huge_page(self, child):
        before, after = child.measure(
            "advise(found[0], NR * HUGE // PAGE, Region.MADV_HUGEPAGE)",
            "for block in found: touch(block)",
        )
        assert level(after, "pmd").nr_pages - level(before, "pmd").nr_pages == NR
        assert after.tables.nr_deposited - before.tables.nr_deposited == NR
        nr_pmd, _ = grown(before, after, "pmd")
        assert after.vm_pte_bytes - before.vm_pte_bytes == (NR + nr_pmd) * PAGE
        more = after.tables.mapped_bytes - before.tables.mapped_bytes - NR * HUGE
        assert 0 <= more <= 4 * PAGE  # of the interpreter
        # A split takes the deposited table into use: the number of all tables stays.
        child.do("libc.mprotect(found[0] + PAGE, PAGE, mmap.PROT_READ)")
        split = child.read()
        assert split.tables.nr_deposited == after.tables.nr_deposited - 1
        assert grown(after, split) == (1, {FULL: 1})
        assert split.vm_pte_bytes == after.vm_pte_bytes

    @pytest.mark.needs("thp")
    def test_a_table_is_deposited_for_the_huge_zero_page(self, child):
        before = child.read()
        child.do("advise(found[0], NR * HUGE // PAGE, Region.MADV_HUGEPAGE)")
        child.do("for block in found: ctypes.string_at(block, 1)")
        after = child.read()
        nr_huge = level(after, "pmd").nr_pages - level(before, "pmd").nr_pages
        with open("/sys/kernel/mm/transparent_hugepage/use_zero_page") as file:
            assert nr_huge == (NR if file.read().strip() == "1" else 0)
        assert after.tables.nr_deposited - before.tables.nr_deposited == nr_huge

    @pytest.mark.needs("collapse")
    def test_none_is_deposited_for_a_huge_page_of_shared_memory(self, child):
        # The kernel wants both the address and the file's offset aligned.
        child.do("fd = os.memfd_create('shared'); os.truncate(fd, NR * HUGE)")
        child.do("libc.mmap(found[0], NR * HUGE, RW, mmap.MAP_SHARED | 0x10, fd, 0)")
        before = child.read()
        child.do(f"for block in found: touch(block, {FULL})")
        # The page cache has no folios of 512 MiB, so the kernel refuses MADV_COLLAPSE of them.
        has_huge = PAGE < 1 << 16
        child.do(
            f"assert all(libc.madvise(block, HUGE, 25) == {0 if has_huge else -1}"
            " for block in found)"
        )
        after = child.read()
        nr_huge = level(after, "pmd").nr_pages - level(before, "pmd").nr_pages
        assert nr_huge == (NR if has_huge else 0)
        assert after.tables.nr_deposited == before.tables.nr_deposited

    @pytest.mark.needs("hugetlb")
    def test_none_is_deposited_for_hugetlb(self, child):
        before = child.read()
        child.do("huge = Region(4 * HUGE // PAGE, flags=PRIVATE | HUGETLB)")
        child.do("for i in range(4): huge.touch(i * HUGE // PAGE)")
        after = child.read()
        assert level(after, "pmd").nr_pages - level(before, "pmd").nr_pages == 4
        assert after.tables.nr_deposited == before.tables.nr_deposited

    def test_a_process_that_changes_is_never_unexplained(self, python):
        busy = python(
            BLOCKS + "import threading\n"
            "def churn():\n"
            "    while True:\n"
            "        outer, found = blocks()\n"
            "        for block in found: touch(block, 3)\n"
            "for _ in range(2): threading.Thread(target=churn, daemon=True).start()",
            wait="import time; time.sleep(600)",
        )
        seen = set()
        for _ in range(20):
            (process,) = read_tables([busy.pid]).processes
            seen |= set(process.differences)
        assert PteCause.UNEXPLAINED not in seen

    def test_a_difference_without_a_cause_is_unexplained(self, child, monkeypatch):
        """The kernel makes none that we know of: so its count is changed here."""
        real = tables._vm_pte
        monkeypatch.setattr(tables, "_vm_pte", lambda proc: real(proc) + 3 * PAGE)
        report = read_tables([child.pid])
        assert report.processes[0].differences[PteCause.UNEXPLAINED] == 3 * PAGE
        assert report.nr_unexplained == 1
        pages = iter(range(1000))
        monkeypatch.setattr(tables, "_vm_pte", lambda proc: real(proc) + next(pages) * PAGE)
        report = read_tables([child.pid])
        assert report.processes[0].differences[PteCause.CHANGED] > 0
        assert report.nr_unexplained == 0

    @pytest.mark.needs("cc")
    @pytest.mark.parametrize(
        ("last", "cause"), [((3, 3, 3), PteCause.UNEXPLAINED), ((1, 3, 3), PteCause.CHANGED)]
    )
    def test_a_process_that_comes_to_rest(self, child, monkeypatch, last, cause):
        """Of the ten readings only the last three are the same, or only two."""
        real, extra = tables._vm_pte, (1, 2, 1, 2, 1, 2, 1, *last)
        each_twice = iter([nr for nr in extra for _ in range(2)])
        monkeypatch.setattr(tables, "_vm_pte", lambda proc: real(proc) + next(each_twice) * PAGE)
        (process,) = read_tables([child.pid]).processes
        assert process.differences[cause] == 3 * PAGE

    @pytest.mark.needs("cc")
    @pytest.mark.once("a race")
    def test_a_race_with_all_that_changes_page_tables(self, tmp_path):
        command = [compile_program(tmp_path, "race"), "60", "mutate"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as racing:
            try:
                racing.stdout.readline()
                processes = [read_tables([racing.pid]).processes[0] for _ in range(40)]
            finally:
                racing.kill()
        for process in processes:
            assert process.unexplained_bytes == 0, process
            assert 5 < process.tables.nr_tables < 100_000


@pytest.mark.needs("bpf")
class TestCommand:
    def test_one_process(self, physview, sleeper):
        result = physview("tables", str(sleeper.pid))
        assert (result.returncode, result.stderr) == (0, ""), result
        lines = result.stdout.splitlines()
        assert lines[0].startswith(f"process {sleeper.pid} (python")
        assert lines[-1] == "0 KiB unexplained"
        size, unit = lines[-2].split()[:2]
        assert int(size) * {"KiB": 1024, "bytes": 1}[unit] == vm_pte(sleeper.pid)
        names = [line.split(" ")[0] for line in lines]
        levels = read_tables([sleeper.pid]).processes[0].tables.levels
        assert [names.count(each.name) for each in levels] == [2] * len(levels)

    def test_what_tables_cost(self, physview, child):
        pid = str(child.pid)
        (process,) = json.loads(physview("tables", pid, "--json").stdout)["processes"]
        line = physview("tables", pid).stdout.splitlines()[1]
        told = re.search(
            r"([0-9.]+) KiB of tables per MiB, ([0-9.]+) bytes per ([0-9]+) KiB$", line
        )
        assert int(told[3]) == PAGE // 1024
        per_page = process["size_bytes"] / (process["mapped_bytes"] / PAGE)
        assert float(told[2]) == pytest.approx(per_page, abs=0.06)
        assert float(told[1]) == pytest.approx(per_page / (PAGE // 1024), abs=0.06)

    def test_several_processes(self, physview, sleeper):
        result = physview("tables", str(sleeper.pid), "self")
        assert (result.returncode, result.stderr) == (0, ""), result
        lines = result.stdout.splitlines()
        assert lines[1].split()[0] == str(sleeper.pid)
        assert lines[3].split()[0] == "total"
        assert lines[-1] == "VmPTE is unexplained for 0 of 2 processes"

    @pytest.mark.needs("machine")
    @pytest.mark.parametrize("columns", [80, 100, 160])
    def test_no_line_is_wider_than_the_terminal(self, sleeper, columns):
        for words in (["tables", str(sleeper.pid)], ["tables", "--all"]):
            # A message on stderr may be longer: that of processes that are left out is.
            command = ["sh", "-c", 'exec "$@" 2>/dev/null', "sh", sys.executable, "-m", "physview"]
            with PtyRun([*command, *words], columns=columns, lines=600) as run:
                assert run.wait() == 0
                assert "unexplained" in "".join(run.lines)
                assert run.screen.nr_wraps == 0

    def test_an_unexplained_difference_is_a_failure(self, child, monkeypatch, capsys):
        from physview.commands import main

        real = tables._vm_pte
        monkeypatch.setattr(tables, "_vm_pte", lambda proc: real(proc) - 2 * PAGE)
        assert main(["tables", str(child.pid)]) == 1
        size = f"{2 * PAGE // 1024}"
        assert f"-{size} KiB unexplained" in capsys.readouterr().out
        assert main(["tables", str(child.pid), str(os.getppid())]) == 1
        out = capsys.readouterr().out
        assert f"-{size}K?" in out
        assert f"process {child.pid}: -{size} KiB in VmPTE: unexplained" in out
        assert "VmPTE is unexplained for 2 of 2 processes" in out


class TestErrors:
    @pytest.mark.needs("bpf", "nobody", "machine")
    def test_nobody(self, physview):
        for words in (["self"], ["--all"]):
            line = one_line(physview("tables", *words, prefix=AS_NOBODY), 1)
            assert "run" in line
        assert "CAP_SYS_ADMIN" in one_line(physview("tables", "self", prefix=AS_NOBODY), 1)

    @pytest.mark.needs("bpf")
    def test_a_process_that_cannot_be_read(self, physview, zombie):
        with pytest.raises(NoUserMemory, match="zombie"):
            read_tables([zombie.pid])
        with pytest.raises(ProcessGone):
            read_tables([1 << 22])
        assert "zombie" in one_line(physview("tables", "self", str(zombie.pid)), 1)

    @pytest.mark.needs("bpf", "kthread")
    def test_a_kernel_thread(self, physview):
        assert "kernel thread" in one_line(physview("tables", "2"), 1)

    def test_which_processes(self, physview):
        for words in ((), ("--all", "self")):
            assert "give one PID or more, or --all" in one_line(physview("tables", *words), 2)

    @pytest.mark.needs("bpf")
    def test_the_first_process_that_ends(self, python):
        child = python()
        pid = child.pid
        assert read_tables([pid]).processes[0].pid == pid
        child.kill()
        child.wait()
        with pytest.raises(ProcessGone):
            read_tables([pid])

    def test_it_is_in_the_api(self):
        assert physview.read_tables is read_tables
        assert issubclass(AccessDenied, PermissionError)
