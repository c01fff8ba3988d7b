# SPDX-License-Identifier: GPL-2.0-or-later
"""--track-writes: which pages were written in place, in kernels with soft-dirty bits."""

import json

import pytest
from failures import one_line
from memory import PAGE
from users import AS_NOBODY

from physview import changes, snapshot, watch
from physview.analysis.changes import Change
from physview.analysis.watch import Watcher
from physview.parquet.snapshot_file import SnapshotFile

NR_PAGES = 200
WRITTEN = 50

# Writes to pages 0 to N-1 of the region, for each number N that it is told.
WRITER = f"""
import ctypes, sys
from memory import PAGE, Region
region = Region({NR_PAGES})
ctypes.memset(region.start, 1, region.size)
def write(nr_pages):
    for at in range(nr_pages):
        ctypes.memset(region.start + at * PAGE, 2, 1)
write(3)
"""
WAIT = """
for line in sys.stdin:
    write(int(line))
    print(region.start, flush=True)
"""


@pytest.fixture
def writer(python):
    """A process that writes to as many pages of its region as it is told."""
    child = python(WRITER, wait=WAIT)

    def write(nr_pages):
        child.stdin.write(f"{nr_pages}\n")
        child.stdin.flush()
        child.region = int(child.stdout.readline())

    child.write = write
    write(0)
    return child


def take(physview, child, path, *options):
    result = physview("snapshot", str(child.pid), "-o", str(path), *options)
    assert (result.returncode, result.stderr) == (0, "")
    return str(path)


def runs_in_region(document, child):
    end = child.region + NR_PAGES * PAGE
    return [run for run in document["runs"] if child.region <= int(run["vaddr"], 16) < end]


@pytest.mark.needs("soft-dirty", "pfn")
def test_a_diff_tells_the_pages_that_were_written_in_place(physview, writer, tmp_path):
    first = take(physview, writer, tmp_path / "1", "--track-writes")
    writer.write(WRITTEN)
    second = take(physview, writer, tmp_path / "2", "--track-writes")
    writer.write(1)
    third = take(physview, writer, tmp_path / "3")
    for pair, nr in (((first, second), WRITTEN), ((second, third), 1)):
        document = json.loads(physview("diff", *pair, "--extents", "--json").stdout)
        runs = runs_in_region(document, writer)
        written = [run for run in runs if run["change"] == "written"]
        assert sum(run["nr_pages"] for run in written) == nr
        assert written[0]["vaddr"] == hex(writer.region)
        kept = [run["nr_pages"] for run in runs if run["change"] == "stayed"]
        assert sum(kept) == NR_PAGES - nr


@pytest.mark.needs("soft-dirty", "pfn")
def test_without_tracking_a_diff_says_that_it_does_not_know(physview, writer, tmp_path):
    first = take(physview, writer, tmp_path / "1")
    writer.write(WRITTEN)
    second = take(physview, writer, tmp_path / "2")
    shown = physview("diff", first, second).stdout
    assert "in the same frame; whether it was written is not known: see --track-writes" in shown
    assert " written " not in shown.replace("was written is", "")
    with SnapshotFile(first) as file:
        assert not file.clears_soft_dirty


@pytest.mark.needs("soft-dirty", "pfn")
def test_a_watch_tells_a_page_again_that_is_written_again(writer):
    with Watcher(writer.pid, track_writes=True) as watcher:
        watcher.read()
        for nr in (WRITTEN, WRITTEN, 0, 7):
            writer.write(nr)
            reading = watcher.read()
            at = next(i for i, v in enumerate(reading.vmas) if v.start <= writer.region < v.end)
            assert reading.changes["written"][at] == nr
            assert reading.counts.get(Change.WRITTEN, 0) >= nr


@pytest.mark.needs("soft-dirty", "pfn")
def test_the_library_tells_the_pages_that_were_written(writer, tmp_path):
    readings = watch(writer.pid, interval=0, nr_readings=2, track_writes=True)
    next(readings)
    writer.write(WRITTEN)
    (second,) = readings
    here = (second["start"] <= writer.region) & (writer.region < second["end"])
    assert second["written_pages"][here].tolist() == [WRITTEN]
    snapshot(writer.pid, str(tmp_path / "1"), track_writes=True)
    writer.write(7)
    snapshot(writer.pid, str(tmp_path / "2"))
    table = changes(str(tmp_path / "1"), str(tmp_path / "2"), only=["written"])
    inside = (table["vaddr"] >= writer.region) & (table["vaddr"] < writer.region + NR_PAGES * PAGE)
    assert table["nr_pages"][inside].sum() == 7
    assert (table["frame_before"][inside] == table["frame_after"][inside]).all()


@pytest.mark.needs("soft-dirty", "pfn")
def test_of_a_heap_that_grew_it_is_not_known_what_was_written(python, tmp_path, physview):
    setup = "import ctypes; libc = ctypes.CDLL(None); libc.sbrk.restype = ctypes.c_void_p;"
    setup += "libc.sbrk.argtypes = [ctypes.c_long]; heap = libc.sbrk(1 << 18);"
    setup += "ctypes.memset(heap, 1, 1 << 18)"
    wait = "input(); print(heap, flush=True); input(); libc.sbrk(1 << 16);"
    wait += "print('done', flush=True); input()"
    child = python(setup, wait=wait)
    child.stdin.write("where\n")
    child.stdin.flush()
    heap = int(child.stdout.readline())
    first = take(physview, child, tmp_path / "1", "--track-writes")
    child.stdin.write("go\n")
    child.stdin.flush()
    assert child.stdout.readline() == "done\n"
    second = take(physview, child, tmp_path / "2")
    document = json.loads(physview("diff", first, second, "--extents", "--json").stdout)
    whole = -heap % PAGE + heap
    found = {
        run["change"]
        for run in document["runs"]
        if whole <= int(run["vaddr"], 16) < heap + (1 << 18)
    }
    assert "written" not in found
    assert "may_be_written" in found


@pytest.mark.needs("soft-dirty")
def test_watch_shows_a_column_of_what_was_written(physview, writer):
    result = physview(
        "watch", str(writer.pid), "--ticks", "2", "--interval", "0.1", "--track-writes"
    )
    assert result.returncode == 0
    assert " wrote " in result.stdout
    assert "written in place" in result.stdout
    plain = physview("watch", str(writer.pid), "--ticks", "1")
    assert "wrote" not in plain.stdout


@pytest.mark.needs("soft-dirty", "nobody")
def test_another_users_bits_are_not_cleared(physview, writer):
    args = ["watch", str(writer.pid), "--ticks", "1", "--track-writes"]
    line = one_line(physview(*args, prefix=AS_NOBODY), 1)
    assert f"you may not examine process {writer.pid}" in line


@pytest.mark.needs("no-soft-dirty")
@pytest.mark.parametrize("command", [["watch", "--ticks", "1"], ["snapshot", "-o", "file"]])
def test_a_kernel_without_the_bits_is_named(physview, tmp_path, command):
    line = one_line(physview(*command, "self", "--track-writes", cwd=tmp_path), 1)
    assert "cannot track writes: this kernel has no soft-dirty bits; boot a kernel with" in line
    assert not (tmp_path / "file").exists()
