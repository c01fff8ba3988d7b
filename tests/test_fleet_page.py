# SPDX-License-Identifier: GPL-2.0-or-later
"""The report of a fleet in a real browser: all that was planted is there, and names are inert."""

import json
import re

import fleets
import pytest

SPACE = re.compile(r"\s+")


@pytest.fixture(scope="module")
def written(physview, tmp_path_factory):
    """The report of a fleet with hostile names, and what was planted."""
    folder = tmp_path_factory.mktemp("report")
    events = fleets.make(folder / "fleet", hostile=fleets.HOSTILE)
    path = folder / "fleet.html"
    result = physview("fleet", str(folder / "fleet"), "report", "-o", str(path), "--json")
    assert (result.returncode, result.stderr) == (0, "")
    return path, events, json.loads(result.stdout)


def test_the_report_says_what_was_planted(written):
    path, events, document = written
    text = path.read_text()
    assert document["output"] == str(path)
    assert document["size_bytes"] == len(text.encode())
    assert document["machines"] == 9
    sections = dict(re.findall(r'<section id="([^"]+)">(.*?)</section>', text, re.DOTALL))
    assert list(sections) == list(document["rows"])
    kinds = {"leak": "leaks", "thp-loss": "thp-loss", "swap": "swap", "page-tables": "page-tables",
             "no-2m": "no-2m", "kernel": "fragmentation"}  # fmt: skip
    for event in events:
        if event["kind"] in kinds:
            section = sections[kinds[event["kind"]]]
            host = "alert(" if event["host"] == "node-007" else event["host"]
            assert host in section, event
            assert event["program"] is None or event["program"] in section, event
            assert "<svg " in section, event
    leak = next(fleets.iter_events(events, "leak"))
    assert leak["from"][:10] in sections["leaks"]


def test_names_in_the_report_are_text(written):
    text = written[0].read_text()
    assert "<script" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "&lt;script&gt;" in text
    assert "default-src 'none'" in text
    assert not re.search(r"(?:src|href)=\"(?!#)", text)


@pytest.mark.needs("browser")
def test_the_report_is_drawn_without_scripts_and_network(written, tab):
    tab.complaints.clear()
    tab.open(written[0])
    assert tab.complaints == []
    assert tab.evaluate("document.querySelectorAll('section').length") == 10
    # Each plot is as wide as the page, and each line is inside of its plot.
    boxes = tab.evaluate(
        "[...document.querySelectorAll('svg')].map(svg => {"
        " const box = svg.getBoundingClientRect();"
        " return [box.width, ...[...svg.querySelectorAll('.line, rect, text')].map(each => {"
        "  const own = each.getBoundingClientRect();"
        "  return own.left >= box.left - 1 && own.right <= box.right + 20"
        "   && own.top >= box.top - 1 && own.bottom <= box.bottom + 1; })]; })"
    )
    assert len(boxes) == 9
    for width, *inside in boxes:
        assert width > 800
        assert inside
        assert all(inside)
    # A browser would have run the markup in a name, and would show the name otherwise.
    shown = SPACE.sub(" ", tab.evaluate("document.body.innerText"))
    assert '<script>alert("x")</script>\\x1b[31m|=1+1,' in shown


def test_a_report_replaces_nothing_by_itself(written, physview):
    path = written[0]
    result = physview("fleet", str(path.parent / "fleet"), "report", "-o", str(path))
    assert result.returncode == 1
    assert "it is there already" in result.stderr
