# SPDX-License-Identifier: GPL-2.0-or-later
"""physview diff --picture shows each page and frame once, with the change that plain reads show."""

import json
import os
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from actors import EVENTS, kind_of
from drawings import draw, expand, over_of, words_of
from failures import one_line
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import PAGE
from users import AS_NOBODY

from physview.analysis.changes import CHANGES, IS_FRAME, WAS_FRAME, Change
from physview.memory.extents import find_zero_pfn
from physview.model import NO_ENTRY, PagemapEntry, Vma
from physview.parquet.snapshot_file import SnapshotFile
from physview.pictures import bands, describe, diff_picture, page_changes
from physview.pictures.kinds import DIFF_KINDS, NO_KIND, index_of
from physview.pictures.model import make_frames
from physview.pictures.runs import RUN_DTYPE, overlay
from physview.sources import ram

NR_BLOCK = diff_picture.BLOCK


def slug(kind):
    return None if kind == NO_KIND else DIFF_KINDS[kind].slug


def made(items, *, vmas=None):
    """Changes from tuples: (page, pages, change, frame before or None, frame after or None)."""
    rows = np.zeros(len(items), dtype=page_changes.PAGE_CHANGE_DTYPE)
    for row, (page, nr, change, before, after) in zip(rows, items, strict=True):
        row["vaddr"], row["nr_pages"], row["change"] = page * PAGE, nr, CHANGES.index(change)
        for name, pfn, bit in (("before", before, WAS_FRAME), ("after", after, IS_FRAME)):
            row[name] = NO_ENTRY if pfn is None else pfn
            row["frames"] |= 0 if pfn is None else bit
    vmas = vmas or [Vma(0, 1000 * PAGE, "rw-p", 0, "00:00", 0, "")]
    zeros = (7, 7)
    return page_changes.PageChanges(vmas, rows, page_changes._kinds(rows, zeros, True), zeros, True)


def test_pages_and_frames_are_of_the_kind_that_they_became():
    found = made(
        [
            (0, 4, Change.STAYED, 100, 100),
            (4, 2, Change.MOVED, 110, 120),
            (6, 1, Change.COPIED, 7, 130),
            (7, 1, Change.COPIED, 131, 132),
            (8, 1, Change.COLLAPSED, 140, 140),
            (9, 1, Change.REPLACED, 150, 151),
            (10, 1, Change.SWAPPED_OUT, 160, None),
            (11, 1, Change.SWAPPED_IN, None, 161),
            (12, 1, Change.APPEARED, None, 7),
            (13, 1, Change.APPEARED, None, 170),
            (14, 1, Change.WENT, 180, None),
            (15, 1, Change.WENT, 7, None),
            (16, 1, Change.SPECIAL, 190, None),
            (17, 1, Change.SPECIAL, None, 191),
            (18, 1, Change.STILL_SPECIAL, None, None),
            (19, 1, Change.STAYED, 7, 7),
            (20, 1, Change.MOVED, 200, 7),
        ]
    )
    assert [slug(kind) for kind in found.kinds] == [
        *["stayed", "moved", "new", "moved", "stayed", "new", "swapped_out", "swapped_in", "zero"],
        *["new", "gone", "gone", "gone", "new", None, "zero", "zero"],
    ]
    now, past = (
        {pfn: slug(kind) for pfn, kind in expand(placed.frames).items()}
        for placed in found.page_frames
    )
    assert now == {
        **dict.fromkeys([100, 101, 102, 103, 140], "stayed"),
        **dict.fromkeys([120, 121, 132], "moved"),
        **dict.fromkeys([130, 151, 170, 191], "new"),
        161: "swapped_in",
    }
    assert past == {
        **dict.fromkeys([110, 111, 131, 200], "left"),
        **dict.fromkeys([150, 180, 190], "gone"),
        160: "swapped_out",
    }


items = st.lists(
    st.tuples(
        st.integers(1, 6),
        st.sampled_from([Change.MOVED, Change.WENT, Change.APPEARED, Change.STAYED]),
        st.integers(10, 60),
        st.integers(10, 60),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(items)
def test_a_frame_of_several_kinds_has_the_first_kind_and_links_have_every_page(some):
    page, rows = 0, []
    for nr, change, before, after in some:
        was = None if change is Change.APPEARED else before
        is_now = None if change is Change.WENT else before if change is Change.STAYED else after
        if change is Change.MOVED and was == is_now:
            is_now += 1
        rows.append((page, nr, change, was, is_now))
        page += nr
    found = made(rows, vmas=[Vma(0, page * PAGE, "rw-p", 0, "00:00", 0, "")])
    expected = {}
    for _, nr, change, was, is_now in rows:
        kinds = {Change.MOVED: ("left", "moved"), Change.STAYED: ("stayed",) * 2}
        kinds |= {Change.WENT: ("gone", None), Change.APPEARED: (None, "new")}
        for pfn, kind in zip((was, is_now), kinds[change], strict=True):
            for i in range(nr if kind else 0):
                index = index_of(DIFF_KINDS, kind)
                expected[pfn + i] = min(index, expected.get(pfn + i, index))
    over = np.concatenate([placed.frames for placed in found.page_frames])
    other = index_of(DIFF_KINDS, "other")
    runs = np.array([(0, 200, other)], dtype=RUN_DTYPE)
    drawn = expand(overlay(runs, over))
    assert drawn == dict.fromkeys(range(200), other) | expected
    frames = make_frames(runs, over, [(0, 200)], DIFF_KINDS, [])
    assert frames.totals == [Counter(drawn.values())[i] for i in range(len(DIFF_KINDS))]
    made_bands = bands.make_bands(found)
    links, nr_outside = bands.make_links(found, made_bands, frames.grid, [(0, 200)])
    assert nr_outside == 0
    by_kind = Counter()
    for link in links.links:
        by_kind[DIFF_KINDS[link.kind].slug] += link.nr_pages
    by_change = Counter()
    for _, nr, change, *_ in rows:
        by_change[change] += nr
    assert by_kind["left"] == by_kind["moved"] == by_change[Change.MOVED]
    assert by_kind["stayed"] == by_change[Change.STAYED]
    assert by_kind["gone"] == by_change[Change.WENT]
    assert by_kind["new"] == by_change[Change.APPEARED]
    profile = bands.profiles(found, made_bands)
    assert profile.sum() == page
    nr_same = by_change[Change.STAYED]
    assert sum(band.nr_changed for band in made_bands) == page - nr_same


def test_what_is_gone_keeps_its_place_among_the_mappings():
    def vma(start, end, path, inode=0):
        return Vma(start * PAGE, end * PAGE, "rw-p", 0, "00:00", inode, path)

    before = [vma(1, 4, ""), vma(10, 30, "/a", 5), vma(30, 32, "/b", 6), vma(90, 91, "[stack]")]
    after = [vma(2, 3, ""), vma(12, 14, "/c", 7), vma(20, 31, "/a", 5), vma(90, 91, "[stack]")]
    found = page_changes.merge_mappings(before, after)
    assert [(each.start // PAGE, each.end // PAGE, each.path) for each in found] == [
        *[(1, 2, "[anonymous] (gone)"), (2, 3, ""), (3, 4, "[anonymous] (gone)")],
        *[(10, 12, "/a (gone)"), (12, 14, "/c"), (14, 20, "/a (gone)"), (20, 31, "/a")],
        *[(31, 32, "/b (gone)"), (90, 91, "[stack]")],
    ]
    assert found[5].offset == 4 * PAGE
    assert found[0].offset == 0
    assert page_changes.merge_mappings([], after) == after


def test_without_ram_only_what_is_named_is_drawn():
    def runs(*firsts):
        return np.array([(first, 2, 0) for first in firsts], dtype=RUN_DTYPE)

    assert diff_picture.named_ranges(runs(5)) == [(0, NR_BLOCK)]
    assert diff_picture.named_ranges(runs(NR_BLOCK - 1)) == [(0, 2 * NR_BLOCK)]
    many = diff_picture.named_ranges(runs(*range(0, 4000 * NR_BLOCK, 2 * NR_BLOCK)))
    assert many == [(0, 3999 * NR_BLOCK)]
    far = diff_picture.named_ranges(runs(800 * NR_BLOCK, 3, 90 * NR_BLOCK))
    assert far == [(i * NR_BLOCK, (i + 1) * NR_BLOCK) for i in (0, 90, 800)]


def expected_frames(actor):
    """The kind of each frame, from the expected change of each page."""
    found, zero = {}, find_zero_pfn()
    judged = actor.expected()
    for vaddr, change in judged.items():
        entries = [PagemapEntry(seen[0].get(vaddr, 0)) for seen in actor.seen]
        pfns = [
            entry.pfn if kind_of(entry) == "frame" and entry.pfn != zero else None
            for entry in entries
        ]
        kinds = [None, None]
        if pfns[1] is not None:
            came = {Change.SWAPPED_IN: "swapped_in"}
            went = (Change.MOVED, Change.COPIED, Change.COLLAPSED)
            was_own = pfns[0] is not None and change in went
            kinds[1] = "moved" if was_own else came.get(change, "new")
        if pfns[0] is not None:
            kinds[0] = {Change.SWAPPED_OUT: "swapped_out"}.get(change, "gone")
            if change in (Change.MOVED, Change.COPIED, Change.COLLAPSED):
                kinds[0] = "left"
        if pfns[0] == pfns[1]:
            kinds = [None, "stayed"]
        for pfn, kind in zip(pfns, kinds, strict=True):
            if pfn is not None and kind is not None:
                index = index_of(DIFF_KINDS, kind)
                found[pfn] = min(index, found.get(pfn, index))
    return found


def check(actor):
    """Check that each page and each frame of both snapshots is drawn once, with the right kind."""
    found, picture, counted = draw(*actor.paths)
    assert found.counts == counted.counts
    runs = overlay(picture.frames.runs, over_of(found))
    frames = expand(runs[runs["kind"] != index_of(DIFF_KINDS, "other")])
    assert frames == expected_frames(actor)
    assert sum(picture.frames.totals) == sum(end - first for first, end in picture.frames.ram)
    totals = Counter(frames.values())
    assert picture.frames.totals[:7] == [totals[i] for i in range(7)]
    by_band = np.array([band.counts for band in picture.space.bands]).sum(axis=0)
    assert picture.space.profile.sum(axis=(0, 1)).tolist() == by_band.tolist()
    assert by_band.sum() == found.rows["nr_pages"][found.kinds != NO_KIND].sum()
    nr_changed = sum(band.nr_changed for band in picture.space.bands)
    assert nr_changed == counted.nr_changed
    return picture


@pytest.mark.needs("pfn", "kpage", "guard")
def test_every_frame_of_two_real_snapshots_is_what_became_of_it(actor, physview, tmp_path):
    actor.keep()
    for line in EVENTS.values():
        actor.do(line)
    actor.keep()
    picture = check(actor)
    assert not describe(picture).missing
    there = ram.ram_ranges(ram.read_resources())
    assert picture.frames.ram == there
    for kind in ("stayed", "moved", "new", "left", "gone"):
        assert picture.frames.totals[index_of(DIFF_KINDS, kind)] > 0, kind
    path = tmp_path / "what moved.svg"
    result = physview("diff", *actor.paths, "--picture", str(path), "--json")
    assert (result.returncode, result.stderr) == (1, "")
    document = json.loads(result.stdout)
    assert document["pid"] == actor.child.pid
    assert document["size_bytes"] == path.stat().st_size < 300_000
    kinds = [(each["kind"], each["nr_frames"]) for each in document["kinds"]]
    assert kinds == [
        (kind.slug, nr if kind.has_frame else None)
        for kind, nr in zip(DIFF_KINDS, picture.frames.totals, strict=True)
    ]
    assert any("(gone)" in band["name"] for band in document["bands"])
    words = " ".join(words_of(path))  # long captions are wrapped
    host = os.uname()
    with SnapshotFile(actor.paths[0]) as one, SnapshotFile(actor.paths[1]) as other:
        times = [file.time.astimezone() for file in (one, other)]
    for word in (
        f"process {actor.child.pid}: what moved",
        f"{host.nodename}  ·  Linux {host.release}",
        f"Before: {times[0]:%Y-%m-%d %H:%M:%S}  ·  after: {times[1]:%H:%M:%S}",
        "stayed in its frame",
        "left: its page has moved",
        "MiB changed",
        "Each cell is",
        "Pages that moved have two connectors: to where they were, and to where they are",
    ):
        assert word in words, word
    document_of = (Path(__file__).parent.parent / "docs/json.md").read_text()
    for kind in DIFF_KINDS:
        assert f"`{kind.slug}`" in document_of, kind


@pytest.mark.needs("pfn", "kpage", "thp", "collapse")
def test_collapsed_pages_left_their_frames(actor):
    actor.do("other = Region.huge(2); o = other.__enter__(); o.madvise(15, check=False); o.touch()")
    actor.keep()
    actor.do("o.madvise(14); o.madvise(25)")  # MADV_COLLAPSE, Linux 6.1
    actor.keep()
    picture = check(actor)
    assert picture.frames.totals[index_of(DIFF_KINDS, "moved")] >= 1024


@pytest.mark.alone("it moves the pages of all processes")
@pytest.mark.needs("pfn", "kpage", "compaction")
def test_compaction(actor):
    actor.do("holes = Region(1 << 15).touch()")
    actor.do("[libc.madvise(v, PAGE, 4) for v in holes.pages if v // PAGE % 3]")
    actor.keep()
    actor.compact()
    actor.keep()
    picture = check(actor)
    assert picture.frames.totals[index_of(DIFF_KINDS, "moved")] > 0


@pytest.mark.needs("pfn", "kpage", "swap")
def test_swapped_out_and_in(actor):
    actor.do("dense.madvise(21)")  # MADV_PAGEOUT
    actor.keep()
    actor.do("fragmented.madvise(21); [dense.read(i) for i in range(0, 3000, 3)]")
    actor.keep()
    picture = check(actor)
    nr = dict(zip((kind.slug for kind in DIFF_KINDS), picture.frames.totals, strict=True))
    assert nr["swapped_in"] > 100
    assert nr["swapped_out"] + nr["swapped_in"] > 1000
    pages = np.array([band.counts for band in picture.space.bands]).sum(axis=0)
    assert pages[index_of(DIFF_KINDS, "swapped")] > 100


@pytest.mark.needs("pfn", "kpage")
def test_nothing_happened_and_a_fork(physview, python, tmp_path):
    fork = (
        "import os, signal\nregion = __import__('memory').Region(1000).touch()\n"
        "start, end = os.pipe()\nchild = os.fork()\n"
        "if not child: os.close(start); region.touch(*range(10)); os.write(end, b'x')"
        "; signal.pause()\nos.read(start, 1)\nprint(child, flush=True)"
    )
    program = python(wait=f"exec({fork!r})\ninput()")
    child = int(program.stdout.readline())
    same = str(tmp_path / "same.svg")
    try:
        for attempt in range(5):  # the kernel moves a page of an idle process now and then
            paths = [str(tmp_path / f"{attempt}-{i}.parquet") for i in range(3)]
            for pid, path in zip((program.pid, program.pid, child), paths, strict=True):
                assert physview("snapshot", str(pid), "-o", path).returncode == 0
            result = physview("diff", *paths[:2], "--picture", same, "--force")
            if not result.returncode:
                break
    finally:
        os.kill(child, 9)
    assert (result.returncode, result.stderr) == (0, "")
    assert "unchanged" in words_of(same)
    shared = str(tmp_path / "shared.svg")
    result = physview("diff", paths[0], paths[2], "--picture", shared)
    assert result.returncode == 1
    name = Path(sys.executable).name
    assert f"two processes, {name}" in result.stderr
    assert f"{name} {program.pid} and {name} {child}: what differs" in result.stdout
    _, picture, _ = draw(paths[0], paths[2])
    assert picture.frames.totals[index_of(DIFF_KINDS, "stayed")] > 990
    assert picture.frames.totals[index_of(DIFF_KINDS, "moved")] >= 10


@pytest.fixture
def two(actor):
    """Two snapshots that differ."""
    actor.keep()
    actor.do(EVENTS[Change.MOVED])
    actor.keep()
    return actor.paths


@pytest.mark.needs("pfn", "kpage")
def test_wrong_use_is_refused(physview, two, tmp_path):
    there = tmp_path / "there.svg"
    there.write_text("mine")
    new = str(tmp_path / "new.svg")
    cases = [
        (["--picture", "p.gif"], 2, "'.gif' is no kind of picture; end it in .svg, .png, .html"),
        (["--picture", str(there)], 1, "it is there already; choose another name, or add --force"),
        (["--picture", new, "--extents"], 2, "a picture shows all changes"),
        (["--picture", new, "--only", "moved"], 2, "a picture shows all changes"),
        (["--theme", "dark"], 2, "name its file with --picture"),
        (["--force"], 2, "name its file with --picture"),
    ]
    for options, code, message in cases:
        assert message in one_line(physview("diff", *two, *options), code), options
    assert there.read_text() == "mine"
    assert not os.path.exists(new)
    damaged = tmp_path / "damaged.parquet"
    data = Path(two[1]).read_bytes()
    damaged.write_bytes(data[: len(data) // 2])
    one_line(physview("diff", two[0], str(damaged), "--picture", new), 1)
    assert not os.path.exists(new)
    assert physview("diff", *two, "--picture", str(there), "--force").returncode == 1
    assert words_of(there)


def without(path, other, **members):
    """A copy of a snapshot with some metadata changed."""
    table = pq.read_table(path)
    about = json.loads(table.schema.metadata[b"physview"]) | members
    about = {name: value for name, value in about.items() if value != "drop"}
    pq.write_table(table.replace_schema_metadata({b"physview": json.dumps(about)}), other)


@pytest.mark.needs("pfn", "kpage", "nobody")
@pytest.mark.parametrize("suffix", [".svg", ".png", ".html"])
def test_whoever_may_read_them_can_draw_them(physview, two, open_folder, suffix):
    two = [shutil.copy(path, open_folder) for path in two]
    old = [str(open_folder / f"old{i}.parquet") for i in (0, 1)]
    for path, name in zip(two, old, strict=True):
        without(path, name, resources="drop")
        os.chmod(path, 0o644)
        os.chmod(name, 0o644)
    path = str(open_folder / f"p{suffix}")
    result = physview("diff", *two, "--picture", path, prefix=AS_NOBODY)
    assert (result.returncode, result.stderr) == (1, "")
    as_root = physview("diff", *old, "--picture", str(open_folder / f"root{suffix}"))
    assert (as_root.returncode, as_root.stderr) == (1, "")
    unknown = str(open_folder / f"unknown{suffix}")
    result = physview("diff", *old, "--picture", unknown, prefix=AS_NOBODY)
    assert (result.returncode, result.stderr) == (1, "")
    if suffix == ".svg":
        named = "only the memory around the frames that they name is drawn"
        assert not any(named in words for words in words_of(path))
        assert not any(named in words for words in words_of(open_folder / "root.svg"))
        assert any(named in words for words in words_of(unknown))
        assert not any("without RAM" in words for words in words_of(unknown))


@pytest.mark.needs("pfn", "kpage")
def test_after_a_reboot_ram_is_not_that_of_this_boot(two, tmp_path):
    paths = [str(tmp_path / f"old{i}.parquet") for i in (0, 1)]
    for path, name in zip(two, paths, strict=True):
        without(path, name, resources="drop", boot_id="another")
    found, picture, _ = draw(*paths)
    assert picture.frames.ram == diff_picture.named_ranges(over_of(found))
    assert any("is not known here" in note for note in describe(picture).notes)
    for path, name in zip(two, paths, strict=True):
        without(path, name, boot_id="another")
    assert draw(*paths)[1].frames.ram == ram.ram_ranges(ram.read_resources())


@pytest.mark.needs("nobody")
def test_where_frames_are_hidden_the_virtual_half_is_drawn(physview, open_folder):
    paths = [str(open_folder / f"{i}.parquet") for i in (0, 1)]
    for path in paths:  # of two interpreters, which have memory at other addresses
        words = ["snapshot", "self", "-o", path]
        assert physview(*words, prefix=AS_NOBODY, interpreter=True).returncode == 0
    picture = str(open_folder / "p.svg")
    result = physview("diff", *paths, "--picture", picture, prefix=AS_NOBODY)
    assert result.returncode == 1  # two processes, each of its own
    assert "physical memory is not drawn: frame numbers were hidden when " in result.stderr
    assert "; take both snapshots as root\n" in result.stderr
    words = words_of(picture)
    assert "Physical memory is not drawn" in words
    assert any("it is not known what moved" in word for word in words)
    assert re.search("untold|unmapped|mapped", "\n".join(words))
