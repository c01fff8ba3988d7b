# SPDX-License-Identifier: GPL-2.0-or-later
"""physview compare: a walk of the page tables against pagemap, for whole processes."""

import contextlib
import json
import mmap
import os
import re
import signal

import numpy as np
import pytest
from conftest import CAPABILITIES
from failures import one_line
from kmod_calls import wait_for
from memory import PAGE, Region, pages_within, pfnmap_ranges

from physview import AccessDenied, ProcessGone
from physview.analysis.agreement_pass import AgreementPass
from physview.analysis.compare import Comparer, Verdict
from physview.sources.choice import open_page_tables
from physview.sources.procfs import ProcDir

pytestmark = pytest.mark.needs("root", "pfn", "walk")

MADV_PAGEOUT = 21


@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.needs(name)) for name in ("kmod", "bpf")]
)
def source(request):
    """Who walks the page tables."""
    return request.param


@contextlib.contextmanager
def comparer_of(pid="self", source="auto"):
    """Compare by all sources that walk here: in VMs that is pagemap with both walks."""
    working = [name for name in ("kmod", "bpf") if CAPABILITIES[name][0]()]
    with ProcDir(pid) as proc, Comparer(proc, source=source) as comparer:
        assert comparer.sources == ["pagemap", *(working if source == "auto" else [source])]
        yield comparer


def compare(pid="self"):
    with comparer_of(pid) as comparer:
        return comparer.compare()


def test_every_kind_of_page_is_counted_by_its_verdict(python):
    """An idle process that has more pages of each kind than a bare interpreter."""
    child = python(
        "import mmap, os, memory\n"
        "frames = memory.Region(5000).touch(*range(0, 5000, 2))\n"
        "zero = memory.Region(4000)\n"
        "[zero.read(i) for i in range(4000)]\n"
        "kept = memory.Region(1000).touch()\n"
        "kept.mprotect(0)\n"
    )
    comparison = compare(child.pid)
    assert comparison.nr_unexplained == 0, comparison.examples
    counts = comparison.counts
    assert 4000 <= counts[Verdict.ZERO_PAGE] < 4500
    assert 3500 <= counts[Verdict.SAME_FRAME] < 15000
    assert comparison.nr_pages == sum(counts.values())
    device = counts.get(Verdict.DEVICE, 0)
    assert device == 0 if not pfnmap_ranges() else device > 0
    assert set(counts) <= {Verdict.ZERO_PAGE, Verdict.SAME_FRAME, Verdict.DEVICE}
    for verdict, first in comparison.examples.items():
        assert len(first) == min(4, counts[verdict])
        assert first == sorted(first)


@pytest.mark.needs("guard")
def test_guards_are_counted():
    region = Region(300).touch()
    region.madvise(Region.MADV_GUARD_INSTALL)
    comparison = compare()
    assert comparison.nr_unexplained == 0, comparison.examples
    assert comparison.counts[Verdict.SAME_MARKER] >= 300
    assert region.size


@pytest.mark.needs("swap")
def test_swap_entries_are_counted():
    region = Region(2000).touch()
    region.madvise(MADV_PAGEOUT)
    comparison = compare()
    assert comparison.nr_unexplained == 0, comparison.examples
    assert comparison.counts[Verdict.SAME_SWAP] > 1000, "MADV_PAGEOUT swapped nothing out"


@contextlib.contextmanager
def forked(region, value):
    """A fork of this process that has frames of its own for pages 10 to 16 of a region."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        region.touch(*range(10, 17), value=value)
        os.write(writer, b"x")
        signal.pause()
    os.read(reader, 1)
    os.close(reader)
    os.close(writer)
    try:
        with ProcDir(pid) as proc:
            yield proc
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_real_difference_is_found_and_is_no_movement(source):
    """Compare pagemap of a process with the walk of its fork, which wrote to some of the pages."""
    region = Region(100).touch()
    with forked(region, 2) as other, comparer_of(source=source) as comparer:
        comparer._walkers.pop().close()
        comparer._walkers.append(open_page_tables(other, source))
        comparison = comparer.compare()
    # What Python itself wrote on either side since the fork differs, too, and stands still.
    assert comparison.counts[Verdict.UNEXPLAINED] >= 7
    assert comparison.counts[Verdict.SAME_FRAME] > 93


@pytest.mark.needs("bpf")
@pytest.mark.parametrize(
    ("kmod_of", "bpf_of", "verdict"),
    [
        ("self", "fork", Verdict.BPF_ALONE),
        ("fork", "self", Verdict.KMOD_ALONE),
        ("fork", "fork", Verdict.PAGEMAP_ALONE),
        ("fork", "another fork", Verdict.NO_TWO_AGREE),
    ],
)
def test_who_stands_alone(kmod_of, bpf_of, verdict):
    """Three sources of which one or two read another process. Both walks are by BPF here."""
    region = Region(100).touch()
    with forked(region, 2) as fork, forked(region, 3) as another, ProcDir() as proc:
        of = {"self": proc, "fork": fork, "another fork": another}
        with Comparer(proc, source="bpf") as comparer:
            comparer._walkers.pop().close()
            for name, process in (("kmod", kmod_of), ("bpf", bpf_of)):
                walker = open_page_tables(of[process], "bpf")
                walker.name = name
                comparer._walkers.append(walker)
            for _ in range(5):  # the kernel may move a page meanwhile
                first_pass = AgreementPass(proc, comparer._pagemap, comparer._walkers)
                left = np.concatenate(list(first_pass.iter_left(region.start, region.end)))
                if len(left) == 7:
                    break
            comparison = comparer.compare()
    assert left.tolist() == list(region.pages)[10:17]
    assert first_pass.nr_agreed == 93
    assert comparison.counts[verdict] >= 7
    assert comparison.counts[Verdict.SAME_FRAME] > 93


def test_a_busy_process_has_no_lasting_difference(python):
    child = python(
        "import threading, memory\n"
        "def churn():\n"
        "    while True:\n"
        "        memory.Region(300).touch()\n"
        "for _ in range(2): threading.Thread(target=churn, daemon=True).start()",
        wait="import time; time.sleep(600)",
    )
    for _ in range(5):
        comparison = compare(child.pid)
        assert comparison.nr_unexplained == 0, (comparison.counts, comparison.examples)
        assert comparison.counts[Verdict.SAME_FRAME] > (4 << 20) // PAGE
        assert comparison.counts.get(Verdict.MOVED, 0) < 1000


def test_a_process_that_goes_or_runs_another_program(python):
    child = python(wait="import os; input(); os.execvp('sleep', ['sleep', '600'])")
    with comparer_of(child.pid) as comparer:
        comparer.compare()
        child.stdin.write("\n")
        child.stdin.flush()
        wait_for(lambda: "sleep" in os.readlink(f"/proc/{child.pid}/exe"), "it runs sleep")
        with pytest.raises(ProcessGone, match="exec"):
            comparer.compare()
    with comparer_of(child.pid) as comparer:
        child.kill()
        child.wait()
        with pytest.raises(ProcessGone, match="ended"):
            comparer.compare()


SHARED_PAGES = pages_within(180_000, 704)


def test_a_million_pages_of_running_processes(python):
    """Six processes that share, swap, remap and sleep, and all that were running before."""
    fd = os.memfd_create("shared")
    os.ftruncate(fd, SHARED_PAGES * PAGE)
    with mmap.mmap(fd, SHARED_PAGES * PAGE) as memory:
        memory[:: 16 * PAGE] = b"x" * (SHARED_PAGES // 16)  # the rest comes as it is read
    share = (
        "import mmap, os, memory\n"
        f"shared = mmap.mmap(os.open('/proc/{os.getpid()}/fd/{fd}', os.O_RDWR), 0)\n"
        "sum(shared[::mmap.PAGESIZE])\n"
    )
    churn = (
        "import threading\n"
        "def churn():\n"
        "    while True:\n"
        "        memory.Region(200).touch()\n"
        "threading.Thread(target=churn, daemon=True).start()\n"
    )
    out = f"swapped = memory.Region(3000).touch(); swapped.madvise({MADV_PAGEOUT}, check=False)\n"
    children = [python(share + more) for more in ("", out, "", out)]
    children += [python(share + more, wait="import time; time.sleep(600)") for more in (churn, "")]
    nr_pages = 0
    for pid in (1, os.getpid(), *(child.pid for child in children)):
        try:
            comparison = compare(pid)
        except AccessDenied:  # in a container process 1 may be closed to all
            assert pid == 1
            continue
        assert comparison.nr_unexplained == 0, (comparison.counts, comparison.examples)
        assert comparison.counts.get(Verdict.MOVED, 0) < 1000
        nr_pages += comparison.nr_pages
    os.close(fd)
    print(f"{nr_pages} pages compared, none unexplained")
    assert nr_pages > 5.5 * SHARED_PAGES
    assert PAGE > 4096 or nr_pages > 1_000_000


def test_the_command(physview, sleeper, source):
    result = physview("compare", "self", "--source", source)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith("0 unexplained\n")
    result = physview("compare", str(sleeper.pid), "--json", "--source", source)
    document = json.loads(result.stdout)
    assert (document["sources"], document["nr_unexplained"]) == (["pagemap", source], 0)
    by_name = {verdict["verdict"]: verdict for verdict in document["verdicts"]}
    assert by_name["same_frame"]["nr_pages"] > (4 << 20) // PAGE
    assert sum(verdict["nr_pages"] for verdict in by_name.values()) == document["nr_pages"]
    assert "kernel thread" in one_line(physview("compare", "2", "--source", source), 1)


def test_memview_and_walk(physview, source):
    result = physview("memview", "--source", source)
    assert (result.returncode, len(result.stdout.splitlines())) == (0, 41), result
    assert "UNKNOWN" not in result.stdout
    result = physview("walk", "self", "0", "--source", source)
    assert result.returncode == 1
    assert "UNKNOWN  no entry" in result.stdout
    refused = physview("walk", "2", "0", "--source", source)
    assert "nothing is mapped" not in one_line(refused, 1)


def test_all_processes(physview, source):
    result = physview("compare", "--all", "--source", source, "--json")
    assert result.returncode == 0, result
    # In a container not even root may examine process 1.
    assert re.fullmatch(r"(physview: \d+ process(es are| is) left out: .*\n)?", result.stderr)
    document = json.loads(result.stdout)
    assert (document["pid"], document["nr_unexplained"]) == (None, 0)
    assert document["sources"] == ["pagemap", source]
    assert document["nr_pages"] > 1000
    table = physview("compare", "--all", "--source", source)
    assert table.stdout.endswith("0 unexplained\n")
    assert " processes: " in table.stdout


def test_one_process_or_all(physview):
    for args in ((), ("--all", "self")):
        assert "give one PID, or --all" in one_line(physview("compare", *args), 2)
