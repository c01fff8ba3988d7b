# SPDX-License-Identifier: GPL-2.0-or-later
"""The HTML page of a picture in a real browser shows what the kernel reports."""

import os
import re

import browser
import numpy as np
import pytest
from children import processes, start_stopped
from drawings import some_memory
from memory import PAGE, raw_entry
from picture_page import DRAWN, TIP, open_without_frames, place_of, search
from plain_reads import plain_values

from physview import pictures
from physview.memory.snapshot import BASE_DTYPE
from physview.model import NO_ENTRY, PM_PFRAME_MASK, Vma
from physview.pictures import bands, pack, runs
from physview.pictures.kinds import PROCESS_KINDS, index_of
from physview.pictures.model import Picture, Space, make_frames
from physview.pictures.process_pages import ProcessPages

pytestmark = pytest.mark.needs("browser")


@pytest.fixture(scope="module")
def stopped():
    """One stopped process for all tests of this file. They only read it."""
    with processes() as start:
        yield start_stopped(start)


@pytest.fixture(scope="module")
def written(stopped, physview, tmp_path_factory):
    """The HTML page of a process with memory of every kind."""
    path = tmp_path_factory.mktemp("page") / "p.html"
    result = physview("picture", str(stopped.pid), "-o", str(path))
    assert result.returncode == 0, result.stderr
    return path


@pytest.fixture
def page(tab, written):
    """That page, freshly opened in the browser."""
    tab.complaints.clear()
    tab.open(written)
    assert tab.evaluate("document.documentElement.dataset.state") == "ready", tab.complaints
    yield tab
    assert tab.complaints == []


def a_page(pid, *, path=""):
    """The address of a resident page in a mapping with this path ("": anonymous), and its frame."""
    from physview.memory.snapshot import Snapshot

    with Snapshot(pid) as snapshot:
        rows = np.concatenate(list(snapshot.iter_extents()))
        anonymous = [i for i, vma in enumerate(snapshot.vmas) if vma.path == path]
    rows = rows[np.isin(rows["vma"], anonymous) & (rows["pfn"] != np.uint64(NO_ENTRY))]
    vaddr = int(rows["vaddr"][len(rows) // 2])
    pfn = raw_entry(vaddr, pid) & PM_PFRAME_MASK
    assert pfn
    return vaddr, pfn


@pytest.mark.needs("pfn", "kpage")
def test_a_search_and_a_hover_find_an_address(page, stopped):
    vaddr, pfn = a_page(stopped.pid)
    found = search(page, hex(vaddr + 0x123))
    assert f"virtual {vaddr + 0x123:#x}" in found
    assert f"physical {pfn * PAGE + 0x123:#x}  (pfn:{pfn:#x})" in found
    assert page.evaluate("physview.view.level") == 0
    page.point(*place_of(page, pfn))
    tip = page.evaluate(TIP)
    assert f"virtual {vaddr:#x}\nphysical {pfn * PAGE:#x}  (pfn:{pfn:#x})" in tip
    assert re.search(r"flags: .*anon", tip)
    assert re.search(r"pagemap: .*present", tip)
    assert "rw-p [anonymous]" in tip
    assert "owners: this process" in tip


@pytest.mark.needs("pfn", "kpage")
def test_owners_are_counted_when_asked_for(tab, stopped, physview, tmp_path):
    path = tmp_path / "p.html"
    assert physview("picture", str(stopped.pid), "-o", str(path), "--mapcount").returncode == 0
    tab.complaints.clear()
    tab.open(path)
    vaddr, pfn = a_page(stopped.pid)
    nr = int(plain_values("kpagecount", pfn, 1)[0])
    assert nr >= 1
    times = "1 time" if nr == 1 else f"{nr} times"
    assert f"owners: this process; mapped {times} in all" in search(tab, hex(vaddr))
    assert tab.complaints == []


@pytest.mark.needs("pfn", "kpage")
def test_a_frame_and_a_physical_address_lead_back(page, stopped):
    vaddr, pfn = a_page(stopped.pid, path="[stack]")
    assert f"virtual {vaddr:#x}" in search(page, f"pfn:{pfn:#x}")
    assert "pfn 10 may be pfn:0x10 or, as decimal, pfn:0xa" in search(page, "pfn 10")
    assert f"virtual {vaddr + 8:#x}" in search(page, f"p{pfn * PAGE + 8:#x}")
    assert f"physical {pfn * PAGE:#x}" in search(page, f"{pfn * PAGE:#x}")
    assert "no RAM" in search(page, "0x3fffffffff000")
    assert "1 of 1: [stack]" in search(page, "[STACK]")
    assert "no mapping has that name" in search(page, "nowhere.so")
    assert search(page, "") == ""


@pytest.mark.needs("pfn", "kpage")
def test_the_page_counts_as_the_picture_does(page, stopped):
    """The page counts runs and extents by itself, for all RAM and at every zoom level."""
    script = """(() => {
        const {view, model} = physview, sums = model.kinds.map(() => 0);
        view.setLevel(%s);
        for (const block of view.blocks)
            for (let row = block.first; row < block.first + block.nr; row++) {
                const nr = view.perRow * 2 ** view.level;
                const counts = view.countRow({first: row * nr, nr});
                counts.forEach((nr, i) => sums[i %% sums.length] += nr);
            }
        return sums;
    })()"""
    sums = page.evaluate(script % "model.shift")
    assert page.evaluate(script % "model.shift - 3") == sums
    ram = page.evaluate("physview.model.ram")
    assert sum(sums) == sum(end - first for first, end in ram)
    picture = pictures.picture_process(stopped.pid)  # it stands still; others do not
    own = [i for i, kind in enumerate(PROCESS_KINDS) if kind.is_subject]
    assert [sums[i] for i in own] == [picture.frames.totals[i] for i in own]
    linked = page.evaluate(
        "physview.view.setLevel(physview.model.shift), physview.view.drawNow(),"
        " physview.view.links.reduce((sum, link) => sum + link.nr, 0)"
    )
    assert isinstance(picture.space.pages, ProcessPages)
    assert linked == picture.space.pages.nr_resident


@pytest.mark.needs("pfn", "kpage")
def test_bands_connectors_and_keys(page, stopped):
    box = page.evaluate(
        "(() => { const box = physview.canvas.getBoundingClientRect();"
        " return [box.left, box.top, box.width / physview.view.layout.width]; })()"
    )
    spans = page.evaluate("physview.view.layout.spans")
    bodies = page.evaluate("physview.view.layout.body")
    for top, bottom in spans:
        x, y = bodies[0] + bodies[1] / 2, (top + bottom) / 2
        page.point(box[0] + x * box[2], box[1] + y * box[2])
        assert re.search("virtual 0x[0-9a-f]+", page.evaluate(TIP))
    page.evaluate(DRAWN)
    page.point(box[0] + 5, box[1] + 5)
    assert page.evaluate("document.getElementById('tip').hidden")
    page.evaluate("document.activeElement.blur()")
    level = page.evaluate("physview.view.level")
    page.press("+")
    assert page.evaluate("physview.view.level") == level - 1
    page.press("End")
    assert page.evaluate("physview.view.scroll") == page.evaluate("physview.view.mostScroll") > 0
    page.press("-")
    page.press("0")
    assert page.evaluate("[physview.view.level, physview.view.scroll]") == [level, 0]
    page.press("/")
    assert page.evaluate("document.activeElement.id") == "search"


@pytest.mark.needs("pfn", "kpage")
def test_light_and_dark_as_the_viewer_prefers(page):
    colours = {}
    for theme in ("light", "dark"):
        page.prefer(theme)
        page.evaluate(DRAWN)
        colours[theme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        first = page.evaluate(
            "Array.from(physview.canvas.getContext('2d').getImageData(0, 0,"
            " physview.canvas.width, physview.canvas.height).data)"
            ".reduce((sum, byte, i) => i % 4 == 3 ? sum : (sum * 31 + byte) % 1000003, 7)"
        )
        colours[theme] += str(first)
    page.prefer("light")
    assert colours["light"].startswith("rgb(255, 255, 255)")
    assert colours["dark"].startswith("rgb(20, 24, 29)")
    assert colours["light"][18:] != colours["dark"][16:]


@pytest.mark.needs("nobody")
def test_the_virtual_half_alone(tab, physview, tmp_path, stopped):
    open_without_frames(tab, pictures.picture_process(stopped.pid), tmp_path / "p.html")
    assert tab.evaluate("document.body.textContent").count("Physical memory is not drawn") == 1
    vaddr, _ = a_page(stopped.pid)
    assert f"virtual {vaddr:#x}" in search(tab, hex(vaddr))
    tab.press("+")
    assert tab.complaints == []


@pytest.mark.needs("kpage")
def test_the_machine(tab, physview, tmp_path):
    path = tmp_path / "m.html"
    assert physview("frames", "--picture", str(path)).returncode == 0
    tab.complaints.clear()
    tab.open(path)
    pfn = tab.evaluate("physview.model.ram[physview.model.ram.length - 1][0]")
    assert f"(pfn:{pfn:#x})" in search(tab, f"pfn:{pfn:#x}")
    page_x, page_y = place_of(tab, pfn)
    tab.point(page_x, page_y)
    assert f"physical {pfn * PAGE:#x}" in tab.evaluate(TIP)
    assert tab.complaints == []


def scattered(nr_pages):
    """A picture of a process with this many pages, none contiguous, in frames of the real RAM."""
    ram = [(1, 159), (256, 786_432), (1 << 20, (1 << 20) + 6 * (1 << 20))]
    pfns = np.random.default_rng(1).permutation(np.arange(1 << 20, 6 << 20))[:nr_pages]
    start = 0x7F0000000000
    rows = np.zeros(nr_pages, dtype=[*BASE_DTYPE, ("flags", "u8")])
    rows["vaddr"] = np.uint64(start) + np.arange(nr_pages, dtype=np.uint64) * np.uint64(PAGE)
    rows["nr_pages"] = 1
    rows["pfn"] = pfns
    rows["entry"] = pfns.astype(np.uint64) | np.uint64(1 << 63 | 1 << 56)
    rows["swap"] = NO_ENTRY
    rows["flags"] = 1 << 12 | 1 << 11 | 1 << 5
    kinds = np.full(nr_pages, index_of(PROCESS_KINDS, "own_anon"), dtype=np.uint8)
    vma = Vma(start, start + nr_pages * PAGE, "rw-p", 0, "00:00", 0, "")
    memory = ProcessPages([vma], rows, kinds, True, nr_pages, nr_pages)
    others = index_of(PROCESS_KINDS, "others")
    below = np.array([(first, end - first, others) for first, end in ram], dtype=runs.RUN_DTYPE)
    frames = make_frames(below, memory.frames, ram, PROCESS_KINDS, [])
    found = bands.make_bands(memory)
    links, _ = bands.make_links(memory, found, frames.grid, ram)
    space = Space(1, memory, found, bands.profiles(memory, found), links)
    return Picture(None, PROCESS_KINDS, frames, space), pfns


# Loads, zooms, finds and points, each a number of times; tells milliseconds.
WORK = """(async () => {
    const begin = performance.now();
    for (let i = 0; i < 3; i++) {
        physview.whole();
        physview.view.drawNow();
        physview.find("0x" + (0x7f0000000000 + i * 0x10000).toString(16));
        physview.view.drawNow();
        physview.describeCell(physview.view.marked.pfn);
    }
    return performance.now() - begin;
})()"""


@pytest.mark.alone("compares times")
@pytest.mark.needs("root")
def test_a_million_extents_stay_usable(tab, tmp_path):
    """The time to open the page grows linearly: 16 times the extents take little more than 16 times
    the time. The file has at most three bytes for each frame number, as base64."""
    seconds, sizes = {}, {}
    for nr in (1 << 16, 1 << 20):
        picture, pfns = scattered(nr)
        path = tmp_path / f"{nr}.html"
        sizes[nr] = pictures.write_picture(picture, str(path))
        tab.complaints.clear()
        tab.open(path)
        assert f"(pfn:{pfns[-1]:#x})" in search(tab, hex(0x7F0000000000 + (nr - 1) * PAGE))
        tab.evaluate(WORK)  # once for the browser's compiler
        seconds[nr] = min(tab.evaluate(WORK) for _ in range(2))
        assert tab.complaints == []
    assert sizes[1 << 20] < 5_000_000
    assert seconds[1 << 20] < 32 * seconds[1 << 16], seconds


def test_packed_numbers_come_back(tab):
    """The page's unpack() function, with numbers of every width."""
    from importlib import resources

    columns = {
        "few": np.array([0, 1, 255], dtype=np.uint64),
        "wide": np.array([0, 1 << 52, 3, (1 << 40) + 7], dtype=np.uint64),
        "none": np.array([], dtype=np.uint64),
    }
    header, data = {"columns": []}, b""
    for name, values in columns.items():
        nr, planes = pack._planes(values)
        header["columns"].append([name, len(values), nr])
        data += planes
    packed = pack.encode(header, data)
    script = resources.files("physview.pictures").joinpath("data.js").read_text()
    tab.call("Page.navigate", url="about:blank")
    tab.evaluate(script.replace("class Model", "var Model = class Model"))
    found = tab.evaluate(
        f"unpack('{packed}').then(([header, columns]) => Object.fromEntries("
        "Object.entries(columns).map(([name, column]) => [name, Array.from(column)])))"
    )
    assert found == {name: values.tolist() for name, values in columns.items()}


def test_extents_survive_packing():
    memory = some_memory([5, 1, 900, 3, 3])
    columns = pack._extents(memory, [(0, 2000)])
    assert columns["per_vma"].tolist() == [1] * 5
    assert columns["gap"].tolist() == [0] * 5
    assert os.path.exists(browser.find())
    index, found = 0, []
    for step, nr in zip(columns["frame"].tolist(), columns["nr"].tolist(), strict=True):
        assert step
        index += -step // 2 if (step - 1) % 2 else (step - 1) // 2
        found.append(index)
        index += nr
    assert found == memory.rows["pfn"].tolist()
