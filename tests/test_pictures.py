# SPDX-License-Identifier: GPL-2.0-or-later
"""The data of pictures: cells, bands and connectors have every frame and every page once."""

import itertools
import mmap

import numpy as np
import pytest
from colours import CONES, lab
from drawings import expand, some_memory
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import PAGE, Region, every_second_page
from plain_reads import smaps

from physview import pictures
from physview.errors import ProcessGone
from physview.frames import machine as frames
from physview.memory.extents import BATCH
from physview.memory.rows import split_at
from physview.pictures import bands, grid, runs, shapes
from physview.pictures.kinds import (
    DIFF_KINDS,
    MACHINE_KINDS,
    PROCESS_KINDS,
    TELLING,
    index_of,
    machine_kind,
    own_kind,
    rest_kind,
)
from physview.pictures.process_pages import ProcessPages
from physview.sources.ram import Resource, ram_ranges, read_resources

ALL_KINDS = [PROCESS_KINDS, MACHINE_KINDS, DIFF_KINDS]


def as_runs(*items):
    return np.array(list(items), dtype=runs.RUN_DTYPE)


pieces = st.lists(st.tuples(st.integers(0, 90), st.integers(1, 30), st.integers(3, 5)), max_size=8)


@given(pieces, st.integers(1, 40), st.integers(1, 60))
def test_what_lies_over_ram_hides_what_is_below_and_nothing_else(over, nr, more):
    below = as_runs((0, nr, 0), (nr, 5, 1), (nr + 20, more, 2))
    found = runs.overlay(below, as_runs(*over))
    expected = expand(below)
    covered = {}
    for first, length, kind in over:
        for pfn in range(first, first + length):
            covered[pfn] = min(kind, covered.get(pfn, kind))
    expected |= {pfn: kind for pfn, kind in covered.items() if pfn in expected}
    assert expand(found) == expected
    assert (found["pfn"][1:] >= (found["pfn"] + found["nr"])[:-1]).all()


@given(
    st.lists(st.tuples(st.integers(0, 500), st.integers(1, 200)), max_size=20), st.integers(1, 70)
)
def test_runs_are_cut_at_multiples_and_stay_whole(items, step):
    first, nr = (np.array([item[i] for item in items], dtype=np.int64) for i in (0, 1))
    index, start, length = split_at(first, nr, step)
    assert (start // step == (start + length - 1) // step).all()
    for i, (low, count) in enumerate(items):
        mine = [(s, n) for j, s, n in zip(index, start, length, strict=True) if j == i]
        assert [x for s, n in mine for x in range(s, s + n)] == list(range(low, low + count))


HOLES = [Resource(0xC0000000, 0x100000000, "PCI Bus 0000:00", 0)]


def test_ram_fits_whatever_its_size_and_holes_are_named():
    shift = PAGE.bit_length() - 1
    for size in (1 << 20, 3 << 30, 1 << 40):
        ram = [(1, 100), (256, 0xC0000000 >> shift), (1 << 32 >> shift, (1 << 32) + size >> shift)]
        found = grid.make_grid(ram, HOLES)
        assert found.nr_rows <= grid.MAX_ROWS
        # Some cells more and it would not be needed: no picture is coarser than it has to be.
        finer = grid._row_spans(ram, found.row_shift - 1)
        assert sum(nr for _, nr in finer) + grid.ROWS_PER_HOLE * (len(finer) - 1) > grid.MAX_ROWS
        first = np.array([1, 256, 1 << 32 >> shift])
        cells = found.place(first)
        assert cells[0] == 1 >> found.shift
        assert (np.diff(cells) >= 0).all()
        assert "1.0 GiB without RAM: PCI Bus 0000:00" in found.holes


def test_a_cell_counts_what_is_in_it():
    ram = [(0, 1000), (70000, 70100)]
    found = grid.Grid(2, (grid.Block(0, 2, ""), grid.Block(136, 1, "hole")), ("", "hole"))
    array = as_runs((0, 3, 0), (3, 997, 1), (70000, 100, 2))
    counts = grid.count_cells(found, array, 3)
    assert counts.shape == (3, grid.CELLS_PER_ROW, 3)
    assert counts[0, 0].tolist() == [3, 1, 0]
    assert counts.sum(axis=(0, 1)).tolist() == [3, 997, 100]
    assert counts[2, (70000 - 136 * 512) // 4].tolist() == [0, 0, 4]
    assert sum(end - first for first, end in ram) == counts.sum()


cells = st.lists(st.sampled_from([0, 0, 1, 2, 7, 40, 500]), min_size=6, max_size=6)


@given(cells, st.integers(0, 600))
def test_stripes_are_shares(counts, nr_missing):
    kinds = PROCESS_KINDS[:6]
    capacity = max(1, sum(counts) + nr_missing)
    codes = shapes.stripes(np.array([[counts]]), capacity, kinds)
    assert codes.shape == (1, shapes.UNITS)
    assert codes[0].tolist() == sorted(codes[0].tolist())  # in the order of kinds, nothing last
    for i, count in enumerate(counts):
        exact = count * shapes.UNITS / capacity
        drawn = int((codes == i).sum())
        if kinds[i].is_subject:
            assert drawn >= (shapes.LEAST if count else 0)
        elif not any(counts[:4]):
            assert abs(drawn - exact) < 1, (counts, codes)


def test_only_flags_that_tell_are_looked_at():
    rng = np.random.default_rng(3)
    for value in [*rng.integers(0, 1 << 42, 5000, dtype=np.uint64).tolist(), (1 << 64) - 1]:
        # A frame without flags has all of them, and nopage among them.
        assert frames.use_of(value & TELLING) is frames.use_of(value)
        assert machine_kind(value & TELLING) == machine_kind(value)
        assert rest_kind(value & TELLING) == rest_kind(value)


@pytest.mark.alone("counts the machine's frames twice; others take and free some in between")
@pytest.mark.needs("kpage")
def test_every_frame_of_ram_is_drawn_once():
    picture = pictures.picture_machine()
    nr_ram = sum(end - first for first, end in ram_ranges(read_resources()))
    assert sum(picture.frames.totals) == nr_ram == int(picture.frames.runs["nr"].sum())
    counted = frames.by_use(frames.read_machine().counts)
    reserved = index_of(MACHINE_KINDS, "reserved")
    uses = [each for each in frames.Use if machine_kind_of(each) == reserved]
    # Others allocate meanwhile, but not what is reserved.
    nr_reserved = sum(counted.get(use, (0, 0))[0] for use in uses)
    assert abs(picture.frames.totals[reserved] - nr_reserved) < 64


def machine_kind_of(use):
    names = {frames.Use.NO_FRAME: "nopage"}
    from physview.sources.page_flags import FLAG_BITS

    name = names.get(use, use.rule)
    return machine_kind(1 << FLAG_BITS[name]) if name in FLAG_BITS else None


def rss_kib(pid):
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Rss:"))


def nr_hugetlb(pid):
    """The pages of hugetlb, which are drawn, but are no part of Rss."""
    names = ("Shared_Hugetlb", "Private_Hugetlb")
    return sum(fields[name] for fields in smaps(pid).values() for name in names) // PAGE


@pytest.mark.needs("pfn", "kpage")
def test_every_page_of_a_process_is_drawn_once(stopped):
    picture = pictures.picture_process(stopped.pid)
    space = picture.space
    assert isinstance(space.pages, ProcessPages)
    assert space.pages.nr_resident * PAGE == rss_kib(stopped.pid) * 1024
    nr_own = sum(band.nr_resident for band in space.bands)
    assert nr_own == space.pages.nr_resident + nr_hugetlb(stopped.pid)
    assert sum(link.nr_pages for link in space.links.links) == nr_own
    own = [i for i, kind in enumerate(PROCESS_KINDS) if kind.is_subject]
    by_profile = space.profile.sum(axis=(0, 1))
    assert by_profile[own].sum() == nr_own
    assert by_profile.tolist() == [
        sum(c) for c in zip(*(b.counts for b in space.bands), strict=True)
    ]
    # Frames that two mappings show are drawn once.
    pfns = set(expand(space.pages.frames))
    assert sum(picture.frames.totals[i] for i in own) == len(pfns) <= nr_own
    assert sum(picture.frames.totals) == sum(e - f for f, e in picture.frames.ram)


@pytest.mark.needs("pfn", "kpage", "thp")
def test_pages_are_of_the_kind_that_they_are():
    anon = Region(30).touch()
    shared = Region(20, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS).touch()
    zero = Region(40)
    for index in range(40):
        zero.read(index)
    with open(__file__, "rb") as file:
        mapped = Region(1, flags=mmap.MAP_SHARED, fd=file.fileno(), prot=mmap.PROT_READ)
    mapped.read()
    with Region.huge(1) as huge:
        huge.touch()
        memory = pictures.picture_process().space.pages
        expected = [
            (anon, "own_anon"),
            (shared, "own_shared"),
            (zero, "zero"),
            (mapped, "own_file"),
            (huge, "own_huge"),
        ]
        for region, slug in expected:
            vaddrs = memory.rows["vaddr"]
            inside = (vaddrs >= region.start) & (vaddrs < region.end)
            assert {PROCESS_KINDS[kind].slug for kind in memory.kinds[inside]} == {slug}
            assert memory.rows["nr_pages"][inside].sum() * PAGE == region.size


def test_without_flags_a_page_is_a_file_s_or_not():
    none = (1 << 64) - 1
    assert PROCESS_KINDS[own_kind(none, is_file=True)].slug == "own_file"
    assert PROCESS_KINDS[own_kind(none, is_file=False)].slug == "own_anon"


@pytest.mark.parametrize("nr", [1, 15, 200, 70_000])
def test_bands_are_few_and_have_all_mappings_in_order(nr):
    memory = some_memory([8] * nr)
    found = bands.make_bands(memory)
    assert 1 <= len(found) <= bands.MAX_BANDS
    assert [band.first for band in found] == [0, *itertools.accumulate(b.nr for b in found)][:-1]
    assert sum(band.nr for band in found) == nr
    assert sum(band.nr_resident for band in found) == memory.nr_resident
    assert sum(band.nr_pages for band in found) == 8 * nr


def test_what_has_most_in_memory_has_a_band_of_its_own():
    memory = some_memory([8] * 500)
    memory.rows["nr_pages"][250] = 8
    alone = [band for band in bands.make_bands(memory) if band.nr == 1]
    assert 250 in [band.first for band in alone]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 5000), min_size=1, max_size=60))
def test_profiles_and_links_have_every_page(sizes):
    memory = some_memory(sizes)
    found = bands.make_bands(memory)
    profile = bands.profiles(memory, found)
    for i, band in enumerate(found):
        assert profile[i].sum() == band.nr_resident
        assert profile[i, bands.parts_of(band, bands.PARTS) :].sum() == 0
    ram = [(0, 1200), (1300, 4000)]
    links, nr_outside = bands.make_links(memory, found, grid.make_grid(ram, []), ram)
    outside = sum(
        1
        for row in memory.rows
        for pfn in range(int(row["pfn"]), int(row["pfn"] + row["nr_pages"]))
        if 1200 <= pfn < 1300 or pfn >= 4000
    )
    assert nr_outside == outside
    assert sum(link.nr_pages for link in links.links) == memory.nr_resident - outside
    assert len(links.links) <= bands.MAX_LINKS


def test_links_begin_where_their_pages_are():
    """Also links of bands with a few pages, at any level of bundling."""
    memory = some_memory([5, 900, 40, 33, 3])
    found = bands.make_bands(memory)
    band = np.repeat(np.arange(5), 40)
    part = np.tile(np.arange(40), 5) % np.array([bands.parts_of(b, 32) for b in found])[band]
    rng = np.random.default_rng(2)
    row, kind = rng.integers(0, 100, 200), np.zeros(200, dtype=np.uint8)
    many = 30  # more than there may be links, so that they are bundled
    where = [np.tile(each, many) for each in (band, part, row, kind)]
    where[2] = rng.integers(0, 100, 200 * many)
    links = bands._bundle(found, *where, np.ones(200 * many, dtype=np.int64))
    assert links.nr_parts < 32
    assert sum(link.nr_pages for link in links.links) == 200 * many
    for i, each in enumerate(found):
        parts = {link.part for link in links.links if link.band == i}
        assert parts == set(range(bands.parts_of(each, links.nr_parts)))


@pytest.mark.needs("root")
def test_a_picture_of_something_else():
    """A picture like that of a diff: other kinds, in three groups."""
    names = ("came", "went", "moved", "stayed", "hole")
    kinds = tuple(
        MACHINE_KINDS[i]._replace(slug=name, label=name, group=f"group {i % 3}")
        for i, name in enumerate(names)
    )
    ram = [(0, 1000), (5000, 100_000)]
    found = as_runs((0, 500, 0), (500, 500, 1), (5000, 50_000, 2), (55_000, 45_000, 3))
    over = as_runs((100, 50, 4))
    drawn = pictures.make_frames(found, over, ram, kinds, [])
    assert drawn.totals == [450, 500, 50_000, 45_000, 50]
    picture = pictures.Picture(None, kinds, drawn, None)
    captions = pictures.Captions("its title", summary="its summary", notes=("its note",))
    text = pictures.to_svg(pictures.lay_out(picture, captions)[0])
    for word in (*names, "its summary", "its note", "group 0", "group 1", "group 2"):
        assert f">{word}<" in text
    for name in names:
        assert f'class="c {name}"' in text
    assert len(pictures.to_html(picture, captions)) > 10_000


def test_a_process_that_ends_while_it_is_read(python):
    # Also where frames are hidden, much is left to read when the process ends: more than a BATCH.
    child = python(every_second_page(400_000, max(1600, 3 * BATCH * PAGE >> 20)))

    def kill(*_):
        child.kill()
        child.wait()

    with pytest.raises(ProcessGone, match="it ended while it was read"):
        pictures.picture_process(child.pid, progress=kill)


@pytest.mark.parametrize("cones", CONES)
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("kinds", ALL_KINDS, ids=["process", "machine", "diff"])
def test_colours_can_be_told_apart(kinds, theme, cones):
    colours = {kind.slug: lab(getattr(kind, theme), cones) for kind in kinds if kind.has_frame}
    colours["paper"] = lab(shapes.PAPER["paper"][theme == "dark"], cones)
    for (one, a), (other, b) in itertools.combinations(colours.items(), 2):
        least = 5 if {"free", "other"} & {one, other} else 9
        assert np.linalg.norm(a - b) >= least, (one, other)


@pytest.mark.parametrize("cones", CONES)
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("kinds", [PROCESS_KINDS, MACHINE_KINDS], ids=["process", "machine"])
def test_free_memory_and_the_page_cache_differ_in_lightness(kinds, theme, cones):
    """Most of RAM is one or the other. Lightness is what is left in black and white."""
    by_slug = {kind.slug: lab(getattr(kind, theme), cones)[0] for kind in kinds}
    assert abs(by_slug["free"] - by_slug["page_cache"]) >= 13


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("kinds", ALL_KINDS, ids=["process", "machine", "diff"])
def test_each_group_is_of_steps_of_lightness(kinds, theme):
    for group in {kind.group for kind in kinds if kind.has_frame}:
        levels = sorted(
            lab(getattr(kind, theme), "all")[0]
            for kind in kinds
            if kind.group == group and kind.has_frame
        )
        assert all(np.diff(levels) >= 4), (group, levels)
