# SPDX-License-Identifier: GPL-2.0-or-later
"""The page tables of several processes: what they share, and all processes of the machine."""

import contextlib
import json
import os
import signal
import subprocess

import pytest
from memory import PAGE, kpageflags

from physview.analysis.shared_tables import read_tables
from physview.analysis.tables import PteCause

pytestmark = pytest.mark.needs("root", "pfn", "bpf")

PGTABLE = 1 << 26


@pytest.mark.needs("cc")
def test_tables_of_one_address_space_count_once(compiled, sleeper):
    program = [compiled("sharers")]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as one:
        other = int(one.stdout.readline().split()[1])
        report = read_tables([one.pid, other, sleeper.pid])
        one.stdin.close()
    first, second, third = report.processes
    assert first.root == second.root != third.root
    same = [each.same_memory_as for each in report.processes]
    assert same == [None, one.pid, None]
    assert second.vm_pte_bytes == first.vm_pte_bytes
    assert report.total.nr_tables == first.tables.nr_tables + third.tables.nr_tables
    assert report.shared == []


def test_a_process_that_is_named_twice_counts_once(sleeper):
    pids = ["self", sleeper.pid, os.getpid(), sleeper.pid]
    report = read_tables(pids)
    assert [each.pid for each in report.processes] == [os.getpid(), sleeper.pid]
    tables = sum(each.tables.nr_tables for each in report.processes)
    assert report.total.nr_tables == tables


@pytest.mark.needs("hugetlb")
@pytest.mark.needs("x86_64")  # with 64 KiB, a table maps more than a process here has
def test_a_table_that_mappings_of_hugetlb_share(python):
    """Two mappings of one process, and one of another: all of one aligned gigabyte."""
    code = (
        "import ctypes, mmap, os\nfrom memory import *\ndef gigabyte(fd):\n"
        "    outer = libc.mmap(None, 2 << 30, 0, PRIVATE | NORESERVE, -1, 0)\n"
        "    start = outer + -outer % (1 << 30)\n"
        "    flags = mmap.MAP_SHARED | 0x10 | NORESERVE\n"
        "    assert libc.mmap(start, 1 << 30, RW, flags, fd, 0) == start\n"
        "    ctypes.memset(start, 1, 1)\n"
        "    ctypes.memset(start + 9 * HUGE, 1, 1)\n"
        "    return start\n"
    )
    make = (
        "fd = os.memfd_create('shared', 4)\n"  # MFD_HUGETLB
        "os.truncate(fd, 1 << 30)\n"
        "print(fd, gigabyte(fd), gigabyte(fd), flush=True)\n"
    )
    first = python(code, wait=make + "input()")
    fd, *starts = map(int, first.stdout.readline().split())
    use = f"fd = os.open('/proc/{first.pid}/fd/{fd}', os.O_RDWR)\n"
    second = python(code, wait=use + "print(gigabyte(fd), flush=True)\ninput()")
    start = int(second.stdout.readline())
    report = read_tables([first.pid, second.pid])
    (table,) = report.shared
    places = [(first.pid, starts[0]), (first.pid, starts[1]), (second.pid, start)]
    assert sorted(map(tuple, table.places)) == sorted(places)
    assert (table.level, table.nr_filled) == ("pmd", 2)
    assert kpageflags(table.paddr // PAGE) & PGTABLE
    alone = sum(each.tables.nr_tables for each in report.processes)
    assert report.total.nr_tables == alone - 2
    for process in report.processes:  # the kernel counts a shared table in each
        assert set(process.differences) <= {PteCause.PGD, PteCause.P4D}
    os.kill(second.pid, signal.SIGKILL)
    os.waitid(os.P_PID, second.pid, os.WEXITED | os.WNOWAIT)
    (table,) = read_tables([first.pid]).shared
    assert [place.vaddr for place in table.places] == sorted(starts)


def test_all_processes(physview):
    result = physview("tables", "--all", "--json")
    assert result.returncode == 0, result
    document = json.loads(result.stdout)
    assert bool(document["nr_denied"]) == (" left out: you may not" in result.stderr)
    assert document["nr_unexplained"] == 0
    processes = document["processes"]
    assert len({each["pid"] for each in processes}) == len(processes) > 1
    sizes = [each["size_bytes"] for each in processes]
    assert sizes == sorted(sizes, reverse=True)
    once = sum(each["nr_tables"] for each in processes if each["same_memory_as"] is None)
    saved = sum(len(table["places"]) - 1 for table in document["shared"])
    total = document["total"]
    assert total["nr_tables"] == once - saved
    if os.uname().machine == "x86_64":  # elsewhere the root may be smaller than a page
        assert total["size_bytes"] == total["nr_tables"] * PAGE
    for each in [*processes, total]:
        in_tree = sum(level["nr_tables"] for level in each["levels"])
        assert each["nr_tables"] == in_tree + each["nr_deposited"]
        for found in each["levels"]:
            assert sum(part["nr_tables"] for part in found["filled"]) == found["nr_tables"]
    for each in processes:
        differences = sum(part["bytes"] for part in each["differences"])
        assert each["vm_pte_bytes"] == each["size_bytes"] + differences


def test_a_machine_with_changing_processes():
    """Processes start and end while all are read."""
    with contextlib.ExitStack() as stack:
        command = ["sh", "-c", "while :; do sleep 0.01; done"]
        for _ in range(2):
            child = stack.enter_context(subprocess.Popen(command))
            stack.callback(child.kill)
        for _ in range(5):
            report = read_tables()
            assert report.nr_unexplained == 0
            assert len(report.processes) > 2
