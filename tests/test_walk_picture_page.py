# SPDX-License-Identifier: GPL-2.0-or-later
"""The page of a drawn walk in a real browser, and that no text in a drawing covers another."""

import json

import browser
import pytest
from drawn_walks import WALKS, made_walks

from physview.pictures.svg import to_svg
from physview.pictures.walk_layout import lay_out_walk
from physview.pictures.walk_output import write_walks
from physview.pictures.walk_shapes import FIELD_CAPTION_Y, GAP, columns_of

pytestmark = pytest.mark.needs("browser")

TEXT = "document.getElementById('%s').textContent"
LATER = "[...document.querySelectorAll('#stage g.later')].map(part => Number(part.dataset.step))"
# The position of each text and of each square of a colour, in pixels of the drawing.
PLACES = """(() => {
    const place = (part) => {
        const {x, y, width, height} = part.getBBox();
        return [part.textContent, x, y, x + width, y + height];
    };
    const squares = [...document.querySelectorAll('rect')].filter(
        (part) => part.getAttribute('width') === '9');
    return [[...document.querySelectorAll('text')].map(place), squares.map(place)];
})()"""
SLACK = 3.5  # The box of a text is higher than its letters.


@pytest.fixture(scope="module")
def small():
    """A browser's tab of 1024 by 700 pixels."""
    with browser.browse(1024, 700) as tab:
        yield tab


@pytest.fixture
def page(small, tmp_path):
    """A page with the walks of several processes, as if they were one's."""
    every = [WALKS[name].first for name in ("4 levels", "2 MiB", "absent", "unmapped")]
    labels = ["&buf", "buf[00]", "buf[01]", "[heap]"]
    each = [walk._replace(label=label) for walk, label in zip(every, labels, strict=True)]
    addresses = [
        walk._replace(walk=walk.walk._replace(vaddr=0x7000_0000_0000 + i))
        for i, walk in enumerate(each)
    ]
    path = tmp_path / "walk.html"
    write_walks(WALKS["4 levels"]._replace(addresses=addresses, asked=1), str(path))
    small.complaints.clear()
    small.prefer("light")
    small.open(path)
    assert small.evaluate("document.documentElement.dataset.state") == "ready", small.complaints
    yield small
    assert small.complaints == []


def pressed(tab):
    return tab.evaluate("document.querySelector('[aria-pressed=true]').getAttribute('aria-label')")


def test_keys_go_through_the_walk(page):
    assert "5 steps" in page.evaluate(TEXT % "count")
    assert page.evaluate(LATER) == []
    steps = json.loads(page.evaluate("JSON.stringify(physview.walks[1].steps)"))
    for step, words in enumerate(steps, 1):
        page.press("ArrowRight")
        assert page.evaluate(TEXT % "count") == f"Step {step} of 5"
        assert page.evaluate(TEXT % "caption") == words
        assert page.evaluate(LATER) == list(range(step + 1, 6))
    page.press("ArrowRight")
    assert page.evaluate(TEXT % "count") == "Step 5 of 5"
    page.press("ArrowLeft")
    assert page.evaluate(LATER) == [5]
    page.press("Home")
    assert page.evaluate(TEXT % "count") == "Step 1 of 5"
    page.press("End")
    page.press("0")
    assert page.evaluate("physview.step") == 0
    assert "right arrow" in page.evaluate(TEXT % "caption")


def test_buttons_do_as_the_keys_do(page):
    for button, step in (("next", 1), ("next", 2), ("back", 1), ("whole", 0)):
        page.evaluate(f"document.getElementById('{button}').click()")
        assert page.evaluate("physview.step") == step
    assert page.evaluate("document.getElementById('back').disabled")


def test_a_click_on_a_table_goes_to_its_step(page):
    place = "document.querySelector('#stage g[data-step=\"%d\"] rect').getBoundingClientRect()"
    for step in (3, 2, 5):
        box = json.loads(page.evaluate(f"JSON.stringify({place % step})"))
        at = {"x": box["x"] + 5, "y": box["y"] + 3, "button": "left", "clickCount": 1}
        page.call("Input.dispatchMouseEvent", type="mousePressed", **at)
        page.call("Input.dispatchMouseEvent", type="mouseReleased", **at)
        assert page.evaluate("physview.step") == step


def test_other_addresses_are_a_click_or_a_key_away(page):
    assert pressed(page) == "buf[00] 0x700000000001"
    assert "2 MiB page" in page.evaluate(TEXT % "stage")
    texts = "[...document.querySelectorAll('#addresses > *')].map(part => part.textContent)"
    assert page.evaluate(texts) == ["&buf", "", "buf", "00", "01", "[heap]"]
    page.press("ArrowDown")
    assert pressed(page) == "buf[01] 0x700000000002"
    assert "the walk ends here" in page.evaluate(TEXT % "stage")
    page.press("ArrowUp")
    page.press("ArrowUp")
    assert pressed(page) == "&buf 0x700000000000"
    page.press("End")
    assert page.evaluate(TEXT % "count") == "Step 6 of 6"
    # A walk with fewer steps is shown whole, too.
    page.evaluate("document.querySelector('#addresses button:last-child').click()")
    assert pressed(page) == "[heap] 0x700000000003"
    assert page.evaluate(TEXT % "count") == "Step 3 of 3"
    assert len(page.evaluate("[...document.querySelectorAll('#steps li')].map(() => 1)")) == 3


def test_the_search(page):
    def search(words):
        page.press("/")
        page.evaluate("document.getElementById('search').value = ''")
        page.type(words)
        page.press("Enter")
        page.press("Escape")
        return page.evaluate(TEXT % "found")

    assert search("0x700000000003") == ""
    assert pressed(page) == "[heap] 0x700000000003"
    assert search("buf[01]") == ""
    assert pressed(page) == "buf[01] 0x700000000002"
    assert search("0x1234").endswith(" walk 4194303 ADDR --picture FILE.html")
    assert search("nothing") == "there is no nothing here"
    assert pressed(page) == "buf[01] 0x700000000002"
    page.press("ArrowRight")  # the search has lost the focus
    assert page.evaluate("physview.step") == 1


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_into_a_small_window_in_light_and_dark(page, theme):
    page.prefer(theme)
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colour == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 29)"}[theme]
    place = "document.querySelector('#stage svg').getBoundingClientRect()"
    box = json.loads(page.evaluate(f"JSON.stringify({place})"))
    assert box["top"] > 0
    assert box["bottom"] <= 700
    assert box["width"] == 1024
    # The longest sentence must not move the drawing.
    page.press("End")
    page.press("ArrowLeft")
    assert page.evaluate(f"{place}.top") == box["top"]
    caption = "document.getElementById('caption')"
    assert page.evaluate(f"{caption}.scrollHeight <= {caption}.clientHeight")
    assert page.evaluate("document.documentElement.scrollWidth") == 1024


def test_printed_it_is_light_and_whole_with_all_sentences(page):
    page.press("Home")
    page.call(
        "Emulation.setEmulatedMedia",
        media="print",
        features=[{"name": "prefers-color-scheme", "value": "dark"}],
    )
    try:
        ink = "getComputedStyle(document.querySelector('#stage text.ink')).fill"
        assert page.evaluate(ink) == "rgb(27, 33, 39)"
        shown = "getComputedStyle(document.getElementById('%s')).display"
        assert page.evaluate(shown % "bar") == page.evaluate(shown % "addresses") == "none"
        assert page.evaluate(shown % "steps") == "block"
        faint = "[...document.querySelectorAll('#stage g')].map(g => getComputedStyle(g).opacity)"
        page.wait_for(f"{faint}.every(opacity => opacity === '1')")
        pdf = page.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)["data"]
    finally:
        page.call("Emulation.setEmulatedMedia", media="")
    import base64

    assert b"/Count 1\n" in base64.b64decode(pdf)


def test_without_javascript_the_walk_is_there(small, tmp_path):
    path = tmp_path / "walk.html"
    write_walks(WALKS["4 levels"], str(path))
    small.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        small.call("Page.navigate", url=f"file://{path}")
        small.wait_for("document.querySelector('#stage svg text') !== null")
        assert "need JavaScript" in small.evaluate("document.body.innerText")
        assert small.evaluate("document.querySelectorAll('#steps li').length") == 6
    finally:
        small.call("Emulation.setScriptExecutionDisabled", value=False)


@pytest.mark.parametrize("name", WALKS)
def test_no_text_covers_another_or_leaves_its_column(small, tmp_path, name):
    walks = WALKS[name]
    drawn = lay_out_walk(walks, walks.first)
    path = tmp_path / "walk.svg"
    path.write_text(to_svg(drawn.drawing()))
    small.call("Page.navigate", url=f"file://{path}")
    small.wait_for("document.querySelector('text') !== null")
    texts, squares = small.evaluate(PLACES)
    assert len(texts) > 40
    for i, (words, left, top, right, bottom) in enumerate(texts):
        assert left >= 0, words
        assert right <= 1024, words
        assert bottom <= drawn.height, words
        for other, x, y, end, low in [*texts[i + 1 :], *squares]:
            width, height = min(right, end) - max(left, x), min(bottom, low) - max(top, y)
            assert width < 1 or height < SLACK, (words, other)
    columns = columns_of(walks.geometry)
    every = [columns.root, *columns.levels, *columns.folded]
    for words, left, _, right, bottom in texts:
        if bottom > FIELD_CAPTION_Y - 5 and not words.startswith("hidden:"):
            for column in every:
                if column.x - 1 <= left < column.right and not is_wide(walks, column, columns):
                    assert right <= column.right + GAP / 2, words


def is_wide(walks, column, columns):
    """Whether something else than a table is in a column: a huge page, or what ends a walk."""
    return column in columns.levels[len(walks.first.levels) :]


def test_hostile_names_run_nothing(small, tmp_path):
    evil = "</script><img src=x onerror=document.title='evil'>"
    walks = made_walks(0x1000, path=f"/{evil}", name=evil)
    addresses = [walks.first._replace(label=evil), walks.first]
    path = tmp_path / "walk.html"
    write_walks(walks._replace(addresses=addresses), str(path))
    small.complaints.clear()
    small.open(path)
    small.press("ArrowDown")
    small.press("End")
    assert small.evaluate("document.title") != "evil"
    assert small.evaluate("document.querySelectorAll('img').length") == 0
    assert small.complaints == []
