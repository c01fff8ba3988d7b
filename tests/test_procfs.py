# SPDX-License-Identifier: GPL-2.0-or-later
"""The files of a process in /proc."""

import os
import signal
import time

import pytest
from descriptors import open_files
from hypothesis import given
from hypothesis import strategies as st

from physview import NoUserMemory, Process, ProcessGone, Vma
from physview.sources.procfs import (
    MemoryMap,
    ProcDir,
    Stat,
    _in_order,
    parse_maps_line,
    parse_stat,
    parse_vm_flags,
)

names = st.binary(min_size=1, max_size=15).filter(lambda name: b"\0" not in name)


@given(names, st.integers(0, 1 << 32), st.integers(0, 1 << 62))
def test_stat_is_read_whatever_the_process_is_called(name, flags, start_time):
    fields = [b"0"] * 50
    fields[0], fields[6], fields[19], fields[25] = b"R", b"%d" % flags, b"%d" % start_time, b"99"
    fields[7], fields[9], fields[20] = b"5", b"6", b"4096"
    stat = parse_stat(b"12 (" + name + b") " + b" ".join(fields) + b"\n")
    assert stat == ("R", flags, start_time, 99, 5, 6, 4096, os.fsdecode(name))


@pytest.mark.parametrize(
    ("state", "flags", "ended"),
    [("R", 0, False), ("Z", 0, True), ("X", 0, True), ("R", 0x4, True), ("S", 0x400100, False)],
)
def test_a_process_has_ended_from_when_it_begins_to_exit(state, flags, ended):
    assert Stat(state, flags, 0, 0, 0, 0).has_ended is ended


@pytest.mark.parametrize(
    ("line", "vma"),
    [
        (
            b"55d0-55e0 r-xp 00002000 fd:01 1234   /usr/bin/with blank (deleted)\n",
            Vma(0x55D0, 0x55E0, "r-xp", 0x2000, "fd:01", 1234, "/usr/bin/with blank (deleted)"),
        ),
        (b"1000-2000 rw-s 00000000 00:00 0 \n", Vma(0x1000, 0x2000, "rw-s", 0, "00:00", 0, "")),
        (
            b"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0    [vsyscall]\n",
            Vma(0xFFFFFFFFFF600000, 0xFFFFFFFFFF601000, "--xp", 0, "00:00", 0, "[vsyscall]"),
        ),
        (
            b"1000-2000 r--p 0 08:01 7  /tmp/\xff\n",
            Vma(0x1000, 0x2000, "r--p", 0, "08:01", 7, "/tmp/\udcff"),
        ),
    ],
)
def test_a_line_of_maps(line, vma):
    assert parse_maps_line(line) == vma


def test_pfnmaps_are_those_with_the_flag_and_not_those_with_a_name_like_it():
    smaps = [
        *(b"1000-2000 rw-p 00000000 00:00 0 /tmp/pf\n", b"VmFlags: rd wr \n"),
        *(b"3000-4000 rw-s 00000000 00:00 0 /dev/mem\n", b"Size: 4 kB\n", b"VmFlags: rd pf \n"),
    ]
    flags = parse_vm_flags(smaps)
    assert [start for start in flags if "pf" in flags[start]] == [0x3000]


def test_the_map_finds_what_lies_at_an_address():
    proc = ProcDir()
    memory = MemoryMap(proc)
    for vma in memory.vmas:
        assert memory.find(vma.start) == memory.find(vma.end - 1) == vma
    assert memory.find(0) is None
    assert memory.find((1 << 64) - 1) is None
    proc.close()


def test_no_such_process():
    with pytest.raises(ProcessGone, match="no process 4194305") as caught:
        Process(4194305)  # beyond the greatest pid_max
    assert caught.value.pid == 4194305


def test_a_process_that_ends_while_it_is_read(python):
    child = python()
    with Process(child.pid) as process:
        vma = next(process.iter_vmas())
        assert process.translate(vma.start).vaddr == vma.start
        child.kill()
        child.wait()
        for read in (
            lambda: process.translate(vma.start),
            lambda: list(process.iter_vmas()),
            lambda: list(process.iter_range(vma.start, vma.end)),
        ):
            with pytest.raises(ProcessGone, match="ended while it was read"):
                read()


def test_a_process_that_runs_another_program_while_it_is_read(python):
    child = python(wait="input(); import os; os.execvp('sleep', ['sleep', '60'])")
    with Process(child.pid) as process:
        vma = next(process.iter_vmas())
        process.translate(vma.start)
        child.stdin.write("go\n")
        child.stdin.flush()
        while os.readlink(f"/proc/{child.pid}/exe").find("sleep") < 0:
            time.sleep(0.01)
        with pytest.raises(ProcessGone, match="ran another program"):
            process.translate(vma.start)


def test_a_zombie_has_no_memory(zombie):
    with pytest.raises(NoUserMemory, match="zombie"):
        Process(zombie.pid)


@pytest.mark.needs("kthread")
def test_a_kernel_thread_has_no_memory():
    with pytest.raises(NoUserMemory, match="kernel thread") as caught:
        Process(2)
    assert caught.value.pid == 2


def test_a_reused_pid_is_not_taken_for_the_process(python):
    """The open directory is the first process's. The next process with the pid has another one."""
    child = python()
    proc = ProcDir(child.pid)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert proc.stat() is None
    with pytest.raises(ProcessGone):
        proc.read("maps")
    proc.close()


def test_descriptors_are_not_leaked():
    before = open_files()
    for _ in range(3):
        with Process() as process:
            process.translate(0)
            list(process.iter_vmas())
        with pytest.raises(ProcessGone):
            Process(4194305)
    assert open_files() <= before


def test_mappings_that_are_told_of_twice_do_not_overlap():
    """The kernel may list a mapping twice when it merges mappings during the read."""
    areas = [b"1000-3000", b"2000-5000", b"2000-4000", b"6000-7000"]
    vmas = _in_order(parse_maps_line(area + b" r--p 0 0:0 0 \n") for area in areas)
    assert [vma[:2] for vma in vmas] == [(0x1000, 0x3000), (0x3000, 0x5000), (0x6000, 0x7000)]
