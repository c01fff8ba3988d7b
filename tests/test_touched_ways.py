# SPDX-License-Identifier: GPL-2.0-or-later
"""Which pages a process used: each way is held against a process that touches known pages."""

import contextlib
import itertools
import subprocess
from pathlib import Path

import numpy as np
import pytest
from children import start_stopped
from memory import HUGE, PAGE

from physview import ProcessGone, Unsupported
from physview.analysis.page_uses import History, count_bits, iter_runs, unpack
from physview.analysis.referenced_way import Referenced
from physview.analysis.touched import observe, open_way
from physview.sources.choice import open_walkers
from physview.sources.page_bits import read_each_page
from physview.sources.procfs import ProcDir

NR = 600
# A process with a region of NR pages. It flushes the TLB by unmapping more than 33 pages, because
# clear_refs does so on some kernels only, and a page in the TLB is used without its bit.
SETUP = f"""
import ctypes, mmap, os, tempfile
from memory import *
def flush():
    Region(64).touch()
region = Region({NR}).touch()
def say(number):
    os.write(2, b"")
    open(answer, "w").write(str(number))
"""


@pytest.fixture
def child(obedient_python, tmp_path):
    """A process that executes lines of Python; `ask()` returns the value of an expression."""
    child = obedient_python(SETUP)
    child.tell(f"answer = {str(tmp_path / 'answer')!r}")

    def ask(expression):
        child.tell(f"say({expression})")
        return int((tmp_path / "answer").read_text())

    child.ask = ask
    child.start = ask("region.start")
    child.tell("flush()")
    return child


@contextlib.contextmanager
def opened(child, by="accessed", **options):
    with ProcDir(child.pid) as proc, open_way(proc, by, **options) as way:
        yield way


def pages(uses, words, start, nr=NR):
    """The indices of the pages from `start` whose bits are set. Bits of huge pages are left out."""
    found = set()
    for block, row in zip(uses.blocks, unpack(words), strict=True):
        first = (int(block["vaddr"]) - start) // PAGE
        size = 1 << int(block["shift"])
        found |= {first + int(i) * size // PAGE for i in np.flatnonzero(row)}
    return {page for page in found if 0 <= page < nr}


def damon_runs():
    """Whether DAMON clears accessed bits here, some per second. Linux 6.17 can start it at boot."""
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if path.read_text().startswith("kdamond"):
                return True
    return False


LOST = 4 if damon_runs() else 0


def check(found, expected):
    """Check that pages are those that are expected, but for bits that DAMON cleared meanwhile."""
    assert found - expected == set()
    assert len(expected - found) <= LOST, sorted(expected - found)


def clear(child):
    """Clear the accessed bits, as wss does: without physview."""
    with open(f"/proc/{child.pid}/clear_refs", "w") as file:
        file.write("1")
    child.tell("flush()")


def referenced(child, start):
    """The sum that wss prints, of one mapping: Referenced of smaps, in bytes."""
    inside = False
    with open(f"/proc/{child.pid}/smaps") as smaps:
        for line in smaps:
            first, *rest = line.split()
            if not first.endswith(":"):
                low, high = (int(x, 16) for x in first.split("-"))
                inside = low <= start < high
            elif inside and first == "Referenced:":
                return int(rest[0]) * 1024
    return None


@pytest.mark.needs("bpf")
def test_cleared_bits_tell_exactly_which_pages_were_touched(child):
    with opened(child, clear=True) as way:
        way.begin()
        child.tell("flush(); [region.read(i) for i in range(0, 600, 3)]")
        child.tell("region.touch(*range(1, 600, 30))")
        uses = way.end()
    expected = {*range(0, NR, 3), *range(1, NR, 30)}
    check(pages(uses, uses.touched, child.start), expected)
    assert pages(uses, uses.unknown, child.start) == set()
    assert pages(uses, uses.present, child.start) == set(range(NR))
    # The pages were dirty before: their writes are not known.
    assert pages(uses, uses.written, child.start) == set()


@pytest.mark.needs("bpf", "no-soft-dirty")
def test_clearing_flushes_the_tlb_where_that_costs_nothing(child):
    everything = "[region.read(i) for i in range(600)]"
    with opened(child, clear=True) as way:
        for _ in range(5):  # without the flush it fails each time: the TLB holds many of the pages
            child.tell(everything)
            way.begin()
            child.tell(everything)
            uses = way.end()
            check(pages(uses, uses.touched, child.start), set(range(NR)))


@pytest.mark.needs("bpf")
def test_two_looks_tell_the_bits_that_were_clear_before(child):
    clear(child)
    child.tell("[region.read(i) for i in range(100)]")  # these are set at the first look
    with opened(child) as way:
        assert not way.clears
        way.begin()
        child.tell("[region.read(i) for i in range(50, 150)]")
        uses = way.end()
        check(pages(uses, uses.touched, child.start), set(range(100, 150)))
        check(pages(uses, uses.unknown, child.start), set(range(100)))
        way.begin()
        clear(child)  # somebody else's
        uses = way.end()
    assert pages(uses, uses.touched, child.start) == set()
    check(pages(uses, uses.unknown, child.start), set(range(150)))
    assert uses.lost >= 150


@pytest.mark.needs("bpf")
def test_referenced_of_smaps_gives_the_same_sum(child):
    clear(child)
    with opened(child) as way, opened(child, "referenced") as sums:
        way.begin()
        sums.begin()
        child.tell("[region.read(i) for i in range(0, 600, 7)]")
        uses, rows = way.end(), sums.end()
    witness = referenced(child, child.start)
    (row,) = [each for vma, each in rows if child.start in vma]
    nr = len(pages(uses, uses.touched, child.start))
    assert 0 <= row.touched - witness <= LOST * PAGE
    assert abs(nr * PAGE - row.touched) <= LOST * PAGE
    check(pages(uses, uses.touched, child.start), set(range(0, 600, 7)))
    assert row.resident == row.touched + row.untouched


@pytest.mark.needs("bpf")
def test_shared_pages_of_a_file_tell_reads_and_writes(child, tmp_path):
    (tmp_path / "file").write_bytes(bytes(300 * PAGE))  # too small for a huge page
    child.tell(f"fd = os.open({str(tmp_path / 'file')!r}, os.O_RDWR)")
    child.tell("shared = Region(300, flags=mmap.MAP_SHARED, fd=fd)")
    child.tell("[shared.read(i) for i in range(300)]")
    start = child.ask("shared.start")
    with opened(child, clear=True) as way:
        way.begin()
        child.tell("flush(); [shared.read(i) for i in range(10)]; shared.touch(*range(5, 20))")
        uses = way.end()
    check(pages(uses, uses.touched, start), set(range(20)))
    assert pages(uses, uses.written, start) == set(range(5, 20))


@pytest.mark.needs("bpf")
def test_new_pages_count_and_pages_that_go_do_not(child):
    child.tell("other = Region(600).touch(*range(100))")
    start = child.ask("other.start")
    with opened(child, clear=True) as way:
        way.begin()
        child.tell(
            "flush(); other.touch(*range(300, 310)); [other.read(i) for i in range(400, 405)]"
        )
        child.tell("libc.madvise(other.start, 40 * PAGE, 4)")
        uses = way.end()
    check(pages(uses, uses.touched, start), {*range(300, 310), *range(400, 405)})
    assert pages(uses, uses.written, start) == set(range(300, 310))
    assert pages(uses, uses.new, start) == {*range(300, 310), *range(400, 405)}
    assert pages(uses, uses.present, start) == {*range(40, 100), *range(300, 310), *range(400, 405)}
    assert uses.gone >= 40


@pytest.mark.needs("bpf")
def test_a_fork_has_bits_of_its_own(child):
    child.tell("r, w = os.pipe(); back = os.pipe()")
    child.tell(
        "serve = lambda: (os.read(r, 1), [region.read(i) for i in range(50)],"
        " os.write(back[1], b'x'), os.read(r, 1), os._exit(0))"
    )
    child.tell("pid = os.fork() or serve()")
    with opened(child, clear=True) as way:
        way.begin()
        child.tell("flush(); region.read(70); os.write(w, b'x'); os.read(back[0], 1)")
        uses = way.end()
    child.tell("os.write(w, b'x'); os.waitpid(pid, 0)")
    check(pages(uses, uses.touched, child.start), {70})


@pytest.mark.needs("bpf", "thp")
def test_a_huge_page_has_one_bit(child):
    child.tell("outer = Region.huge(3); huge = outer.__enter__(); huge.touch()")
    if not child.ask("int(huge.is_huge())"):
        pytest.skip("no huge pages were free")
    start, nr = child.ask("huge.start"), HUGE // PAGE
    with opened(child, clear=True) as way:
        way.begin()
        child.tell(f"flush(); huge.read({nr + 188})")
        uses = way.end()
        at = {int(vaddr): i for i, vaddr in enumerate(uses.blocks["vaddr"])}
        rows = [at[start + i * HUGE] for i in range(3)]
        assert uses.blocks["shift"][rows].tolist() == [HUGE.bit_length() - 1] * 3
        assert uses.touched[rows, 0].tolist() == [0, 1, 0]
        way.begin()
        # Splitting copies the bit to all pages: which of them was used nobody can tell.
        child.tell(f"huge.read({nr + 188}); libc.madvise(huge.start + HUGE, PAGE, 4)")
        uses = way.end()
    assert pages(uses, uses.touched, start, 3 * nr) <= {0, 2 * nr}
    assert pages(uses, uses.unknown, start, 3 * nr) >= set(range(nr + 1, 2 * nr))


@pytest.mark.needs("bpf")
def test_empty_address_space_costs_nothing(child):
    child.tell("sparse = Region(1 << 28, flags=PRIVATE | NORESERVE)")
    child.tell("sparse.touch(*range(0, 1 << 28, 1 << 21))")
    with opened(child) as way:
        way.begin()
        child.tell("sparse.touch(*range(1 << 20, 1 << 28, 1 << 21))")
        uses = way.end()
    start = child.ask("sparse.start")
    expected = set(range(1 << 20, 1 << 28, 1 << 21))
    check(pages(uses, uses.touched, start, 1 << 28), expected)
    assert len(uses.blocks) < 1000


@pytest.mark.needs("bpf")
def test_the_core_reads_the_bits_that_walks_to_each_page_read(python):
    with ProcDir(start_stopped(python).pid) as proc, contextlib.ExitStack() as stack:
        for tables in open_walkers(proc):
            stack.enter_context(tables)
            fast, slow, last = tables.read_bits(), read_each_page(tables), tables.read_bits()
            assert len(fast) > 20
            assert (fast["vaddr"] == slow["vaddr"]).all()
            assert (fast["shift"] == slow["shift"]).all()
            for name in ("present", "written"):
                assert (fast[name] == slow[name]).all(), name
            assert count_bits(slow["accessed"] & ~fast["accessed"]).sum() == 0
            # The process is stopped, so accessed bits can only be cleared.
            assert count_bits(last["accessed"] & ~slow["accessed"]).sum() == 0
            assert count_bits(fast["present"]).sum() > count_bits(fast["written"]).sum() > 0


@pytest.mark.needs("bpf")
def test_a_process_that_ends_meanwhile_is_gone(child):
    with opened(child, clear=True) as way:
        way.begin()
        child.kill()
        child.wait()
        with pytest.raises(ProcessGone):
            way.end()


class RunsAnother(Referenced):
    """Referenced of a process that runs another program before the end of the interval."""

    child: subprocess.Popen

    def end(self):
        self.child.stdin.write("exec\n")
        self.child.stdin.flush()
        assert self.child.stdout.readline() == "other\n"
        return super().end()


def test_a_process_that_runs_another_program_meanwhile_is_gone(python):
    other = "print('other', flush=True); input()"
    run = f"os.execv(sys.executable, [sys.executable, '-c', {other!r}])"
    child = python("import os, sys", wait=f"input(); {run}")
    with ProcDir(child.pid) as proc:
        way = RunsAnother(proc, clears=False)
        way.child = child
        with pytest.raises(ProcessGone, match="ran another program"):
            observe(proc, way, 0)


@pytest.mark.needs("bpf")
def test_pages_are_counted_in_each_interval(child):
    history = History(counts=True)
    lines = ["[region.read(i) for i in range(20)]", "[region.read(i) for i in range(10, 30)]"]
    lines += ["region.touch(*range(15, 17))", "libc.madvise(region.start + 16 * PAGE, PAGE, 4)"]
    lines += ["region.touch(16)"]
    with opened(child, clear=True) as way:
        for line in lines:
            way.begin()
            child.tell(f"flush(); {line}")
            history.add(way.end())
    expected = dict.fromkeys([*range(10), *range(20, 30)], 1)
    expected |= dict.fromkeys(range(10, 20), 2)
    expected |= {15: 3, 16: 1}  # page 16 was given back, and came anew
    found, ends = {}, []
    for run in iter_runs(history, np.array([child.start], dtype=np.uint64)):
        ends.append((run.start, run.end))
        for page in range(run.start, run.end, run.page_bytes):
            found[(page - child.start) // PAGE] = run.times
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(ends))
    wrong = {page for page in range(NR) if found[page] != expected.get(page, 0)}
    assert len(wrong) <= LOST, wrong
    assert all(found[page] <= expected.get(page, 0) for page in range(NR))


@pytest.mark.needs("bpf")
def test_intervals_that_are_complete_are_kept_when_the_process_ends(child):
    with ProcDir(child.pid) as proc, open_way(proc, clear=True) as way:
        found = observe(proc, way, 0, times=5, counts=True, on_interval=lambda *_: child.kill())
    assert found.ended_early == "the process ended"
    assert 1 <= len(found.intervals) < 5
    assert found.total.resident == sum(use.sums.resident for use in found.mappings) > 1 << 20
    assert {run.state for run in found.iter_runs()} <= {"touched", "written", "untouched"}


@pytest.mark.needs("soft-dirty")
def test_soft_dirty_bits_tell_the_writes(child):
    with opened(child, "soft-dirty", clear=True) as way:
        way.begin()
        child.tell("[region.read(i) for i in range(50)]; region.touch(*range(20, 30))")
        uses = way.end()
    assert pages(uses, uses.written, child.start) == set(range(20, 30))
    check(pages(uses, uses.touched, child.start), set(range(20, 30)))


@pytest.mark.needs("soft-dirty", "bpf")
def test_track_writes_tells_every_write_and_flushes(child):
    everything = "[region.read(i) for i in range(600)]"
    with opened(child, clear=True, track_writes=True) as way:
        child.tell(everything)
        way.begin()
        child.tell(f"{everything}; region.touch(*range(20, 30))")
        uses = way.end()
    assert pages(uses, uses.written, child.start) == set(range(20, 30))
    check(pages(uses, uses.touched, child.start), set(range(NR)))


@pytest.mark.needs("idle-bitmap", "root", "pfn")
def test_the_idle_bitmap_tells_frames_that_anybody_used(child):
    child.tell("r, w = os.pipe(); back = os.pipe()")
    child.tell(
        "serve = lambda: (os.read(r, 1), flush(), [region.read(i) for i in range(50)],"
        " os.write(back[1], b'x'), os.read(r, 1), os._exit(0))"
    )
    child.tell("pid = os.fork() or serve()")
    with opened(child, "idle", clear=True) as way:
        way.begin()
        child.tell("flush(); region.read(70); os.write(w, b'x'); os.read(back[0], 1)")
        uses = way.end()
    child.tell("os.write(w, b'x'); os.waitpid(pid, 0)")
    # Up to 14 new pages of each processor have no bit yet.
    unknown = pages(uses, uses.unknown, child.start)
    assert len(unknown) <= 64
    check(pages(uses, uses.touched, child.start), {*range(50), 70} - unknown)


@pytest.mark.needs("scan")
def test_only_the_process_itself_can_register_for_asynchronous_write_protection(child):
    with opened(child, "wp-async") as way, pytest.raises(Unsupported, match="only the process"):
        way.begin()


UFFD = """
def ioctl(fd, number, *values):
    import array, fcntl
    data = array.array("Q", values)
    fcntl.ioctl(fd, number, data)
def protect():
    ioctl(uffd, 0xC018AA06, region.start, region.size, 1)
uffd = libc.syscall(323 if os.uname().machine == "x86_64" else 282, 0o2000000 | 1)
ioctl(uffd, 0xC018AA3F, 0xAA, 1 << 13 | 1 << 15, 0)
ioctl(uffd, 0xC020AA00, region.start, region.size, 2, 0)
protect()
"""


@pytest.mark.needs("scan", "root")
def test_asynchronous_write_protection_tells_the_writes(child):
    for line in (f"exec({UFFD!r})", "region.touch(*range(10))"):
        child.tell(line)
    with opened(child, "wp-async") as way:
        way.begin()
        child.tell("region.touch(*range(5, 25)); region.read(40)")
        uses = way.end()
    assert pages(uses, uses.written, child.start) == set(range(10, 25))
    check(pages(uses, uses.unknown, child.start), set(range(10)))
    assert pages(uses, uses.present, child.start) == set(range(NR))
