# SPDX-License-Identifier: GPL-2.0-or-later
"""Walks by BPF of processes that are odd: huge, empty, shared, in a namespace of their own."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
from failures import one_line
from kmod_calls import wait_for
from memory import PAGE

from physview import ProcessGone
from physview.sources.bpf import Bpf
from physview.sources.procfs import ProcDir

pytestmark = pytest.mark.needs("bpf")

# A child of vfork() shares its parent's memory, and the parent waits until it ends.
VFORK = """
#define _DEFAULT_SOURCE
#include <stdio.h>
#include <unistd.h>
int main(void)
{
	if (vfork() == 0) {
		char line[32];
		int length = snprintf(line, sizeof(line), "%d\\n", getpid());

		if (write(1, line, length) == length)
			pause();
		_exit(0);
	}
	return 0;
}
"""


def compare(physview, pid):
    """Compare a process; return its verdicts."""
    result = physview("compare", str(pid), "--source", "bpf", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert document["sources"] == ["pagemap", "bpf"]
    assert document["nr_unexplained"] == 0
    return {verdict["verdict"]: verdict["nr_pages"] for verdict in document["verdicts"]}


def test_sixty_thousand_mappings(physview, python):
    """Every second page may be written: no two neighbours are one mapping."""
    nr = 60_000
    child = python(
        f"from memory import PAGE, Region, libc; region = Region({nr}).touch()\n"
        f"for i in range(0, {nr}, 2): libc.mprotect(region.start + i * PAGE, PAGE, 1)\n"
    )
    with open(f"/proc/{child.pid}/maps", "rb") as maps:
        assert maps.read().count(b"\n") > nr - 1000
    assert compare(physview, child.pid)["same_frame"] > nr


def test_a_hundred_tebibytes_of_which_three_pages_are_used(physview, python):
    child = python(
        "import memory\n"
        "nr = (100 << 40) // memory.PAGE\n"
        "region = memory.Region(nr, flags=memory.PRIVATE | memory.NORESERVE)\n"
        "region.touch(0, nr // 2, nr - 1)\n"
    )
    before = os.times()
    assert 3 < compare(physview, child.pid)["same_frame"] < 20_000
    used = os.times()
    # A look at each of the 50 million ranges of 2 MiB would take minutes.
    assert used.children_user + used.children_system - sum(before[2:4]) < 20


@pytest.mark.needs("cc")
def test_a_child_of_vfork(physview, tmp_path):
    source, program = tmp_path / "vfork.c", tmp_path / "vfork"
    source.write_text(VFORK)
    subprocess.run(["cc", "-o", program, source], check=True)
    with subprocess.Popen([program], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        try:
            assert compare(physview, pid) == compare(physview, parent.pid)
        finally:
            os.kill(pid, signal.SIGKILL)


def test_a_thread(physview, python):
    """The kernel has a folder for each thread, which shows the process's memory."""
    child = python(
        "import threading, time\n"
        "thread = threading.Thread(target=time.sleep, args=(600,), daemon=True)\n"
        "thread.start()\n",
    )
    (thread,) = {int(name) for name in os.listdir(f"/proc/{child.pid}/task")} - {child.pid}
    assert compare(physview, thread)["same_frame"] * PAGE > 2 << 20


@pytest.mark.needs("mountns")
def test_a_pid_of_another_namespace(physview):
    """Within it process 1 is its first process, and processes of the machine have no pid."""
    own = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    shell = f"{sys.executable} -m physview compare 1 --source bpf --json"
    result = subprocess.run(
        [*own, "sh", "-c", f"{shell}; readlink /proc/1/exe"],
        capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    document, _, program = result.stdout.rpartition("}\n")
    assert json.loads(document + "}")["nr_unexplained"] == 0
    assert re.search(r"/(ba|da)?sh$", program.strip())
    refused = physview("walk", str(os.getpid()), "0", "--source", "bpf", prefix=own)
    assert f"no process {os.getpid()}" in one_line(refused, 1)


def test_a_process_that_runs_another_program(python):
    child = python(wait="import os; input(); os.execvp('sleep', ['sleep', '600'])")
    with ProcDir(child.pid) as proc, Bpf(proc) as walker:
        vma = next(proc.iter_vmas())
        assert list(walker.iter_extents(vma.start, vma.end))
        child.stdin.write("\n")
        child.stdin.flush()
        wait_for(lambda: "sleep" in os.readlink(f"/proc/{child.pid}/exe"), "it runs sleep")
        # The address space that was opened is gone. That of sleep is another one.
        with pytest.raises(ProcessGone, match="exec"):
            list(walker.iter_extents(vma.start, vma.end))
