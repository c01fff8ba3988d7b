# SPDX-License-Identifier: GPL-2.0-or-later
"""The HTML page of diff --picture in a real browser shows the frames that pagemap had."""

import re

import numpy as np
import pytest
from actors import EVENTS
from drawings import draw, over_of
from memory import PAGE
from picture_page import DRAWN, TIP, open_without_frames, place_of, search

from physview.analysis.changes import Change
from physview.model import PM_PFRAME_MASK
from physview.pictures.kinds import DIFF_KINDS
from physview.pictures.runs import overlay

pytestmark = pytest.mark.needs("browser", "pfn", "kpage")

SUMS = """(() => {
    const {model, view} = physview, sums = model.kinds.map(() => 0);
    view.setLevel(%s);
    const perRow = view.perRow * 2 ** view.level;
    for (const row of view.blocks.flatMap((block) => Array.from({length: block.nr},
        (_, i) => ({first: (block.first + i) * perRow, nr: perRow}))))
        view.countRow(row).forEach((nr, i) => sums[i %% model.kinds.length] += nr);
    return sums;
})()"""


@pytest.fixture
def page(tab, actor, physview, tmp_path):
    """The HTML page of a process with changes of all kinds, open in the browser."""
    actor.keep()
    for line in EVENTS.values():
        actor.do(line)
    actor.keep()
    path = tmp_path / "p.html"
    result = physview("diff", *actor.paths, "--picture", str(path))
    assert result.returncode == 1, result.stderr
    tab.complaints.clear()
    tab.open(path)
    assert tab.evaluate("document.documentElement.dataset.state") == "ready", tab.complaints
    yield tab
    assert tab.complaints == []


def some(actor, change):
    """A page with this change, and its frames before and after from plain reads."""
    judged = actor.expected()
    vaddrs = sorted(vaddr for vaddr, what in judged.items() if what is change)
    vaddr = vaddrs[len(vaddrs) // 2]
    frames = [seen[0].get(vaddr, 0) & PM_PFRAME_MASK for seen in actor.seen]
    return vaddr, *frames


def test_a_page_that_moved_is_found_by_either_address_and_says_both(page, actor):
    vaddr, before, after = some(actor, Change.MOVED)
    assert before != after
    was = f"before: physical {before * PAGE + 0x123:#x}  (pfn:{before:#x})"
    is_now = f"now: physical {after * PAGE + 0x123:#x}  (pfn:{after:#x})"
    found = search(page, hex(vaddr + 0x123))
    assert f"virtual {vaddr + 0x123:#x}  ·  moved: {Change.MOVED.text}" in found
    assert was in found
    assert is_now in found
    assert "rw-p [anonymous]" in found
    assert page.evaluate("[physview.view.marked.pfn, physview.view.marked.past]") == [after, before]
    seen = "[view.marked.pfn, view.marked.past].map((pfn) => view.where(pfn)[2])"
    assert page.evaluate(f"((view) => {seen})(physview.view)") == [True, True]
    for words in (f"pfn:{after:#x}", f"p{before * PAGE:#x}"):
        found = search(page, words)
        assert f"virtual {vaddr:#x}  ·  moved" in found
        assert f"(pfn:{before:#x})" in found
        assert f"(pfn:{after:#x})" in found
    page.point(*place_of(page, before))
    tip = page.evaluate(TIP)
    assert (
        f"virtual {vaddr:#x}\nmoved: {Change.MOVED.text}\nbefore: physical {before * PAGE:#x}"
        in tip
    )


def test_what_came_and_went_says_so(page, actor):
    for change, was, is_now in (
        (Change.WENT, "before: physical ", "now: no page"),
        (Change.APPEARED, "before: no page", "now: physical "),
        (Change.MAPPED, "before: no page", "now: physical "),
        (Change.UNMAPPED, "before: physical ", "now: no page"),
        (Change.STAYED, "before: physical ", "now: physical "),
    ):
        vaddr, before, after = some(actor, change)
        found = search(page, hex(vaddr))
        assert f"virtual {vaddr:#x}  ·  {change.value}: {change.text}" in found
        assert f"{was}{before * PAGE:#x}" if before else was in found
        assert f"{is_now}{after * PAGE:#x}" if after else is_now in found
    assert "(gone), " in search(page, "(gone)")
    guards = [
        vaddr
        for vaddr, what in actor.expected().items()
        if what is Change.SPECIAL and actor.seen[0][0].get(vaddr, 0) >> 58 & 1
    ]
    if guards:
        assert "before: a guard" in search(page, hex(guards[0]))


def test_frames_are_counted_and_connected_as_in_the_drawing(page, actor):
    found, picture, _ = draw(*actor.paths)
    assert page.evaluate(SUMS % "model.shift") == picture.frames.totals
    assert page.evaluate(SUMS % "model.shift - 3") == picture.frames.totals
    runs = overlay(picture.frames.runs, over_of(found))
    starts = np.cumsum(runs["nr"]) - runs["nr"]
    begins = np.concatenate([[True], runs["kind"][1:] != runs["kind"][:-1]])  # also over holes
    assert page.evaluate("Array.from(physview.model.runKind)") == runs["kind"][begins].tolist()
    found_starts = page.evaluate("Array.from(physview.model.runStart)")
    assert found_starts == [*starts[begins].tolist(), int(runs["nr"].sum())]
    links = page.evaluate(
        "physview.view.setLevel(physview.model.shift), physview.view.drawNow(),"
        " physview.view.links.map((link) => [link.kind, link.nr])"
    )
    in_page = np.zeros(len(DIFF_KINDS), dtype=int)
    for kind, nr in links:
        in_page[kind] += nr
    drawn = np.zeros(len(DIFF_KINDS), dtype=int)
    for link in picture.space.links.links:
        drawn[link.kind] += link.nr_pages
    assert in_page.tolist() == drawn.tolist()
    assert in_page[[0, 1, 2, 4, 5]].all()  # stayed, moved, new; left, gone


def test_pointing_at_connectors_and_bands(page):
    page.evaluate("physview.whole()")
    page.evaluate(DRAWN)
    told = page.evaluate("physview.view.links.map((link) => physview.describeLink(link))")
    were = [words for words in told if "that were in frames" in words]
    are = [words for words in told if words not in were]
    assert any("left: its page has moved" in words for words in were)
    assert any("moved, copied, collapsed" in words for words in are)
    assert not any("left: its page has moved" in words for words in are)
    box = page.evaluate(
        "(() => { const box = physview.canvas.getBoundingClientRect();"
        " return [box.left, box.top, box.width / physview.view.layout.width]; })()"
    )
    left, width = page.evaluate("physview.view.layout.body")
    for top, bottom in page.evaluate("physview.view.layout.spans"):
        x, y = left + width / 2, (top + bottom) / 2
        page.point(box[0] + x * box[2], box[1] + y * box[2])
        assert re.search("virtual 0x[0-9a-f]+\n(.*: |no page is there)", page.evaluate(TIP))


def test_the_virtual_half_alone(tab, actor, tmp_path):
    actor.keep()
    actor.do(EVENTS[Change.MOVED])
    actor.keep()
    open_without_frames(tab, draw(*actor.paths)[1], tmp_path / "p.html")
    vaddr = some(actor, Change.MOVED)[0]
    assert f"virtual {vaddr:#x}  ·  moved" in search(tab, hex(vaddr))
    assert tab.complaints == []
