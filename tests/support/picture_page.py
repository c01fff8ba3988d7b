# SPDX-License-Identifier: GPL-2.0-or-later
"""Actions on the HTML page of a picture in a browser's tab, and expressions that read it."""

from physview import pictures

TIP = "document.getElementById('tip').textContent"
FOUND = "document.getElementById('found').textContent"
DRAWN = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


def search(tab, words):
    """Type into the search box; return the text of the result."""
    tab.evaluate("document.getElementById('search').value = ''")
    tab.evaluate("document.getElementById('search').focus()")
    tab.type(words)
    tab.press("Enter")
    tab.evaluate(DRAWN)
    return tab.evaluate(FOUND)


def place_of(tab, pfn):
    """The position of a frame's cell on the screen, or False if it is not visible."""
    return tab.evaluate(
        "(() => { const {view, canvas} = physview, box = canvas.getBoundingClientRect();"
        f" const [x, y, isSeen] = view.where({pfn}), scale = box.width / view.layout.width;"
        " return isSeen && [box.left + (x + view.cell / 2) * scale,"
        " box.top + (y + view.pitch / 2) * scale]; })()"
    )


def open_without_frames(tab, picture, path):
    """Open a picture's page as an unprivileged user gets it: without frames."""
    blind = picture._replace(
        frames=None, refusal="a test", space=picture.space._replace(links=None)
    )
    pictures.write_picture(blind, str(path))
    tab.complaints.clear()
    tab.open(path)
    assert tab.evaluate("document.documentElement.dataset.state") == "ready", tab.complaints
