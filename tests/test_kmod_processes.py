# SPDX-License-Identifier: GPL-2.0-or-later
"""Module and pagemap agree on other processes: forked, ending, in other pid namespaces."""

import contextlib
import ctypes
import errno
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from failures import one_line, without_vm_note
from kmod_calls import agree, agree_on_all, open_kmod, wait_for
from memory import PAGE, Region
from paths import ROOT
from processor import PROCESSOR, is_writable

from physview import Cause, NoUserMemory, Process, ProcessGone
from physview.model import PageKind
from physview.sources.procfs import ProcDir

pytestmark = pytest.mark.needs("root", "pfn", "kmod")


def test_another_process_and_a_thread_of_it(kmod, python):
    child = python(
        "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()"
    )
    with Process(child.pid) as process, Process(child.pid, source="kmod") as walker:
        for vma in process.iter_vmas():
            pages = range(vma.start, min(vma.end, vma.start + 20 * PAGE), PAGE)
            for said, walked in zip(
                process.translate_many(pages), walker.translate_many(pages), strict=True
            ):
                assert said.cause is Cause.DEVICE or said.paddr == walked.paddr
    thread = max(int(tid) for tid in os.listdir(f"/proc/{child.pid}/task"))
    assert thread != child.pid
    with Process(thread, source="kmod") as walker:
        assert walker.translate(vma.start).vaddr == vma.start


def test_processes_that_have_no_memory(kmod, python):
    with pytest.raises(NoUserMemory, match="kernel thread"), Process(2, source="kmod") as process:
        process.translate(0)
    child = python()
    with Process(child.pid, source="kmod") as process:
        process.translate(0)
        child.kill()
        child.wait()
        with pytest.raises(ProcessGone):
            process.translate(0)


class Child:
    """A forked child that writes to pages on command."""

    def __init__(self):
        to_read, self._tell = os.pipe()
        self._hear, to_write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._tell)
            while address := os.read(to_read, 8):
                ctypes.memset(int.from_bytes(address, "little"), 2, 1)
                os.write(to_write, b".")
            os._exit(0)
        os.close(to_read)
        os.close(to_write)

    def touch(self, vaddr):
        os.write(self._tell, vaddr.to_bytes(8, "little"))
        assert os.read(self._hear, 1) == b"."

    def close(self):
        os.close(self._tell)
        os.close(self._hear)
        os.waitpid(self.pid, 0)


def test_a_fork_has_the_same_frame_until_one_of_the_two_writes(kmod):
    region = Region(3).touch(0, 1)
    first, second, empty = region.pages
    with contextlib.closing(Child()) as child, open_kmod(child.pid) as its_kmod:

        def both(page):
            ours, its = agree(kmod, page), agree(its_kmod, page, child.pid)
            return ours.paddr, its.paddr

        for page in (first, second):
            ours, its = both(page)
            assert ours == its is not None
            for walk in (kmod.walk(page), its_kmod.walk(page)):
                assert not is_writable(walk.levels[-1].entry)  # neither may write without a fault
        before = kmod.walk(first).paddr
        child.touch(first)
        assert both(first)[0] == before != both(first)[1]
        region.touch(1)
        ours, its = both(second)
        assert ours != its
        child.touch(empty)
        ours, its = both(empty)
        assert (ours, its is None) == (None, False)


def test_a_process_whose_first_thread_has_exited(python):
    """Both sources report no memory for the process's pid, but memory for its other thread."""
    child = python(
        "import threading, memory\n"
        "region = memory.Region(4).touch()\n"
        "threading.Thread(target=input).start()",
        wait=f"memory.libc.syscall({PROCESSOR.exit}, 0)",
    )
    wait_for(lambda: ProcDir(child.pid).stat().state == "Z", "the first thread has exited")
    for source in ("pagemap", "kmod", "reference"):
        # Before 6.14 a pagemap without memory can be opened, and ends at once.
        with pytest.raises((NoUserMemory, ProcessGone)), Process(child.pid, source=source) as it:
            it.translate(0x400000)
    (thread,) = (tid for tid in map(int, os.listdir(f"/proc/{child.pid}/task")) if tid != child.pid)
    with open_kmod(thread) as kmod, Process(thread) as process:
        stack = next(vma for vma in process.iter_vmas() if vma.path == "[stack]")
        pages = agree_on_all(kmod, range(stack.start, stack.end, PAGE), thread)
    assert (pages["kind"] == PageKind.PRESENT).any()


def spread(child):
    """The addresses of a child's pages: every second page of a region."""
    return int(child.stdout.readline())


SPREAD = "import memory\nregion = memory.Region(4000).touch(*range(0, 4000, 2))"
TELL = "print(region.start, flush=True)\ninput()"


def test_a_process_that_is_killed_in_the_middle_of_a_walk(python):
    child = python(SPREAD, wait=TELL)
    start = spread(child)
    end = start + 4000 * PAGE
    with open_kmod(child.pid) as kmod:
        pieces = kmod.iter_extents(start, end, nr=100)
        assert len(next(pieces)) == 100
        child.kill()
        child.wait()
        with pytest.raises(ProcessGone):
            list(pieces)
        with pytest.raises(ProcessGone):
            kmod.pages(np.arange(start, end, PAGE, dtype=np.uint64))
        with pytest.raises(ProcessGone):
            kmod.walk(start)


def test_a_process_that_is_killed_at_any_moment_of_a_walk(python):
    """The walk is complete, or an error says that the process is gone. No result is partial."""
    endings = set()
    for nr_before in range(12):
        child = python(SPREAD, wait=TELL)
        start = spread(child)
        with open_kmod(child.pid) as kmod:
            killer = os.fork()
            if killer == 0:
                for _ in range(nr_before * 2000):
                    pass
                os.kill(child.pid, signal.SIGKILL)
                os._exit(0)
            try:
                for _ in itertools.count():
                    found = 0
                    for extents in kmod.iter_extents(start, start + 4000 * PAGE):
                        found += len(extents)
                    assert found == 2000
                    endings.add("whole")
            except (ProcessGone, NoUserMemory):  # the latter until we wait() for it
                endings.add("gone")
            os.waitpid(killer, 0)
    assert "gone" in endings


# Other pid namespaces

IN_A_NAMESPACE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


def only_child(pid):
    """The only child of a process."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


def test_a_process_of_an_inner_pid_namespace_by_its_outer_pid(python):
    outer = python("import memory; region = memory.Region(40).touch()", prefix=IN_A_NAMESPACE)
    pid = only_child(outer.pid)
    assert Path(f"/proc/{pid}/status").read_text().split("NSpid:")[1].split()[:2] == [str(pid), "1"]
    with open_kmod(pid) as kmod, Process(pid) as process:
        nr_present = 0
        for vma in process.iter_vmas():
            if vma.path in ("[stack]", "[heap]"):
                pages = agree_on_all(kmod, range(vma.start, vma.end, PAGE), pid)
                nr_present += int((pages["kind"] == PageKind.PRESENT).sum())
    assert nr_present > 10


def test_in_a_pid_namespace_outer_pids_name_no_process(python, sleeper):
    """In the namespace, a number is a pid of the namespace. Outer processes have none there."""
    code = (
        "import kmod_calls, memory, os\n"
        "region = memory.Region(1).touch()\n"
        "with open('/dev/3000physicalview', 'rb', buffering=0) as device:\n"
        f"    pids = (os.getpid(), 0, {os.getpid()}, {sleeper.pid})\n"
        "    for pid in pids:\n"
        "        print(pid, kmod_calls.walk_errno(device.fileno(), pid, region.start))\n"
    )
    result = subprocess.run(
        [*IN_A_NAMESPACE, sys.executable, "-c", code],
        capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "tests/support")},
    )  # fmt: skip
    answers = [tuple(map(int, line.split())) for line in result.stdout.splitlines()]
    gone = errno.ESRCH
    assert answers == [(1, 0), (0, 0), (os.getpid(), gone), (sleeper.pid, gone)]


def test_commands_in_a_pid_namespace(physview):
    for command in (("memview", "--source", "kmod"), ("compare", "1")):
        result = physview(*command, prefix=IN_A_NAMESPACE)
        assert (result.returncode, without_vm_note(result.stderr)) == (0, ""), result
    line = one_line(physview("walk", str(os.getpid()), "0", prefix=IN_A_NAMESPACE), 1)
    assert "no process" in line


def test_with_the_proc_of_another_pid_namespace_no_process_is_confused_with_another(physview):
    """/proc uses another pid namespace than the module does, so pid 1 names two processes."""
    foreign_proc = IN_A_NAMESPACE[:-1]
    result = physview("compare", "1", prefix=foreign_proc)
    assert "unexplained" not in result.stdout, result
    assert one_line(result, 1)
