# SPDX-License-Identifier: GPL-2.0-or-later
"""At its first view the page draws the same cells, connectors and labels as the SVG."""

import itertools

import numpy as np
import pytest
from children import processes, start_stopped
from drawings import some_memory
from memory import PAGE
from picture_page import DRAWN

from physview import pictures
from physview.analysis.changes import CHANGES, IS_FRAME, WAS_FRAME, Change
from physview.model import NO_ENTRY, Vma
from physview.pictures import bands, page_changes, runs, shapes
from physview.pictures.kinds import DIFF_KINDS, PROCESS_KINDS, index_of
from physview.pictures.model import Picture, Space, make_frames

pytestmark = pytest.mark.needs("browser")

# Draws the first view again, and keeps what the canvas is told: rectangles, paths and text.
RECORD = """(() => {
    const drawn = {rects: [], links: [], texts: []}, kept = [];
    const replace = (prototype, name, use) => {
        kept.push([prototype, name, prototype[name]]);
        prototype[name] = use;
    };
    const path = Path2D.prototype, context = CanvasRenderingContext2D.prototype;
    for (const name of ["moveTo", "bezierCurveTo", "lineTo"])
        replace(path, name, function (...numbers) {
            (this.ends ||= []).push(...numbers.slice(-2));
        });
    replace(context, "fillRect", function (...box) { drawn.rects.push([this.fillStyle, ...box]); });
    replace(context, "fill", function (path) {
        drawn.links.push([this.fillStyle, this.globalAlpha, path.ends]);
    });
    replace(context, "fillText", function (text, x, y) {
        drawn.texts.push([text, x, y, parseFloat(this.font)]);
    });
    physview.whole();
    physview.view.drawNow();
    for (const [prototype, name, use] of kept)
        prototype[name] = use;
    return drawn;
})()"""


def check(tab, picture, path):
    """Hold the page of a picture against its SVG's shapes."""
    drawing, layout = pictures.lay_out(picture)
    pictures.write_picture(picture, str(path), theme="light")
    tab.complaints.clear()
    tab.open(path)
    tab.evaluate(DRAWN)
    drawn = tab.evaluate(RECORD)
    assert tab.complaints == []
    colours = drawing.colours("light")
    right_of = layout.place.x - 10
    in_frames = [each for each in drawing.shapes if getattr(each, "x", 0) >= right_of]
    check_cells(drawn["rects"], [s for s in in_frames if isinstance(s, shapes.Cells)], drawing)
    ribbons = [each for each in drawing.shapes if isinstance(each, shapes.Ribbon)]
    assert len(drawn["links"]) == len(ribbons)
    for (colour, alpha, points), ribbon in zip(drawn["links"], ribbons, strict=True):
        assert (colour, round(alpha, 6)) == (colours[ribbon.colour], ribbon.opacity)
        assert points == pytest.approx(
            [
                *(ribbon.x, ribbon.top, ribbon.other_x, ribbon.other_top),
                *(ribbon.other_x, ribbon.other_bottom, ribbon.x, ribbon.bottom),
            ]
        )
    axis = layout.place.x + layout.place.cell * 128
    labels = [
        [each.text, each.x, each.y, each.size]
        for each in drawing.shapes
        if isinstance(each, shapes.Text)
        and layout.place.rows[0].y - 12 <= each.y <= layout.place.bottom
        and (each.x == pytest.approx(layout.place.x) or each.x > axis)
        and not each.is_bold
    ]
    assert sorted(drawn["texts"]) == sorted(labels)
    return len(ribbons)


def check_cells(rects, cells, drawing):
    """Each stripe has the place and colour that it has in the SVG."""
    colours = drawing.colours("light")
    expected, found = {}, {}
    for shape in cells:
        width = shape.width / shape.codes.shape[1]
        for row, column in zip(*np.nonzero(shape.codes != shapes.NOTHING), strict=True):
            place = (round(shape.y + row * shape.pitch, 3), int(column))
            expected[place] = colours[drawing.kinds[shape.codes[row, column]].slug]
    left, height = cells[0].x, cells[0].pitch - cells[0].gap
    for colour, x, y, across, down in rects:
        first, nr = round((x - left) / width), round(across / width)
        assert x == pytest.approx(left + first * width)
        assert 0 <= across - nr * width < 0.06
        assert down == pytest.approx(height)
        for column in range(first, first + nr):
            assert (round(y, 3), column) not in found
            found[round(y, 3), column] = colour
    assert found == expected


@pytest.mark.needs("pfn", "kpage")
def test_of_a_process(tab, tmp_path):
    with processes() as start:
        picture = pictures.picture_process(start_stopped(start).pid)
    assert check(tab, picture, tmp_path / "p.html") > 50


@pytest.mark.needs("kpage")
def test_of_the_machine(tab, tmp_path):
    check(tab, pictures.picture_machine(), tmp_path / "m.html")


RAM = [(1, 159), (256, 400_000), (1 << 20, (1 << 20) + 700_000), (1 << 21, (1 << 21) + 40_000)]
# As many rows as there may be: their addresses do not begin at a round one.
TWO_RANGES = [((128 + 6) << 13, (128 + 59) << 13), ((256 + 1) << 13, (256 + 54) << 13)]


def test_of_a_process_with_many_kinds_everywhere(tab, tmp_path):
    """So many connectors that they are bundled, each of several kinds."""
    dice = np.random.default_rng(5)
    memory = some_memory([*dice.integers(1, 20, 8000).tolist()])
    own = [i for i, kind in enumerate(PROCESS_KINDS) if kind.is_subject]
    memory.rows["pfn"] = dice.choice(np.arange(1 << 20, (1 << 20) + 700_000, 8), len(memory.rows))
    memory.kinds[:] = dice.choice(own, len(memory.rows), p=(0.4, 0.3, 0.2, 0.1))
    slugs = ("others", "free", "kernel", "page_cache")
    picture = made(memory, PROCESS_KINDS, memory.frames, RAM, slugs)
    assert picture.space.links.nr_parts < bands.LINK_PARTS
    assert check(tab, picture, tmp_path / "p.html") > 100


@pytest.mark.parametrize("nr", [300, 60_000])
def test_of_a_difference_with_all_kinds_everywhere(tab, tmp_path, nr):
    """With 60,000 changes even the last step has more connectors than MAX_LINKS."""
    dice = np.random.default_rng(7)
    chosen = [Change.STAYED, Change.MOVED, Change.APPEARED, Change.WENT, Change.SWAPPED_IN]
    chosen += [Change.SWAPPED_OUT]
    rows = np.zeros(nr, dtype=page_changes.PAGE_CHANGE_DTYPE)
    rows["vaddr"] = np.arange(nr, dtype=np.uint64) * np.uint64(PAGE)
    rows["nr_pages"] = 1
    rows["change"] = dice.choice([CHANGES.index(change) for change in chosen], nr)
    pfns = np.concatenate([np.arange(first, end) for first, end in TWO_RANGES])
    rows["before"], rows["after"] = dice.choice(pfns, (2, nr))
    rows["frames"] = WAS_FRAME | IS_FRAME
    stayed = rows["change"] == CHANGES.index(Change.STAYED)
    rows["after"][stayed] = rows["before"][stayed]
    for side, bit, absent in (
        ("before", WAS_FRAME, (Change.APPEARED, Change.SWAPPED_IN)),
        ("after", IS_FRAME, (Change.WENT, Change.SWAPPED_OUT)),
    ):
        none = np.isin(rows["change"], [CHANGES.index(change) for change in absent])
        rows[side][none] = NO_ENTRY
        rows["frames"][none] &= ~np.uint8(bit)
    nr_vmas = 15
    rows["vma"] = np.arange(nr) * nr_vmas // nr
    edges = [*np.searchsorted(rows["vma"], range(nr_vmas)).tolist(), nr]
    vmas = [
        Vma(low * PAGE, high * PAGE, "rw-p", 0, "00:00", 0, f"/{low}")
        for low, high in itertools.pairwise(edges)
    ]
    kinds = page_changes._kinds(rows, (0, 0), True)
    changes = page_changes.PageChanges(vmas, rows, kinds, (0, 0), True)
    over = np.concatenate([each.frames for each in changes.page_frames])
    picture = made(changes, DIFF_KINDS, over, TWO_RANGES, ("other",))
    steps = (picture.space.links.nr_parts, picture.space.links.nr_rows)
    assert steps == (bands.LINK_STEPS[-1] if nr > 1000 else steps)
    assert check(tab, picture, tmp_path / "d.html") > 100


def rest(ram, kinds, slugs):
    """RAM as runs of these kinds in turn."""
    turn = itertools.cycle([index_of(kinds, slug) for slug in slugs])
    found = []
    for first, end in ram:
        for start in range(first, end, 3001):
            found.append((start, min(3001, end - start), next(turn)))
    return np.array(found, dtype=runs.RUN_DTYPE)


def made(pages, kinds, over, ram, slugs):
    """A picture of made pages in made RAM, which has these kinds in turn."""
    frames = make_frames(rest(ram, kinds, slugs), over, ram, kinds, [])
    found = bands.make_bands(pages)
    links, nr_outside = bands.make_links(pages, found, frames.grid, ram)
    assert nr_outside == 0
    space = Space(1, pages, found, bands.profiles(pages, found), links)
    return Picture(None, kinds, frames, space)
