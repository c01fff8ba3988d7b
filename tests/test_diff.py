# SPDX-License-Identifier: GPL-2.0-or-later
"""physview diff of real changes. Simple Python code judges each page a second time."""

import json
import os
import re
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from actors import EVENTS
from failures import one_line
from memory import PAGE

from physview.analysis.changes import CHANGES, Change, iter_changes
from physview.memory.snapshot import Snapshot
from physview.model import NO_ENTRY
from physview.parquet import snapshot_file
from physview.parquet.snapshot_file import SnapshotFile, write_snapshot

pytestmark = pytest.mark.needs("pfn", "kpage")


@pytest.mark.needs("guard")
@pytest.mark.parametrize("rows_in_group", [1 << 17, 50])
def test_all_kinds_of_changes_at_once_are_right_for_each_page(actor, monkeypatch, rows_in_group):
    monkeypatch.setattr(snapshot_file, "ROWS_IN_GROUP", rows_in_group)
    actor.do("pass")
    actor.keep()
    for line in EVENTS.values():
        actor.do(line)
    actor.keep()
    found, counts = actor.changes()
    assert found == actor.expected()
    assert set(EVENTS) <= set(counts.counts)
    assert counts.counts[Change.STAYED] > 1000
    assert counts.nr_vmas_new >= 0
    by_vma = Counter()
    for _, _, more in counts.by_vma:
        by_vma.update(more)
    assert all(by_vma[change] == nr for change, nr in counts.counts.items() if not change.same)


@pytest.mark.needs("thp", "collapse")
def test_a_huge_page_is_split_and_another_collapsed(actor):
    actor.do("other = Region.huge(1); o = other.__enter__(); o.madvise(15, check=False); o.touch()")
    actor.keep()
    # MADV_COLD of a part splits the folio: madvise_cold_or_pageout_pte_range(), Linux 5.4.
    actor.do("libc.madvise(huge.start, PAGE, 20)")
    actor.do("o.madvise(14); o.madvise(25)")  # MADV_COLLAPSE, Linux 6.1
    actor.keep()
    found, counts = actor.changes()
    assert found == actor.expected()
    assert counts.counts[Change.COLLAPSED] >= 512
    assert counts.counts[Change.SPLIT] >= 512


@pytest.mark.alone("it moves the pages of all processes")
@pytest.mark.needs("compaction")
def test_compaction_moves_pages_and_they_are_named(actor):
    actor.do("holes = Region(1 << 15).touch()")
    actor.do("[libc.madvise(v, PAGE, 4) for v in holes.pages if v // PAGE % 3]")
    actor.keep()
    actor.compact()
    actor.keep()
    found, _ = actor.changes()
    expected = actor.expected()
    moved = {vaddr for vaddr, change in expected.items() if change is Change.MOVED}
    assert moved
    assert {vaddr for vaddr, change in found.items() if change is Change.MOVED} == moved
    assert found == expected
    with SnapshotFile(actor.paths[0]) as before, SnapshotFile(actor.paths[1]) as after:
        for changes in iter_changes(before, after):
            for vaddr, nr_pages, kind, was, is_now, *_ in changes.tolist():
                if CHANGES[kind] is Change.MOVED:
                    for i in range(nr_pages):
                        pair = [seen[0][vaddr + i * PAGE] & (1 << 55) - 1 for seen in actor.seen]
                        assert pair == [was + i, is_now + i]


@pytest.mark.needs("swap")
def test_what_is_swapped_out_and_in(actor):
    actor.do("pass")
    actor.do("dense.madvise(21)")  # MADV_PAGEOUT
    actor.keep()
    actor.do("fragmented.madvise(21); [dense.read(i) for i in range(0, 3000, 3)]")
    actor.keep()
    found, counts = actor.changes()
    assert found == actor.expected()
    for change in (Change.SWAPPED_OUT, Change.SWAPPED_IN, Change.STILL_SWAPPED):
        assert counts.counts.get(change, 0) > 100, change


def test_a_fork_shares_all_until_it_writes(physview, python, tmp_path):
    fork = (
        "import os, signal\nregion = __import__('memory').Region(1000).touch()\n"
        "start, end = os.pipe()\nchild = os.fork()\n"
        "if not child: os.close(start); region.touch(*range(10)); os.write(end, b'x')"
        "; signal.pause()\nos.read(start, 1)\nprint(child, hex(region.start), flush=True)"
    )
    program = python(wait=f"exec({fork!r})\ninput()")
    child, start = program.stdout.readline().split()
    paths = [str(tmp_path / name) for name in ("parent.parquet", "child.parquet")]
    try:
        for pid, path in zip((program.pid, child), paths, strict=True):
            assert physview("snapshot", str(pid), "-o", path).returncode == 0
        result = physview("diff", *paths, "--extents", "--json")
    finally:
        os.kill(int(child), 9)
    assert result.returncode == 1
    assert "two processes, python" in result.stderr
    runs = json.loads(result.stdout)["runs"]
    region = range(int(start, 16), int(start, 16) + 1000 * PAGE)
    nr = Counter()
    for run in runs:
        if int(run["vaddr"], 16) in region:
            nr[run["change"]] += run["nr_pages"]
    assert nr["stayed"] >= 990
    assert nr["moved"] == 10


def test_nothing_happened(physview, stopped, tmp_path):
    for attempt in range(5):  # the kernel moves a page of a stopped process now and then
        paths = [str(tmp_path / f"{attempt}-{i}.parquet") for i in (0, 1)]
        for path in paths:
            assert physview("snapshot", str(stopped.pid), "-o", path).returncode == 0
        result = physview("diff", *paths)
        if not result.returncode:
            break
    assert (result.returncode, result.stderr) == (0, "")
    assert re.search(r"[0-9]+ +[0-9.]+M  stayed +in the same frame; whether", result.stdout)
    assert "changes of each mapping" not in result.stdout
    backwards = physview("diff", *reversed(paths))
    assert ": the changes go back in time" in one_line(backwards, 0)


def test_the_report_and_its_document(physview, actor):
    actor.keep()
    actor.do(EVENTS[Change.COPIED])
    actor.do(EVENTS[Change.UNMAPPED])
    actor.keep()
    found, counts = actor.changes()
    result = physview("diff", *actor.paths)
    assert (result.returncode, result.stderr) == (1, "")
    for change, nr in counts.counts.items():
        assert re.search(
            rf"^ +{nr} +\S+  {change.value} +{re.escape(change.text)}(; whether .*)?$",
            result.stdout,
            re.MULTILINE,
        )
    assert re.search(r"\[anonymous\] \(gone\): [0-9]+ unmapped", result.stdout)
    only = physview("diff", *actor.paths, "--extents", "--only", "copied").stdout
    lines = re.findall(
        r"^  (0x[0-9a-f]{12}) +([0-9]+) +pfn:(0x[0-9a-f]+) -> pfn:(0x[0-9a-f]+) +copied$",
        only,
        re.MULTILINE,
    )
    assert sum(int(line[1]) for line in lines) == counts.counts[Change.COPIED]
    document = json.loads(physview("diff", *actor.paths, "--json", "--extents").stdout)
    assert document["counts"] == {change.value: nr for change, nr in counts.counts.items()}
    pages = {
        int(run["vaddr"], 16) + i * PAGE: run["change"]
        for run in document["runs"]
        for i in range(run["nr_pages"])
    }
    assert pages == {vaddr: change.value for vaddr, change in found.items()}
    assert json.loads(physview("diff", *actor.paths, "--json").stdout)["runs"] is None
    assert "add --extents" in one_line(physview("diff", *actor.paths, "--only", "moved"), 2)
    wrong = physview("diff", *actor.paths, "--extents", "--only", "vanished")
    assert "no change 'vanished'; choose one of stayed, written, " in one_line(wrong, 2)


def test_pages_with_hidden_frames_do_not_count_as_moved(physview, actor, tmp_path):
    """An unprivileged user's snapshot, made from a real one by removing the frames."""
    actor.keep()
    actor.do(EVENTS[Change.WENT])
    actor.keep(columns=[])
    hidden = str(tmp_path / "hidden.parquet")
    table = pq.read_table(actor.paths[0])
    about = json.loads(table.schema.metadata[b"physview"]) | {"shows_frames": False}
    table = table.drop_columns(["flags", "flag_names", "node"])
    entries = table["entry"].to_numpy()
    present = entries >> np.uint64(63) == 1
    entries = np.where(present, entries & ~np.uint64((1 << 55) - 1), entries)
    table = table.set_column(table.schema.names.index("entry"), "entry", [entries])
    nothing = np.full(len(table), NO_ENTRY, dtype=np.uint64)
    table = table.set_column(table.schema.names.index("pfn"), "pfn", [nothing])
    table = table.replace_schema_metadata({b"physview": json.dumps(about)})
    pq.write_table(table, hidden)
    result = physview("diff", hidden, actor.paths[1], "--json")
    assert "frame numbers were hidden" in result.stderr
    counts = json.loads(result.stdout)["counts"]
    assert counts["untold"] > 1000
    assert counts["went"] >= 1500
    assert not {"moved", "stayed", "copied"} & set(counts)


def test_two_boots_are_not_compared(physview, stopped, tmp_path):
    path, other = (str(tmp_path / f"{i}.parquet") for i in (0, 1))
    with Snapshot(stopped.pid) as snapshot:
        write_snapshot(snapshot, path)
    table = pq.read_table(path)
    about = json.loads(table.schema.metadata[b"physview"]) | {"boot_id": "another"}
    pq.write_table(table.replace_schema_metadata({b"physview": json.dumps(about)}), other)
    assert "they are of two boots" in one_line(physview("diff", path, other), 1)
