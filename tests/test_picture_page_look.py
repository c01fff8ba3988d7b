# SPDX-License-Identifier: GPL-2.0-or-later
"""What a reader sees of a picture's page: its legend, what is dimmed, and all that on a phone."""

import re

import pytest
from children import processes, start_stopped
from picture_page import DRAWN, FOUND, TIP, place_of, search

from physview import pictures
from physview.pictures.kinds import PROCESS_KINDS

pytestmark = pytest.mark.needs("browser", "pfn", "kpage")

LAPTOP, PHONE = (1024, 700), (380, 760)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The page of a stopped process."""
    path = tmp_path_factory.mktemp("look") / "p.html"
    with processes() as start:
        picture = pictures.picture_process(start_stopped(start).pid)
    pictures.write_picture(picture, str(path), theme="light")
    return path


@pytest.fixture
def seen(tab, written):
    """Open the page on a screen of a size in CSS pixels, as after a click on a link."""

    def open_on(size):
        width, height = size
        tab.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        tab.complaints.clear()
        tab.open(written)
        tab.evaluate(DRAWN)
        return tab

    yield open_on
    assert tab.complaints == []
    tab.call("Emulation.clearDeviceMetricsOverride")


def boxes(tab, selector):
    """Left, top, right and bottom on the screen, and the text, of each element."""
    return tab.evaluate(
        f"[...document.querySelectorAll('{selector}')].map(each => {{"
        " const box = each.getBoundingClientRect();"
        " return [box.left, box.top, box.right, box.bottom, each.textContent]; })"
    )


@pytest.mark.parametrize("size", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_the_legend_is_seen_without_scrolling(seen, size):
    tab = seen(size)
    shown = boxes(tab, "#legend ul li")
    for left, top, right, bottom, _ in shown:
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
    words = " ".join(words for *_, words in shown)
    drawn = tab.evaluate("[...new Set(physview.model.runKind)]")
    assert len(drawn) >= 6
    for kind in drawn:
        assert tab.evaluate(f"physview.model.kinds[{kind}][1]") in words


def test_each_colour_of_the_legend_is_the_one_that_is_drawn(seen):
    tab = seen(LAPTOP)
    colours = tab.evaluate(
        "[...document.querySelectorAll('#legend ul li')].map(each => [each.textContent.trim(),"
        " getComputedStyle(each.querySelector('i')).backgroundColor])"
    )
    assert colours
    for words, colour in colours:
        (kind,) = (kind for kind in PROCESS_KINDS if re.match(rf"{kind.label} [\d.]", words))
        rgb = tuple(int(kind.light[at : at + 2], 16) for at in (1, 3, 5))
        assert colour == "rgb({}, {}, {})".format(*rgb)


def test_the_height_of_bands_is_named(seen):
    tab = seen(LAPTOP)
    (words,) = [each for each in boxes(tab, "#stage text") if each[4].startswith("height of")]
    assert words[4] == "height of a band: resident memory (square-root scale)"
    first_band = tab.evaluate("physview.model.layout.spans[0][0]")
    scale = tab.evaluate("document.getElementById('canvas').getBoundingClientRect().width") / 1440
    top = tab.evaluate("document.getElementById('canvas').getBoundingClientRect().top")
    assert words[3] <= top + first_band * scale + 3


def veil(tab, page, vma):
    """How opaque the paper is that is drawn over the band at a page: 0 to 255."""
    return tab.evaluate(
        "(() => { const {view, canvas} = physview, [left, width] = view.layout.body;"
        " const scale = canvas.width / view.layout.width;"
        f" const y = view.pageY({page}, {vma}), x = left + width / 2;"
        " return canvas.getContext('2d').getImageData(x * scale, y * scale, 1, 1).data[3]; })()"
    )


def is_inside(tab, page, vma):
    """Whether a page is drawn well within its band: pixels of an edge are covered in part only."""
    return tab.evaluate(
        "(() => { const {view, model, canvas} = physview;"
        f" const [top, bottom] = view.layout.spans[model.bandOf[{vma}]];"
        f" const y = view.pageY({page}, {vma}), scale = canvas.width / view.layout.width;"
        " return Math.min(y - top, bottom - y) * scale > 2; })()"
    )


def test_a_search_dims_all_bands_but_that_of_the_mapping(seen):
    tab = seen(LAPTOP)
    pages = tab.evaluate("physview.model.vmas.map(({first, end, name}) => [first, end, name])")
    heap = next(i for i, (_, _, name) in enumerate(pages) if name == "[heap]")
    bands = tab.evaluate("[...physview.model.bandOf]")
    middle = {vma: (first + end) // 2 for vma, (first, end, _) in enumerate(pages)}
    others = [v for v in middle if bands[v] != bands[heap] and is_inside(tab, middle[v], v)]
    assert len({bands[vma] for vma in others}) >= 3
    assert {veil(tab, middle[vma], vma) for vma in (heap, *others)} == {0}
    assert "[heap]" in search(tab, "[heap]")
    assert veil(tab, middle[heap], heap) == 0
    assert min(veil(tab, middle[vma], vma) for vma in others) > 150
    tab.evaluate("physview.whole()")
    tab.evaluate(DRAWN)
    assert {veil(tab, middle[vma], vma) for vma in (heap, *others)} == {0}


def test_a_search_for_one_mapping_dims_the_rest_of_its_band(seen):
    """Several mappings of one file share a band."""
    tab = seen(LAPTOP)
    bands = tab.evaluate("[...physview.model.bandOf]")
    pages = tab.evaluate("physview.model.vmas.map(({first, end, name}) => [first, end, name])")
    spans = tab.evaluate("physview.model.layout.spans")
    heights = {
        vma: (end - first) / tab.evaluate(f"physview.model.bands[{bands[vma]}].nrPages")
        * (spans[bands[vma]][1] - spans[bands[vma]][0])
        for vma, (first, end, _) in enumerate(pages)
    }  # fmt: skip
    shared = [vma for vma in heights if bands.count(bands[vma]) > 1 and heights[vma] > 8]
    one = next(v for v in shared if any(w != v and bands[w] == bands[v] for w in shared))
    tab.evaluate(f"physview.view.chosen = {{vma: {one}}}; physview.pinned = true")
    tab.evaluate("physview.view.draw()")
    tab.evaluate(DRAWN)
    for vma in (each for each in shared if bands[each] == bands[one]):
        first, end, _ = pages[vma]
        assert (veil(tab, (first + end) // 2, vma) > 150) == (vma != one)


def test_on_a_phone_the_page_can_be_read_and_used(seen):
    tab = seen(PHONE)
    assert tab.evaluate("document.documentElement.scrollWidth") == PHONE[0]
    assert tab.evaluate("document.getElementById('pan').scrollWidth") > PHONE[0]
    names = tab.evaluate("physview.model.bands.map(({name}) => name)")
    texts = [(bottom - top, words) for _, top, _, bottom, words in boxes(tab, "#stage text")]
    heights = [height for height, words in texts if words in names]
    assert heights
    assert min(heights) >= 9
    for left, _, right, _, _ in boxes(tab, "#search, #bar button"):
        assert 0 <= left < right <= PHONE[0]
    assert "[heap]" in search(tab, "[heap]")
    # A tap on a cell, after the picture was moved to it.
    pfn = int(re.search(r"pfn:(0x[0-9a-f]+)", tap_first_cell(tab))[1], 16)
    assert pfn in range(*tab.evaluate("[physview.model.ram[0][0], physview.model.ram.at(-1)[1]]"))
    ((left, top, right, bottom, _),) = boxes(tab, "#tip")
    assert 0 <= left < right <= PHONE[0]
    assert bottom - top < PHONE[1]
    assert tab.evaluate(FOUND)


def tap_first_cell(tab):
    """Find the first frame of the process, scroll to its cell, tap it; return what the tip says."""
    first = tab.evaluate("physview.model.pfnOf(physview.model.pieceIndex[0])")
    assert search(tab, f"pfn:{first:#x}")
    tab.evaluate("document.getElementById('pan').scrollLeft = 1000")
    x, y = place_of(tab, first)
    tab.evaluate(f"scrollBy(0, {y - PHONE[1] / 2})")
    x, y = place_of(tab, first)
    tab.evaluate(f"document.getElementById('pan').scrollLeft += {x - PHONE[0] * 0.8}")
    x, y = place_of(tab, first)
    point = [{"x": x, "y": y}]
    tab.call("Emulation.setTouchEmulationEnabled", enabled=True)
    tab.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=point)
    tab.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    tab.wait_for("!document.getElementById('tip').hidden")
    tab.call("Emulation.setTouchEmulationEnabled", enabled=False)
    return tab.evaluate(TIP)
